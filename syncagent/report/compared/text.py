"""A comparison of two reports as lines of text."""

from __future__ import annotations

from collections.abc import Sequence

from syncagent.report import wording
from syncagent.report.compare import VERDICTS, Change, Comparison, Sides
from syncagent.report.compared import words


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
        blocks.append(f"time per step: {words.step_time(comparison.steps, comparison.simulated)}")
    if said := words.marks(comparison):
        blocks.append(f"* {said}")
    blocks += [f"note: {wording.clean(note)}" for note in comparison.notes]
    return "\n".join(blocks) + "\n"


def render_changes(changes: Sequence[Change], simulated: Sides) -> str:
    """A paragraph for each change: the line, its text, what it was and what it is."""
    return "\n".join(_paragraph(change, simulated) for change in changes)


def _paragraph(change: Change, simulated: Sides) -> str:
    name, was, advice = wording.function(change.function), words.was(change), words.advice(change)
    function = f" in {name}" if name else ""
    details = [
        change.source and wording.clean(change.source),
        was and f"was: {was}",
        change.forward and f"forward {wording.clean(change.forward)}",
        change.library and f"library {wording.clean(change.library)}",
        words.before_and_after(change, simulated),
        change.new and change.new.allowed and "allowed",
        advice and f"→ {advice}",
    ]
    first = f"  {wording.named(change.api, change.op)}  {words.place(change)}{function}"
    return "\n".join((first, *(f"    {detail}" for detail in details if detail)))
