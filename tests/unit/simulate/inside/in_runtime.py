"""The host waits in the stand-in for CUDA's runtime, where the agent's native library finds what a GPU would show."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter

import pytest
import torch
from harness import SLEEP_S, asleep

from syncagent import native, simulate
from syncagent.simulate import standin
from syncagent.simulate.engine import Engine

FLOATS = 1 << 20
NBYTES = 4 * FLOATS
LONG = round(SLEEP_S / 6 * 1e9)
"""A wait is kept from this many ns on: five sixths of the sleep may pass before the host comes to wait for it."""
H2D, D2H = 1, 2

pytestmark = pytest.mark.skipif(not standin.is_there(), reason=standin.missing())


@pytest.fixture(scope="module")
def library():
    found = native.load()
    assert found, native.why_not()
    assert found.start(LONG) >= 8
    yield found
    found.stop()


class Driver:
    """What the native library has seen since it was last asked."""

    def __init__(self, library):
        self._library = library
        self._before = library.sums()

    def waits(self):
        """Function, bytes, direction, start and end of each long wait."""
        return [
            (self._library.functions[wait.function], wait.bytes, wait.direction, wait.start_ns, wait.end_ns)
            for wait in self._library.take()
        ]

    def calls(self):
        """How often each function was called, however short."""
        before, self._before = self._before, self._library.sums()
        counts = zip(self._library.functions, before, self._before, strict=True)
        return {name: after.calls - earlier.calls for name, earlier, after in counts if after.calls != earlier.calls}


@pytest.fixture
def driver(library):
    torch.cuda.synchronize()
    seen = Driver(library)
    seen.waits()
    return seen


class Timed:
    """An observer that keeps when each wait began and ended."""

    def __init__(self):
        self.spans = []

    def before(self, op, kind, args):
        return op

    def after(self, token, start_ns, end_ns):
        self.spans.append((start_ns, end_ns))


@pytest.fixture
def timed():
    observer = Timed()
    simulate.observe_waits(observer)
    yield observer
    simulate.observe_waits(None)


def _values():
    on_device = torch.ones(FLOATS, device="cuda")
    return {
        "torch": torch, "G": on_device, "x": torch.ones(3, device="cuda"), "z": torch.ones((), device="cuda"),
        "P": torch.ones(FLOATS).pin_memory(), "H": torch.ones(FLOATS), "s": torch.cuda.default_stream(),
        "event": _recorded_event, "freed": _freed, "late": [1.0, 2.0],
    }  # fmt: skip


def _recorded_event():
    event = torch.cuda.Event()
    event.record()
    return event


def _freed():
    made = torch.empty(64 << 20, device="cuda")
    del made
    torch.cuda.empty_cache()


STREAM, EVENT, DEVICE, COPY, FREE = (
    "cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize", "cudaMemcpyAsync", "cudaFree",
)  # fmt: skip
COPIED = {COPY: 1, STREAM: 1}

WAITING = [
    ("z.item()", (STREAM, 0, -1), COPIED),
    ("x.nonzero()", (STREAM, 0, -1), COPIED),
    ("x[x > 0]", (STREAM, 0, -1), COPIED),
    ("torch.equal(x, x + 0)", (STREAM, 0, -1), COPIED),
    ("G.cpu()", (COPY, NBYTES, D2H), COPIED),
    ("x.tolist()", (COPY, 12, D2H), COPIED),
    ("H.copy_(G, non_blocking=True)", (COPY, NBYTES, D2H), {COPY: 1}),
    ("H.half().copy_(G)", (COPY, NBYTES, D2H), COPIED),  # the host converts
    ("H.cuda()", (COPY, NBYTES, H2D), COPIED),
    ("H.cuda(non_blocking=True)", (COPY, NBYTES, H2D), {COPY: 1}),
    ("G.copy_(P[:1].expand(FLOATS), non_blocking=True)", (COPY, NBYTES, H2D), {COPY: 1}),
    ("torch.tensor(late).cuda()", (STREAM, 0, -1), COPIED),  # the driver takes a few bytes and returns
    ("P.cuda()", (STREAM, 0, -1), COPIED),
    ("P.copy_(G)", (STREAM, 0, -1), COPIED),
    ("P[::2].copy_(G[::2])", (COPY, NBYTES // 2, D2H), COPIED),  # by way of memory that is not pinned
    ("torch.cuda.synchronize()", (DEVICE, 0, -1), {DEVICE: 1}),
    ("s.synchronize()", (STREAM, 0, -1), {STREAM: 1}),
    ("event().synchronize()", (EVENT, 0, -1), {EVENT: 1}),
    ("freed()", (FREE, 0, -1), {FREE: 1}),
]


@pytest.mark.parametrize(("line", "wait", "calls"), WAITING, ids=[line for line, *_ in WAITING])
def test_the_host_sleeps_in_the_function_that_cuda_would_use(line, wait, calls, driver, timed):
    """Once, as long as the sensor says, which times it from outside; the other calls that CUDA makes are quick."""
    names = {**_values(), "FLOATS": FLOATS}
    eval(line, names)
    torch.cuda.synchronize()
    driver.waits()
    driver.calls()
    timed.spans.clear()
    asleep()
    eval(line, names)
    assert driver.calls() == calls
    [(*found, start_ns, end_ns)] = driver.waits()
    assert tuple(found) == wait
    [(began_ns, over_ns)] = timed.spans
    assert began_ns <= start_ns <= end_ns <= over_ns


RETURNING = [
    "P.copy_(G, non_blocking=True)",
    "G.copy_(P, non_blocking=True)",
    "torch.ones(9).cuda(non_blocking=True)",
    "(x + 1).add_(2)",
    "x.sum().backward",
    "s.query()",
    "torch.cuda.Event().synchronize()",
    "[x.add_(1) for _ in range(1500)]",  # waits for room in the queue
]


@pytest.mark.parametrize("line", RETURNING)
def test_what_does_not_wait_on_cuda_calls_nothing_that_does(line, driver):
    names = _values()
    eval(line, names)
    torch.cuda.synchronize()
    driver.calls()
    asleep()
    eval(line, names)
    assert driver.calls() == {}
    assert driver.waits() == []


def test_waits_that_only_the_simulation_needs_are_none_of_the_runtimes(driver):
    """Nobody can tell what comes of this op, so the device runs it at once."""
    ours = torch.library.Library("ours_here", "DEF")
    ours.define("twice(Tensor x) -> Tensor")
    ours.impl("twice", lambda x: x * 2, "CPU")
    x = torch.ones(3, device="cuda")
    torch.cuda.synchronize()
    driver.calls()
    before = simulate.internal_waits()
    over = asleep()
    twice = torch.ops.ours_here.twice(x)
    assert over.query()
    assert simulate.internal_waits() - before
    assert driver.calls() == {}
    assert twice.tolist() == [2.0] * 3


def test_a_wait_for_what_is_over_is_a_call_as_on_a_gpu(driver):
    x = torch.ones((), device="cuda")
    torch.cuda.synchronize()
    driver.calls()
    x.item()
    torch.cuda.synchronize()
    torch.cuda.default_stream().synchronize()
    assert driver.calls() == {COPY: 1, STREAM: 2, DEVICE: 1}


def test_the_whole_device_is_waited_for_in_one_call(driver):
    streams = [torch.cuda.Stream() for _ in range(3)]
    for stream in streams:
        with torch.cuda.stream(stream):
            over = asleep()
    torch.cuda.synchronize()
    assert over.query()
    assert driver.calls() == {DEVICE: 1}
    assert len(driver.waits()) == 1


def test_checkpoints_wait_in_copies(driver, tmp_path):
    x = torch.ones(FLOATS, device="cuda")
    torch.save(x, tmp_path / "x.pt")  # the first time, both load modules
    torch.load(tmp_path / "x.pt")
    torch.cuda.synchronize()
    driver.waits()
    asleep()
    torch.save(x, tmp_path / "x.pt")
    asleep()
    torch.load(tmp_path / "x.pt")
    assert [wait[:3] for wait in driver.waits()] == [(COPY, NBYTES, D2H), (COPY, NBYTES, H2D)]


# --- signals, forks, failures ------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


@pytest.fixture
def handled():
    """``handled(handler)``: this process is sent a signal while it waits, and handles it so."""
    timers = []

    def send(handler):
        signal.signal(signal.SIGUSR1, handler)
        timers.append(threading.Timer(SLEEP_S / 4, os.kill, (os.getpid(), signal.SIGUSR1)))
        timers[-1].start()

    before = signal.getsignal(signal.SIGUSR1)
    yield send
    for timer in timers:
        timer.join()
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(
    "line", ["x.cpu()", "torch.cuda.synchronize()", "z.item()", "event().synchronize()", "freed()"]
)
def test_a_signals_handler_runs_at_once_and_the_wait_goes_on(line, handled, driver):
    names = _values()
    over, seen = asleep(2 * SLEEP_S), []
    handled(lambda *_: seen.append(over.query()))
    eval(line, names)
    assert over.query()
    assert seen == [False]


def test_a_handler_that_raises_ends_the_wait(handled):
    """As Ctrl-C does; what the device computes is not lost."""
    x = torch.ones(3, device="cuda")
    over = asleep(2 * SLEEP_S)
    y = x + 1

    def interrupt(*_):
        raise Interrupted

    handled(interrupt)
    with pytest.raises(Interrupted):
        y.sum().item()
    assert not over.query()
    assert y.tolist() == [2.0] * 3


def test_a_handler_that_forks_leaves_no_child_that_waits(handled):
    """Its device is not there, so it is told so, as it is when it uses it later."""
    x = torch.ones((), device="cuda")
    parent, children = os.getpid(), []
    asleep(2 * SLEEP_S)
    handled(lambda *_: children.append(os.fork()))
    try:
        assert x.item() == 1
    except RuntimeError as error:
        if os.getpid() == parent:
            raise
        os._exit(7 if "forked subprocess" in str(error) else 1)
    finally:
        if os.getpid() != parent:
            os._exit(2)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [7]


def test_a_worker_that_fails_between_two_kernels_leaves_nobody_waiting(monkeypatch):
    """And says so; the next kernel has another worker."""
    engine = Engine("failing")
    monkeypatch.setattr(Engine, "idle_limit_s", "no number")

    def run(kernel):
        engine.wait(engine.submit(kernel), standin.STREAM_SYNCHRONIZE)

    def run_until_it_fails():
        while True:
            run(int)

    with pytest.raises(torch.AcceleratorError, match="TypeError"):
        run_until_it_fails()
    monkeypatch.undo()
    ran = []
    for _ in range(3):
        run(lambda: ran.append(1))
    assert ran == [1] * 3
    engine.retire()


class EndsMeanwhile(Engine):
    """Its kernel ends just after the host has looked whether it has, for the n-th time."""

    def __init__(self, looks):
        self.number, self.looks = 0, looks
        self.may_end, self.has_ended = threading.Event(), threading.Event()
        super().__init__("ends meanwhile")

    @property
    def finished(self):
        number = self.number
        if number == 0 and threading.current_thread() is threading.main_thread():
            self.looks -= 1
            if self.looks == 0:
                self.may_end.set()
                self.has_ended.wait()
                time.sleep(0.05)  # until it has looked whether anybody waits
        return number

    @finished.setter
    def finished(self, number):
        self.number = number
        if number:
            self.has_ended.set()


@pytest.mark.parametrize("looks", [1, 2])
@pytest.mark.parametrize("call", [None, standin.STREAM_SYNCHRONIZE], ids=["in Python", "in the runtime"])
def test_a_kernel_that_ends_as_the_host_begins_to_wait_wakes_it(call, looks):
    engine = EndsMeanwhile(looks)
    has_begun = threading.Event()

    def kernel():
        has_begun.set()
        engine.may_end.wait()

    ticket = engine.submit(kernel)
    has_begun.wait()
    engine.wait(ticket, call)
    assert engine.finished == ticket
    engine.retire()


def test_threads_streams_and_short_waits_in_any_order(driver):
    """With the interpreter given away as often as possible, and forks in between."""
    before = sys.getswitchinterval()
    totals = Counter()

    def work(number):
        stream, event = torch.cuda.Stream(), torch.cuda.Event()
        calls = (
            lambda x: x.sum().item(), lambda x: x.cpu(), lambda _x: stream.synchronize(), lambda _x: event.record(),
            lambda _x: event.synchronize(), lambda _x: torch.cuda.synchronize(), lambda x: x.nonzero(),
        )  # fmt: skip
        for at in range(140):
            with torch.cuda.stream(stream):
                x = torch.ones(3, device="cuda") + number
                calls[(at * 5 + number) % 7](x)
                totals[number] += x.sum().item() == 3 + 3 * number

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)
            threads[0].join(0.05)
    finally:
        sys.setswitchinterval(before)
    assert totals == dict.fromkeys(range(6), 140)
