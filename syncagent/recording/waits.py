"""The waits that the driver sensor has seen and no other sensor has named: where each was, and what is known of it.

Three threads meet here.  The one that waited may have *noted* what it was doing, after the wait (a mode, a kernel whose
arguments did not prove that the op waits).  Else the agent's looker has *looked* at its frames while it waited.  The
draining thread takes the records of the native library and puts the two together; what neither knows stays empty.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from syncagent.attribution.callsite import NOWHERE
from syncagent.events import SyncKind
from syncagent.native import (
    NAMED,
    NAMED_NS,
    NAMED_WAITS,
    NUMBER,
    QUEUE_FULL,
    START_NS,
    TID,
    WORDS,
    Native,
    Wait,
)  # fmt: skip
from syncagent.recording.looks import Look

THRESHOLD_NS = 100_000
"""Waits of at least this length are records of their own; shorter ones are added up by function."""

_ALLOCATING = ("cudaMalloc", "cudaFree", "cudaHost", "cudaMemPool")
_COPYING = ("cudaMemcpy", "cudaMemset")
_ASKED_FOR = ("cudaDeviceSynchronize", "cudaEventSynchronize", "cudaThreadSynchronize")
_DIRECTIONS = {1: SyncKind.COPY_H2D, 2: SyncKind.COPY_D2H}
_ALLOCATES_NS = 1_000_000
"""Taking or giving memory takes up to a fifth of that by itself (an H200), without a wait for the device."""
_NOTES = 16_384
_TO_SAY_NS = 1_000_000
_STEPS = 4_096
_NO_LOOK = Look()


class Note(NamedTuple):
    """What a thread says of a wait of its own, when it is over."""

    op: str
    api: object
    look: Look


class SeenWait(NamedTuple):
    """A wait with all that is known of it."""

    op: str
    """What the thread has said that it was in, else the function of the runtime."""
    api: object
    kind: SyncKind
    start_ns: int
    stall_ns: int
    tid: int
    """The system's number of the thread (``threading.get_native_id``)."""
    step: int
    look: Look
    is_copy: bool


class ShortWaits(NamedTuple):
    """Synchronize calls that no sensor named and that were too short for a record of their own."""

    function: str
    calls: int
    stall_ns: int


def begin_named(slot: memoryview | None) -> tuple[int, int]:
    """Say that this thread's waits are named from now on; returns what :func:`end_named` needs."""
    if slot is None:
        return 0, 0
    slot[NAMED] = 1
    return slot[NAMED_WAITS], slot[NAMED_NS]


def end_named(slot: memoryview | None, before: tuple[int, int], otherwise_ns: int) -> int:
    """End that, and return how long the driver waited meanwhile; ``otherwise_ns`` where it saw no wait."""
    if slot is None:
        return otherwise_ns
    slot[NAMED] = 0
    waits, driver_ns = before
    return otherwise_ns if slot[NAMED_WAITS] == waits else slot[NAMED_NS] - driver_ns


