"""Which steps are watched whole where only some are (``detail="auto"``), and how many steps each of them stands for.

Kernels and modes around every op make an ordinary step two or three times slower, so that few steps may have them.
The first ones do; then one step in ``2 ** level``, where the level is the smallest at which what a sampled step takes
longer than the steps beside it, spread over all of them, is within ``overhead``.  None is sampled before some have
passed that were not, since only those show what the first ones have cost.

Which steps these are is a function of their number and the level alone, and the steps of one level are among those of
the level below: a rank that can afford less samples some of the same steps, and no rank waits for another's samples.
"""

from __future__ import annotations

import statistics
from collections import Counter, deque
from typing import NamedTuple

_LEAST, _MOST = 2, 20
"""Levels: there are always steps beside a sampled one, and one step in a million is none."""
_UP = 2
"""By how many levels one measurement may raise the level; it lowers it by one at most."""
_BESIDE = 8
_NEWEST = 5
_PATIENCE = 4 * _BESIDE
_UNMEASURED = 1.5
"""How much more the first steps cost, about, than the agent's own measure says: it leaves out the caches, for one."""
_LEAST_PLAIN = 0.1
"""The part of a first step that it would have lasted without the agent, at least: kernels and modes make no step ten
times slower, whatever a busy machine makes the agent's measure say."""
_KEPT = 4_096
_WORD = 0xFFFFFFFFFFFFFFFF


def sampled_of(block: int, level: int) -> int:
    """Return the step that is sampled among the ``2 ** level`` of this block.

    Each level picks one half of what the level below has picked, by a hash of which pair it is.  So the steps of a
    level are irregular, and a program that does something every tenth step is neither missed nor met each time.
    """
    step = block
    for number in reversed(range(level)):
        mixed = (step * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03) & _WORD
        mixed = (mixed ^ mixed >> 31) * 0xBF58476D1CE4E5B9 & _WORD
        step = step << 1 | mixed >> 40 & 1
    return step


class Level:
    """The level that measurements have led to so far; ``None``: no step is sampled."""

    def __init__(self, overhead: float) -> None:
        self._overhead = overhead
        self.level: int | None = _LEAST if overhead > 0 else None
        self._beside: deque[int] = deque(maxlen=_BESIDE)
        self._extra: deque[float] = deque(maxlen=_NEWEST)
        self._first_ns: float | None = None
        """What the first steps took, until it has been compared."""
        self._patience = 0

    def holds_back(self) -> bool:
        """Return whether the step that begins is not to be sampled, since the first ones have not been compared yet.

        Where every step is watched for another reason there is nothing to compare them with, and this ends.
        """
        self._patience -= 1
        return self._first_ns is not None and self._patience >= 0

    def guess(self, added_ns: list[int], lasted_ns: list[int]) -> None:
        """Set it by what the agent says it has added to the first steps, and how long these took."""
        if self.level is not None and added_ns and lasted_ns:
            lasted, added = statistics.median(lasted_ns), _UNMEASURED * statistics.median(added_ns)
            added = min(added, (1 - _LEAST_PLAIN) * lasted)
            self.level = self._needed(added, lasted - added)

    def compare(self, first_ns: list[int]) -> None:
        """Hold the times of the first steps, which were watched whole, against those of the next few, which are not.

        The agent's own measure says too little, up to three times, where a step has thousands of short ops.  The first
        steps may have been slow for other reasons, so that this raises the level by two at most.
        """
        if self.level is not None and first_ns:
            self._first_ns = statistics.median(first_ns[len(first_ns) // 2 :])
            self._patience = _PATIENCE

    def passed(self, lasted_ns: int) -> None:
        """Take the time of a step that was not sampled."""
        self._beside.append(lasted_ns)
        if self._first_ns is not None and self.level is not None and len(self._beside) == _BESIDE:
            plain, first_ns, self._first_ns = statistics.median(self._beside), self._first_ns, None
            needed = self._needed(max(first_ns - plain, 0.0), plain)
            self.level = min(max(needed, self.level), self.level + _UP)

    def sampled(self, lasted_ns: int) -> None:
        """Take the time of a sampled step, and move the level to where it should be."""
        if self.level is None or len(self._beside) < 2:
            return
        plain = statistics.median(self._beside)
        self._extra.append(lasted_ns - plain)
        needed = self._needed(max(statistics.median(self._extra), 0.0), plain)
        if needed > self.level:
            self.level = min(needed, self.level + _UP)
        elif needed < self.level and len(self._extra) == _NEWEST:
            self.level -= 1
            self._extra.clear()  # the next step down takes as much evidence

    def _needed(self, extra_ns: float, plain_ns: float) -> int:
        allowed_ns = self._overhead * plain_ns
        return next((level for level in range(_LEAST, _MOST) if extra_ns <= allowed_ns * 2**level), _MOST)


class _Unit(NamedTuple):
    """From when on one step in so many is watched: 1 where each is, 0 where this one is not."""

    since_ns: int
    period: int


class Periods:
    """What was in force when: the newest few thousand changes, which no delivery lags behind."""

    def __init__(self) -> None:
        self._units: deque[_Unit] = deque([_Unit(0, 0)], maxlen=_KEPT)
        self.sampled: Counter[int] = Counter()
        """How many steps or intervals were watched to their end, by how many each of them stands for."""
        self._intervals: Counter[int] = Counter()
        """Those of ``sampled`` that came before the first step's end, and say nothing of steps."""
        self._stands_for = 0

    def steps_begin(self) -> None:
        """Count steps from now on, and no intervals.

        The first step, which ends now, counts for one: reports leave it out of what is repeated and scaled.
        """
        self._intervals = self.sampled.copy()
        self._stands_for = 1

    def since(self, before: Counter[int] | None = None) -> Counter[int]:
        """Return ``sampled`` without what it was before, and without intervals where there are steps."""
        return self.sampled - (self._intervals if before is None else self._intervals | before)

    def begin(self, since_ns: int, period: int, *, named: bool = False) -> None:
        """Begin a step, once another has ended.

        ``named`` says that all syncs are, though the step stands for itself alone.
        """
        if self._stands_for:
            self.sampled[self._stands_for] += 1
        self.change(since_ns, period)
        self._stands_for = max(period, int(named))

    def change(self, since_ns: int, period: int) -> None:
        """Have another period in force from the midst of a step on; it then stands for none."""
        self._stands_for = 0
        if period != 0 or self._units[-1].period != 0:
            self._units.append(_Unit(since_ns, period))

    def at(self, moment_ns: int) -> _Unit:
        units = self._units  # the training thread adds to the end meanwhile: at worst one is looked at twice
        for back in range(1, len(units) + 1):
            if units[-back].since_ns <= moment_ns:
                return units[-back]
        return units[0]
