"""Which syncs and steps get a span of their own, so that a job with thousands a second sends tens of spans a second.

A span costs some 0.2 ms of Python, for which the agent's thread competes with the training threads.  Counts and sums
are exact without spans: the report and the metrics have them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from syncagent.events import StepRecord, SyncEvent

__all__ = ["SpanBudget"]

FIRST = 100
"""So many syncs of each line get a span whatever comes, and so many steps."""
INTERVAL_NS = 1_000_000_000
"""After that, each time a line waits longer than before in this interval, and one step."""
MOST = 50
"""Spans of syncs in one interval, beyond the first of each line."""
LINES = 20
"""Spans of syncs in a step that is picked, beyond those: one a line."""
_SITES = 10_000


class SpanBudget:
    """Keeps count; asked once for each sync and each step, in about their order.

    Ranks agree on the steps that are shown: about one a second is picked by ``draw``, which gives all ranks the same
    number for a step.  How many low bits of it have to be 0 depends on how fast steps come, so that what a rank picks
    that is a little slower contains what the others pick.  Each line's first sync in such a step has a span, so that
    ranks can be held against each other.
    """

    def __init__(self, first: int = FIRST, draw: Callable[[int], int] = lambda _step: 1) -> None:
        self.draw = draw
        self._first = first
        self._seen: dict[Hashable, int] = {}
        self._slowest_ns: dict[Hashable, int] = {}
        self._interval = -1
        self._given = 0
        self._steps = 0
        self._step_interval = -1
        self._steps_before = 0
        self._mask = -1  # none is picked until it is known how fast they come; the first have a span anyhow
        self._drawn = (-1, False)
        self._lines: set[Hashable] = set()
        self.withheld = 0
        """Syncs that got no span."""
        self.withheld_steps = 0
        """Steps that got none, since none of their syncs did either."""

    def allows(self, event: SyncEvent) -> bool:
        """Is this sync to have a span?"""
        if event.repeats > 1:  # it stands for many
            self.withheld += event.repeats
            return False
        key = (event.op, event.site, event.phase, event.violation)
        seen = self._seen.get(key, 0)
        if seen < self._first and (seen or len(self._seen) < _SITES):
            self._seen[key] = seen + 1
            return True
        interval = event.start_ns // INTERVAL_NS
        if interval != self._interval:
            self._interval = interval
            self._slowest_ns.clear()
            self._given = 0
        if self._is_picked(event.step) and key not in self._lines and len(self._lines) < LINES:
            self._lines.add(key)
            return True
        if event.stall_ns > self._slowest_ns.get(key, -1) and self._given < MOST:
            self._slowest_ns[key] = event.stall_ns
            self._given += 1
            return True
        self.withheld += 1
        return False

    def allows_step(self, record: StepRecord) -> bool:
        """Is a step without a sync's span to have one?"""
        interval = record.end_ns // INTERVAL_NS
        if interval != self._step_interval:
            if self._step_interval >= 0:
                steps = self._steps - self._steps_before
                self._mask = (1 << (steps - 1).bit_length()) - 1
            self._step_interval, self._steps_before = interval, self._steps
        self._steps += 1
        return self._steps <= self._first or self._is_picked(record.step)

    def _is_picked(self, step: int) -> bool:
        if self._drawn[0] != step:
            self._drawn = (step, not self.draw(step) & self._mask)
            self._lines.clear()
        return self._drawn[1]
