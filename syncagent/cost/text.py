"""A price as lines of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from syncagent.cost.price import where
from syncagent.report import wording

if TYPE_CHECKING:
    from syncagent.cost.price import Price

__all__ = ["render"]


def render(price: Price, *, limit: int = 20) -> str:
    """The whole, then the sites by what they gain, then the order in which to mend them."""
    measured = f"{price.measured_step_ms:.3f} ms {'without a profiler' if price.unprofiled else 'in the trace'}"
    lines = [f"{wording.plural(price.steps, 'step')}, {price.step_ms:.3f} ms each as replayed, {measured}"]
    if price.abstained is not None:
        lines.append(f"no price: {price.abstained}")
    elif not price.sites:
        lines.append("nothing waits")
    elif not price.gain_all_ms:
        lines.append("if nothing waited a step would take as long: the syncs cost nothing")
    else:
        share = wording.share(price.gain_all_ms / price.measured_step_ms)
        lines.append(f"if nothing waited a step would gain {wording.duration(price.gain_all_ms)} ({share})")
    if price.sites:
        lines += ["", f"{'gain':>9}  {'idle':>9}  {'a step':>6}  op"]
    for site in price.sites[:limit]:
        place = site.place
        gain = wording.DASH if site.gain_ms is None else wording.duration(site.gain_ms)
        rate = wording.per_step(site.count)
        lines.append(
            f"{gain:>9}  {wording.duration(site.idle_ms):>9}  {rate:>6}  {wording.clean(place.op)}  "
            f"{wording.clean(where(place)) if place.file or place.ranges else '(line unknown)'}"
            f"{f' in {wording.clean(place.function)}' if place.function and place.line else ''}"
        )
        for text in (place.source, site.reason if site.reason != price.abstained else "", site.advice):
            if text:
                lines.append(f"{'':30}{wording.clean(text)}")
    if len(price.sites) > limit:
        lines.append(f"… and {wording.plural(len(price.sites) - limit, 'more site')}")
    if len(price.order) > 1 and price.gain_all_ms:
        lines += ["", "mended one after another, they gain in all:"]
        lines += [
            f"{wording.duration(entry.gain_ms):>9}  {wording.clean(where(price.sites[entry.site].place))}"
            f"{' (rewritten)' if price.sites[entry.site].reason else ''}"
            for entry in price.order[:limit]
        ]
        if len(price.order) > limit:
            lines.append(f"… {wording.duration(price.order[-1].gain_ms)} with {len(price.order) - limit:,} more")
    lines += [f"note: {wording.clean(note)}" for note in price.notes]
    return "\n".join(lines) + "\n"
