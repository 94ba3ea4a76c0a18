"""A comparison as one page that needs nothing but itself: what is worse, what is better, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from syncagent.report import wording
from syncagent.report.compare import VERDICTS, Change, Comparison, Measure, Verdict, ranks
from syncagent.report.compared import words
from syncagent.report.formats import templates
from syncagent.report.model import Report, RunInfo

_TITLES: dict[Verdict, str] = {
    "new": "New",
    "grown": "More often than before",
    "changed": "Known, and changed a little",
    "shrunk": "Less often than before",
    "gone": "Gone",
    "same": "As before",
}


def render(comparison: Comparison, old: Report, new: Report) -> str:
    """The page for two reports and what :func:`syncagent.report.compare.compare` has found in them."""
    said = words.marks(comparison)
    return templates.page(
        "compared.html.jinja",
        script=wording.short_path(new.run.script, new.run.cwd) or "syncagent",
        headline=words.headline(comparison),
        steps=words.step_time(comparison.steps, comparison.simulated) if comparison.steps else "",
        runs=[("before", _facts(old.run)), ("after", _facts(new.run))],
        tiles=_tiles(comparison, old, new),
        notes=[*([f"* {said}"] if said else []), *comparison.notes],
        groups=[
            (verdict, _TITLES[verdict], [_card(comparison, change) for change in comparison.of(verdict)])
            for verdict in VERDICTS
            if comparison.of(verdict)
        ],
    )


def _facts(run: RunInfo) -> str:
    known = [run.device or "no device", wording.length(run), wording.processes(run), run.host, wording.began(run)]
    return " · ".join(fact for fact in known if fact)


def _tiles(comparison: Comparison, old: Report, new: Report) -> list[tuple[str, str, str]]:
    """Figures of both runs: a name, before and after."""
    steps, simulated = comparison.steps, comparison.simulated
    before, after = (_figures(report, words.mark(is_simulated))
                     for report, is_simulated in ((old, simulated.old), (new, simulated.new)))  # fmt: skip
    tiles = [(name, before[name], after[name]) for name in before if before[name] and after.get(name)]
    if steps is not None:
        times = (wording.duration(ms) for ms in (steps.old_ms, steps.new_ms))
        marks = (words.mark(simulated.old), words.mark(simulated.new))
        step = [ms + mark for ms, mark in zip(times, marks, strict=True)]
        tiles.insert(0, ("a step", step[0], step[1]))
    return tiles


def _figures(report: Report, mark: str) -> dict[str, str]:
    totals, steps = report.totals, report.run.steps * ranks(report)
    later = steps - ranks(report)
    in_steps = totals.step_stall_ms is not None and later > 0
    return {
        "syncs per step": wording.per_step(totals.syncs / steps) if steps else "",
        "stall per step": wording.duration((totals.step_stall_ms or 0.0) / later) + mark if in_steps else "",
        **(
            {f"stalled, {whole}": wording.share(part) + mark for whole, part in totals.shares().items()}
            if report.run.duration_s  # a baseline has no times
            else {}
        ),
    }


@dataclass(frozen=True, slots=True)
class _Card:
    """A change with what is worked out for it."""

    change: Change
    place: str
    was: str
    advice: str
    call: str
    sides: Sequence[tuple[str, str, str, float]]
    """Before and after: which, syncs, stall, and its bar as a fraction of the longer one."""


def _card(comparison: Comparison, change: Change) -> _Card:
    known = [side for side in (change.old, change.new) if side is not None]
    in_steps = all(side.per_step is not None for side in known)
    often = {id(side): float((side.per_step if in_steps else side.count) or 0) for side in known}
    most = max(*often.values(), 1e-9)
    sides = [
        (name, _syncs(found), words.stall(found, is_simulated), often[id(found)] / most)
        if found
        else (name, wording.DASH, "", 0.0)
        for name, found, is_simulated in (
            ("before", change.old, comparison.simulated.old),
            ("after", change.new, comparison.simulated.new),
        )
    ]
    call = wording.call(change.api) or change.op
    return _Card(change, words.place(change), words.was(change), words.advice(change), call, sides)


def _syncs(found: Measure) -> str:
    if found.per_step is None:
        return wording.plural(found.count, "sync")
    return f"{wording.per_step(found.per_step)} per step"
