"""Whatever comes in between: signals' handlers, finalizers and other threads use the device, or raise, at any point."""

from __future__ import annotations

import copy
import ctypes
import gc
import signal
import sys
import threading

import pytest
import torch

from syncagent.errors import SimulationError
from syncagent.simulate import allocator, engine, memory, randomness
from syncagent.simulate.failures import attempt


class Interrupted(Exception):
    pass


class InBetween:
    """Does something in the main thread before the n-th instruction, or line, of the given modules."""

    def __init__(self, number, action, *modules, lines=False):
        self.left, self.action, self.lines = number, action, lines
        self.files = {module.__file__ for module in modules}

    def __enter__(self):
        sys.settrace(self._called)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    @property
    def is_done(self):
        return self.left < 0

    def _called(self, frame, _event, _value):
        if frame.f_code.co_filename not in self.files:
            return None
        frame.f_trace_opcodes = not self.lines
        return self._came

    def _came(self, _frame, event, _value):
        if event == ("line" if self.lines else "opcode"):
            self.left -= 1
            if self.left == -1:
                self.action()
        return self._came


def at_each_point(action, body, *modules, lines=False):
    """Run the body again and again, with the action at another point each time; what each returns."""
    body()
    results = []
    while True:
        torch.cuda.synchronize()
        with InBetween(len(results), action, *modules, lines=lines) as point:
            result = body()
        if not point.is_done:
            return results
        results.append(result)


def in_another_thread(call):
    """A call that another thread makes, as one does that a finalizer's lock is held by."""

    def made():
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()

    return made


def total():
    x = torch.ones(3, device="cuda")
    x.mul_(2)
    return (x + 1).sum().item()


# --- queueing and waiting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["here", "in another thread"])
def test_a_handler_or_a_finalizer_may_compute_on_the_device_while_a_kernel_is_queued_or_waited_for(place):
    seen = []
    compute = lambda: seen.append(total())  # noqa: E731
    body = lambda: torch.ones(3, device="cuda").sum().item()  # noqa: E731
    results = at_each_point(compute if place == "here" else in_another_thread(compute), body, engine)
    assert len(results) > 50
    assert set(results) == {3.0}
    assert set(seen) == {9.0}


def test_an_exception_while_a_kernel_is_queued_or_waited_for_leaves_the_device_usable():
    came = []

    def interrupt():
        came.append(1)
        raise Interrupted

    def interrupted():
        try:
            return total()
        except Interrupted:
            sys.settrace(None)
            return total()

    assert set(at_each_point(interrupt, interrupted, engine)) == {9.0}
    assert len(came) > 100


def test_tickets_are_in_the_order_of_the_queue_whatever_comes_in_between():
    ran, tickets = [], {}
    queue = engine.Engine("ordered")

    def submit():
        kernel = object()
        tickets[kernel] = queue.submit(lambda: ran.append(kernel))

    at_each_point(submit, submit, engine)
    queue.wait()
    assert [tickets[kernel] for kernel in ran] == list(range(1, len(tickets) + 1))
    queue.retire()


def test_a_finalizer_that_waits_in_the_middle_of_a_kernel_is_refused():
    """Python may run it on the worker's thread, which would wait for itself."""
    seen = []

    def kernel():
        with pytest.raises(SimulationError, match="a finalizer waits for the simulated device"):
            torch.cuda.synchronize()
        seen.append(1)

    torch.cuda.current_stream().engine.submit(kernel)
    torch.cuda.synchronize()
    assert seen == [1]
    assert total() == 9


def test_a_finalizer_between_two_kernels_may_wait():
    seen, is_freed = [], threading.Event()

    class Argument:
        """A kernel's, which is freed once the kernel has run."""

        def __del__(self):
            seen.append((threading.current_thread() is threading.main_thread(), total()))
            is_freed.set()

    may_run = threading.Event()

    def submit():
        argument = Argument()
        torch.cuda.current_stream().engine.submit(lambda: may_run.wait() and argument)

    submit()
    may_run.set()  # now the queue alone has it
    torch.cuda.synchronize()
    gc.collect()
    assert is_freed.wait(60)  # by the worker, once nobody waits for the kernel any more
    assert seen == [(False, 9.0)]


def test_training_is_the_same_while_a_timer_prints_the_loss_every_millisecond():
    torch.manual_seed(0)
    model, source = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)), torch.rand(5, 4)
    losses, printed, found = [], [], []

    def train():
        trained = copy.deepcopy(model).cuda()
        optimizer = torch.optim.Adam(trained.parameters())
        losses.clear()
        for _ in range(20):
            loss = trained(source.cuda()).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return [x.item() for x in losses]

    expected = train()

    def show(*_):
        printed.append(f"{losses[-1] if losses else 0:.3f} {total()} {torch.cuda.memory_allocated()}")
        if len(printed) < 300 and not found:
            signal.setitimer(signal.ITIMER_REAL, 0.001)

    before = signal.signal(signal.SIGALRM, show)
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    try:
        found += train()
    finally:
        found.append("over")  # a signal that comes with the next line is not to set the timer for pytest's handler
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert found == [*expected, "over"]
    assert printed
    assert {line.split()[1] for line in printed} == {"9.0"}


