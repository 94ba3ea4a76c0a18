"""A comparison of two reports as lines of text."""

from __future__ import annotations

from collections.abc import Sequence

from syncagent.report import wording
from syncagent.report.compare import VERDICTS, Change, Comparison, Measure, StepChange


def render(comparison: Comparison) -> str:
    """Every site that changed, under a heading for each verdict, and how many did not."""
    blocks = [
        f"{wording.plural(len(changes), 'site')} {verdict}\n{render_changes(changes)}"
        for verdict in VERDICTS
        if verdict != "same" and (changes := comparison.of(verdict))
    ]
    same = len(comparison.of("same"))
    blocks.append(f"{wording.plural(same, 'site')} unchanged" if same or blocks else "No syncs in either report.")
    if comparison.steps is not None:
        blocks.append(_steps(comparison.steps))
    blocks += [f"note: {wording.clean(note)}" for note in comparison.notes]
    return "\n".join(blocks) + "\n"


def _steps(steps: StepChange) -> str:
    saved = f"{wording.duration(abs(steps.saved_ms))} {'saved' if steps.saved_ms >= 0 else 'longer'}"
    line = f"time per step: {wording.duration(steps.old_ms)}  →  {wording.duration(steps.new_ms)}, {saved}"
    if steps.predicted_ms is not None and steps.mended:
        line += f"; {wording.duration(steps.predicted_ms)} was predicted for the sites that are gone or wait less often"
    return f"{line} ({steps.unpriced} of them had no predicted gain)" if steps.unpriced else line


def render_changes(changes: Sequence[Change]) -> str:
    """A paragraph for each change: the line, its text, what it was and what it is."""
    return "\n".join(_paragraph(change) for change in changes)


def _paragraph(change: Change) -> str:
    place = wording.clean(change.file) or "(line unknown)"
    line = f":{change.latest.line}" if change.latest.line else ""
    function = f" in {wording.clean(change.function)}" if change.function else ""
    details = [
        change.source and wording.clean(change.source),
        change.was and f"was: {wording.clean(' '.join(change.was.split()))}",
        change.forward and f"forward {wording.clean(change.forward)}",
        change.library and f"library {wording.clean(change.library)}",
        "  →  ".join(_measure(side) for side in (change.old, change.new) if side),
        change.new and change.new.allowed and "allowed",
    ]
    first = f"  {wording.clean(change.op)}  {place}{line}{function}"
    return "\n".join((first, *(f"    {detail}" for detail in details if detail)))


def _measure(measure: Measure) -> str:
    rate = "" if measure.per_step is None else f" ({wording.per_step(measure.per_step)} per step)"
    return f"{wording.plural(measure.count, 'sync')}{rate}, {wording.duration(measure.stall_ms)}"
