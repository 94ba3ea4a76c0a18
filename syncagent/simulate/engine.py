"""One worker thread per stream, which runs kernels in order and remembers what failed."""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import operator
import os
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import torch

from syncagent.errors import SimulationError
from syncagent.simulate import modelled, standin, waits
from syncagent.simulate.failures import Failure, failure_of
from syncagent.simulate.requirements import find
from syncagent.support.threads import AgentThread
from syncagent.torchbridge.threads import have_room_for_errors

# The keys of in-place ops are skipped too: above them an op may not write to a host tensor that the program has made in
# inference_mode, and the queueing thread has counted versions already.
_BelowAutograd = find("_C._AutoDispatchBelowADInplaceOrView") or torch._C._AutoDispatchBelowAutograd

_Keys = find("_C._ForceDispatchKeyGuard")
_modes_on = find("_C._len_torch_dispatch_stack") or (lambda: 0)
_included, _excluded = find("_C._dispatch_tls_local_include_set"), find("_C._dispatch_tls_local_exclude_set")


def can_set_keys() -> bool:
    """Whether this torch lets a thread's dispatch keys be set: see the two functions below."""
    return _Keys is not None and _included is not None and _excluded is not None


_OF_AUTOGRAD = ("ADInplaceOrView", "AutogradFunctionality", "AutogradOther", "AutogradNestedTensor")


@contextlib.contextmanager
def with_autograd() -> Iterator[None]:
    """Inside a kernel on the worker: what is computed has an autograd graph of its own."""
    with _Keys(_included(), _less(_excluded(), _OF_AUTOGRAD)), torch.enable_grad():
        yield


_OF_MODES = ("Python", "PythonTLSSnapshot")


@contextlib.contextmanager
def without_modes() -> Iterator[None]:
    """For the thread's state to say that there are no modes, where there are none."""
    if _modes_on():
        yield
        return
    with _Keys(_less(_included(), _OF_MODES), _excluded()):
        yield


def _less(keys: Any, names: Iterable[str]) -> Any:
    for name in names:
        keys -= torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name))
    return keys


QUEUE_LIMIT = 1024
"""With this many kernels in the queue a launch waits for room, as in CUDA; this bounds memory, too."""

FORK_PATIENCE_S = 5.0
"""How long a fork waits for a running kernel.  A longer one is left running, which is better than no fork at all."""


class _Dependency(NamedTuple):
    """A queue entry: continue once another engine has reached that ticket."""

    engine: Engine
    ticket: int
    join: waits.Join | None
    """Where a default stream waits for what may be a collective."""


_Entry = Callable[[], object] | _Dependency
_Wake = tuple[int, Callable[[], object]]
"""What to call once the kernel with that ticket has run."""

_POLL_S = 0.001
"""How often a worker that waits for another one looks into its own queue."""


