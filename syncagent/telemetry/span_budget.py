"""Decides which syncs and steps get a span, so that a job with thousands of syncs per second sends tens of spans.

A span costs some 0.2 ms of Python, for which the agent's thread competes with the training threads.  Counts and sums
do not need spans: the report and the metrics cover every sync.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from syncagent.events import StepRecord, SyncEvent

FIRST = 100
"""How many syncs of each line, and how many steps, get a span in any case."""
INTERVAL_NS = 1_000_000_000
"""In each interval after that, a sync gets a span if its line has not waited longer in it, and about one step does."""
MOST = 50
"""The most spans of such syncs in one interval."""
LINES = 20
"""The most spans of syncs in a step that was picked, one per line."""
_SITES = 10_000


class SpanBudget:
    """Decides on each sync and each step once, in about their order.

    Ranks pick the same steps, about one per second, so that they can be compared: ``draw`` gives all ranks the same
    number for a step, and the step is picked if the low bits of it are 0.  How many bits depends on the rate of steps,
    so that a slightly slower rank picks all that the others pick.  In such a step the first sync of each line has a
    span.
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
        self._mask = -1  # no step is picked until their rate is known; the first have a span anyway
        self._drawn = (-1, False)
        self._lines: set[Hashable] = set()
        self.withheld = 0
        """How many syncs got no span."""
        self.withheld_steps = 0
        """How many steps got none; none of their syncs did either."""

    def allows(self, event: SyncEvent) -> bool:
        """Return whether this sync gets a span."""
        if event.repeats > 1 or event.estimated:  # it stands for many
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
        """Return whether a step gets a span although none of its syncs has one."""
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
