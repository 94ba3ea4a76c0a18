"""What became of each site between two reports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from syncagent import sites
from syncagent.events import CallSite, is_judged
from syncagent.report import wording
from syncagent.report.baseline import BY_BASELINE
from syncagent.report.decode import encode
from syncagent.report.model import Report, SiteRow
from syncagent.sites import LineKey, SiteKey

_Sites = dict[SiteKey, list[SiteRow]]

Verdict = Literal["new", "grown", "changed", "shrunk", "gone", "same"]
NO_LINE = "no line is known of it, and another run may know the line of such waits"
LONG_ONES = "detail=auto counts only those of its waits that take long, and in another run those may be others"
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
"""In the order in which they are shown."""


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
    """How much faster a step would be without its waits (ms), where that was measured."""
    row: int = 0
    """The place of its row in the report's ``sites``, from 0; of several rows, of the first that nothing allows."""
    unjudged: str | None = None
    """Why this is no finding whatever its count, if it is none: its kind is not judged, or no sensor that was live in
    the other run could have seen it."""


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
    """The old text, where the text has changed a little."""
    api: str | None = None
    advice: str | None = None

    @property
    def latest(self) -> Measure:
        """The new side, or where the site is gone the old one."""
        latest = self.new or self.old
        assert latest is not None
        return latest


@dataclass(frozen=True, slots=True)
class StepChange:
    """Step time in both reports (ms)."""

    old_ms: float
    new_ms: float
    predicted_ms: float | None
    """What the old report says the fixed sites would gain, together; ``None`` where it has no cost."""
    mended: int = 0
    """How many sites are gone or wait less often per step: fixed.  (The name is a key of the JSON.)"""
    unpriced: int = 0
    """How many of those sites the old report has no gain for."""

    @property
    def saved_ms(self) -> float:
        """What was achieved; below 0 where steps take longer now."""
        return self.old_ms - self.new_ms


