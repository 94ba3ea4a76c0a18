"""One worker thread per stream, which runs kernels in order and remembers what failed."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch

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
    joined_ns: int | None
    """When the host has queued it (``perf_counter_ns``), where what it waits for may be a collective."""


class Engine:
    """A queue and the thread that runs what is in it.

    A *ticket* is the place of a kernel in its queue, counted from 1: once ``finished`` reaches it, the kernel has run.
    """

    idle_limit_s: float | None = None
    """How long an idle worker thread stays; set when the device is taken away."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.submitted = 0
        self.finished = 0
        self.clock: Counter[Engine] = Counter()
        """What the host has ordered before this queue's next kernel: a ticket for each other engine."""
        self._queue: deque[Callable[[], object] | _Dependency | None] = deque()
        self._changed = threading.Condition()
        self._idle = False
        self._waiters = 0
        self._gates: list[tuple[int, standin.Gate]] = []
        """Whom to wake in the runtime's stand-in, and after which ticket."""
        self._failure: Failure | None = None
        self._running = threading.Lock()
        """Held while a kernel runs; a fork takes it to keep the worker between two kernels."""
        self._thread: threading.Thread | None = None
        self.is_default = False
        """Whether it is the device's default stream, which computes."""
        self.carries_collectives = False
        """Whether collectives run here, or what has waited for them."""
        self.is_closed = False
        """Whether kernels run in the thread that submits them, because the process ends."""
        _engines.add(self)

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
        joined_ns = None
        if engine.carries_collectives and modelled.clock is None:
            if self.is_default:
                joined_ns = time.perf_counter_ns()
            else:
                self.carries_collectives = True
        if engine.finished < ticket:
            self.submit(_Dependency(engine, ticket, joined_ns))
        elif joined_ns is not None:
            waits.joined(joined_ns, 0)

    def is_ordered_after(self, engine: Engine, ticket: int) -> bool:
        """Whether kernels queued here from now on are certain to run after that one."""
        return engine is self or engine.finished >= ticket or self.clock[engine] >= ticket

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

    def _block(self, ticket: int) -> None:
        if self.finished >= ticket:
            return
        with self._changed:
            self._wait_until(lambda: self.finished >= ticket)

    def _wait_until(self, is_so: Callable[[], bool]) -> None:
        self._waiters += 1  # before looking: the worker looks for waiters after it has finished a kernel
        try:
            while not is_so():
                self._changed.wait()
        finally:
            self._waiters -= 1

    def wake(self, ticket: int, gate: standin.Gate) -> None:
        """Open that gate by one as soon as that kernel has run."""
        entry = (ticket, gate)
        self._gates.append(entry)  # before looking, too
        if self.finished >= ticket and self._forget(entry):
            standin.open_by_one(gate)

    def _forget(self, entry: tuple[int, standin.Gate]) -> bool:
        """Return whether it was still there: who takes an entry out opens its gate."""
        try:
            self._gates.remove(entry)
        except ValueError:
            return False
        return True

    def _open_gates(self) -> None:
        for entry in tuple(self._gates):
            if entry[0] <= self.finished and self._forget(entry):
                standin.open_by_one(entry[1])

    def leave(self, ticket: int, gate: standin.Gate) -> None:
        """Take back a :meth:`wake`."""
        self._forget((ticket, gate))

    def submit(self, entry: Callable[[], object] | _Dependency) -> int:
        """Queue a kernel and return its ticket without waiting for it."""
        refuse_if_forked()
        with self._changed:
            if self.is_closed:
                self.submitted += 1
                self._execute(entry)
                return self.submitted
            if self._thread is None:
                self._thread = AgentThread(target=self._work, name=self.name)
                self._thread.start()
            if self.submitted - self.finished >= QUEUE_LIMIT:
                self._wait_until(lambda: self.submitted - self.finished < QUEUE_LIMIT)
            self._queue.append(entry)
            self.submitted += 1
            if self._idle:
                self._changed.notify_all()
            return self.submitted

    def _work(self) -> None:
        try:
            have_room_for_errors()
            self._run_kernels()
        except BaseException as error:  # between two kernels: no memory, or an exception that another thread has sent
            with self._changed:
                self._keep(Failure(error, f"the worker of {self.name}"))
                self._queue.clear()
                self.finished = self.submitted
                self._thread = None
                self._changed.notify_all()
            self._open_gates()

    def _run_kernels(self) -> None:
        """Compute on plain CPU tensors; the queueing thread has done everything above that already."""
        torch.set_grad_enabled(False)
        torch.get_num_threads()  # torch applies the process's setting to a thread when it is asked; MKL would not ask
        queue, changed = self._queue, self._changed
        with _BelowAutograd():
            while True:
                with changed:
                    while not queue:
                        self._idle = True
                        if not changed.wait(Engine.idle_limit_s) and not queue:
                            queue.append(None)
                    self._idle = False
                    entry = queue.popleft()
                    if entry is None:
                        if queue:
                            continue
                        self._thread = None  # the next kernel starts another
                        return
                self._execute(entry)
                # A kernel holds its arguments: release them before waiting for the next one.
                del entry
                if self._gates:
                    self._open_gates()
                if self._waiters:
                    with changed:
                        changed.notify_all()

    def _execute(self, entry: Callable[[], object] | _Dependency) -> None:
        try:
            if isinstance(entry, _Dependency):
                # Not under the lock: a fork that has paused the other engine must not wait for this one.
                began_ns = time.perf_counter_ns()
                entry.engine._block(entry.ticket)
                if entry.joined_ns is not None:
                    waits.joined(entry.joined_ns, time.perf_counter_ns() - began_ns)
            else:
                with self._running:
                    entry()
        except BaseException as error:
            self._keep(failure_of(error))
        self.finished += 1

    def _keep(self, failure: Failure) -> None:
        if self._failure is None or self._failure.is_reported:
            self._failure = failure

    def retire(self) -> None:
        """Run what is queued and end the thread; a later kernel starts another."""
        self._block(self.submitted)
        with self._changed:
            thread = self._thread
            if thread is not None:
                self._queue.append(None)
                self._changed.notify_all()
        if thread is not None:
            thread.join()


