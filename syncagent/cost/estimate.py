"""What each site of a trace costs: GPU idle time, the gain without its waits, and the best order of fixes."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from syncagent.cost import advice
from syncagent.cost import replay as replaying
from syncagent.cost.program import build
from syncagent.cost.sites import WaitSite, branches
from syncagent.errors import SyncAgentError
from syncagent.report.model import OrderRow

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from syncagent.cost.program import Program, Wait
    from syncagent.cost.trace import Trace

_MOST_OFF = 0.03
"""How far the replayed step time may be from the measured one."""
_MOST_UNLIKE = 0.15
"""How much the steps of a window may differ in launches or GPU time."""
_LEAST_MS, _LEAST_SHARE = 0.02, 0.003
"""A gain below the larger of both is reported as 0: it is within the replay's own error."""
_MOST_ORDERED = 40


@dataclass(frozen=True, slots=True)
class SiteCost:
    """What one site costs.  Times are milliseconds per step."""

    site: WaitSite
    count: float
    """Waits per step."""
    idle_ms: float
    """GPU time without work, from the end of its waits to the next launch."""
    gain_ms: float | None
    """How much faster a step is without its waits, all others in place; ``None`` where the line would have to be
    rewritten, or the cost is not known."""
    reason: str | None
    """Why ``gain_ms`` is ``None``."""
    gain_if_rewritten_ms: float | None
    """The same gain where the host branches on the value."""
    worth: str
    """What a step gains without its waits, as a clause."""
    advice: str
    """The same, and what to write instead as far as op and line tell."""

    def advice_with(self, say: str | None) -> str | None:
        """The advice, with what a report says of the line where it says something."""
        gain_ms = self.gain_ms or self.gain_if_rewritten_ms or 0.0
        text = advice.joined(self.worth, say, gain_ms) if say and self.worth else self.advice or say or ""
        text = f"{self.reason}; {text}" if self.reason and self.advice else text
        return text or None


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """What the syncs of one window cost."""

    steps: int
    """Steps replayed, without the one that fills the pipeline."""
    step_ms: float
    """Replayed."""
    measured_step_ms: float
    """Without a profiler if that was measured, else in the trace."""
    unprofiled: bool
    host_scale: float
    """The factor between the host's times in the replay and under the profiler."""
    gain_all_ms: float | None
    """How much faster a step is without any of the waits."""
    order: tuple[OrderRow, ...] = ()
    """The best order of fixes.  Here ``site`` is an index of ``sites``, which also has those that need a rewrite."""
    sites: tuple[SiteCost, ...] = ()
    abstained: str | None = None
    unmatched: int = 0
    """Waits that no site could be found for."""
    notes: tuple[str, ...] = ()
    gpu_busy_ns: tuple[tuple[int, int], ...] = ()
    """When the GPU worked (ns since the Unix epoch, begin and end), without its shortest pauses."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "steps": self.steps,
            "step_ms": round(self.step_ms, 4),
            "measured_step_ms": round(self.measured_step_ms, 4),
            "unprofiled": self.unprofiled,
            "gain_all_ms": _rounded(self.gain_all_ms),
            "order": [
                {"site": fix.site, "where": where(site), "op": site.op, "gain_ms": round(fix.gain_ms, 4)}
                for fix in self.order
                for site in (self.sites[fix.site].site,)
            ],
            "sites": [_site_values(site) for site in self.sites],
            "abstained": self.abstained,
            "untied": self.unmatched,
            "notes": list(self.notes),
        }  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _site_values(cost: SiteCost) -> dict[str, Any]:
    site = cost.site
    return {
        "op": site.op, "kind": site.kind, "file": site.file, "line": site.line, "function": site.function,
        "function_line": site.function_line or None, "source": site.source, "phase": site.phase,
        "ranges": list(site.ranges), "per_step": round(cost.count, 3),
        "idle_ms": round(cost.idle_ms, 4), "gain_ms": _rounded(cost.gain_ms), "reason": cost.reason,
        "gain_if_rewritten_ms": _rounded(cost.gain_if_rewritten_ms), "advice": cost.advice,
    }  # fmt: skip


def where(site: WaitSite) -> str:
    """``loss.py:41``, else the function, the range or the op."""
    if site.line:
        return f"{site.file}:{site.line}"
    if site.file:
        return f"{site.file}, in {site.function} from line {site.function_line}"
    return site.ranges[-1] if site.ranges else site.op


def estimate(
    trace: Trace,
    match: Callable[[Trace, Sequence[Wait]], Sequence[WaitSite | None]],
    *,
    measured_ms: float | None = None,
) -> CostEstimate:
    """Estimate what every site of a window costs.

    ``match`` finds the sites of waits; ``measured_ms`` is the time of a step without the profiler.  Raises
    :class:`SyncAgentError` where there is no work for the GPU in the steps.
    """
    bounds = trace.bounds
    notes = []
    if len(bounds) < 2:
        bounds = [trace.calls[0].start, max(trace.calls[-1].end, trace.ends[-1]) + 1.0]
        notes.append("the trace marks no steps (ProfilerStep, optimizer): all of it counts as one")
    program = build(trace, bounds)
    if not any(count for count, _ in program.work):
        raise SyncAgentError(f"{trace.name!r} has no work for the GPU within its steps")
    unprofiled = measured_ms is not None
    if measured_ms is None:
        measured_ms = _captured_ms(trace, bounds)
        notes.append("the step time is that under the profiler, which slows the host: gains may be too large")
    fit = replaying.fit(program, measured_ms if unprofiled else None)
    found = match(trace, program.waits)
    abstained = _not_reproduced(fit.step_ms, measured_ms) or _steps_differ(program)
    waits: dict[Hashable, list[int]] = defaultdict(list)
    site_of: dict[Hashable, WaitSite] = {}
    for number, (wait, matched) in enumerate(zip(program.waits, found, strict=True)):
        site = matched or WaitSite(wait.call.name, "other")
        waits[site.key].append(number)
        site_of.setdefault(site.key, site)
    least_ms = max(_LEAST_MS, _LEAST_SHARE * measured_ms)

    def gain(waits: frozenset[int]) -> float:
        return fit.step_ms - replaying.run(fit.items, program.groups, waits)

    def reported(gain_ms: float) -> float:
        return 0.0 if gain_ms < least_ms else gain_ms

    def cost_of(key: Hashable) -> SiteCost:
        site, gain_ms = site_of[key], reported(alone[key])
        branching = branches(site)
        reason = abstained or ("needs a rewrite: the host branches on the value" if branching else None)
        return SiteCost(
            site,
            len(sets[key]) / program.steps,
            sum(idle_us[number] for number in sets[key]) / program.steps / 1e3,
            gain_ms=None if reason else gain_ms,
            reason=reason,
            gain_if_rewritten_ms=gain_ms if branching and not abstained else None,
            worth="" if abstained else advice.worth(gain_ms, measured_ms),
            advice="" if abstained else advice.advise(site, gain_ms, measured_ms),
        )

    sets = {key: frozenset(numbers) for key, numbers in waits.items()}
    alone = {key: gain(numbers) for key, numbers in sets.items()}
    keys = sorted(sets, key=lambda key: (-alone[key], site_of[key].file, site_of[key].line, site_of[key].op))
    order: tuple[OrderRow, ...] = ()
    """The best order of fixes.  Here ``site`` is an index of ``sites``, which also has those that need a rewrite."""
    if abstained is None:
        order = tuple(
            OrderRow(site, reported(gain_ms)) for site, gain_ms in _best_order([sets[key] for key in keys], gain)
        )
        if len(keys) > len(order):
            notes.append(f"the order is of the {len(order)} sites that gain most by themselves, of {len(keys)}")
    idle_us = [0.0] * len(program.waits)
    replaying.run(fit.items, program.groups, idle_us=idle_us)
    return CostEstimate(
        steps=max(program.steps - 1, 1),
        step_ms=fit.step_ms,
        measured_step_ms=measured_ms,
        unprofiled=unprofiled,
        host_scale=fit.scale,
        gain_all_ms=None if abstained else reported(gain(frozenset(range(len(found))))),
        order=order,
        sites=tuple(cost_of(key) for key in keys),
        abstained=abstained,
        unmatched=sum(site is None for site in found),
        notes=tuple(notes),
        gpu_busy_ns=trace.busy_ns(),
    )


def _captured_ms(trace: Trace, bounds: Sequence[float]) -> float:
    """Step time in the trace: until host and GPU were both done with it; the first step is left out."""
    done = [bounds[0]]
    work = sorted((call.start, call.op.end) for call in trace.calls if call.op is not None)
    index, latest = 0, bounds[0]
    for bound in bounds[1:]:
        while index < len(work) and work[index][0] < bound:
            latest = max(latest, work[index][1])
            index += 1
        done.append(max(bound, latest))
    first = 1 if len(done) > 2 else 0
    return (done[-1] - done[first]) / (len(done) - 1 - first) / 1e3


def _not_reproduced(step_ms: float, measured_ms: float) -> str | None:
    off = step_ms / measured_ms - 1.0
    if abs(off) <= _MOST_OFF:
        return None
    return (
        f"the replay takes {step_ms:.2f} ms per step and the program {measured_ms:.2f} ms ({off:+.1%}): it leaves out "
        "something that this program does"
    )


def _steps_differ(program: Program) -> str | None:
    work = program.work[1:] or program.work
    for values, what in (
        (tuple(count for count, _ in work), "launches"),
        (tuple(us / 1e3 for _, us in work), "ms of GPU work"),
    ):
        middle = statistics.median(values)
        if middle and (max(values) - min(values)) / middle > _MOST_UNLIKE:
            return f"the steps are too unlike each other: {min(values):,.4g} to {max(values):,.4g} {what}"
    return None


def _best_order(sets: list[frozenset[int]], gain: Callable[[frozenset[int]], float]) -> Iterator[tuple[int, float]]:
    """Fix one site after another, each time the one that then gains most; yield it, and the gain of all so far."""
    left = list(range(min(len(sets), _MOST_ORDERED)))
    fixed: frozenset[int] = frozenset()
    while left:
        then = {site: gain(fixed | sets[site]) for site in left}
        best = max(left, key=lambda site: (then[site], -site))
        fixed |= sets[best]
        left.remove(best)
        yield best, then[best]
