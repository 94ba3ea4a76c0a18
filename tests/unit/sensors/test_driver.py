"""Waits that only the driver sees: a library's own calls into the CUDA runtime, here into the stand-in for it."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings

import pytest
import torch

import syncagent
from syncagent import native
from syncagent.events import Phase, SyncKind
from syncagent.simulate import standin
from tests.native import libraries

X = torch.tensor([[1.0, 0.0], [0.0, 5.0]])

pytestmark = [
    pytest.mark.usefixtures("cpu_device"),
    pytest.mark.skipif(native.load() is None, reason=native.why_not() or "there"),
]


@pytest.fixture(autouse=True, scope="module")
def runtime():
    """The libraries of the simulated device, without the device."""
    standin.load()
    assert standin.is_there(), standin.missing()


@pytest.fixture(scope="module")
def caller(tmp_path_factory):
    """An object that calls a runtime; each call takes 20 ms."""
    folder = tmp_path_factory.mktemp("native")
    libraries.compile_into(folder)
    caller = libraries.Caller(folder)
    caller.sleep(20_000_000)
    return caller


def wait(ms=60.0, call=standin.STREAM_SYNCHRONIZE, through=None):
    """Wait in the runtime, for so long at least, as a library does that torch knows nothing of."""
    gate, ident = standin.Gate(1), threading.get_ident()
    slots = native.load().slots_view()
    is_watched = syncagent.current() is not None

    def open_it():
        own = slots[native.IDENT :: native.WORDS].tolist
        while is_watched and (ident not in own() or not slots[own().index(ident) * native.WORDS + native.START_NS]):
            time.sleep(0.0005)
        time.sleep(ms / 1e3)
        standin.open_by_one(gate)

    threading.Thread(target=open_it).start()
    if through is not None:
        through(gate, call)
    else:
        standin.sleep(gate, call)


def of_driver(agent):
    return [event for event in agent.events() if event.sensor == "driver"]


# --- one wait is one event --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detail", ["syncs", "ops", "auto"])
def test_a_wait_that_no_sensor_names_has_the_line_that_made_it(detail):
    """Found by a look from the agent's thread while the caller waits, or by the modes afterwards."""
    with syncagent.watch(detail=detail) as agent:
        wait()
        [event] = of_driver(agent)
    assert (event.op, event.kind) == ("cudaStreamSynchronize", SyncKind.OTHER)
    assert (event.site.source, event.site.function) == ("standin.sleep(gate, call)", "wait")
    assert 5e6 < event.stall_ns < 5e9
    assert (event.repeats, event.device, event.api) == (1, "cuda", None)


@pytest.mark.parametrize(
    ("call", "op", "kind", "repeats"),
    [
        (standin.DEVICE_SYNCHRONIZE, "cudaDeviceSynchronize", SyncKind.EXPLICIT, 1),
        (standin.EVENT_SYNCHRONIZE, "cudaEventSynchronize", SyncKind.EXPLICIT, 1),
        (standin.FREE, "cudaFree", SyncKind.ALLOCATOR, 1),
        (standin.copy(1, 1 << 24, direct=False, blocking=False), "cudaMemcpyAsync", SyncKind.COPY_H2D, 0),
        (standin.copy(2, 1 << 24, direct=False, blocking=False), "cudaMemcpyAsync", SyncKind.COPY_D2H, 0),
    ],
)
def test_the_function_says_the_kind(call, op, kind, repeats):
    """A copy that only the driver saw adds time and is not counted: most copies do not wait."""
    with syncagent.watch(detail="syncs") as agent:
        wait(call=call)
        [event] = of_driver(agent)
    assert (event.op, event.kind, event.repeats) == (op, kind, repeats)
    assert event.stall_ns > 5e6


def test_a_wait_inside_a_named_call_gives_that_calls_stall_and_no_event_of_its_own(monkeypatch):
    """The sum of what the driver waited, not how long the call took."""
    real = torch.cuda.Stream.synchronize

    def synchronize(_stream):
        wait(10)
        threading.Event().wait(0.05)  # the caller's own work

    monkeypatch.setattr(torch.cuda.Stream, "synchronize", synchronize)
    with syncagent.watch(detail="syncs") as agent:
        torch.cuda.Stream.synchronize(X)
        events = agent.events()
    assert [event.op for event in events] == ["torch.cuda.Stream.synchronize"]
    assert 5e6 < events[0].stall_ns < 45e6
    assert real is not synchronize


def test_short_waits_are_counted_and_added_up_exactly():
    """Also those that no look can catch: their line is not known, their number is."""
    with syncagent.watch(detail="syncs") as agent:
        for _ in range(100):
            standin.sleep(standin.OPEN, standin.STREAM_SYNCHRONIZE)
    rows = [site for site in agent.report().sites if site.sensors == ("driver",)]
    assert sum(row.count for row in rows) == 100
    assert all(row.stall_ms >= 0 for row in rows)