@dataclass(frozen=True, slots=True)
class Sides:
    """Something that is or is not so of each report."""

    old: bool = False
    new: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every site of two reports, worst first within a verdict: new, grown, changed, shrunk, gone, same."""

    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()
    """Reasons why the two reports are less comparable."""
    steps: StepChange | None = None
    """``None`` where either report has no steps."""
    simulated: Sides = Sides()
    """Which of the reports are of a simulated device."""
    times: tuple[str, ...] = ()
    """What the times of those are."""

    def of(self, *verdicts: Verdict) -> tuple[Change, ...]:
        """The changes with one of these verdicts."""
        return tuple(change for change in self.changes if change.verdict in verdicts)

    def findings(self) -> tuple[Change, ...]:
        """New and grown sites that nothing allows: what a check fails on.  A site that has changed is none."""
        return tuple(
            change
            for change in self.of("new", "grown")
            if change.new and not change.new.allowed and change.new.unjudged is None
        )

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        return {"schema": 1, **encode(self)}


def compare(old: Report, new: Report, *, tolerance: float = 0.1) -> Comparison:
    """Match the sites of two reports by the key of :mod:`syncagent.sites`: neither line numbers nor ops are in it.

    A site with no match has changed where one that is gone has the same kind, files and functions, and much the same
    text; each site that is gone serves once.

    A site has grown when it syncs more often per step, by more than the fraction ``tolerance``; where one of the
    reports has no steps, when its count has grown by more than that.  A site that syncs less than once per step
    (set-up, logging) must also have a greater count, or every longer or shorter run would seem to change it.  Stalls
    are shown but decide nothing, since they differ from machine to machine; nor do copies that waited only by the
    driver's state.
    """
    named, named_now = sites.naming(old.run.home, new.run.home)
    before, after = _by_key(old, named), _by_key(new, named_now)
    places = {id(site): place for report in (old, new) for place, site in enumerate(report.sites)}
    changed = sites.pair([key for key in before if key not in after], [key for key in after if key not in before])
    for key, earlier in changed.items():
        before[key] = before.pop(earlier)
    changes = []
    for key in dict.fromkeys((*before, *after)):
        site, cwd = (after[key][0], new.run.cwd) if key in after else (before[key][0], old.run.cwd)
        earlier_site = before[key][0] if key in changed else None
        was, now = _measure(before.get(key), places), _measure(after.get(key), places)
        if now is not None:
            now = replace(now, unjudged=_why_unjudged(after[key], was, old, new))
        changes.append(_change(site, cwd, was, now, tolerance, earlier_site))
    notes = [*_notes(old, new), *_unjudged(changes)]
    changes.sort(key=lambda change: (VERDICTS.index(change.verdict), -change.latest.stall_ms))
    steps = _steps(old, new, before, after, tolerance)
    simulated = [run for run in (old.run, new.run) if run.simulated]
    times = dict.fromkeys(wording.times_are(run, "this CPU's times, not a GPU's") for run in simulated)
    sides = Sides(old.run.simulated, new.run.simulated)
    return Comparison(tuple(changes), tuple(notes), steps, sides, tuple(times))


def _by_key(report: Report, named: Callable[[Any], LineKey]) -> _Sites:
    """Sites by what does not move; several have the same key where a function has the same text twice."""
    found: _Sites = defaultdict(list)
    for site in report.sites:
        if not site.conditional:
            found[site.key(named)].append(site)
    return dict(found)


def _measure(rows: Sequence[SiteRow] | None, places: Mapping[int, int] | None = None) -> Measure | None:
    if not rows:
        return None
    worst = next((site for site in rows if not is_allowed(site)), rows[0])
    rates = [site.per_step for site in rows if site.per_step is not None]
    gains = [site.gain_ms for site in rows if site.gain_ms is not None]
    return Measure(
        line=rows[0].line,
        count=sum(site.count for site in rows),
        per_step=sum(rates) if len(rates) == len(rows) else None,
        stall_ms=sum(site.stall_ms for site in rows),
        allowed=all(map(is_allowed, rows)),
        gain_ms=sum(gains) if gains else None,
        row=places[id(worst)] if places else 0,
    )


def is_allowed(site: SiteRow) -> bool:
    """Whether the program or a setting allows every sync of a site, and not merely the baseline of its run.

    That one knows the line, but not how often it may sync.
    """
    return site.allowed is not None and site.allowed != BY_BASELINE


def _why_unjudged(rows: Sequence[SiteRow], was: Measure | None, old: Report, new: Report) -> str | None:
    """Why a site is no finding, in a phrase; ``None`` where it can be one."""
    kind = rows[0].kind
    seen_by = {sensor for site in rows for sensor in site.sensors}
    if not rows[0].file and seen_by == {"driver"}:
        return NO_LINE
    if not is_judged(kind, new.run.judge_kinds):
        return f"kind {kind} is not judged unless judge_kinds names it"
    live = {sensor.name for sensor in old.sensors if sensor.live}
    if was is None and seen_by and old.sensors and seen_by.isdisjoint(live):
        return f"only the sensor {', '.join(sorted(seen_by))} saw it, which was not live in the old run"
    if not sum(site.count for site in rows):
        return "only the driver saw it wait, which adds time and no syncs"
    if seen_by == {"driver"} and "auto" in {old.run.detail, new.run.detail}:
        return LONG_ONES
    return None


def _step_ms(report: Report) -> float | None:
    """Step time: from the cost window, without a profiler; else the mean of the run, first step excluded."""
    if report.cost is not None and report.cost.measured_step_ms is not None:
        return report.cost.measured_step_ms
    steps = (report.run.steps - 1) * ranks(report)
    return report.totals.step_ms / steps if report.totals.step_ms and steps > 0 else None


def ranks(report: Report) -> int:
    """Of how many ranks or processes its totals are the sums."""
    return max(len(report.run.ranks), report.run.processes, 1)


def _steps(old: Report, new: Report, before: _Sites, after: _Sites, tolerance: float) -> StepChange | None:
    """The predicted gain of the sites that are gone or wait less often, and the measured one.

    Gains do not add up: fix one site, and the wait moves to the next.  So the prediction is the cumulative gain of the
    old report's order, as far as that holds only sites that are gone, or the largest single gain if that is larger.  A
    site that waits less often counts with the same fraction of its gain.
    """
    was, now = _step_ms(old), _step_ms(new)
    if was is None or now is None:
        return None
    fewer: dict[int, float] = {}
    for key, rows in before.items():
        part = _fewer_by(_measure(rows), _measure(after.get(key)))
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
    unpriced = len(fewer.keys() - {entry.site for entry in old.cost.order})
    return StepChange(was, now, max([predicted, *single]), mended=len(fewer), unpriced=unpriced)


def _fewer_by(was: Measure | None, now: Measure | None) -> float:
    """The fraction of a site's waits per step that is gone."""
    if now is None:
        return 1.0
    return 1.0 - now.per_step / was.per_step if was and was.per_step and now.per_step is not None else 0.0


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
        forward=_described(site.forward, cwd),
        library=_described(site.library, cwd),
        old=was,
        new=now,
        was=_text(earlier, site) if earlier is not None else None,
        api=site.api,
        advice=site.advice,
    )


