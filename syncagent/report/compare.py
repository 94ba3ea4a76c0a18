"""What became of each site between two reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from syncagent import sites
from syncagent.report import wording
from syncagent.report.decode import encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncagent.events import CallSite
    from syncagent.report.model import Report, SiteRow
    from syncagent.sites import LineKey, SiteKey

__all__ = ["Change", "Comparison", "Measure", "StepChange", "Verdict", "compare"]

Verdict = Literal["new", "grown", "changed", "shrunk", "gone", "same"]


@dataclass(frozen=True, slots=True)
class Measure:
    """One site in one report."""

    line: int
    count: int
    per_step: float | None
    stall_ms: float
    allowed: bool
    """Whether every sync of it was allowed."""
    gain_ms: float | None = None
    """What a step would gain without its waits, where that was measured."""


@dataclass(frozen=True, slots=True)
class Change:
    """One site in both reports; ``None`` stands for the one that does not have it."""

    verdict: Verdict
    op: str
    file: str
    """As people know it: relative to the run's working directory, or from its package."""
    function: str
    source: str
    forward: str | None
    """In the backward pass: the forward line, as ``file: source``."""
    library: str | None
    old: Measure | None
    new: Measure | None
    was: str | None = None
    """Where a little of the text is another now: what it was."""

    @property
    def latest(self) -> Measure:
        """The new side, or where the site is gone the old one."""
        latest = self.new or self.old
        assert latest is not None
        return latest


@dataclass(frozen=True, slots=True)
class StepChange:
    """A step's time in both reports (ms)."""

    old_ms: float
    new_ms: float
    predicted_ms: float | None
    """What the old report's price says the mended sites would gain, together; ``None`` where it has no price."""
    mended: int = 0
    """How many sites are gone or wait less often a step."""
    unpriced: int = 0
    """How many of those sites it has no gain for."""

    @property
    def saved_ms(self) -> float:
        """What was achieved; below 0 where steps take longer now."""
        return self.old_ms - self.new_ms


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every site of two reports, worst first within a verdict: new, grown, changed, shrunk, gone, same."""

    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()
    """What makes the two reports less comparable."""
    steps: StepChange | None = None
    """``None`` where either report has no steps."""

    def of(self, *verdicts: Verdict) -> tuple[Change, ...]:
        """The changes with one of these verdicts."""
        return tuple(change for change in self.changes if change.verdict in verdicts)

    def findings(self) -> tuple[Change, ...]:
        """New and grown sites that nothing allows: what a check fails on.  A site that has changed is none."""
        return tuple(change for change in self.of("new", "grown") if change.new and not change.new.allowed)

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        return {"schema": 1, **encode(self)}


_ORDER: tuple[Verdict, ...] = ("new", "grown", "changed", "shrunk", "gone", "same")


def compare(old: Report, new: Report, *, tolerance: float = 0.1) -> Comparison:
    """Match the sites of two reports by the key of :mod:`syncagent.sites`: neither line numbers nor ops are in it.

    A site with no match has changed where one that is gone has the same kind, files and functions, and much the same
    text; each site that is gone serves once.

    A site has grown when it syncs more often a step, by more than ``tolerance`` of what it was; where one of the
    reports has no steps, when it syncs more often at all.  A site that syncs less than once a step (set-up, logging)
    must also have a greater count, or every longer or shorter run would seem to change it.  Stalls are shown but decide
    nothing: they differ from machine to machine.  Nor do copies that waited only by the driver's state.
    """
    named, named_now = sites.naming(old.run.home, new.run.home)
    before, after = _measures(old, named), _measures(new, named_now)
    changed = sites.pair([key for key in before if key not in after], [key for key in after if key not in before])
    for key, earlier in changed.items():
        before[key] = before.pop(earlier)
    changes = []
    for key in dict.fromkeys((*before, *after)):
        (site, *_), cwd = (after[key][0], new.run.cwd) if key in after else (before[key][0], old.run.cwd)
        was, now = before.get(key, _ABSENT)[1], after.get(key, _ABSENT)[1]
        earlier_site = before[key][0][0] if key in changed else None
        changes.append(_change(site, cwd, was, now, tolerance, earlier_site))
    changes.sort(key=lambda change: (_ORDER.index(change.verdict), -change.latest.stall_ms))
    return Comparison(tuple(changes), tuple(_notes(old, new)), _steps(old, new, before, after, tolerance))


_ABSENT: tuple[tuple[()], None] = ((), None)
_Measures: TypeAlias = "dict[SiteKey, tuple[tuple[SiteRow, ...], Measure]]"


def _measures(report: Report, named: Callable[[Any], LineKey]) -> _Measures:
    """Sites by what does not move; several with the same key (the same text twice in a function) are added up."""
    found: _Measures = {}
    for site in report.sites:
        if site.conditional:
            continue
        key = site.key(named)
        if key in found:
            rows, seen = found[key]
            found[key] = ((*rows, site), _sum(seen, _measure(site)))
        else:
            found[key] = ((site,), _measure(site))
    return found


def _measure(site: SiteRow) -> Measure:
    return Measure(site.line, site.count, site.per_step, site.stall_ms, bool(site.allowed), site.gain_ms)


def _sum(one: Measure, other: Measure) -> Measure:
    known = one.per_step is not None and other.per_step is not None
    return Measure(
        line=one.line,
        count=one.count + other.count,
        per_step=(one.per_step or 0.0) + (other.per_step or 0.0) if known else None,
        stall_ms=one.stall_ms + other.stall_ms,
        allowed=one.allowed and other.allowed,
        gain_ms=None
        if one.gain_ms is None and other.gain_ms is None
        else (one.gain_ms or 0.0) + (other.gain_ms or 0.0),
    )


def _step_ms(report: Report) -> float | None:
    """A step's time: without a profiler from the window, else the mean of the run's but for the first."""
    if report.cost is not None and report.cost.measured_step_ms is not None:
        return report.cost.measured_step_ms
    steps = report.run.steps - 1
    return report.totals.step_ms / steps if report.totals.step_ms and steps > 0 else None


def _steps(old: Report, new: Report, before: _Measures, after: _Measures, tolerance: float) -> StepChange | None:
    """What was to be gained by the sites that are gone or wait less often, and what was.

    Gains do not add up (mend one, and the wait moves to the next), so the prediction is read off the old report's order
    as far as it holds gone sites only, and is the largest single gain beyond that; of a site that waits less often, the
    part of its gain that its waits are fewer by.
    """
    was, now = _step_ms(old), _step_ms(new)
    if was is None or now is None:
        return None
    fewer: dict[int, float] = {}
    for key, (rows, measure) in before.items():
        part = _fewer_by(measure, after.get(key, _ABSENT)[1])
        if part > tolerance:
            fewer |= dict.fromkeys((row.id for row in rows), part)
    if old.cost is None or old.cost.abstained is not None:
        return StepChange(was, now, None)
    gone = {site for site, part in fewer.items() if part == 1.0}
    predicted = 0.0
    for entry in old.cost.order:
        if entry.site not in gone:
            break
        predicted = entry.gain_ms
    if gone >= {entry.site for entry in old.cost.order} and old.cost.gain_all_ms is not None:
        predicted = old.cost.gain_all_ms
    single = [site.gain_ms * fewer[site.id] for site in old.sites if site.id in fewer and site.gain_ms is not None]
    priced = {entry.site for entry in old.cost.order}
    unpriced = len(fewer.keys() - priced)
    return StepChange(was, now, max([predicted, *single]), mended=len(fewer), unpriced=unpriced)


def _fewer_by(was: Measure, now: Measure | None) -> float:
    """Which part of a site's waits a step is no more."""
    if now is None:
        return 1.0
    return 1.0 - now.per_step / was.per_step if was.per_step and now.per_step is not None else 0.0