class Engine:
    """A queue and the thread that runs what is in it.

    A *ticket* is the place of a kernel in its queue, counted from 1: once ``finished`` reaches it, the kernel has run.

    No lock is held while kernels are queued or waited for.  A signal's handler or a finalizer may come in between any
    two lines of this and use the device itself, and another thread may hold a lock that it takes.  So whatever must not
    be torn apart is one call of a function in C.
    """

    idle_limit_s: float | None = None
    """How long an idle worker thread stays; set when the device is taken away."""

    def __init__(self, name: str, *, is_of_device: bool = True) -> None:
        self.name = name
        self.is_of_device = is_of_device
        """Whether what it runs is a device's work, which a child process cannot go on with."""
        self.finished = 0
        self.clock: Counter[Engine] = Counter()
        """What the host has ordered before this queue's next kernel: a ticket for each other engine."""
        self._queue: deque[list[Any]] = deque()
        """Entries with their tickets.  The first one stays until it has run."""
        self._tickets = itertools.count(1)
        self._current = 0
        """The ticket of the kernel that was begun last."""
        self._bell: SimpleQueue[None] = SimpleQueue()
        """Wakes an idle worker."""
        self._is_idle = False
        self._wakes: list[_Wake] = []
        self._failure: Failure | None = None
        self._running = threading.RLock()
        """Held while a kernel runs; a fork takes it to keep the worker between two kernels."""
        self._role = threading.RLock()
        """Held by the thread that runs kernels, for as long as it does so."""
        self._thread: threading.Thread | None = None
        self.is_default = False
        """Whether it is the device's default stream, which computes."""
        self.carries_collectives = False
        """Whether collectives run here, or what has waited for them."""
        self._leaving: threading.Thread | None = None
        """A worker that is to end as soon as it has nothing to do."""
        self.is_closed = False
        """Whether kernels run in the thread that submits them, because the process ends."""
        _engines.add(self)

    @property
    def submitted(self) -> int:
        """The last ticket that was given out."""
        try:
            return int(self._queue[-1][1])
        except IndexError:
            return self.finished

    def depend_on(self, engine: Engine, ticket: int) -> None:
        """Run what is queued from now on after another engine's kernel with that ticket."""
        if engine is self:
            return
        reached = dict(engine.clock)  # in one go: other threads queue as well
        reached[engine] = max(reached.get(engine, 0), ticket)
        for other, last in reached.items():
            self.clock[other] = max(self.clock[other], last)
        if modelled.clock is not None:
            modelled.clock.ordered(self, engine, ticket)
        join = None
        if engine.carries_collectives and modelled.clock is None:
            if self.is_default:
                join = waits.join()
            else:
                self.carries_collectives = True
        if engine.finished < ticket:
            self.submit(_Dependency(engine, ticket, join))
        elif join is not None:
            waits.joined(join, None)

    def is_ordered_after(self, engine: Engine, ticket: int) -> bool:
        """Whether kernels queued here from now on are certain to run after that one."""
        return engine is self or engine.finished >= ticket or self.clock[engine] >= ticket

    # --- waiting --------------------------------------------------------------------------------------------

    def wait(self, ticket: int | None = None, call: standin.Call | None = None) -> None:
        """Block the calling thread until that kernel, or everything queued so far, has run; raise the first failure.

        With a call the host sleeps in that function of CUDA's runtime, and without one as no GPU would have it sleep.
        """
        wait_for(((self, self.submitted if ticket is None else ticket),), call)

    def finish_at_once(self, ticket: int) -> None:
        """Block the calling thread until its newest kernel has run, and raise what that has raised."""
        self._block(ticket)
        self.raise_failure(at_once=True)

    def raise_failure(self, *, at_once: bool = False) -> None:
        """Raise what the first kernel that failed has raised, unless the host has had it already."""
        failure, self._failure = self._failure, None
        if failure is not None and not failure.is_reported:
            failure.reach_host(at_once=at_once)

    def runs_here(self) -> bool:
        """Whether the calling thread is the one that runs what is queued here."""
        return _workers.get(threading.get_ident()) is self

    def _block(self, ticket: int) -> None:
        if self.finished >= ticket:
            return
        own = _workers.get(threading.get_ident())
        if own is not None:
            own._block_meanwhile(self, ticket)
        elif self.is_closed:
            self._run_here(ticket)
        else:
            self._wait_for(ticket)

    def _wait_for(self, ticket: int, limit_s: float = -1) -> None:
        if self.finished >= ticket:
            return
        gate = threading.Lock()
        gate.acquire()
        wake = self.wake(ticket, gate.release)
        try:
            gate.acquire(timeout=limit_s)  # a signal's handler may run meanwhile, and raise
        finally:
            self.leave(wake)

    def _block_meanwhile(self, engine: Engine, ticket: int) -> None:
        """Wait on this engine's own thread, where Python has chosen to run a finalizer of the program's."""
        if not engine.is_of_device:
            engine._wait_for(ticket)
            return
        if self._current > self.finished:
            raise SimulationError(
                "a finalizer waits for the simulated device while Python runs it in the middle of the device's own "
                "work, which cannot go on before the finalizer returns; free the object where the program uses it, "
                "instead of leaving it to the garbage collector"
            )
        while engine.finished < ticket:
            if self._queue:
                self._run_next()
            else:
                engine._wait_for(ticket, _POLL_S)

    def wake(self, ticket: int, call: Callable[[], object]) -> _Wake:
        """Call that as soon as the kernel has run, once; return what :meth:`leave` takes."""
        wake = (ticket, call)
        self._wakes.append(wake)  # before looking: the worker looks for these after it has finished a kernel
        if self.finished >= ticket and self.leave(wake):
            call()
        return wake

    def leave(self, wake: _Wake) -> bool:
        """Take back a :meth:`wake` and return whether it was still there: who takes one out makes the call."""
        try:
            self._wakes.remove(wake)
        except ValueError:
            return False
        return True

    def _wake_waiting(self) -> None:
        for wake in tuple(self._wakes):
            if wake[0] <= self.finished and self.leave(wake):
                wake[1]()

    # --- queueing -------------------------------------------------------------------------------------------

    def submit(self, entry: _Entry) -> int:
        """Queue a kernel and return its ticket without waiting for it."""
        refuse_if_forked()
        if len(self._queue) >= QUEUE_LIMIT:
            self._wait_for_room()
        numbered: list[Any] = [entry]
        # In one call of C, so that the queue is in the order of the tickets whatever comes in between: adds the next
        # ticket to the entry, and that to the queue.
        self._queue.extend(map(operator.iadd, (numbered,), zip(self._tickets)))
        if self._is_idle:
            self._bell.put(None)
        ticket: int = numbered[1]
        if self._thread is None:
            if self.is_closed:
                self._run_here(ticket)
            else:
                # Several at once do no harm: only one of them gets to run kernels.
                AgentThread(target=self._work, name=self.name).start()
        return ticket

    def _wait_for_room(self) -> None:
        if not self.is_closed and threading.get_ident() not in _workers:
            waits.host_waits()
            self._wait_for(self.submitted - QUEUE_LIMIT + 1)

    def retire(self) -> None:
        """Run what is queued and end the thread; a later kernel starts another."""
        if not self.is_closed:
            self._block(self.submitted)
        self._leaving = thread = self._thread
        self._bell.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def forget_thread(self) -> None:
        """In a child process, which its parent's threads are not in."""
        self._wakes.clear()
        self._role, self._bell, self._thread, self._is_idle = threading.RLock(), SimpleQueue(), None, False

    # --- on the worker --------------------------------------------------------------------------------------

    def _work(self) -> None:
        own = threading.get_ident()
        while self._role.acquire(blocking=False):
            try:
                self._thread = threading.current_thread()
                _workers[own] = self
                have_room_for_errors()
                self._run_kernels()
            except BaseException as error:  # between two kernels: no memory, or an exception that a thread has sent
                self._keep(Failure(error, f"the worker of {self.name}"))
                while self._queue:
                    self.finished = self._queue.popleft()[1]
                self._wake_waiting()
            finally:
                self._thread = None  # the next kernel starts another
                _workers.pop(own, None)
                self._role.release()
            if not self._queue or self.is_closed:  # after that: a kernel may have come before it
                return

    def _run_kernels(self) -> None:
        """Compute on plain CPU tensors; the queueing thread has done everything above that already."""
        torch.set_grad_enabled(False)
        torch.get_num_threads()  # torch applies the process's setting to a thread when it is asked; MKL would not ask
        queue, run_next = self._queue, self._run_next
        with _BelowAutograd():
            while True:
                while queue and not self.is_closed:  # a daemon thread may queue more for as long as the process ends
                    run_next()
                if self.is_closed or not self._await_kernel():
                    return

    def _await_kernel(self) -> bool:
        """Sleep until there is a kernel, and return whether there is: else the thread is to end."""
        self._is_idle = True  # before looking: who queues a kernel looks at this afterwards
        try:
            if not self._queue:
                self._bell.get(timeout=Engine.idle_limit_s)
        except Empty:
            return bool(self._queue)
        finally:
            self._is_idle = False
        return bool(self._queue) or self._leaving is not self._thread

    def _run_next(self) -> None:
        """Run the first kernel in the queue."""
        queue = self._queue
        numbered = queue[0]
        entry, self._current = numbered
        if self._current > self.finished:
            self._execute(entry)
            self.finished = numbered[1]
        if queue and queue[0] is numbered:
            queue.popleft()
        # A kernel holds its arguments: release them before anyone goes on.
        del entry, numbered
        if self._wakes:
            self._wake_waiting()

    def _execute(self, entry: _Entry) -> None:
        try:
            if isinstance(entry, _Dependency):
                # Not under the lock: a fork that has paused the other engine must not wait for this one.
                began_ns = time.perf_counter_ns()
                entry.engine._wait_for(entry.ticket)
                if entry.join is not None:
                    waits.joined(entry.join, began_ns)
            else:
                with self._running:
                    entry()
        except BaseException as error:
            self._keep(failure_of(error))

    def _run_here(self, ticket: int) -> None:
        """Run it in this thread: the process ends."""
        if threading.get_ident() != _ends_in:
            time.sleep(_HELD_BACK_S)  # what waits for this thread gets it in the end
        with self._role:
            while self._current <= self.finished < ticket:
                self._run_next()

    def _keep(self, failure: Failure) -> None:
        if self._failure is None or self._failure.is_reported:
            self._failure = failure