class DriverWaits:
    """Keeps notes and looks until the draining thread takes the waits that they belong to."""

    def __init__(self, current_step: Callable[[], int]) -> None:
        self._native: Native | None = None
        self._current_step = current_step
        self._looks: dict[tuple[int, int], Look] = {}
        """By slot and number of the wait."""
        self._notes: dict[int, deque[tuple[int, int, Note | None]]] = {}
        """By slot: last number, from when on, and what the waits were; ``None`` if another sensor has recorded them."""
        self._ended_steps: deque[tuple[int, int]] = deque(maxlen=_STEPS)
        """Number and end of the newest steps."""
        self._long: dict[int, tuple[int, int]] = {}
        """By function: count and time of the waits that were records of their own."""
        self._delivered: dict[int, tuple[int, int]] = {}
        """By function: count and time that are delivered already, or are from before the start."""
        self._sums: Sequence[tuple[int, int]] = ()
        """By function: count and time of all waits, as they were before the newest records were taken."""
        self._slots: memoryview | None = None
        self._named_before_ns = 0
        self._unnamed_ns = self._placed_ns = self._short_ns = 0

    def connect(self, native: Native) -> None:
        """Begin to take waits, those left out that ended before."""
        self._native = native
        self._slots = native.slots_view()
        self._named_before_ns = self._named_ns()
        while native.take():
            pass
        self._delivered = dict(enumerate(native.sums()))

    # --- on the threads that wait, and on the looker

    def note(self, slot: int, last: int, began_ns: int, note: Note | None) -> None:
        """Say what the waits of a slot were, from a moment on up to that number; ``None``: recorded already."""
        self._notes.setdefault(slot, deque(maxlen=_NOTES)).append((last, began_ns, note))

    def looked(self, slot: int, number: int, look: Look) -> None:
        """Keep what a look has found."""
        if len(self._looks) < _NOTES:
            self._looks[slot, number] = look

    def waiting(self) -> list[int]:
        """Return the threads that wait in the driver now, by the system's number of each."""
        slots = self._slots
        if slots is None:
            return []
        starts = slots[START_NS::WORDS].tolist()
        return [slots[slot * WORDS + TID] for slot, start_ns in enumerate(starts) if start_ns]

    def step_ended(self, step: int, end_ns: int) -> None:
        self._ended_steps.append((step, end_ns))

    # --- on the draining thread

    def take(self) -> Iterator[SeenWait]:
        """Take the waits that have ended, those left out that another sensor has recorded."""
        native = self._native
        if native is None:
            return
        over = self._over(native)
        self._sums = native.sums()  # before the records: a wait that ends in between would count twice
        waits: list[Wait] = []
        while more := native.take():
            waits += more
        now_ns = time.perf_counter_ns()
        if any(wait.end_ns > now_ns - _TO_SAY_NS for wait in waits):
            time.sleep(_TO_SAY_NS / 1e9)  # another thread may be about to say what it was
        step, ended_steps = self._current_step(), list(self._ended_steps)  # steps go on ending meanwhile
        for wait in waits:
            count, long_ns = self._long.get(wait.function, (0, 0))
            lasted_ns = wait.end_ns - wait.start_ns
            self._long[wait.function] = (count + 1, long_ns + lasted_ns)
            is_noted, note = self._noted(wait)
            look = self._looks.pop((wait.slot, wait.number), _NO_LOOK)
            if (is_noted and note is None) or wait.flags & QUEUE_FULL:
                continue
            function = native.functions[wait.function]
            op, api, look = note if note is not None else Note(function, None, look)
            kind = kind_of(function, wait.direction, look)
            if kind is SyncKind.ALLOCATOR and lasted_ns < _ALLOCATES_NS:
                continue
            self._unnamed_ns += lasted_ns
            self._placed_ns += lasted_ns if look.where is not NOWHERE else 0
            yield SeenWait(
                op, api, kind, wait.start_ns, lasted_ns, wait.tid,
                _step_at(wait.start_ns, step, ended_steps), look, function.startswith(_COPYING),
            )  # fmt: skip
        for key in over:
            self._looks.pop(key, None)

    def _noted(self, wait: Wait) -> tuple[bool, Note | None]:
        """Return whether the thread has said what this wait was, and what."""
        notes = self._notes.get(wait.slot)
        while notes and notes[0][0] < wait.number:  # waits of a slot come in their order
            notes.popleft()
        if notes and notes[0][1] <= wait.start_ns:
            return True, notes[0][2]
        return False, None

    def take_short(self) -> Iterator[ShortWaits]:
        """Take what short synchronize calls have added up to since the last time, by function; after :meth:`take`."""
        native = self._native
        if native is None:
            return
        for number, (count, all_ns) in enumerate(self._sums):
            name = native.functions[number]
            if "Synchronize" not in name:
                continue
            long_count, long_ns = self._long.get(number, (0, 0))
            before_count, before_ns = self._delivered.get(number, (0, 0))
            new, new_ns = count - long_count - before_count, all_ns - long_ns - before_ns
            if new > 0 and new_ns > 0:  # a wait that has just ended may be in one of the two sums alone
                self._delivered[number] = (before_count + new, before_ns + new_ns)
                self._unnamed_ns += new_ns
                self._short_ns += new_ns
                yield ShortWaits(name, new, new_ns)

    def _over(self, native: Native) -> list[tuple[int, int]]:
        """Return those waits that something is known of and that have ended: their records are about to be taken."""
        slots = native.slots_view()
        return [
            (slot, number)
            for slot, number in tuple(self._looks)
            if slots[slot * WORDS + NUMBER] != number or not slots[slot * WORDS + START_NS]
        ]

    def _named_ns(self) -> int:
        return sum(self._slots[NAMED_NS::WORDS].tolist()) if self._slots is not None else 0

    @property
    def shares(self) -> tuple[float, float] | None:
        """Two shares of the driver's wait time: that whose line is known, and that of waits too short to be looked at.

        The line is known of what sensors name and of what was looked at.  ``None`` where the driver has not waited.
        """
        named_ns = self._named_ns() - self._named_before_ns
        whole_ns = named_ns + self._unnamed_ns
        return ((named_ns + self._placed_ns) / whole_ns, self._short_ns / whole_ns) if whole_ns else None


def _step_at(moment_ns: int, step: int, ended_steps: list[tuple[int, int]]) -> int:
    """Return the step that a moment belongs to; ``step`` is the one that has not ended."""
    for number, end_ns in reversed(ended_steps):
        if end_ns <= moment_ns:
            break
        step = number
    return step


def kind_of(function: str, direction: int, look: Look) -> SyncKind:
    """Return the kind of a wait that no sensor has named."""
    if look.is_collective:
        return SyncKind.COLLECTIVE
    if function.startswith(_COPYING):
        return _DIRECTIONS.get(direction, SyncKind.OTHER)
    if function.startswith(_ALLOCATING):
        return SyncKind.ALLOCATOR
    return SyncKind.EXPLICIT if function.startswith(_ASKED_FOR) else SyncKind.OTHER