def wait_for(marks: Iterable[tuple[Engine, int]], call: standin.Call | None = None) -> None:
    """Block the calling thread until each queue has reached its ticket; raise the first failure.

    ``call`` is as in :meth:`Engine.wait`.
    """
    refuse_if_forked()
    marks = tuple(marks)
    if call is None or not standin.is_there():
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
    try:
        for engine, ticket in marks:
            engine.wake(ticket, gate)
        while not standin.sleep(gate, call):
            refuse_if_forked()  # a signal's handler may have forked
            call = standin.rest_of(call)
    except BaseException:  # whatever a signal's handler has raised
        for engine, ticket in marks:
            engine.leave(ticket, gate)
        raise


WAITING = (wait_for.__code__, Engine._block.__code__)
"""What a thread is in while it waits for kernels."""

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
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


def _close_all() -> None:
    # A daemon thread that is inside torch while the interpreter is torn down crashes the process.
    if not _forked:
        for engine in all_engines():
            engine._block(engine.submitted)
            engine.is_closed = True
            engine.retire()


def _before_fork() -> None:
    # A worker that holds one of C's locks during the fork leaves it locked in the child for ever.
    _paused.extend(engine for engine in all_engines() if engine._running.acquire(timeout=FORK_PATIENCE_S))


def _after_fork_in_parent() -> None:
    while _paused:
        _paused.pop()._running.release()


def _after_fork_in_child() -> None:
    global _forked
    _after_fork_in_parent()
    for engine in all_engines():
        engine._gates.clear()
    # The worker threads did not come along.  A parent that never used the device leaves its child free to.
    _forked = _forked or any(engine.submitted for engine in _engines)


atexit.register(_close_all)
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
