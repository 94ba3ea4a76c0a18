"""Adds up what the training thread was busy with in its steps, from looks at it and from garbage collections."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from syncagent.attribution.callsite import Point
from syncagent.events import CallSite, HostCause
from syncagent.report.model import HostRow

MOST_ROWS = 50
_MOST_LINES = MOST_ROWS - 3
"""Besides garbage collection, and what is left of lines and of data loaders."""
_MOST_PLACES = 10_000
_MOST_PENDING = 8_192


class Place(NamedTuple):
    """What a look has found."""

    cause: HostCause
    point: Point | None
    """``None`` where the thread is in no code of the program or of a library."""


class _Look(NamedTuple):
    at_ns: int
    weight_ns: int
    place: Place | None


class _Collections(NamedTuple):
    at_ns: int
    number: int
    ns: int


class HostTime:
    """Shares the time of the steps out among the places at which looks have found the thread.

    Looks come at random moments, so each stands for the mean time between two of them: its weight.  A look that found
    the thread in a wait has no place, yet counts towards the whole.  What lies between two steps, in an evaluation for
    instance, belongs to none and is left out.
    """

    def __init__(self) -> None:
        # Between the thread that looks and readers; the training thread takes it only where it asks for a report.  A
        # signal handler that makes a report may have interrupted the very thread that holds it.
        self._lock = threading.RLock()
        self._ended: deque[tuple[int, int]] = deque()
        self._looks: deque[_Look] = deque()
        self._collections: deque[_Collections] = deque()
        self._seen = 0
        self._one_look_of = self._at_once = 1
        """Of how many looks one is kept, and how many collections are added up as they come."""
        self._step_ns = 0
        self._weight_ns = 0
        self._places: dict[tuple[HostCause, int, int], tuple[Place, int, int]] = {}
        """By cause, identity of the code and offset: the place, and number and weight of its looks.  Code objects are
        equal where their text is, whatever the file."""
        self._collected = (0, 0)

    def step_ended(self, start_ns: int, end_ns: int) -> None:
        """Take a step that is to be counted; on the training thread."""
        self._ended.append((start_ns, end_ns))

    def looked(self, at_ns: int, weight_ns: int, place: Place | None) -> None:
        """Take a look; ``None``: the thread was in a wait, or in a collection."""
        with self._lock:
            self._seen += 1
            if self._seen % self._one_look_of:
                return
            self._looks.append(_Look(at_ns, weight_ns * self._one_look_of, place))
            if len(self._looks) > _MOST_PENDING:  # a step of many minutes: half of its looks say as much
                self._one_look_of *= 2
                kept = tuple(self._looks)[::2]
                self._looks = deque(look._replace(weight_ns=2 * look.weight_ns) for look in kept)

    def collected(self, collections: Iterable[tuple[int, int]]) -> None:
        """Take garbage collections of the training thread: begin and end of each."""
        with self._lock:
            pending = self._collections
            for began_ns, ended_ns in collections:
                if pending and pending[-1].number < self._at_once:
                    at_ns, number, ns = pending.pop()
                    pending.append(_Collections(at_ns, number + 1, ns + ended_ns - began_ns))
                else:
                    pending.append(_Collections(began_ns, 1, ended_ns - began_ns))
                if len(pending) > _MOST_PENDING:
                    self._at_once *= 2
                    pending = self._collections = deque(_in_pairs(tuple(pending)))

    def settle(self, newest_collections: Callable[[], Iterable[tuple[int, int]]] = tuple) -> None:
        """Count what belongs to the steps that have ended."""
        with self._lock:
            ended = [self._ended.popleft() for _ in range(len(self._ended))]
            self.collected(newest_collections())  # asked for later: all that was in those steps is there
            for start_ns, end_ns in ended:
                self._step_ns += end_ns - start_ns
                self._settle_looks(start_ns, end_ns)
                while self._collections and self._collections[0].at_ns < end_ns:
                    at_ns, number, ns = self._collections.popleft()
                    if at_ns >= start_ns:
                        self._collected = (self._collected[0] + number, self._collected[1] + ns)
            self._one_look_of = self._one_look_of if self._looks else 1
            self._at_once = self._at_once if self._collections else 1

    def _settle_looks(self, start_ns: int, end_ns: int) -> None:
        while self._looks and self._looks[0].at_ns < end_ns:
            at_ns, weight_ns, place = self._looks.popleft()
            if at_ns < start_ns:
                continue
            self._weight_ns += weight_ns
            if place is None:
                continue
            if len(self._places) >= _MOST_PLACES and _key(place) not in self._places:
                place = Place(place.cause, None)  # a program that keeps generating code
            _, count, before_ns = self._places.get(_key(place), (place, 0, 0))
            self._places[_key(place)] = (place, count + 1, before_ns + weight_ns)

    def rows(self, resolve: Callable[[Point | None], CallSite | None]) -> tuple[HostRow, ...]:
        """Return what a report says; ``resolve`` looks up the line of a point."""
        with self._lock:
            places, (collections, collected_ns) = tuple(self._places.values()), self._collected
            ms_of_weight = self._step_ns / 1e6 / self._weight_ns if self._weight_ns else 0.0
        lines: dict[tuple[HostCause, str, int], CallSite | None] = {}
        counts: Counter[tuple[HostCause, str, int]] = Counter()
        weights: Counter[tuple[HostCause, str, int]] = Counter()
        for (cause, point), count, weight_ns in places:
            site = resolve(point)
            key = (cause, site.file, site.line) if site is not None else (cause, "", 0)
            lines[key] = site
            counts[key] += count
            weights[key] += weight_ns
        rows = [_row(key[0], lines[key], count, weights[key] * ms_of_weight) for key, count in counts.items()]
        rows = _largest(rows)
        if collections:
            rows.append(_row(HostCause.GARBAGE_COLLECTION, None, collections, collected_ns / 1e6))
        return tuple(sorted(rows, key=lambda row: -row.ms))


def _in_pairs(collections: Sequence[_Collections]) -> Iterator[_Collections]:
    for place in range(0, len(collections), 2):
        pair = collections[place : place + 2]
        yield _Collections(pair[0].at_ns, sum(each.number for each in pair), sum(each.ns for each in pair))


def _key(place: Place) -> tuple[HostCause, int, int]:
    code, offset = place.point or (None, 0)
    return place.cause, id(code), offset


def _largest(rows: Sequence[HostRow]) -> list[HostRow]:
    """Return the largest rows; the others, and those without a line, are one row for each cause."""
    known = sorted((row for row in rows if row.file), key=lambda row: -row.ms)
    rest = [*(row for row in rows if not row.file), *known[_MOST_LINES:]]
    summed = (
        _row(cause, None, sum(row.count for row in parts), sum(row.ms for row in parts))
        for cause in HostCause
        if (parts := [row for row in rest if row.cause == cause])
    )
    return [*chain(known[:_MOST_LINES], summed)]


def _row(cause: HostCause, site: CallSite | None, count: int, ms: float) -> HostRow:
    if site is None:
        return HostRow(cause.value, "", 0, "", "", count, ms)
    return HostRow(cause.value, site.file, site.line, site.function, site.source, count, ms)
