"""A comparison of two reports as lines of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from syncagent.report import wording

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncagent.report.compare import Change, Comparison, Measure, StepChange, Verdict

__all__ = ["render", "render_changes"]


def render(comparison: Comparison) -> str:
    """Every site that changed, under a heading for each verdict, and how many did not."""
    verdicts: tuple[Verdict, ...] = ("new", "grown", "changed", "shrunk", "gone")
    blocks = [
        f"{wording.plural(len(changes), 'site')} {verdict}\n{render_changes(changes)}"
        for verdict in verdicts
        if (changes := comparison.of(verdict))
    ]
    same = len(comparison.of("same"))
    blocks.append(f"{wording.plural(same, 'site')} unchanged" if same or blocks else "No syncs in either report.")
    if comparison.steps is not None:
        blocks.append(_steps(comparison.steps))
    blocks += [f"note: {wording.clean(note)}" for note in comparison.notes]
    return "\n".join(blocks) + "\n"


def _steps(steps: StepChange) -> str:
    line = f"time per step: {wording.duration(steps.old_ms)}  →  {wording.duration(steps.new_ms)}"
    saved = wording.duration(abs(steps.saved_ms))
    line += f", {saved} {'saved' if steps.saved_ms >= 0 else 'longer'}"
    if steps.predicted_ms is not None and steps.mended:
        line += f"; {wording.duration(steps.predicted_ms)} was predicted for the sites that are gone or wait less often"
    if steps.unpriced:
        line += f" ({steps.unpriced} of them had no predicted gain)"
    return line


def render_changes(changes: Sequence[Change]) -> str:
    """A paragraph for each change: the line, its text, what it was and what it is."""
    return "\n".join(_paragraph(change) for change in changes)


def _paragraph(change: Change) -> str:
    line = change.latest.line
    place = wording.clean(change.file) or "(line unknown)"
    lines = [f"  {wording.clean(change.op)}  {place}{f':{line}' if line else ''}"]
    if change.function:
        lines[0] += f" in {wording.clean(change.function)}"
    if change.source:
        lines.append(f"    {wording.clean(change.source)}")
    if change.was:
        lines.append(f"    was: {wording.clean(' '.join(change.was.split()))}")
    if change.forward:
        lines.append(f"    forward {wording.clean(change.forward)}")
    if change.library:
        lines.append(f"    library {wording.clean(change.library)}")
    if change.old and change.new:
        lines.append(f"    {_measure(change.old)}  →  {_measure(change.new)}")
    else:
        lines.append(f"    {_measure(change.latest)}")
    if change.new and change.new.allowed:
        lines.append("    allowed")
    return "\n".join(lines)


def _measure(measure: Measure) -> str:
    rate = "" if measure.per_step is None else f" ({wording.per_step(measure.per_step)} per step)"
    return f"{wording.plural(measure.count, 'sync')}{rate}, {wording.duration(measure.stall_ms)}"
