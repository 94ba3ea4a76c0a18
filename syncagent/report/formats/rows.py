"""What a small table of a report has, whatever it is written in: a sentence above, and a row of texts for each site."""

from __future__ import annotations

from dataclasses import dataclass

from syncagent.report import findings, wording
from syncagent.report.model import Report, SiteRow

WORST = 5
"""How many sites are shown before one has to ask for the rest."""


@dataclass(frozen=True, slots=True)
class Row:
    """One site; texts are not yet escaped, but for control characters, and empty where there is nothing to say."""

    share: str
    rate: str
    stall: str
    place: str
    function: str
    source: str
    call: str
    notes: tuple[str, ...]
    """How it is called, where another line made it, who allowed it."""
    advice: str


def split(report: Report) -> tuple[list[Row], list[Row]]:
    """Return the worst sites, and all others: those that only set the program up are never among the worst."""
    steady = findings.steady(report)
    rest = (*steady[WORST:], *findings.set_up(report).sites)
    return [_row(report, site) for site in steady[:WORST]], [_row(report, site) for site in rest]


def title(report: Report) -> str:
    """Say what ran, on what and for how long."""
    run = report.run
    facts = (run.script and wording.short_path(run.script, run.cwd), run.device or "no device", wording.length(run))
    return " · ".join(wording.clean(fact) for fact in (*facts, wording.processes(run, size=run.world_size)) if fact)


def summed_up(report: Report) -> str:
    """Say in one or two sentences what was seen, and where to start."""
    totals = report.totals
    if not report.sites:
        if any(sensor.live for sensor in report.sensors):
            return "No host sync was seen: nothing made the host wait for the GPU."
        return "No host sync was seen, but no sensor was live: this says nothing about the run."
    in_steps = totals.step_ms is not None and totals.step_stall_ms is not None
    stall_ms = totals.step_stall_ms if in_steps and totals.step_stall_ms is not None else totals.stall_ms
    share = findings.share_of_time(report)
    part = "" if share is None else f", {_share(report, share)} of {'step time' if in_steps else 'the run'}"
    waited = f"the host waited {_ms(report, stall_ms)} for the GPU{part}"
    return f"{wording.plural(totals.syncs, 'host sync')}; {waited}. {findings.headline(report)}"


def remarks(report: Report) -> tuple[list[str], list[str]]:
    """Return what went wrong or must be known to read the figures, and the other notes."""
    simulated = [f"* Simulated device: every time is {wording.times_are(report.run)}."] if report.run.simulated else []
    simulated += filter(None, [wording.busy(report.run)])
    problems = findings.problems(report)
    return [*simulated, *problems], [note for note in map(wording.clean, report.notes) if note not in problems]


def _row(report: Report, site: SiteRow) -> Row:
    cwd = report.run.cwd
    share = None if site.step_stall_ms == 0 and site.stall_ms > 0 else report.share(site)
    line = site.forward or site
    about = "~" if site.sampled else ""
    rate = f"{wording.per_step(site.per_step)} per step" if site.per_step is not None else wording.count(site.count)
    notes = [
        f"backward pass, called at {wording.place(site.file, site.line, cwd)}" if site.forward else "",
        f"in {wording.place(site.library.file, site.library.line, cwd)}" if site.library else "",
        f"allowed: {wording.clean(site.allowed)}" if site.allowed else "",
        f"{wording.count(site.violations)} against the policy" if site.violations else "",
    ]
    return Row(
        share=wording.DASH if share is None else _share(report, share),
        rate=f"{about}{rate}" if site.count else wording.DASH,
        stall=_ms(report, site.stall_ms),
        place=wording.place(line.file, line.line, cwd),
        function=wording.function(line.function),
        source=wording.clean(line.source),
        call=wording.call(site.api) or wording.clean(site.op),
        notes=tuple(filter(None, notes)),
        advice=wording.clean(site.advice or ""),
    )


def _ms(report: Report, ms: float) -> str:
    return wording.duration(ms) + wording.mark(report)


def _share(report: Report, share: float) -> str:
    return wording.share(share) + wording.mark(report)
