"""Chooses the random moments at which a thread is looked at, so seldom that the looks stay within their share."""

from __future__ import annotations

import random

from syncagent.sensors.look_pace import HANDOVER_NS

BETWEEN_NS = 40_000_000
"""The mean time between two looks, where they are cheap enough."""
SHARE = 0.003
"""What part of the thread's time the looks may cost."""
_NEWEST = 16
_LONGEST = 4


class RandomPace:
    """Moments at random, so that no rhythm of the program hides a part of it."""

    def __init__(self) -> None:
        self._random = random.Random()  # noqa: S311  (no secret; the program's own draws stay as they are)
        self._cost_ns = 0.0
        self.mean_ns = BETWEEN_NS
        """The mean time between two looks as it is now."""

    def next_ns(self) -> int:
        """Return how long it is to the next look."""
        return int(min(self._random.expovariate(1 / self.mean_ns), _LONGEST * self.mean_ns))

    def looked(self, took_ns: int) -> None:
        """Take what a look has cost.  The thread is taken to have waited for the interpreter each time."""
        self._cost_ns += (took_ns + HANDOVER_NS - self._cost_ns) / _NEWEST
        self.mean_ns = max(BETWEEN_NS, int(self._cost_ns / SHARE))
