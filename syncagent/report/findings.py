"""What a report comes to: which lines matter, which only cost while the program was set up, and what went wrong."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from syncagent.events import is_judged
from syncagent.report import wording
from syncagent.report.model import Report, SiteRow

_MOST = 0.9
"""The lines that have this much of the stall are the ones to start with."""
_ALL = 0.995
"""What reads 100 % from here on is called all."""
_FEW = 5
_LITTLE = 0.01
"""A stall of less than this much of the time is not worth anyone's day, unless the device was simulated."""
_BY_CHOICE = "off: "
"""How a sensor begins to say that a setting keeps it off."""
_UNKNOWN = 0.05
"""Time without a line is a problem from this share of the stall on."""


class Counted(NamedTuple):
    """The syncs of one line that count against a limit."""

    site: SiteRow
    number: int


def counted(report: Report, kinds: Collection[str] | None = None) -> tuple[Counted, ...]:
    """Return what counts against a limit: syncs that nothing allows, of kinds that are judged, or of these kinds alone.

    A wait of no known line that the driver alone saw counts for nothing, nor does one that adds time and no sync.
    """
    found = []
    for site in report.sites:
        counts = is_judged(site.kind, report.run.judge_kinds) if kinds is None else site.kind in kinds
        of_nobody = not site.file and set(site.sensors) == {"driver"}
        number = site.count - site.allowed_count
        if counts and not site.conditional and not of_nobody and number > 0:
            found.append(Counted(site, number))
    return tuple(found)


class SetUp(NamedTuple):
    """Stalls before the first step and in it."""

    stall_ms: float
    sites: tuple[SiteRow, ...]
    """Those that did not stall in a later step, the longest stall first."""


def steady(report: Report) -> tuple[SiteRow, ...]:
    """Return the sites that are not of the set-up alone, worst first."""
    return tuple(site for site in report.sites if not _is_set_up(site))


def set_up(report: Report) -> SetUp:
    """Return what was stalled before the first step and in it; nothing where no step was marked."""
    stall_ms = sum(site.stall_ms - site.steady_ms for site in report.sites)
    alone = sorted(filter(_is_set_up, report.sites), key=lambda site: -site.stall_ms)
    return SetUp(stall_ms, tuple(alone))


def _is_set_up(site: SiteRow) -> bool:
    return site.step_stall_ms == 0 and site.stall_ms > 0


def share_of_time(report: Report) -> float | None:
    """Return the part of step time for which the host waited, of the run's time where no step was marked."""
    totals = report.totals
    if totals.step_ms and totals.step_stall_ms is not None:
        return totals.step_stall_ms / totals.step_ms
    return totals.stall_share if report.sites else None


def headline(report: Report) -> str:
    """Say in one sentence where to start, or that there is nothing to be had."""
    sites = steady(report)
    whole_ms = sum(site.steady_ms for site in sites)
    if not sites or whole_ms <= 0:
        return "No line stalled the steps." if report.sites else ""
    share = share_of_time(report)
    lines = _by_line(sites)
    first, parts = lines[0][0], [ms / whole_ms for _, ms in lines]
    place = wording.place(first.file, first.line, report.run.cwd)
    start = f"start with {place}" if first.file else "the line of the longest is not known"
    mark = wording.mark(report)
    wanted, reached = 0, 0.0
    while wanted < len(parts) and reached < _MOST:
        reached += parts[wanted]
        wanted += 1
    if share is not None and share < _LITTLE and not report.run.simulated:
        return f"That is little: nothing here is worth much work. The longest stall is at {place}."
    if wanted == len(lines) > 1:
        return f"{wanted} lines cause it; {start}."
    if len(lines) == 1 or parts[0] > _ALL:
        return f"One line causes all of it: {place}."
    if wanted == 1:
        return f"One line causes {_percent(reached)}{mark} of it: {place}."
    if wanted <= _FEW:
        return f"{wanted} lines cause {_percent(reached)}{mark} of it; {start}."
    return f"{len(lines)} lines share it; {start}, which causes {_percent(parts[0])}{mark}."


def _by_line(sites: Iterable[SiteRow]) -> list[tuple[SiteRow, float]]:
    """Return the lines with what they stalled, in the order of the sites."""
    found: dict[tuple[str, int], tuple[SiteRow, float]] = {}
    for site in sites:
        line = site.forward or site
        first, ms = found.get((line.file, line.line), (site, 0.0))
        found[line.file, line.line] = (first, ms + site.steady_ms)
    return list(found.values())


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def problems(report: Report) -> list[str]:
    """Say what keeps the report from being whole or the agent from being cheap, a sentence each."""
    found = [
        f"The sensor {wording.clean(sensor.name)} is off: {wording.clean(sensor.detail)}"
        for sensor in report.sensors
        if not sensor.live and sensor.detail and not sensor.detail.startswith(_BY_CHOICE)
    ]
    if report.dropped:
        found.append(f"{wording.plural(report.dropped, 'sync')} noticed but not recorded: the counts are too low")
    cost = report.overhead
    if cost.share is not None and cost.budget is not None and cost.share > cost.budget:
        added, allowed = wording.share(cost.share) + wording.mark(report), wording.share(cost.budget)
        found.append(f"The agent has added {added} to the run, and {allowed} were allowed")
    whole_ms = sum(site.stall_ms for site in report.sites)
    unknown_ms = sum(site.stall_ms for site in report.sites if not site.file)
    if whole_ms and unknown_ms > _UNKNOWN * whole_ms:
        found.append(f"The line of {_percent(unknown_ms / whole_ms)}{wording.mark(report)} of the stall is not known")
    return [*found, *map(wording.clean, report.problems)]