def test_short_waits_are_divided_only_where_steps_are_sampled():
    """Where every op is watched, what no sensor names is not the ops'."""
    with syncagent.watch(detail="syncs") as agent:
        X.nonzero()
        for _ in range(50):
            standin.sleep(standin.OPEN, standin.STREAM_SYNCHRONIZE)
    rows = {site.op: site for site in agent.report().sites}
    assert rows["aten::nonzero"].sensors == ("kernels",)
    assert rows["cudaStreamSynchronize"].count == 50


def test_code_of_torch_distributed_makes_a_wait_a_collective():
    """Whatever function of the runtime it waits in."""
    file = os.path.join(os.path.dirname(torch.__file__), "distributed", "distributed_c10d.py")
    library = {"sleep": standin.sleep}
    exec(compile("def barrier(gate, call):\n    sleep(gate, call)\n", file, "exec"), library)
    with syncagent.watch(detail="syncs") as agent:
        wait(through=library["barrier"])
        [event] = of_driver(agent)
    assert (event.kind, event.library_site.file) == (SyncKind.COLLECTIVE, file)
    assert event.site.function == "wait"


def test_waits_of_other_threads_have_their_own_lines_and_names():
    """A thread that never called torch, too."""

    def work():
        wait()

    with syncagent.watch(detail="syncs") as agent:
        thread = threading.Thread(target=work, name="loader")
        thread.start()
        thread.join()
        [event] = of_driver(agent)
    assert (event.thread, event.site.function) == ("loader", "wait")
    assert event.stall_ns > 5e6


def test_a_wait_that_holds_the_gil_has_the_line_of_its_call(caller):
    """No look can be taken then: the main thread is asked when it is back."""
    with syncagent.watch(detail="syncs") as agent:
        caller.stream_with_gil()
        caller.stream_with_gil()
        events = of_driver(agent)
    assert [event.site.source for event in events] == ["caller.stream_with_gil()"] * 2
    assert events[1].site.line == events[0].site.line + 1


def test_a_copy_and_its_synchronize_that_hold_the_gil_have_the_line_of_their_call(caller):
    """As torch.save() and a DTensor's copies do: two waits, and Python is not reached in between."""
    for _ in range(50):  # another process may come between the two calls, and then nothing is known of the first
        with syncagent.watch(detail="syncs") as agent:
            caller.copy_and_wait_with_gil()
            events = of_driver(agent)
        if events[0].site is not None:
            break
    assert [event.op for event in events] == ["cudaMemcpyAsync", "cudaStreamSynchronize"]
    assert [event.site.source for event in events] == ["caller.copy_and_wait_with_gil()"] * 2


def test_a_wait_belongs_to_the_step_it_began_in():
    """By time: nobody was there to say so."""
    with syncagent.watch(detail="syncs") as agent:
        for _ in range(3):
            wait(30)
            syncagent.step()
        events = of_driver(agent)
    assert [event.step for event in events] == [0, 1, 2]


def test_steps_may_end_while_waits_are_delivered():
    """That is what other threads do meanwhile: no wait is lost for it."""
    ends, interval = threading.Event(), sys.getswitchinterval()

    def step():
        while not ends.wait(1e-4):
            syncagent.step()

    with syncagent.watch(detail="syncs", summary=False) as agent:
        steps = threading.Thread(target=step)
        steps.start()
        sys.setswitchinterval(1e-5)
        try:
            for _ in range(4):
                for _ in range(20):
                    wait(0.3)
                agent.events()
        finally:
            sys.setswitchinterval(interval)
            ends.set()
            steps.join()
    assert len(of_driver(agent)) == 80


def test_earlier_waits_and_those_after_the_end_are_nobodys():
    """The native library goes on where the last agent has stopped."""
    wait(2)
    with syncagent.watch(detail="syncs") as first:
        wait(30)
    wait(3)
    with syncagent.watch(detail="syncs") as second:
        pass
    assert len(of_driver(first)) == 1
    assert of_driver(second) == []
    assert sum(site.count for site in second.report().sites) == 0


def test_nothing_stays_patched():
    """Each entry has what the loader wrote there."""
    library = native.load()
    with syncagent.watch(detail="syncs"):
        assert library.status().entries > 0
    assert library.status().entries == 0


def test_a_forked_child_starts_empty():
    """Its waits are its own, and the parent's agent has none of them."""
    with syncagent.watch(detail="syncs") as agent:
        wait(2)
        pid = os.fork()
        if pid == 0:
            status = native.load().status()
            os._exit(status.live or status.entries)
        assert os.waitpid(pid, 0)[1] == 0
        wait(2)
        assert len(of_driver(agent)) == 2


