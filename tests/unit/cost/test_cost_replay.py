"""The replay takes as long as arithmetic says, with waits and without."""

from __future__ import annotations

import pytest
from traced import AUTOGRAD, MAIN, Traced, training

from syncagent.cost import replay, sites, trace
from syncagent.cost.estimate import estimate
from syncagent.cost.program import RECORD, build


def program_of(traced):
    whole = trace.from_values(traced.file, "made up")
    return build(whole, whole.bounds)


def step_ms(traced, without=frozenset(), scale=1.0):
    program = program_of(traced)
    if without == "all":
        without = frozenset(range(len(program.waits)))
    return replay.run(program.ready(scale), program.groups, without)


def estimated(traced, **more):
    return estimate(trace.from_values(traced.file, "made up"), sites.from_trace, **more)


def test_a_busy_gpu_sets_the_pace_once_nothing_waits():
    """20 kernels of 50 µs and the gaps of 1 µs between them: 1.02 ms."""
    assert step_ms(training(), "all") == pytest.approx(1.02, rel=0.02)


def test_with_its_wait_the_step_also_has_the_hosts_way_back_to_the_gpu():
    traced = training()
    assert step_ms(traced) == pytest.approx(1.02 + 0.05, rel=0.03)
    assert step_ms(traced) > step_ms(traced, "all")


def test_a_slow_host_sets_the_pace_whatever_waits():
    """20 launches of 5 µs, 100 µs before each, and 20 µs: 2.12 ms; the wait adds its own few µs."""
    traced = training(kernel_us=10.0, host_us=100.0)
    assert step_ms(traced, "all") == pytest.approx(2.12, rel=0.02)
    assert step_ms(traced) - step_ms(traced, "all") < 0.03


def test_the_hosts_times_scale_and_the_gpus_do_not():
    slow_host = training(kernel_us=1.0, host_us=100.0, items=0)
    assert step_ms(slow_host, scale=0.5) == pytest.approx(step_ms(slow_host) / 2, rel=0.02)
    busy_gpu = training(kernel_us=200.0, items=0)
    assert step_ms(busy_gpu, scale=0.5) == pytest.approx(step_ms(busy_gpu), rel=0.02)


def test_a_full_launch_queue_holds_the_host_up():
    """A host far ahead cannot end its steps before the GPU has room: 3,000 launches per step, 1,000 outstanding."""
    traced = training(steps=3, kernels=3_000, kernel_us=20.0, host_us=0.0, items=0)
    program = program_of(traced)
    assert replay.run(program.ready(1.0), 1) == pytest.approx(3_000 * 21.0 / 1e3, rel=0.01)
    host = 0.0
    for item in program.ready(1.0):
        host += item[3] if item[0] == 0 else 0.0
    assert host / 3 < 3_000 * 21.0  # the host alone would be done sooner


def test_calibration_finds_the_scale_that_reproduces_the_measured_step():
    traced = training(kernel_us=10.0, host_us=100.0)
    fitted = replay.fit(program_of(traced), 1.2)
    assert fitted.step_ms == pytest.approx(1.2, rel=0.01)
    assert 0.5 < fitted.scale < 0.6


def test_two_streams_that_wait_for_one_another_keep_their_order():
    """A copy of 500 µs on a stream of its own, for which the main stream waits by an event."""

    def with_copy(us):
        traced = Traced()
        for number in range(4):
            began = traced.now
            traced.host(5.0)
            traced.launch(us, stream=13, name="Memcpy HtoD (Pinned -> Device)", bytes=4096)
            traced.correlation += 1
            traced.event("cuda_runtime", "cudaEventRecord", traced.now, 1.0, correlation=traced.correlation)
            traced.correlation += 1
            traced.event("cuda_runtime", "cudaStreamWaitEvent", traced.now + 1, 1.0, correlation=traced.correlation)
            traced.event(
                "cuda_sync", "Stream Wait Event", traced.now, 1.0, 7, 0, stream=7, correlation=traced.correlation
            )
            traced.host(2.0)
            traced.ready[7] = max(traced.ready.get(7, 0.0), traced.ready[13])
            traced.launch(300.0, stream=7)
            traced.wait(7)
            traced.annotated(f"ProfilerStep#{number}", began)
        return traced

    assert step_ms(with_copy(500.0)) == pytest.approx(0.5 + 0.3, rel=0.05)
    assert step_ms(with_copy(500.0), "all") < step_ms(with_copy(500.0))


