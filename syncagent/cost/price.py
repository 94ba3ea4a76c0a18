"""What each site of a trace costs: GPU idle, the gain without it, the best order to mend, and when not to answer."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from syncagent.cost import advice
from syncagent.cost import replay as replaying
from syncagent.cost.program import build
from syncagent.cost.sites import Place, branches
from syncagent.errors import SyncAgentError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from syncagent.cost.program import Program, Wait
    from syncagent.cost.trace import Trace

__all__ = ["Price", "Removal", "SitePrice", "price"]

_REPRODUCED = 0.03
_ALIKE = 0.15
_NOTHING_MS, _NOTHING_SHARE = 0.02, 0.003
"""A gain below both is none: the replay cannot tell it from its own error."""
_ORDERED = 40


@dataclass(frozen=True, slots=True)
class SitePrice:
    """One site.  Times are milliseconds a step."""

    place: Place
    count: float
    """Waits a step."""
    idle_ms: float
    """GPU time without work, from the end of its waits until the next launch."""
    gain_ms: float | None
    """Step time without its waits, all others left; ``None`` where the line would have to be rewritten, or the replay
    abstains."""
    reason: str | None
    """Why ``gain_ms`` is ``None``."""
    gain_if_rewritten_ms: float | None
    """The same gain where the host branches on the value."""
    advice: str


@dataclass(frozen=True, slots=True)
class Removal:
    """One entry of the best order: mending this site too."""

    site: int
    """Its place in ``sites``, those that need a rewrite among them."""
    gain_ms: float
    """Of this site and all before it, together."""


@dataclass(frozen=True, slots=True)
class Price:
    """The answer for one window."""

    steps: int
    """Priced, without the one that fills the pipeline."""
    step_ms: float
    """Replayed."""
    measured_step_ms: float
    """Without a profiler where that was measured, else in the trace."""
    unprofiled: bool
    host_scale: float
    """What the profiled host's times were multiplied by."""
    gain_all_ms: float | None
    """Step time without any of the waits."""
    order: tuple[Removal, ...] = ()
    sites: tuple[SitePrice, ...] = ()
    abstained: str | None = None
    untied: int = 0
    """Waits that no site could be found for."""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "steps": self.steps,
            "step_ms": round(self.step_ms, 4),
            "measured_step_ms": round(self.measured_step_ms, 4),
            "unprofiled": self.unprofiled,
            "gain_all_ms": _rounded(self.gain_all_ms),
            "order": [
                {"site": entry.site, "where": where(place), "op": place.op, "gain_ms": round(entry.gain_ms, 4)}
                for entry in self.order
                for place in (self.sites[entry.site].place,)
            ],
            "sites": [_site_values(site) for site in self.sites],
            "abstained": self.abstained,
            "untied": self.untied,
            "notes": list(self.notes),
        }  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _site_values(site: SitePrice) -> dict[str, Any]:
    place = site.place
    return {
        "op": place.op, "kind": place.kind, "file": place.file, "line": place.line, "function": place.function,
        "function_line": place.named or None, "source": place.source, "phase": place.phase,
        "ranges": list(place.ranges), "per_step": round(site.count, 3),
        "idle_ms": round(site.idle_ms, 4), "gain_ms": _rounded(site.gain_ms), "reason": site.reason,
        "gain_if_rewritten_ms": _rounded(site.gain_if_rewritten_ms), "advice": site.advice,
    }  # fmt: skip


def where(place: Place) -> str:
    """``loss.py:41``, else the function, the range or the op."""
    if place.line:
        return f"{place.file}:{place.line}"
    if place.file:
        return f"{place.file}, in {place.function} from line {place.named}"
    return place.ranges[-1] if place.ranges else place.op