# --- memory's figures --------------------------------------------------------------------------------------


def held_by(count):
    tensors = [torch.empty(256, device="cuda") for _ in range(count)]
    torch.empty(256, device="cuda")
    return torch.cuda.memory_allocated(), len(tensors)


def test_a_handler_may_ask_for_the_memory_in_use_while_it_is_being_asked_for():
    gc.collect()
    before = torch.cuda.memory_allocated()
    seen = []
    ask = lambda: seen.append(torch.cuda.memory_allocated())  # noqa: E731
    results = at_each_point(ask, lambda: held_by(2), allocator, engine)
    assert set(results) == {(before + 2048, 2)}
    assert set(seen) <= {before, before + 1024, before + 2048, before + 3072}
    assert before + 2048 in seen


def test_an_exception_while_it_is_asked_for_leaves_nothing_behind():
    gc.collect()
    before = torch.cuda.memory_allocated()

    def interrupt():
        raise KeyboardInterrupt

    def interrupted():
        try:
            held_by(2)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        return torch.cuda.memory_allocated()

    assert set(at_each_point(interrupt, interrupted, allocator)) == {before}


def test_a_callback_of_the_garbage_collector_may_ask_for_it():
    seen = []
    held = torch.empty(256, device="cuda")
    before = torch.cuda.memory_allocated()
    callback = lambda *_: seen.append(torch.cuda.memory_allocated())  # noqa: E731
    thresholds = gc.get_threshold()
    gc.callbacks.append(callback)
    gc.set_threshold(5)
    try:
        for _ in range(30):
            assert torch.cuda.memory_allocated() == before
            gc.collect(0)
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(callback)
    assert set(seen) == {before}
    del held


# --- numbers and addresses ---------------------------------------------------------------------------------


def test_a_handler_that_draws_gets_numbers_of_its_own():
    drawn = []
    draw = lambda: drawn.append(torch.rand((), device="cuda").item())  # noqa: E731
    at_each_point(draw, draw, randomness, lines=True)
    assert len(set(drawn)) == len(drawn)


def test_a_handler_that_asks_for_an_address_gets_one_of_its_own():
    made, addresses = [], []

    def ask():
        made.append(torch.empty(3, device="cuda"))
        addresses.append(made[-1].data_ptr())

    at_each_point(ask, ask, memory, lines=True)
    assert len(set(addresses)) == len(addresses)


# --- shapes that are being found out -----------------------------------------------------------------------


class _Op:
    """An op of an extension, whose shape function does something once."""

    def __init__(self, name):
        self.library = torch.library.Library("interrupted", "FRAGMENT")
        self.library.define(f"{name}(Tensor x) -> Tensor")
        self.library.impl(name, lambda x: x + 1, "CPU")
        self.todo = []
        torch.library.register_fake(f"interrupted::{name}", self._shape, lib=self.library)
        self.call = getattr(torch.ops.interrupted, name)

    def _shape(self, x):
        if self.todo:
            self.todo.pop()()
        return torch.empty_like(x)


def _raised_by_a_handler(kind):
    def handler(*_):
        raise kind("of the program's")

    def send():
        before = signal.signal(signal.SIGUSR1, handler)
        try:
            signal.raise_signal(signal.SIGUSR1)
        finally:
            signal.signal(signal.SIGUSR1, before)

    return send


def _sent_by_a_thread(kind):
    def send():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(threading.get_ident()), ctypes.py_object(kind))

    return send


@pytest.mark.parametrize("send", [_raised_by_a_handler, _sent_by_a_thread])
@pytest.mark.parametrize("kind", [Interrupted, NotImplementedError, TypeError, KeyboardInterrupt])
def test_an_exception_that_comes_while_a_shape_is_found_out_reaches_the_program(kind, send):
    op = _Op(f"op_{send.__name__}_{kind.__name__}")
    x = torch.ones(3, device="cuda")
    op.todo.append(send(kind))
    with pytest.raises(kind):
        op.call(x)
    assert op.call(x).tolist() == [2.0] * 3


class Calls:
    """A call that does one thing after the other."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)

    def __call__(self):
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


OWN, OUTSIDE = ValueError("its own"), Interrupted("from outside")


@pytest.mark.parametrize("outcomes", [(OWN, OWN), (UserWarning("once"),)])
def test_an_attempt_returns_the_calls_own_error(outcomes):
    assert attempt(Calls(*outcomes)) == (None, outcomes[0])


@pytest.mark.parametrize(
    "outcomes", [(OUTSIDE, 3), (OUTSIDE, OWN, OWN), (OWN, OUTSIDE, OWN), (OUTSIDE, TimeoutError(), 3)]
)
def test_an_attempt_raises_what_comes_from_outside(outcomes):
    with pytest.raises(Interrupted):
        attempt(Calls(*outcomes))


def test_an_attempt_returns_the_result():
    assert attempt(Calls(3)) == (3, None)
