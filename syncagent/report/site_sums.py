"""The running sums of one site, in bounded memory, and the row of the report that they make."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from syncagent.events import CallSite, Phase, Span, SyncEvent, SyncKind, Weight
from syncagent.report.model import OpShare, PhaseShare, SiteRow

OTHER = "other"
"""``op`` of the row that takes the syncs of all sites beyond the limit."""

NOWHERE = CallSite("", 0, "")
_NAMING = frozenset({"kernels", "simulated"})
"""Sensors that name ops, under ``detail="auto"`` in sampled steps."""
_SAMPLES = 512
_THREADS = 4
_OPS = 64
"""How many ops of a site are counted separately."""
_Part: TypeAlias = "tuple[str, str | None, Phase]"


class Spread:
    """How much the counts of one site differ between the steps that were sampled."""

    def __init__(self) -> None:
        self._unit = Weight()
        self._in_unit = 0
        self._sums: dict[int, tuple[int, int]] = {}
        """For each weight, the sum and the sum of squares of the counts of those steps."""

    def add(self, weight: Weight, count: int) -> None:
        if (weight.unit, weight.syncs) != (self._unit.unit, self._unit.syncs):
            self._sums = self._with_unit()
            self._unit, self._in_unit = weight, 0
        self._in_unit += count

    def copy(self) -> Spread:
        copied = Spread()
        copied._unit, copied._in_unit, copied._sums = self._unit, self._in_unit, self._sums
        return copied

    def _with_unit(self) -> dict[int, tuple[int, int]]:
        if not self._in_unit:
            return self._sums
        stands_for = int(self._unit.syncs)
        total, squares = self._sums.get(stands_for, (0, 0))
        return {**self._sums, stands_for: (total + self._in_unit, squares + self._in_unit**2)}

    def error(self, sampled: Mapping[int, int]) -> float | None:
        """Return the standard error of the site's count, which these steps are scaled up to.

        It comes from how their counts scatter, those included in which the site had none: with ``n`` of ``n * w`` steps
        sampled, the variance of the total is ``w² n s² (1 - 1/w)``.  A single step says nothing of that; its count is
        taken for one of a Poisson process.  Unknown where nobody counts the sampled steps.
        """
        variance = 0.0
        for weight, (total, squares) in self._with_unit().items():
            steps = sampled.get(weight, 0)
            if steps < 1:
                return None
            scatter = (squares - total**2 / steps) / (steps - 1) if steps > 1 else float(total)
            variance += weight * (weight - 1) * steps * max(scatter, 0.0)
        return math.sqrt(variance)


@dataclass(slots=True)
class Site:
    """The running sums of one site."""

    id: int
    first: SyncEvent | None
    """The first event of the site; ``None`` for the row of all others."""
    module: str | None = None
    ranges: tuple[str, ...] = ()
    allowed: str | None = None
    seen: int = 0
    count: float = 0.0
    stall_ns: float = 0.0
    max_ns: int = 0
    step_ns: float = 0.0
    step_count: float = 0.0
    """The part of the count that began inside a step after the first, as ``step_ns`` did."""
    repeating: float = 0.0
    """The part of the count that is of steps after the first."""
    allowed_count: float = 0.0
    violations: float = 0.0
    sampled: bool = False
    spread: Spread = field(default_factory=Spread)
    samples_ns: list[int] = field(default_factory=list)
    threads: tuple[str, ...] = ()
    sensors: tuple[str, ...] = ()
    estimated_ns: int = 0
    parts: dict[_Part, tuple[float, float]] = field(default_factory=dict)
    """Count and stall of each op, API and phase."""
    spans: dict[_Part, Span | None] = field(default_factory=dict)
    """The expression of each."""
    stack: tuple[CallSite, ...] = ()
    stack_ns: int = -1

    def add(self, event: SyncEvent, weight: Weight, dice: random.Random) -> None:
        weighted = weight.syncs * event.repeats
        self.seen += 1 if event.sensor == "driver" else event.repeats  # that one adds up what no time line can show
        self.count += weighted
        if event.step:  # neither outside of any nor the first, which has the program's start in it
            self.repeating += weighted
        self.stall_ns += event.stall_ns * weight.stall
        if weight.syncs != 1.0:
            self.sampled = True
            self.spread.add(weight, event.repeats)
        part: _Part = (event.op, event.api, event.phase)
        if part not in self.parts and len(self.parts) >= _OPS:
            part = (OTHER, None, Phase.OTHER)
        if part not in self.spans:
            self.spans[part] = event.site.span if event.site is not None else None
        count, stall_ns = self.parts.get(part, (0.0, 0.0))
        self.parts[part] = (count + weighted, stall_ns + event.stall_ns * weight.stall)
        self.max_ns = max(self.max_ns, event.stall_ns if event.longest_ns is None else event.longest_ns)
        self.violations += weighted if event.violation else 0.0
        if event.allowed is not None:
            self.allowed_count += weighted
        if event.repeats > 1 or event.estimated:
            pass  # the single stalls are not known
        elif len(self.samples_ns) < _SAMPLES:
            self.samples_ns.append(event.stall_ns)
        elif (slot := int(dice.random() * self.seen)) < _SAMPLES:  # Vitter's algorithm R: all stay equally likely
            self.samples_ns[slot] = event.stall_ns
        self.estimated_ns += event.stall_ns if event.estimated else 0
        if event.sensor not in self.sensors:
            self.sensors += (event.sensor,)
        if event.thread and event.thread not in self.threads and len(self.threads) < _THREADS:
            self.threads += (event.thread,)
        if event.stack and event.stall_ns > self.stack_ns:
            self.stack, self.stack_ns = event.stack, event.stall_ns
        if event.module != self.module:
            self.module = _common_module(self.module, event.module)
        if event.ranges != self.ranges:
            self.ranges = _common_prefix(self.ranges, event.ranges)

    def sums(self) -> Hashable:
        """Return what changes with every sync, and with every step that has syncs of the site."""
        return self.seen, self.stall_ns, self.step_ns

    def copy(self) -> Site:
        return replace(
            self, samples_ns=self.samples_ns.copy(), parts=self.parts.copy(), spans=self.spans.copy(),
            spread=self.spread.copy(),
        )  # fmt: skip

    def longest(self) -> tuple[str, str | None, Phase]:
        """Return the op, API and phase whose syncs stalled longest in total."""
        if self.first is None:
            return OTHER, None, Phase.OTHER
        return max(self.parts, key=lambda part: (self.parts[part][1], self.parts[part][0]))

    def ops(self, scale: float = 1.0) -> tuple[OpShare, ...]:
        """Return the share of each op and API, with counts times ``scale``."""
        found: dict[tuple[str, str | None], tuple[float, float]] = {}
        for (op, api, _), (count, stall_ns) in self.parts.items() if self.first is not None else ():
            before = found.get((op, api), (0.0, 0.0))
            found[op, api] = before[0] + count, before[1] + stall_ns
        shares = (OpShare(*of, round(count * scale), stall_ns / 1e6) for of, (count, stall_ns) in found.items())
        return tuple(sorted(shares, key=lambda share: (-share.stall_ms, -share.count)))

    def phases(self, scale: float = 1.0) -> tuple[PhaseShare, ...]:
        """Return the share of each phase, with counts times ``scale``."""
        found: dict[Phase, tuple[float, float]] = {}
        for (_, _, phase), (count, stall_ns) in self.parts.items() if self.first is not None else ():
            before = found.get(phase, (0.0, 0.0))
            found[phase] = before[0] + count, before[1] + stall_ns
        shares = (PhaseShare(of.value, round(count * scale), stall_ns / 1e6) for of, (count, stall_ns) in found.items())
        return tuple(sorted(shares, key=lambda share: (-share.stall_ms, -share.count)))

    @property
    def is_named(self) -> bool:
        """Whether its syncs are named, and so counted, in sampled steps alone where steps are sampled."""
        return not _NAMING.isdisjoint(self.sensors) and all(op.startswith("aten::") for op, _, _ in self.parts)

    def _scale(self, steps: int, sampled: Mapping[int, int]) -> float:
        """By how much its count is to be multiplied to be that of all steps."""
        if not self.is_named or not self.count:
            return 1.0
        return 1.0 + self.repeating / self.count * (stretch(steps, sampled) - 1)

    def row(self, steps: int, exact: bool, sampled: Mapping[int, int]) -> SiteRow:
        first = self.first
        site = (first and first.site) or NOWHERE
        scale = self._scale(steps, sampled)
        count = round(self.count * scale)
        op, api, phase = longest = self.longest()
        return SiteRow(
            op=op,
            api=api,
            kind=(first.kind if first else SyncKind.OTHER).value,
            file=site.file,
            line=site.line,
            function=site.function,
            source=site.source,
            phase=phase.value,
            count=count,
            per_step=count / steps if steps else None,
            stall_ms=self.stall_ns / 1e6,
            stall_ms_p50=statistics.median(self.samples_ns) / 1e6 if self.samples_ns else 0.0,
            stall_ms_max=self.max_ns / 1e6,
            sampled=self.sampled or count != round(self.count),
            count_error=self.spread.error(sampled) if self.sampled else None,
            allowed=self.allowed if self.allowed_count == self.count else None,
            id=self.id,
            module=self.module,
            ranges=self.ranges,
            forward=first.forward_site if first else None,
            library=first.library_site if first else None,
            threads=self.threads,
            sensors=self.sensors,
            estimated_ms=self.estimated_ns / 1e6,
            allowed_count=round(self.allowed_count),
            violations=round(self.violations),
            step_stall_ms=self.step_ns / 1e6 if steps > 1 and exact else None,
            statement=site.statement,
            ops=self.ops(scale),
            phases=self.phases(scale),
            conditional=first.conditional if first else False,
            span=self.spans.get(longest),
            stack=tuple(CallSite(frame.file, frame.line, frame.function, frame.source) for frame in self.stack),
        )


def stretch(steps: int, sampled: Mapping[int, int]) -> float:
    """By how much a count of sampled steps after the first is to be multiplied to be that of all of them.

    Those that were watched stand for as many steps as they happen to: more or fewer than there were, or none of the
    last ones, in a run that ends soon after its first steps.
    """
    stands_for = sum(weight * number for weight, number in sampled.items())
    is_exact = not any(weight > 1 for weight in sampled) and stands_for >= steps
    if steps < 2 or stands_for < 2 or is_exact:
        return 1.0
    return (steps - 1) / (stands_for - 1)


def _common_module(one: str | None, other: str | None) -> str | None:
    """Merge paths: ``layers.0.attn`` and ``layers.1.attn`` give ``layers.*.attn``; else the common beginning stays."""
    if one is None or other is None:
        return None
    ones, others = one.split("."), other.split(".")
    if len(ones) == len(others):
        return ".".join(a if a == b else "*" for a, b in zip(ones, others, strict=True))
    return ".".join((*_common_prefix(ones, others), "*"))


def _common_prefix(one: Sequence[str], other: Sequence[str]) -> tuple[str, ...]:
    pairs = zip(one, other, strict=False)
    return tuple(name for name, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
