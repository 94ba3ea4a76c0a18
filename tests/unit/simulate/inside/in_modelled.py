"""Modelled times: what a named GPU would have taken, exactly as the formulas of timing.py say."""

from __future__ import annotations

import pytest
import torch

from syncagent import simulate
from syncagent.simulate import modelled, timing
from syncagent.simulate.datasheets import GPUS
from syncagent.simulate.timing import Work, duration_ns, launch_ns

H100 = GPUS["H100"]
READ = Work(transferred=8, is_pinned=True)
SIZE = 512


class Processor:
    """A clock of the processor that stands still unless a test moves it on."""

    now_ns = 0

    def __call__(self):
        return self.now_ns


@pytest.fixture
def processor():
    return Processor()


@pytest.fixture
def clock(processor):
    """Times are modelled for an H100, and the program itself takes none."""
    torch.cuda.synchronize()
    give_back = simulate.borrow(gpu="H100")
    clock = modelled.clock
    clock.processor_ns = processor
    yield clock
    torch.cuda.synchronize()
    give_back()


SLEEP_NS = 1_000_000
"""What is queued behind a sleep of this length does not have to wait for its launch."""


def product():
    """Two matrices, and what their product is to a GPU."""
    matrices = [torch.zeros(SIZE, SIZE, device="cuda") for _ in range(2)]
    torch.cuda.synchronize()
    return matrices, Work(nbytes=3 * SIZE * SIZE * 4, flops=2 * SIZE**3, rate="fp32")


