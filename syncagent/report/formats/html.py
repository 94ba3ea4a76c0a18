"""The report as one page that needs nothing but itself; :mod:`syncagent.report.formats.templates` fills it in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from syncagent.events import CallSite
from syncagent.report import cells, context, findings, origins, wording
from syncagent.report.formats import by_rank, charts, heatmap, rows, templates
from syncagent.report.formats.source import inside, surrounding
from syncagent.report.lines import by_line
from syncagent.report.model import OpRow, RankShare, Report, RunInfo, SiteRow

_DETAILED = context.SITES
"""For so many sites there is all that is known: 2,000 sites fit into 3 MB."""
_OPS = 100


def render(report: Report) -> str:
    """The page; all that comes from the run is escaped, and nothing is loaded from anywhere."""
    report, run = by_line(cells.shown(report)), report.run
    steady, set_up = findings.steady(report), findings.set_up(report).sites
    colored = charts.lines_with_colors(report)
    per_step, timeline = charts.stall_per_step(report), charts.timeline(report)
    names = [charts.label(site, run.cwd) for site in colored]
    heat_maps = [found for found in (heatmap.late_ranks(report), heatmap.longer_steps(report)) if found is not None]
    problems, notes = rows.remarks(report)
    return templates.page(
        "report.html.jinja",
        report=report,
        run=run,
        key=origins.KEY,
        origin=json.dumps(origins.of_run(run).to_dict()),
        script=wording.short_path(run.script, run.cwd) or "syncagent",
        mark=wording.mark(report),
        answer=rows.summed_up(report),
        lateness=wording.lateness(report),
        facts=_facts(run),
        tiles=_tiles(report),
        problems=problems,
        notes=notes,
        cost=wording.cost(report),
        first=next((site for site in steady if site.advice), None),
        lists=_lists(report, steady, set_up),
        choices=_choices(report.sites, run.cwd),
        sorting=_sorting(report),
        colored=list(zip([site.id for site in colored], names, strict=True)),
        per_step=per_step,
        table=charts.table_of(per_step) if per_step else [],
        heat_maps=heat_maps,
        timeline=timeline,
        drawn_from=charts.in_words(report, len(report.events)),
        timeline_from=charts.in_words(report, len(timeline["waits"]["site"])) if timeline else "",
        data=templates.data(
            {
                "colored": [site.id for site in colored],
                "per_step": per_step,
                "timeline": timeline,
                "heat_maps": [found.data() for found in heat_maps],
                "mark": wording.mark(report),
            }
        ),
        ops=report.ops[:_OPS],
        parts_of=_parts,
    )


def _facts(run: RunInfo) -> list[str]:
    """What the run was."""
    known = [
        run.device or "no device",
        wording.length(run),
        wording.processes(run),
        run.host,
        f"torch {run.torch}" if run.torch else "",
        f"CUDA {run.cuda}" if run.cuda else "",
        f"policy {run.policy}, detail {run.detail}",
        wording.began(run),
    ]
    return [fact for fact in known if fact]


def _tiles(report: Report) -> list[tuple[str, str]]:
    totals, agent = report.totals, report.overhead
    gain_ms, mark = report.cost.gain_all_ms if report.cost else None, wording.mark(report)
    tiles = [
        ("host syncs", wording.count(totals.syncs)),
        ("stalled", wording.duration(totals.stall_ms) + mark),
        *((whole, wording.share(share) + mark) for whole, share in totals.shares().items()),
        ("gain per step", "" if gain_ms is None else wording.duration(gain_ms)),
        ("agent, per step", "" if agent.agent_ms_per_step is None else wording.duration(agent.agent_ms_per_step)),
        ("agent, of the run", "" if agent.share is None else wording.share(agent.share)),
        ("dropped", wording.count(report.dropped) if report.dropped else ""),
    ]
    return [(name, value) for name, value in tiles if value]


@dataclass(frozen=True, slots=True)
class _Card:
    """A site with what is worked out for it."""

    site: SiteRow
    line: CallSite | SiteRow
    """The line to look at: in the backward pass that of the forward pass."""
    numbers: list[tuple[str, str]]
    values: dict[str, str]
    """What it is sorted, grouped and filtered by."""
    facts: list[tuple[str, str]]
    around: list[list[tuple[int, str, str, str]]]
    """The source around its lines: numbers, and the text before, of and after what waits."""
    distribution: list[tuple[str, int]]
    stack: tuple[CallSite, ...]
    ranks: Sequence[RankShare]
    """Those that waited longest there, or all of a few; empty where it waited in one rank alone."""
    other_ranks: str
    """A sentence about the rest of the ranks; empty where there is none."""


def _lists(report: Report, steady: Sequence[SiteRow], set_up: Sequence[SiteRow]) -> list[tuple[str, list[_Card]]]:
    stalls = charts.stalls_of(report)
    detailed = {site.id for site in (*steady, *set_up)[:_DETAILED]}
    return [
        (title, [_card(report, site, stalls.get(site.id, []), detailed=site.id in detailed) for site in sites])
        for title, sites in (("Where the host waits", steady), ("Before the second step, not counted above", set_up))
        if sites
    ]


def _card(report: Report, site: SiteRow, stalls_ns: list[int], *, detailed: bool) -> _Card:
    mark, share = wording.mark(report), report.share(site)
    about = "~" if site.sampled else ""
    known = {
        "gain": site.gain_ms,
        "idle": site.idle_ms,
        "stall": site.stall_ms,
        "median": site.stall_ms_p50,
        "longest": site.stall_ms_max,
    }
    shown = known if detailed else {name: known[name] for name in ("gain", "stall")}
    numbers = [(name, wording.duration(ms) + mark) for name, ms in shown.items() if ms is not None]
    if site.count:
        rate = wording.DASH if site.per_step is None else about + wording.per_step(site.per_step)
        numbers += [("syncs", about + wording.count(site.count)), ("per step", rate)]
    values = {"share": share, **known, "count": site.count}
    return _Card(
        site,
        site.forward or site,
        numbers,
        {name: f"{value:.4g}" for name, value in values.items() if value} | _groups(site, report.run.cwd),
        _facts_of(site) if detailed else [],
        _around(report, site) if detailed else [],
        charts.distribution(stalls_ns) if detailed and len(stalls_ns) > 1 else [],
        site.stack if detailed else (),
        *(by_rank.shown(site, report.run.ranks, mark) if detailed else ((), "")),
    )


def _groups(site: SiteRow, cwd: str) -> dict[str, str]:
    line = site.forward or site
    library = (wording.short_path(site.library.file) if site.library else "").partition("/")[0]
    groups = {
        "file": wording.short_path(line.file, cwd) if line.file else "",
        "module": site.module or "",
        "phase": site.phase,
        "kind": site.kind,
        "library": library,
        "op": site.op,
    }
    return {name: value for name, value in groups.items() if value}


def _choices(sites: Iterable[SiteRow], cwd: str) -> dict[str, list[str]]:
    """What there is to filter by, where there is more than one."""
    groups = [_groups(site, cwd) for site in sites]
    found = {name: sorted({group[name] for group in groups if name in group}) for name in ("phase", "kind", "library")}
    return {name: values for name, values in found.items() if len(values) > 1 or (name == "library" and values)}


def _sorting(report: Report) -> list[str]:
    gains = any(site.gain_ms is not None for site in report.sites)
    idle = any(site.idle_ms is not None for site in report.sites)
    return [*["gain"] * gains, *["idle"] * idle, "share", "stall", "count", "median", "longest", "place"]


def _parts(line: CallSite | SiteRow | OpRow) -> tuple[str, str, str]:
    """The source before what waits, that itself, and the rest."""
    begin, end = inside(line.source, line.line, None if isinstance(line, OpRow) else line.span)
    return line.source[:begin], line.source[begin:end], line.source[end:]


def _facts_of(site: SiteRow) -> list[tuple[str, str]]:
    """What is known of a site besides its lines and its times."""
    ops = [f"{share.op} {wording.count(share.count)}" for share in site.ops] if len(site.ops) > 1 else []
    facts = {
        "kind": site.kind.replace("_", " "),
        "phase": wording.phases(site),
        "op": ", ".join(ops) or site.op,
        "called as": wording.call(site.api),
        "module": site.module,
        "range": " > ".join(site.ranges),
        "waits": "depending on the driver's state" if site.conditional else "",
        "threads": ", ".join(site.threads) if site.threads not in {(), ("MainThread",)} else "",
        "allowed": site.allowed,
        "against the policy": wording.count(site.violations) if site.violations else "",
        "seen by": ", ".join(site.sensors),
        "rank": f"{site.ranks[0].rank} alone" if len(site.ranks) == 1 else "",
    }
    return [(name, value) for name, value in facts.items() if value]


def _around(report: Report, site: SiteRow) -> list[list[tuple[int, str, str, str]]]:
    found = [surrounding(report.sources, line.file, line.line, line.span) for line in context.lines_of(site)]
    return [lines for lines in found if lines]