def _change(
    site: SiteRow, cwd: str, was: Measure | None, now: Measure | None, tolerance: float, earlier: SiteRow | None
) -> Change:
    verdict = _verdict(was, now, tolerance)
    return Change(
        verdict="changed" if earlier is not None and verdict != "grown" else verdict,
        op=site.op,
        file=wording.short_path(site.file, cwd),
        function=site.function,
        source=site.source,
        forward=_told(site.forward, cwd),
        library=_told(site.library, cwd),
        old=was,
        new=now,
        was=_text(earlier, site) if earlier is not None else None,
    )


def _text(earlier: SiteRow, site: SiteRow) -> str:
    """What the text that has changed was: the user's, else the library's or the forward line's."""
    pairs = ((earlier, site), (earlier.library, site.library), (earlier.forward, site.forward))
    changed = (one for one, other in pairs if one and other and _whole(one) != _whole(other))
    return _whole(next(changed, earlier))


def _whole(line: CallSite | SiteRow) -> str:
    return line.statement or line.source


def _told(line: CallSite | None, cwd: str) -> str | None:
    return f"{wording.place(line.file, line.line, cwd)}: {line.source}" if line else None


def _verdict(was: Measure | None, now: Measure | None, tolerance: float) -> Verdict:
    if was is None:
        return "new"
    if now is None:
        return "gone"
    if was.per_step is None or now.per_step is None:
        return _moved(was.count, now.count, tolerance)
    verdict = _moved(was.per_step, now.per_step, tolerance)
    if was.per_step < 1 and verdict == "grown" and now.count <= was.count:
        return "same"
    if now.per_step < 1 and verdict == "shrunk" and now.count >= was.count:
        return "same"
    return verdict


def _moved(was: float, now: float, tolerance: float) -> Verdict:
    if now > was * (1 + tolerance):
        return "grown"
    if now < was * (1 - tolerance):
        return "shrunk"
    return "same"


def _notes(old: Report, new: Report) -> list[str]:
    notes = []
    conditional = sum(site.count for site in new.sites if site.conditional)
    if conditional:
        notes.append(
            f"left out: {wording.plural(conditional, 'sync')} that depended on the driver's state alone: another run "
            "need not have them"
        )
    if any(site.sampled for report in (old, new) for site in report.sites):
        notes.append("copies were sampled in one of the runs: their counts are estimates (copies=all counts each)")
    if old.run.simulated != new.run.simulated:
        notes.append("one of the two runs was on a simulated device: compare counts, not stalls")
    elif old.run.device != new.run.device:
        notes.append(f"the devices differ ({old.run.device}, {new.run.device}): compare counts, not stalls")
    if old.run.detail != new.run.detail:
        notes.append(f"the runs watched in different detail ({old.run.detail}, {new.run.detail})")
    blind = {sensor.name for sensor in old.sensors if sensor.live} - {s.name for s in new.sensors if s.live}
    if blind:
        notes.append(f"sensors live in the old run only: {', '.join(sorted(blind))}; what they saw may seem gone")
    if not old.run.steps or not new.run.steps:
        notes.append("a run without steps: whole counts are compared, not counts a step")
    if new.dropped or old.dropped:
        notes.append("syncs were dropped in one of the runs: its counts are too low")
    return notes