def sleep():
    torch.cuda._sleep(SLEEP_NS * 3 // 2)


def end_of(clock, stream):
    return clock.stream(stream.engine).end_ns


def stall_of(clock, wait):
    before = clock.stalled_ns
    wait()
    return clock.stalled_ns - before


def test_a_read_behind_a_product_waits_for_as_long_as_the_formulas_say(clock):
    row, column = torch.zeros(1, SIZE, device="cuda"), torch.zeros(SIZE, 1, device="cuda")
    torch.cuda.synchronize()
    sleep()
    work = Work(nbytes=(2 * SIZE + 1) * 4, flops=2 * SIZE, rate="fp32")
    gpu = timing.LATENCY_NS + SLEEP_NS + duration_ns(work, H100) + duration_ns(READ, H100)
    host = timing.LAUNCH_NS + timing.CALL_NS + launch_ns(work) + timing.CALL_NS + launch_ns(READ)
    assert stall_of(clock, lambda: (row @ column).item()) == gpu - host + timing.RETURN_NS


def test_the_same_program_takes_the_same_time(clock):
    def run():
        (x, y), _ = product()
        began = clock.now()
        for _ in range(3):
            x = (x @ y).relu()
        stall = stall_of(clock, x.sum().item)
        return stall, clock.now() - began

    assert run() == run()


def test_the_host_does_not_wait_for_what_is_over(clock, processor):
    (x, y), _ = product()
    x @ y
    sleep()
    processor.now_ns += 50_000_000  # the program does something else for 50 ms
    assert stall_of(clock, torch.cuda.synchronize) == 0
    began = clock.now()
    processor.now_ns += 50_000_000
    assert clock.now() - began == 50_000_000


def test_a_short_pause_is_part_of_what_each_op_costs(clock, processor):
    x = torch.zeros(4, device="cuda")
    torch.cuda.synchronize()
    began = clock.now()
    processor.now_ns += timing.LONG_NS
    x.add_(1)
    assert clock.now() - began == timing.CALL_NS + timing.LAUNCH_NS


def test_a_pause_counts_as_the_least_that_it_has_been_at_that_place(clock, processor):
    x = torch.zeros(4, device="cuda")
    torch.cuda.synchronize()
    found = []
    for own_ms in (30, 20, 90, 20):
        began = clock.now()
        x.add_(1)
        processor.now_ns += own_ms * 1_000_000
        x.mul_(1)
        found.append(clock.now() - began - 2 * (timing.CALL_NS + timing.LAUNCH_NS))
    assert found == [30_000_000, 20_000_000, 20_000_000, 20_000_000]


def test_streams_run_beside_each_other(clock):
    (x, y), work = product()
    own, other = torch.cuda.current_stream(), torch.cuda.Stream()
    sleep()
    with torch.cuda.stream(other):
        x @ y
    launched = timing.LAUNCH_NS + timing.CALL_NS  # after the sleep's
    assert end_of(clock, own) - end_of(clock, other) == SLEEP_NS - launched - duration_ns(work, H100)


def test_a_stream_waits_for_an_event_of_another_one(clock):
    (x, y), work = product()
    own, other, done = torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Event()
    sleep()
    done.record()
    sleep()
    other.wait_event(done)
    with torch.cuda.stream(other):
        x @ y
    assert end_of(clock, other) - done.modelled_ns == duration_ns(work, H100)
    assert end_of(clock, own) - done.modelled_ns == SLEEP_NS
    assert stall_of(clock, done.synchronize) > 0
    assert clock.now() == done.modelled_ns + timing.RETURN_NS


def test_events_measure_modelled_time(clock):
    (x, y), work = product()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    sleep()
    x @ y
    end.record()
    end.synchronize()
    assert start.elapsed_time(end) * 1e6 == pytest.approx(SLEEP_NS + duration_ns(work, H100))


def test_a_sleep_lasts_as_long_as_it_says(clock):
    sleep()
    expected = timing.LATENCY_NS + SLEEP_NS - timing.LAUNCH_NS + timing.RETURN_NS
    assert stall_of(clock, torch.cuda.synchronize) == expected


@pytest.mark.parametrize("pinned", [False, True])
def test_a_blocking_copy_takes_the_links_time(clock, pinned):
    host = torch.zeros(1 << 20)
    host = host.pin_memory() if pinned else host
    on_device = torch.empty(1 << 20, device="cuda")
    torch.cuda.synchronize()
    work = Work(transferred=4 << 20, is_pinned=pinned)
    expected = timing.LATENCY_NS + duration_ns(work, H100) - launch_ns(work) + timing.RETURN_NS
    assert stall_of(clock, lambda: on_device.copy_(host)) == expected


def test_a_copy_that_does_not_block_stalls_nobody(clock):
    host = torch.zeros(1 << 20).pin_memory()
    on_device = torch.empty(1 << 20, device="cuda")
    torch.cuda.synchronize()
    assert stall_of(clock, lambda: on_device.copy_(host, non_blocking=True)) == 0
    assert clock.stream(torch.cuda.current_stream().engine).end_ns > clock.now()


def test_views_and_empty_memory_give_the_gpu_nothing_to_do(clock):
    x = torch.zeros(8, 8, device="cuda")
    torch.cuda.synchronize()
    busy = clock.busy_ns()
    x.t()[3:].unsqueeze(0), torch.empty(8, device="cuda")
    torch.cuda.synchronize()
    assert clock.busy_ns() == busy


def test_what_a_wait_reports_is_the_modelled_stall(clock, observed):
    (x, y), _ = product()
    observed.clear()
    sleep()
    x @ y
    stall = stall_of(clock, torch.cuda.synchronize)
    assert observed.spans[-1][1] == stall > 0


def test_a_wait_of_the_simulations_own_moves_no_modelled_clock(clock):
    sleep()
    now = clock.now()
    assert stall_of(clock, torch.cuda.current_stream().engine.wait) == 0
    assert clock.now() == now


def test_tensor_cores_are_used_where_the_program_lets_them(clock):
    (x, y), work = product()
    took = {}
    for rate, allows in (("fp32", "ieee"), ("tf32", "tf32")):
        before, torch.backends.cuda.matmul.fp32_precision = torch.backends.cuda.matmul.fp32_precision, allows
        try:
            busy = clock.busy_ns()
            x @ y
            torch.cuda.synchronize()
            took[rate] = clock.busy_ns() - busy
        finally:
            torch.backends.cuda.matmul.fp32_precision = before
    assert took == {rate: duration_ns(work._replace(rate=rate), H100) for rate in took}


def test_half_precision_has_the_rate_of_tensor_cores(clock):
    x = torch.zeros(SIZE, SIZE, device="cuda", dtype=torch.bfloat16)
    torch.cuda.synchronize()
    busy = clock.busy_ns()
    x @ x
    torch.cuda.synchronize()
    work = Work(nbytes=2 * SIZE * SIZE * 2, flops=2 * SIZE**3, rate="half")
    assert clock.busy_ns() - busy == duration_ns(work, H100)


def test_recurrent_layers_take_their_time_steps_one_after_the_other(clock):
    layer = torch.nn.LSTM(8, 16).cuda()
    x = torch.zeros(10, 4, 8, device="cuda")
    torch.cuda.synchronize()
    busy = clock.busy_ns()
    with torch.no_grad():
        layer(x)
    torch.cuda.synchronize()
    assert clock.busy_ns() - busy >= 10 * timing.SERIAL_NS


def test_the_device_says_which_gpu_is_modelled(clock):
    assert clock.key == "H100"
    assert torch.cuda.get_device_name() == "NVIDIA H100 80GB HBM3 (simulated, times modelled)"
    assert torch.cuda.get_device_properties(0).name == torch.cuda.get_device_name()
    assert simulate.modelled_gpu() == "H100"


def test_another_gpu_cannot_be_modelled_meanwhile(clock):
    with pytest.raises(simulate.SimulationError, match="modelled for H100 already; L4 was asked for now"):
        simulate.borrow(gpu="L4")
    assert simulate.modelled_gpu() == clock.key


def test_an_unknown_gpu_is_refused():
    with pytest.raises(simulate.SimulationError, match="times can be modelled for H100, H200, A100, L4"):
        simulate.borrow(gpu="GTX 1080")
    assert simulate.modelled_gpu() is None


def test_a_report_has_modelled_times_and_says_so():
    import syncagent

    net = torch.nn.Linear(64, 64).cuda()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x = torch.rand(32, 64, device="cuda")
    with syncagent.watch(simulate=True, simulate_gpu="H100") as agent:
        modelled.clock.processor_ns = Processor()
        for _ in range(4):
            optimizer.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            optimizer.step()
            loss.item()
    report = agent.report()
    assert modelled.clock is None
    assert report.run.modelled == "H100"
    assert 0 < report.run.gpu_busy_s < report.run.duration_s < 0.1
    assert report.run.device == "NVIDIA H100 80GB HBM3 (simulated, times modelled)"
    lasted = {step.end_ns - step.start_ns for step in report.step_times[1:]}
    assert len(lasted) == 1, "each step takes the same modelled time"
    assert {event.stall_ns for event in agent.events()[1:]} == {agent.events()[1].stall_ns}
    assert "modelled for an H100, not measured on one" in report.to_text()
    assert "driver" not in {sensor.name for sensor in report.sensors if sensor.live}