def wait_for(marks: Iterable[tuple[Engine, int]], call: standin.Call | None = None) -> None:
    """Block the calling thread until each queue has reached its ticket; raise the first failure.

    ``call`` is as in :meth:`Engine.wait`.
    """
    refuse_if_forked()
    marks = tuple(marks)
    if call is not None:
        waits.host_waits()
    if call is None or not standin.is_there() or threading.get_ident() in _workers:
        for engine, ticket in marks:
            engine._block(ticket)
    else:
        _sleep_in(call, [mark for mark in marks if mark[0].finished < mark[1]])
    if call is not None and modelled.clock is not None:
        modelled.clock.waited(marks)
    for engine, _ in marks:
        engine.raise_failure()


def _sleep_in(call: standin.Call, marks: list[tuple[Engine, int]]) -> None:
    gate = standin.Gate(len(marks)) if marks else standin.OPEN
    wakes: list[tuple[Engine, _Wake]] = []
    try:
        for engine, ticket in marks:
            wakes.append((engine, engine.wake(ticket, functools.partial(standin.open_by_one, gate))))
        while not standin.sleep(gate, call):
            refuse_if_forked()  # a signal's handler may have forked
            call = standin.rest_of(call)
    except BaseException:  # whatever a signal's handler has raised
        for engine, wake in wakes:
            engine.leave(wake)
        raise