def test_streams_that_depend_on_each_other_overlap_only_once_the_host_does_not_wait():
    """200 µs on one stream, then 300 on another that waits for it and 250 on the first; 100 of the host after a wait.

    With the wait 200 + 300 + 100 and the calls; without it the first stream's own 450 set the pace.
    """
    traced = Traced()
    for number in range(6):
        began = traced.now
        traced.host(5.0)
        traced.launch(200.0, stream=7)
        record = traced.correlation + 1
        traced.event("cuda_runtime", "cudaEventRecord", traced.now, 1.0, correlation=record)
        more = {"correlation": record + 1, "wait_on_cuda_event_record_corr_id": record}
        traced.event("cuda_runtime", "cudaStreamWaitEvent", traced.now + 1.0, 1.0, correlation=record + 1)
        traced.event("cuda_sync", "Stream Wait Event", traced.now + 1.0, 1.0, 13, 0, stream=13, **more)
        traced.correlation += 2
        traced.host(2.0)
        traced.ready[13] = max(traced.ready.get(13, 0.0), traced.ready[7])
        traced.launch(300.0, stream=13)
        traced.launch(250.0, stream=7)
        traced.wait(13)
        traced.host(100.0)
        traced.annotated(f"ProfilerStep#{number}", began)
    assert step_ms(traced) == pytest.approx(0.617, abs=0.003)
    assert step_ms(traced, "all") == pytest.approx(0.452, abs=0.003)


def test_a_thread_that_waits_for_work_of_its_own_does_not_hold_the_step_up():
    """Another thread launches and waits, beside a host that sets the pace: 0.9 ms per step, whether it waits or not."""
    traced = Traced()
    for number in range(6):
        began = traced.now
        for _ in range(10):
            at = traced.now
            traced.correlation += 2
            launched, waited = traced.correlation - 1, traced.correlation
            traced.event("cuda_runtime", "cudaLaunchKernel", at + 1.0, 5.0, 300, correlation=launched)
            traced.event("kernel", "k", at + 7.0, 60.0, 13, 0, stream=13, device=0, correlation=launched)
            traced.event("cuda_runtime", "cudaStreamSynchronize", at + 8.0, 62.0, 300, correlation=waited)
            traced.event("cuda_sync", "Stream Sync", at + 8.0, 1.0, 13, 0, stream=13, correlation=waited)
            traced.host(10.0)
            traced.launch(20.0)
            traced.event("cuda_runtime", "cudaEventQuery", traced.now + 30.0, 20.0, correlation=0)
            traced.host(75.0)
        traced.annotated(f"ProfilerStep#{number}", began)
    assert program_of(traced).groups == 2
    assert step_ms(traced) == pytest.approx(0.9, rel=0.01)
    assert estimated(traced).gain_all_ms == 0.0


@pytest.mark.parametrize(
    ("name", "size", "waits"),
    [
        ("Memcpy HtoD (Pageable -> Device)", 1 << 20, 1),
        ("Memcpy HtoD (Pageable -> Device)", 64, 0),
        ("Memcpy DtoH (Device -> Pageable)", 64, 1),
        ("Memcpy HtoD (Pinned -> Device)", 1 << 20, 0),
    ],
)
def test_which_copies_hold_the_host_up_by_themselves(name, size, waits):
    """Pageable ones do, but for small ones to the GPU, which the driver stages."""
    traced = Traced()
    for number in range(3):
        began = traced.now
        traced.launch(20.0)
        traced.launch(40.0, name=name, bytes=size)
        traced.events[-2]["dur"] += 100.0  # the call returns when the copy is over
        traced.host(150.0)
        traced.annotated(f"ProfilerStep#{number}", began)
    assert len(program_of(traced).waits) == 3 * waits


def test_autograds_thread_works_while_the_main_thread_stands_still():
    """Calls of two threads that never overlap are one line of work."""
    traced = training()
    turn = 0
    for event in traced.events:
        if event["cat"] == "cuda_runtime" and event["name"] == "cudaLaunchKernel":
            turn += 1
            event["tid"] = AUTOGRAD if turn % 20 >= 10 else MAIN
    assert program_of(traced).groups == 1
    assert step_ms(traced) == pytest.approx(step_ms(training()), rel=1e-6)


