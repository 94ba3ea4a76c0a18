"""The cost of a trace's syncs as lines of text."""

from __future__ import annotations

from collections.abc import Iterator

from syncagent.cost.estimate import CostEstimate, SiteCost, where
from syncagent.report import wording


def render(found: CostEstimate, *, limit: int = 20) -> str:
    """The whole, then the sites by what they gain, then the order in which to fix them."""
    measured = f"{found.measured_step_ms:.3f} ms {'without a profiler' if found.unprofiled else 'in the trace'}"
    lines = [f"{wording.plural(found.steps, 'step')}, {found.step_ms:.3f} ms each as replayed, {measured}"]
    if found.abstained is not None:
        lines.append(f"cost: not known, {found.abstained}")
    elif not found.sites:
        lines.append("nothing waits")
    elif not found.gain_all_ms:
        lines.append("if nothing waited, a step would take as long: the syncs cost nothing")
    else:
        share = wording.share(found.gain_all_ms / found.measured_step_ms)
        lines.append(f"if nothing waited a step would gain {wording.duration(found.gain_all_ms)} ({share})")
    if found.sites:
        lines += ["", f"{'gain':>9}  {'idle':>9}  {'per step':>8}  op"]
    for cost in found.sites[:limit]:
        lines += _site(cost, found.abstained)
    if len(found.sites) > limit:
        lines.append(f"… and {wording.plural(len(found.sites) - limit, 'more site')}")
    if len(found.order) > 1 and found.gain_all_ms:
        lines += ["", "cumulative gain if fixed in this order:"]
        for fix in found.order[:limit]:
            cost = found.sites[fix.site]
            rewritten = " (rewritten)" if cost.reason else ""
            lines.append(f"{wording.duration(fix.gain_ms):>9}  {wording.clean(where(cost.site))}{rewritten}")
        if len(found.order) > limit:
            lines.append(f"… {wording.duration(found.order[-1].gain_ms)} with {len(found.order) - limit:,} more")
    lines += [f"note: {wording.clean(note)}" for note in found.notes]
    return "\n".join(lines) + "\n"


def _site(cost: SiteCost, abstained: str | None) -> Iterator[str]:
    site = cost.site
    numbers = (wording.known_duration(cost.gain_ms), wording.duration(cost.idle_ms), wording.per_step(cost.count))
    place = wording.clean(where(site)) if site.file or site.ranges else "(line unknown)"
    function = f" in {wording.clean(site.function)}" if site.function and site.line else ""
    yield "{:>9}  {:>9}  {:>8}  ".format(*numbers) + f"{wording.clean(site.op)}  {place}{function}"
    for text in (site.source, cost.reason if cost.reason != abstained else "", cost.advice):
        if text:
            yield f"{'':32}{wording.clean(text)}"
