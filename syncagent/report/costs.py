"""What a report says of the price of its syncs, in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from syncagent.report import wording

if TYPE_CHECKING:
    from syncagent.report.model import Report

__all__ = ["sentences"]

_SHOWN = 5


def sentences(report: Report) -> list[str]:
    """The price of all syncs, what the columns mean, the order in which to mend; none where no price was asked for."""
    cost = report.cost
    if cost is None:
        return []
    if cost.abstained is not None or cost.measured_step_ms is None:
        return [f"cost: not known, {wording.clean(cost.abstained or 'no step was measured')}"]
    step = f"a step takes {wording.duration(cost.measured_step_ms)}"
    if not cost.gain_all_ms:
        return [f"cost: none; {step}, and would take as long if nothing waited"]
    share = wording.share(cost.gain_all_ms / cost.measured_step_ms)
    lines = [
        f"cost: {step} and would gain {wording.duration(cost.gain_all_ms)} ({share}) if nothing waited",
        "gain: a step's, of this site alone; idle: the GPU's without work after its waits, a step",
    ]
    rows = {site.id: site for site in report.sites}
    shown = [(rows[entry.site], entry.gain_ms) for entry in cost.order if entry.site in rows]
    if len(shown) > 1:
        cwd = report.run.cwd
        told = [f"{wording.place(row.file, row.line, cwd)} {wording.duration(gain)}" for row, gain in shown[:_SHOWN]]
        more = f", and {wording.plural(len(shown) - _SHOWN, 'more site')}" if len(shown) > _SHOWN else ""
        lines.append(f"mended one after another, they gain in all: {', '.join(told)}{more}")
    return [*lines, *(f"of the price: {wording.clean(note)}" for note in cost.notes)]