def test_a_thread_whose_calls_overlap_goes_its_own_way():
    traced = training()
    for event in [event for event in traced.events if event["cat"] == "cuda_runtime"]:
        traced.event("cuda_runtime", "cudaEventQuery", event["ts"] + 0.5, event["dur"], 300, correlation=0)
    assert program_of(traced).groups == 2
    assert step_ms(traced) == pytest.approx(step_ms(training()), rel=0.02)


def test_an_event_is_not_taken_for_the_latest_of_a_thread_that_has_its_number():
    traced = Traced()
    traced.correlation = MAIN - 2
    for number in range(3):
        began = traced.now
        traced.launch(20.0)
        traced.correlation += 1
        traced.event("cuda_runtime", "cudaEventRecord", traced.now, 1.0, correlation=traced.correlation)
        traced.host(5.0)
        traced.annotated(f"ProfilerStep#{number}", began)
    records = [item for item in program_of(traced).ready(1.0) if item[0] == RECORD]
    assert MAIN in {correlation for _, _, correlation, _ in records}
    assert not {correlation for _, _, correlation, _ in records} & {latest for *_, latest in records}


@pytest.mark.parametrize(("name", "target"), [("cudaDeviceSynchronize", None), ("cudaStreamSynchronize", 7)])
def test_a_host_that_works_after_a_wait_leaves_the_gpu_idle_as_long(name, target):
    """10 kernels of 100 µs, a wait, 500 µs of the host: 1.5 ms, of which 0.5 are idle; without the wait 1 ms."""
    traced = Traced()
    for number in range(6):
        began = traced.now
        for _ in range(10):
            traced.host(2.0)
            traced.launch(100.0)
        traced.wait()
        traced.events[-2]["name"] = name
        if target is None:
            traced.events.pop()
        traced.host(500.0)
        traced.annotated(f"ProfilerStep#{number}", began)
    found = estimated(traced)
    (site,) = found.sites
    assert found.step_ms == pytest.approx(1.52, rel=0.01)
    assert site.gain_ms == pytest.approx(0.51, rel=0.03)
    assert site.idle_ms == pytest.approx(0.51, rel=0.03)


def test_a_wait_for_an_event_in_the_middle_leaves_the_gpu_its_work():
    """The event is queued behind 5 kernels of 10: the wait for it is free, one for the whole stream would not be."""
    traced = Traced()
    for number in range(6):
        began = traced.now
        for kernel in range(10):
            traced.host(2.0)
            traced.launch(100.0)
            if kernel == 4:
                traced.correlation += 1
                record, done = traced.correlation, traced.ready[7]
                traced.event("cuda_runtime", "cudaEventRecord", traced.now, 1.0, correlation=record)
                traced.host(1.0)
        traced.correlation += 1
        end = max(done, traced.now) + 5.0
        more = {"correlation": traced.correlation, "wait_on_cuda_event_record_corr_id": record}
        traced.event(
            "cuda_runtime", "cudaEventSynchronize", traced.now, end - traced.now, correlation=traced.correlation
        )
        traced.event("cuda_sync", "Event Sync", traced.now, 1.0, 7, 0, stream=7, **more)
        traced.now = end
        traced.host(100.0)
        traced.annotated(f"ProfilerStep#{number}", began)
    found = estimated(traced)
    assert found.step_ms == pytest.approx(1.01, rel=0.01)
    assert (found.sites[0].gain_ms, found.sites[0].idle_ms) == (0.0, 0.0)


