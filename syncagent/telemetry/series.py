"""Counts and histograms in a bounded number of series: one for each of the busiest sites, one for all others."""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from syncagent.telemetry import semconv

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from opentelemetry.trace import SpanContext
    from opentelemetry.util.types import AttributeValue

    Attributes = dict[str, AttributeValue]

OTHER = "other"
"""``syncagent.op`` of the series that takes the syncs of all series beyond the limit."""

_FOLDED_MAX = 10_000
"""How many folded series are counted separately."""
_LEAST = 128
"""From how many syncs on a folded series may get its own."""


@dataclass(slots=True)
class Series:
    """A count and a histogram; ``bounds`` and sums are in seconds, ``began_ns`` is since the Unix epoch."""

    attributes: Attributes
    bounds: Sequence[float]
    began_ns: int
    buckets: list[int] = field(default_factory=list)
    syncs: int = 0
    """How many syncs its values stand for: more where only some steps are watched whole, none where a wait of the
    steps between adds time alone."""
    count: int = 0
    total_s: float = 0.0
    min_s: float = float("inf")
    max_s: float = 0.0
    examples: dict[int, tuple[float, int, SpanContext]] = field(default_factory=dict)
    """The newest value of each bucket that has a span since the last export, with its end and its span."""

    def __post_init__(self) -> None:
        self.buckets = self.buckets or [0] * (len(self.bounds) + 1)

    def add(
        self,
        total_s: float,
        count: int,
        max_s: float | None = None,
        span: tuple[int, SpanContext] | None = None,
        *,
        syncs: int | None = None,
    ) -> None:
        """Add ``count`` values by their sum: each counts as their mean.  ``span`` is one's, with its end.

        They stand for ``syncs`` syncs, by default for one each.  Without values only the sum grows.
        """
        self.syncs += count if syncs is None else syncs
        if not count:
            self.total_s += total_s
            return
        mean_s = total_s / count
        bucket = bisect_left(self.bounds, mean_s)
        self.buckets[bucket] += count
        if span is not None:
            self.examples[bucket] = (mean_s, *span)
        self.count += count
        self.total_s += total_s
        self.min_s = min(self.min_s, mean_s)
        self.max_s = max(self.max_s, mean_s if max_s is None else max_s)

    def absorb(self, other: Series) -> None:
        """Add everything that another series has counted."""
        self.buckets = [sum(pair) for pair in zip(self.buckets, other.buckets, strict=True)]
        self.syncs += other.syncs
        self.count += other.count
        self.total_s += other.total_s
        self.min_s = min(self.min_s, other.min_s)
        self.max_s = max(self.max_s, other.max_s)

    def taken(self) -> Series:
        """Return a copy and hand the exemplars over to it."""
        examples, self.examples = self.examples, {}
        return replace(self, buckets=self.buckets.copy(), examples=examples)


class SeriesTable:
    """Gives the first ``most`` keys a series each, and folds all others into one whose op is ``other``.

    When a folded key reaches twice the syncs of the least busy series it takes that one's place: what that series has
    counted goes to ``other``, so that the sum over all series is exact at any time.  What the new one had counted stays
    in ``other``; its own series begins then.
    """

    def __init__(self, bounds: Sequence[float], most: int, began_ns: int) -> None:
        self._bounds = bounds
        self._most = most
        self._began_ns = began_ns
        self._series: dict[Hashable, Series] = {}
        self._other = Series({semconv.OP: OTHER}, bounds, began_ns)
        self._folded: dict[int, int] = {}

    @property
    def folded(self) -> int:
        """How many series are folded into one."""
        return len(self._folded)

    def of(self, key: Hashable, count: int, describe: Callable[[], Attributes]) -> Series:
        """Return the series to which ``count`` syncs are to be added."""
        series = self._series.get(key)
        if series is None:
            began_ns = self._began_ns
            if len(self._series) >= self._most:
                if not self._takes_a_place(hash(key), count):
                    return self._other
                began_ns = time.time_ns()
            series = self._series[key] = Series(describe(), self._bounds, began_ns)
        return series

    def taken(self) -> list[Series]:
        """Return copies of all series, and hand the exemplars over to them."""
        rest = [self._other] if self._other.count or self._other.total_s else []
        return [series.taken() for series in (*self._series.values(), *rest)]

    def _takes_a_place(self, key: int, count: int) -> bool:
        """Count what is to be folded; where that makes it hot, fold the coldest series in its place."""
        before = self._folded.get(key)
        if before is None and len(self._folded) >= _FOLDED_MAX:
            return False
        before = before or 0
        now = self._folded[key] = before + count
        if now < _LEAST or now.bit_length() == before.bit_length():  # decided only each time it has doubled
            return False
        coldest = min(self._series, key=lambda key: self._series[key].count)
        if now < 2 * self._series[coldest].count:
            return False
        self._other.absorb(self._series.pop(coldest))
        self._folded[hash(coldest)] = 0
        del self._folded[key]
        return True
