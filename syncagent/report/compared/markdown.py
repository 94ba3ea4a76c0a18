"""A comparison as Markdown, for a pull request: what is worse in a table, and folded below it what is better."""

from __future__ import annotations

from collections.abc import Sequence

from syncagent.report import wording
from syncagent.report.compare import Change, Comparison, Measure
from syncagent.report.compared import words
from syncagent.report.markup import code, folded, listed, text

_MOST = 50
"""How many sites a table has: a comment on GitHub has 65,536 characters at most."""


def render(comparison: Comparison) -> str:
    """A headline, a table of what is worse, and folded below it what is better, and the notes."""
    steps = comparison.steps
    time = f"A step: {words.step_time(steps, comparison.simulated)}." if steps is not None else ""
    worse = comparison.of("new", "grown", "changed")
    better = comparison.of("shrunk", "gone")
    said = words.marks(comparison)
    notes = [*([f"* {said}"] if said else []), *map(wording.clean, comparison.notes)]
    parts = [
        f"**{text(words.headline(comparison))}**",
        text(time),
        _table(comparison, worse),
        folded(_title(better), _table(comparison, better)) if better else "",
        listed(notes),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _title(changes: Sequence[Change]) -> str:
    fewer, gone = (sum(change.verdict == verdict for change in changes) for verdict in ("shrunk", "gone"))
    parts = [f"{gone:,} gone"] * bool(gone) + [f"{fewer:,} that wait less often"] * bool(fewer)
    return f"Sites: {', '.join(parts)}"


def _table(comparison: Comparison, changes: Sequence[Change]) -> str:
    if not changes:
        return ""
    lines = ["| | where | what waits | syncs per step | stall |", "|---|---|---|--:|--:|"]
    lines += [_line(comparison, change) for change in changes[:_MOST]]
    left_out = f"\n\n… and {wording.plural(len(changes) - _MOST, 'more site')}" if len(changes) > _MOST else ""
    return "\n".join(lines) + left_out


def _line(comparison: Comparison, change: Change) -> str:
    was, advice, name = words.was(change), words.advice(change), wording.function(change.function)
    where = [
        f"{code(words.place(change))}{f' in {code(name)}' if name else ''}",
        text(f"backward of {wording.clean(change.forward)}") if change.forward else "",
        text(f"in {wording.clean(change.library)}") if change.library else "",
        "allowed" if change.new and change.new.allowed else "",
    ]
    what = [
        code(wording.clean(change.source)),
        f"was {code(was)}" if was else "",
        code(wording.call(change.api) or wording.clean(change.op)),
        f"→ {text(advice)}" if advice else "",
    ]
    sides = ((change.old, comparison.simulated.old), (change.new, comparison.simulated.new))
    rates = " → ".join(_rate(found) for found, _ in sides)
    stalls = " → ".join(
        (words.stall(found, is_simulated) if found else "") or wording.DASH for found, is_simulated in sides
    )
    columns = [change.verdict, "<br>".join(filter(None, where)), "<br>".join(filter(None, what)), rates, text(stalls)]
    return f"| {' | '.join(columns)} |"


def _rate(found: Measure | None) -> str:
    if found is None:
        return wording.DASH
    return wording.count(found.count) if found.per_step is None else wording.per_step(found.per_step)