class TestEstimate:
    def test_a_read_in_a_busy_step_has_its_cost(self):
        found = estimated(training())
        assert found.abstained is None
        (site,) = found.sites
        assert (site.site.op, site.site.kind, site.count) == ("aten::item", "scalar_read", 1.0)
        assert site.gain_ms == found.gain_all_ms == pytest.approx(0.05, abs=0.02)
        assert 0.0 < site.idle_ms < 0.05

    def test_what_reading_takes_of_the_host_goes_with_the_read(self):
        """A host that sets the pace saves the whole of ``item()``, Python's part included."""

        def reading(us):
            traced = Traced()
            for number in range(6):
                began = traced.now
                for _ in range(20):
                    traced.host(100.0)
                    traced.launch(5.0)
                at = traced.now
                traced.host(us)
                traced.item()
                traced.host(5.0)
                traced.annotated("aten::item", at, "cpu_op")
                traced.annotated(f"ProfilerStep#{number}", began)
            return estimated(traced).gain_all_ms

        assert reading(80.0) - reading(30.0) == pytest.approx(0.05, abs=0.005)

    def test_a_free_read_has_none(self):
        """The GPU has nothing to do for most of the step: the wait is for a kernel that is over."""
        found = estimated(training(kernel_us=2.0, host_us=300.0))
        assert found.gain_all_ms == 0.0
        assert found.sites[0].gain_ms == 0.0
        assert "gains nothing" in found.sites[0].advice

    def test_fixing_only_the_first_moves_the_wait_to_the_next(self):
        traced = Traced()
        for number in range(6):
            began = traced.now
            for _ in range(20):
                traced.host(5.0)
                traced.launch(100.0)
            traced.host(2.0)
            traced.item()
            traced.annotated("loss", traced.now - 1000.0)
            at = traced.now
            traced.host(5.0)
            traced.item()
            traced.annotated("accuracy", at)
            traced.host(30.0)
            traced.annotated(f"ProfilerStep#{number}", began)
        found = estimated(traced)
        assert len(found.sites) == 2
        alone = sum(site.gain_ms for site in found.sites)
        assert found.gain_all_ms > alone + 0.02
        assert [round(entry.gain_ms, 6) for entry in found.order] == sorted(round(e.gain_ms, 6) for e in found.order)
        assert found.order[-1].gain_ms == pytest.approx(found.gain_all_ms)

    def test_a_program_that_the_replay_does_not_reproduce_gets_no_estimate(self):
        found = estimated(training(kernel_us=100.0), measured_ms=1.0)
        assert found.abstained.startswith("the replay takes 2.0")
        assert found.gain_all_ms is None
        assert all(site.gain_ms is None and site.reason == found.abstained for site in found.sites)

    def test_a_range_that_has_the_steps_number_in_its_name_is_one_site(self):
        """Told apart, each would gain a sixth of 0.05 ms, which is none."""
        traced = training()
        for number, mark in enumerate([e for e in traced.events if e["name"].startswith("ProfilerStep")]):
            traced.event("user_annotation", f"step {number}", mark["ts"], mark["dur"])
        (site,) = estimated(traced).sites
        assert site.count == 1.0
        assert site.gain_ms == pytest.approx(0.05, abs=0.02)

    def test_what_is_too_little_to_claim_is_not_in_the_order_either(self):
        found = estimated(training(kernel_us=2.0, host_us=300.0))
        assert [entry.gain_ms for entry in found.order] == [0.0]

    def test_more_sites_than_the_order_takes_are_counted(self):
        traced = training(kernels=50, items=50)
        for number, event in enumerate([e for e in traced.events if e["name"] == "aten::item"]):
            letters = "".join("abcdefghij"[int(digit)] for digit in str(number % 50))
            traced.event("user_annotation", letters, event["ts"], event["dur"])
        found = estimated(traced)
        assert (len(found.sites), len(found.order)) == (50, 40)
        assert "the order is of the 40 sites that gain most by themselves, of 50" in found.notes

    def test_steps_that_are_unlike_get_no_estimate(self):
        traced = training(steps=4)
        began = traced.now
        for _ in range(60):
            traced.host(10.0)
            traced.launch(50.0)
        traced.annotated("ProfilerStep#4", began)
        assert estimated(traced).abstained == "the steps are too unlike each other: 21 to 60 launches"

    def test_a_branch_on_the_value_needs_a_rewrite_and_says_what_that_would_gain(self):
        traced = training()
        for event in traced.events:
            if event["name"] == "aten::item":
                event["name"] = "aten::is_nonzero"
        (site,) = estimated(traced).sites
        assert site.gain_ms is None
        assert site.reason == "needs a rewrite: the host branches on the value"
        assert site.gain_if_rewritten_ms == pytest.approx(0.05, abs=0.02)

    def test_a_trace_without_steps_counts_as_one(self):
        traced = training()
        traced.events = [event for event in traced.events if not event["name"].startswith("ProfilerStep")]
        found = estimated(traced)
        assert found.steps == 1
        assert any("marks no steps" in note for note in found.notes)

    def test_the_json_has_the_documented_keys(self):
        values = estimated(training()).to_dict()
        assert {"steps", "step_ms", "measured_step_ms", "gain_all_ms", "order", "sites", "abstained"} <= set(values)
        assert values["steps"] == 5