def _text(earlier: SiteRow, site: SiteRow) -> str:
    """What the text that has changed was: the user's, else the library's or the forward line's."""
    pairs = ((earlier, site), (earlier.library, site.library), (earlier.forward, site.forward))
    changed = (one for one, other in pairs if one and other and _whole(one) != _whole(other))
    return _whole(next(changed, earlier))


def _whole(line: CallSite | SiteRow) -> str:
    return line.statement or line.source


def _described(line: CallSite | None, cwd: str) -> str | None:
    return f"{wording.place(line.file, line.line, cwd)}: {line.source}" if line else None


def _verdict(was: Measure | None, now: Measure | None, tolerance: float) -> Verdict:
    if was is None:
        return "new"
    if now is None:
        return "gone"
    if was.per_step is None or now.per_step is None:
        return _moved(was.count, now.count, tolerance)
    verdict = _moved(was.per_step, now.per_step, tolerance)
    is_longer_run = verdict == "shrunk" and now.per_step < 1 and now.count >= was.count
    is_shorter_run = verdict == "grown" and was.per_step < 1 and now.count <= was.count
    return "same" if is_longer_run or is_shorter_run else verdict


def _moved(was: float, now: float, tolerance: float) -> Verdict:
    if now > was * (1 + tolerance):
        return "grown"
    if now < was * (1 - tolerance):
        return "shrunk"
    return "same"


def _unjudged(changes: Sequence[Change]) -> list[str]:
    """A note for each reason why sites that are new or have grown are no findings."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for change in changes:
        if change.verdict in ("new", "grown") and change.new is not None and change.new.unjudged is not None:
            line = f"{change.file}:{change.new.line}" if change.file else change.op
            reasons[change.new.unjudged].append(line)
    notes = []
    for reason, lines in reasons.items():
        shown = ", ".join(lines[:3]) + (", ..." if len(lines) > 3 else "")
        notes.append(f"no finding: {wording.plural(len(lines), 'site')} ({shown}): {reason}")
    return notes


def _notes(old: Report, new: Report) -> list[str]:
    was, now = old.run, new.run
    conditional = sum(site.count for site in new.sites if site.conditional)
    blind = {sensor.name for sensor in old.sensors if sensor.live} - {s.name for s in new.sensors if s.live}
    device = ""
    if was.simulated != now.simulated:
        device = "one of the two runs was on a simulated device: compare counts, not stalls"
    elif was.device != now.device:
        device = f"the devices differ ({was.device}, {now.device}): compare counts, not stalls"
    notes = [
        conditional
        and f"left out: {wording.plural(conditional, 'sync')} that depended on the driver's state alone: "
        "another run need not have them",
        any(site.sampled for report in (old, new) for site in report.sites)
        and "copies were sampled in one of the runs: their counts are estimates (copies=all counts each)",
        device,
        was.detail != now.detail and f"the runs watched in different detail ({was.detail}, {now.detail})",
        blind and f"sensors live in the old run only: {', '.join(sorted(blind))}; what they saw may seem gone",
        not (was.steps and now.steps) and "a run without steps: whole counts are compared, not counts per step",
        (old.dropped or new.dropped) and "syncs were dropped in one of the runs: its counts are too low",
    ]
    return [note for note in notes if note]