# --- the policy -------------------------------------------------------------------------------------------------------


def test_an_allow_block_covers_the_waits_inside():
    """As the thread has published it."""
    with syncagent.watch(detail="syncs") as agent:
        with syncagent.allow("measured"):
            wait()
        wait()
        allowed = [event.allowed for event in of_driver(agent)]
    assert allowed == ["measured", None]


def test_warn_warns_once_a_line_and_raise_does_no_more():
    """When the wait is over, on the thread that delivers it: there is nothing left to stop."""
    for policy, number in (("observe", 0), ("warn", 1), ("raise", 1)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with syncagent.watch(detail="syncs", policy=policy, warmup_steps=0) as agent:
                for _ in range(3):
                    wait()
                agent.events()
        ours = [one for one in caught if issubclass(one.category, syncagent.HostSyncWarning)]
        assert len(ours) == number, policy


@pytest.mark.parametrize(("judged", "number"), [((), 0), (("allocator",), 1)])
def test_the_allocator_is_judged_only_where_that_is_asked_for(judged, number):
    """It counts in no budget and fails no gate."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with syncagent.watch(detail="syncs", policy="warn", warmup_steps=0, judge_kinds=judged) as agent:
            wait(call=standin.FREE)
            [event] = of_driver(agent)
    assert event.violation is bool(number)
    assert len([one for one in caught if issubclass(one.category, syncagent.HostSyncWarning)]) == number


def test_a_region_has_the_waits_inside_of_it():
    """As the thread has published the region."""
    with syncagent.watch(detail="syncs") as agent:
        wait(30)
        with syncagent.watch() as region:
            wait(30)
        assert len(of_driver(region)) == 1
        assert len(of_driver(agent)) == 2


# --- the report -------------------------------------------------------------------------------------------------------


def test_the_report_says_how_much_of_the_time_has_a_line():
    """Named or looked at."""
    with syncagent.watch(detail="syncs") as agent:
        wait(30)
    [note] = [note for note in agent.report().notes if note.startswith("line known for ")]
    assert " of the driver's wait time" in note
    assert float(note.split()[3].rstrip("%")) > 90
    [sensor] = [sensor for sensor in agent.report().sensors if sensor.name == "driver"]
    assert sensor.live
    assert "cupy" in sensor.cannot_see


def test_without_the_library_the_other_sensors_work_as_before(monkeypatch):
    """And the report says why it is not there."""
    monkeypatch.setattr(native, "load", lambda: None)
    monkeypatch.setattr(native, "why_not", lambda: "The native library was not built.")
    with syncagent.watch(detail="syncs") as agent:
        standin.sleep(standin.OPEN, standin.STREAM_SYNCHRONIZE)
        X.nonzero()
    assert [event.op for event in agent.events()] == ["aten::nonzero"]
    [sensor] = [sensor for sensor in agent.report().sensors if sensor.name == "driver"]
    assert (sensor.live, sensor.detail) == (False, "The native library was not built.")


def test_a_torch_that_has_the_runtime_linked_statically_is_said_not_to_be_seen(monkeypatch):
    """As one whose library was built so: there is no entry that could be patched."""
    monkeypatch.setattr(native.Native, "start", lambda _library, _threshold_ns: 0)
    with syncagent.watch(detail="syncs") as agent:
        X.nonzero()
    assert [event.op for event in agent.events()] == ["aten::nonzero"]
    [sensor] = [sensor for sensor in agent.report().sensors if sensor.name == "driver"]
    assert not sensor.live
    assert sensor.detail == ("no call into a CUDA runtime was found: none is loaded, or torch has it linked statically")


def test_without_a_gil_there_are_no_looks_and_the_report_says_so(monkeypatch):
    """Another thread's frames cannot be copied there while it stands still."""
    monkeypatch.setattr("syncagent.sensors.driver.has_gil", lambda: False)
    with syncagent.watch(detail="syncs") as agent:
        wait(10)
        [event] = of_driver(agent)
    assert event.site is None
    assert event.stall_ns > 5e6
    [sensor] = [sensor for sensor in agent.report().sensors if sensor.name == "driver"]
    assert (sensor.live, sensor.detail) == (True, "lines are not looked up in a free-threaded Python")


def test_no_overhead_means_no_look():
    """The time is exact all the same."""
    with syncagent.watch(detail="syncs", overhead=0) as agent:
        wait()
        [event] = of_driver(agent)
    assert (event.site, event.phase) == (None, Phase.OTHER)
    assert event.stall_ns > 5e6