WAITING = (wait_for.__code__, Engine._block.__code__)
"""What a thread is in while it waits for kernels."""

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_workers: dict[int, Engine] = {}
"""By the thread's number: whose kernels it runs."""
_paused: list[Engine] = []
_forked = False


def refuse_if_forked() -> None:
    """Raise what CUDA raises in a child that was forked after its parent had used the device."""
    if _forked:
        raise RuntimeError(
            "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must use the "
            "'spawn' start method"
        )


def is_forked() -> bool:
    return _forked


def all_engines() -> list[Engine]:
    """Those of all streams that are left."""
    return list(_engines)


_ends_in: int | None = None
"""The thread in which the process ends."""
_HELD_BACK_S = 5.0
_UNTIL_HELD_BACK_S = 0.1


def _close_all() -> None:
    """Finish what is queued and end the workers, and let no daemon thread of the program's use the device any more.

    One that is inside torch while the interpreter is torn down would crash the process.
    """
    global _ends_in
    if _forked:
        return
    _ends_in = threading.get_ident()
    for engine in all_engines():
        engine._block(engine.submitted)
        engine.is_closed = True
        engine.retire()
    if any(thread.daemon and not isinstance(thread, AgentThread) for thread in threading.enumerate()):
        time.sleep(_UNTIL_HELD_BACK_S)  # each of them comes to its next kernel


def _before_fork() -> None:
    # A worker that holds one of C's locks during the fork leaves it locked in the child for ever.
    _paused.extend(engine for engine in all_engines() if engine._running.acquire(timeout=FORK_PATIENCE_S))


def _after_fork_in_parent() -> None:
    while _paused:
        _paused.pop()._running.release()


def _after_fork_in_child() -> None:
    global _forked
    _after_fork_in_parent()
    _workers.clear()
    # The worker threads did not come along.  A parent that never used the device leaves its child free to.
    _forked = _forked or any(engine.submitted for engine in _engines if engine.is_of_device)
    for engine in all_engines():
        engine.forget_thread()


atexit.register(_close_all)
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
