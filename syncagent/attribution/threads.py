"""What is known of each thread that calls torch while the agent watches, and the registry of those threads."""

from __future__ import annotations

import os
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncagent.attribution.callsite import Point, Where
    from syncagent.support.faults import Faults

OWNER: ContextVar[WatchedThread | None] = ContextVar("syncagent_owner", default=None)
"""The thread that this context belongs to.  Autograd's threads get the context of the thread that called
``backward()``."""

_SLOTS = 1 << 16
_new = tuple.__new__  # what a NamedTuple's own constructor does, in half the time
_TASKS = "/proc/self/task" if os.path.isdir("/proc/self/task") else ""


class Forward(NamedTuple):
    """A forward op that made an autograd node."""

    sequence: int
    where: Where
    module: str | None


class ForwardSites:
    """The newest 65,536 forward ops of a thread that made an autograd node, by the node's sequence number.

    The op can read that number as it runs, and so can the node in the backward pass.
    """

    __slots__ = ("_ring",)

    def __init__(self) -> None:
        self._ring: list[Forward | None] = []

    def remember(self, sequence: int, where: Where, module: str | None) -> None:
        if not self._ring:  # half a megabyte, which most threads never need
            self._ring = [None] * _SLOTS
        self._ring[sequence % _SLOTS] = _new(Forward, (sequence, where, module))

    def remember_if_new(self, sequence: int, where: Where) -> None:
        """Remember the op unless its node is known already: what a sync has remembered is more precise."""
        ring = self._ring
        if not ring:
            self.remember(sequence, where, None)
            return
        found = ring[sequence % _SLOTS]
        if found is None or found[0] != sequence:
            ring[sequence % _SLOTS] = _new(Forward, (sequence, where, None))

    def find(self, sequence: int) -> Forward | None:
        found = self._ring[sequence % _SLOTS] if self._ring else None
        return found if found is not None and found.sequence == sequence else None


class WatchedThread:
    """Who a thread is, and what attribution has to remember of it.  Only the thread itself writes here.

    What is recorded on it comes with a subclass (:class:`syncagent.recording.records.ThreadState`).
    """

    __slots__ = (
        "api", "api_point", "ended", "forwards", "ident", "last_sequence", "name", "native_id", "node_line",
        "open_ranges", "owner", "step_sequence", "trains", "where",
    )  # fmt: skip

    def __init__(self) -> None:
        # Who it is.
        self.ident = threading.get_ident()
        self.native_id = threading.get_native_id()
        self.name = f"thread-{self.native_id}"
        self.ended = False
        self.trains = self.ident == threading.main_thread().ident
        """Whether the policy judges this thread: the main thread, and any other on which an optimizer has stepped."""
        # Where its calls come from.
        self.api: Any = None
        """The function of torch that Python has called and that is running, under ``detail="ops"``."""
        self.api_point: Any = None
        """The user's line that called it; looked up at its first op."""
        self.open_ranges: list[Any] = []
        """The ``record_function`` objects, outermost first."""
        self.where: Where | None = None
        """The location of the sync that is about to wait, once the policy has looked it up."""
        # From the backward pass to the forward pass.
        self.forwards = ForwardSites()
        self.last_sequence = 0
        """The sequence number that the last op saw, under ``detail="ops"``: a new one means a new autograd node."""
        self.step_sequence = 0
        """The sequence number at the last step of an optimizer; older nodes belong to a graph that is done with."""
        self.node_line: tuple[int, int, Point | None] = (-1, -1, None)
        """The backward pass and the node in it that ran last on this thread, and the forward line of that node."""
        self.owner: tuple[int, WatchedThread | None] = (-1, None)
        """The backward pass that was asked about last, and the thread that called it."""

    def undelivered(self) -> int:
        """Return how many syncs of this thread still have to be delivered."""
        return 0

    def add_sums(self, ended: Any) -> None:
        """Add the sums of a thread that has ended."""


T = TypeVar("T", bound=WatchedThread)


class Threads(Generic[T]):
    """Makes a thread's state at its first use, and drops it once the thread has ended and its records are delivered."""

    def __init__(self, make: Callable[[], T], faults: Faults) -> None:
        self.local = threading.local()
        """Holds this thread's own state as ``state``: looked up there, it costs no call."""
        self.adopt: Callable[[T], None] = lambda _state: None
        """Called on each thread that is new, with its state."""
        self.all: list[T] = []
        """Threads that are alive or not yet delivered.  Replaced and never changed, so that readers need no lock."""
        self._make = make
        self._faults = faults
        self._ended = make()  # holds the sums of all threads that have ended
        self._lock = threading.RLock()  # between threads that are new, and the draining thread

    def current(self) -> T:
        """Return this thread's state, made at its first use."""
        try:
            state: T = self.local.state
        except AttributeError:
            state = self.local.state = self._make()
            OWNER.set(state)
            for other in self.all:  # the number of a thread that has ended is given to the next
                other.ended = other.ended or other.ident == state.ident
            state.name = self._faults.guard(
                "looking up a thread's name", lambda: thread_name(state.native_id, state.ident), state.name
            )
            self._faults.guard("the driver's counts of a thread", lambda: self.adopt(state), None)
            try:
                self.retire(state)
            except Exception as error:
                self.all = [*self.all, state]
                self._faults.add("letting go of threads that have ended", error, "failed")
        return state

    def retire(self, *new: T) -> None:
        """Drop threads that have ended once their records are delivered, keeping their sums; add ``new`` ones."""
        with self._lock:
            # News is looked for last: a thread may leave a sync behind and end between the two looks.
            gone = [s for s in self.all if (s.ended or not _is_alive(s.native_id)) and not s.undelivered()]
            self.all = [*(state for state in self.all if state not in gone), *new]
            for state in gone:
                self._ended.add_sums(state)

    def with_ended(self) -> tuple[T, ...]:
        """Return all threads; one more entry holds the sums of those that were dropped."""
        return (self._ended, *self.all)

    def forget(self) -> None:
        """In a forked child: the threads, and what they saw, are the parent's."""
        self._lock = threading.RLock()  # a thread that the child does not have may have held it
        self.all = []
        if hasattr(self.local, "state"):  # the sensors hold on to ``local`` itself
            del self.local.state


def _is_alive(native_id: int) -> bool:
    """Ask the system whether this thread still runs: Python loses sight of autograd's threads when they are idle."""
    return not _TASKS or os.path.exists(f"{_TASKS}/{native_id}")


def thread_name(native_id: int, ident: int | None = None) -> str:
    """Return Python's name of a thread, else the one the system knows (autograd's threads have no other)."""
    # threading.current_thread() would make up an object for a thread that Python did not start.
    number, which = (native_id, "native_id") if ident is None else (ident, "ident")
    known = next((thread.name for thread in threading.enumerate() if getattr(thread, which) == number), None)
    return system_name(native_id) if known is None else known


def system_name(native_id: int) -> str:
    """Return the name of a thread that the system knows."""
    try:
        # The system cuts names to 15 bytes, in the middle of a character if need be.
        with open(f"/proc/self/task/{native_id}/comm", encoding="utf-8", errors="replace") as stream:
            return stream.read().strip() or f"thread-{native_id}"
    except OSError:
        return f"thread-{native_id}"