def price(
    trace: Trace,
    tie: Callable[[Trace, Sequence[Wait]], Sequence[Place | None]],
    *,
    bounds: Sequence[float] = (),
    measured_ms: float | None = None,
    notes: Sequence[str] = (),
) -> Price:
    """Price every site of a window.

    ``tie`` finds the places of waits; ``bounds`` are where steps begin and end (µs), by default what the trace says;
    ``measured_ms`` is a step's time without the profiler.
    """
    bounds = list(bounds) or trace.bounds
    notes = list(notes)
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
    found = tie(trace, program.waits)
    places = [place or Place(wait.call.name, "other") for place, wait in zip(found, program.waits, strict=True)]
    steps = max(program.steps - 1, 1)
    whole = Price(
        steps, fit.step_ms, measured_ms, unprofiled, fit.scale, None, untied=sum(place is None for place in found),
        notes=tuple(notes),
    )  # fmt: skip
    abstained = _reproduced(fit.step_ms, measured_ms) or _unlike(program)
    return _priced(whole, program, fit, places, abstained)


def _captured_ms(trace: Trace, bounds: Sequence[float]) -> float:
    """A step's time in the trace: until both the host and the GPU were done with it, the first left out."""
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


def _reproduced(step_ms: float, measured_ms: float) -> str | None:
    off = step_ms / measured_ms - 1.0
    if abs(off) <= _REPRODUCED:
        return None
    return (
        f"the replay takes {step_ms:.2f} ms a step and the program {measured_ms:.2f} ms ({off:+.1%}): it leaves out "
        "something that this program does"
    )


def _unlike(program: Program) -> str | None:
    work = program.work[1:] or program.work
    for values, what in (
        (tuple(count for count, _ in work), "launches"),
        (tuple(us / 1e3 for _, us in work), "ms of GPU work"),
    ):
        middle = statistics.median(values)
        if middle and (max(values) - min(values)) / middle > _ALIKE:
            return f"the steps are too unlike each other: {min(values):,.4g} to {max(values):,.4g} {what}"
    return None


def _priced(whole: Price, program: Program, fit: replaying.Fit, places: list[Place], abstained: str | None) -> Price:
    firsts: dict[Hashable, Place] = {}
    groups: dict[Place, list[int]] = defaultdict(list)
    for number, place in enumerate(places):
        groups[firsts.setdefault(place.site, place)].append(number)
    idle_us = [0.0] * len(places)
    replaying.run(fit.items, program.groups, idle_us=idle_us)

    def gain(numbers: frozenset[int]) -> float:
        return fit.step_ms - replaying.run(fit.items, program.groups, numbers)

    sets = {place: frozenset(numbers) for place, numbers in groups.items()}
    alone = {place: gain(numbers) for place, numbers in sets.items()}
    least = max(_NOTHING_MS, _NOTHING_SHARE * whole.measured_step_ms)

    def claimed(gain_ms: float) -> float:
        return 0.0 if gain_ms < least else gain_ms

    sites = []
    for place in sorted(sets, key=lambda place: (-alone[place], place.file, place.line, place.op)):
        gained = claimed(alone[place])
        branching = branches(place)
        reason = abstained or ("needs a rewrite: the host branches on the value" if branching else None)
        steps = program.steps
        sites.append(
            SitePrice(
                place,
                len(sets[place]) / steps,
                sum(idle_us[number] for number in sets[place]) / steps / 1e3,
                None if reason else gained,
                reason,
                gained if branching and not abstained else None,
                "" if abstained else advice.advise(place, gained, whole.measured_step_ms),
            )
        )
    if abstained:
        return replace(whole, sites=tuple(sites), abstained=abstained)
    everything = claimed(gain(frozenset(range(len(places)))))
    order = _order([sets[site.place] for site in sites], gain)
    order = tuple(replace(entry, gain_ms=claimed(entry.gain_ms)) for entry in order)
    notes = whole.notes
    if len(sites) > len(order):
        notes = (*notes, f"the order is of the {len(order)} sites that gain most by themselves, of {len(sites)}")
    return replace(whole, sites=tuple(sites), order=order, gain_all_ms=everything, notes=notes)


def _order(sets: list[frozenset[int]], gain: Callable[[frozenset[int]], float]) -> tuple[Removal, ...]:
    """Mend one after another, each time the site that then gains most."""
    left = list(range(min(len(sets), _ORDERED)))
    mended: frozenset[int] = frozenset()
    order = []
    while left:
        gains = {site: gain(mended | sets[site]) for site in left}
        best = max(left, key=lambda site: (gains[site], -site))
        mended |= sets[best]
        left.remove(best)
        order.append(Removal(best, gains[best]))
    return tuple(order)
