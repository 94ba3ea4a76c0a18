"""A comparison of two reports as lines of text."""

from __future__ import annotations

from collections.abc import Sequence

from syncagent.report import wording
from syncagent.report.compare import VERDICTS, Change, Comparison, Measure, Sides, StepChange


def render(comparison: Comparison) -> str:
    """Every site that changed, under a heading for each verdict, and how many did not."""
    blocks = [
        f"{wording.plural(len(changes), 'site')} {verdict}\n{render_changes(changes, comparison.simulated)}"
        for verdict in VERDICTS
        if verdict != "same" and (changes := comparison.of(verdict))
    ]
    same = len(comparison.of("same"))
    blocks.append(f"{wording.plural(same, 'site')} unchanged" if same or blocks else "No syncs in either report.")
    if comparison.steps is not None:
        blocks.append(_steps(comparison.steps, comparison.simulated))
    if comparison.simulated.old or comparison.simulated.new:
        blocks.append(f"* of a simulated device: {' or '.join(comparison.times)}")
    blocks += [f"note: {wording.clean(note)}" for note in comparison.notes]
    return "\n".join(blocks) + "\n"


def _steps(steps: StepChange, simulated: Sides) -> str:
    old, new = _mark(simulated.old), _mark(simulated.new)
    saved = f"{wording.duration(abs(steps.saved_ms))}{old or new} {'saved' if steps.saved_ms >= 0 else 'longer'}"
    line = f"time per step: {wording.duration(steps.old_ms)}{old}  →  {wording.duration(steps.new_ms)}{new}, {saved}"
    if steps.predicted_ms is not None and steps.mended:
        predicted = wording.duration(steps.predicted_ms) + old
        line += f"; {predicted} was predicted for the sites that are gone or wait less often"
    return f"{line} ({steps.unpriced} of them had no predicted gain)" if steps.unpriced else line


def render_changes(changes: Sequence[Change], simulated: Sides) -> str:
    """A paragraph for each change: the line, its text, what it was and what it is."""
    return "\n".join(_paragraph(change, simulated) for change in changes)


def _mark(simulated: bool) -> str:
    return "*" if simulated else ""


def _paragraph(change: Change, simulated: Sides) -> str:
    place = wording.at(change.file, change.latest.line)
    name = wording.function(change.function)
    function = f" in {name}" if name else ""
    details = [
        change.source and wording.clean(change.source),
        change.was and f"was: {wording.clean(' '.join(change.was.split()))}",
        change.forward and f"forward {wording.clean(change.forward)}",
        change.library and f"library {wording.clean(change.library)}",
        "  →  ".join(
            _measure(side, is_simulated)
            for side, is_simulated in ((change.old, simulated.old), (change.new, simulated.new))
            if side
        ),
        change.new and change.new.allowed and "allowed",
        change.new and change.verdict != "shrunk" and change.advice and f"→ {wording.clean(change.advice)}",
    ]
    first = f"  {wording.named(change.api, change.op)}  {place}{function}"
    return "\n".join((first, *(f"    {detail}" for detail in details if detail)))


def _measure(measure: Measure, simulated: bool) -> str:
    rate = "" if measure.per_step is None else f" ({wording.per_step(measure.per_step)} per step)"
    return f"{wording.plural(measure.count, 'sync')}{rate}, {wording.duration(measure.stall_ms)}{_mark(simulated)}"
