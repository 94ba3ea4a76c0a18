"""The report as one page that needs nothing but itself; its template, style and script lie beside this file."""

from __future__ import annotations

import json
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from syncagent.events import CallSite
from syncagent.report import cells, findings, origins, wording
from syncagent.report.formats.source import inside
from syncagent.report.lines import by_line
from syncagent.report.model import OpRow, Report, RunInfo, SiteRow

_NUMBERS = ["stall", "share", "count", "per step", "median", "max"]


def render(report: Report) -> str:
    """The page; all that comes from the run is escaped, and nothing is loaded from anywhere."""
    report, run = by_line(cells.shown(report)), report.run
    gains = any(site.gain_ms is not None or site.idle_ms is not None for site in report.sites)
    return _template().render(
        report=report,
        run=run,
        times_are=wording.times_are(run, "a CPU's, not a GPU's"),
        busy=wording.busy(run),
        wording=wording,
        key=origins.KEY,
        origin=json.dumps(origins.of_run(run).to_dict()),
        script=wording.short_path(run.script, run.cwd) or "syncagent",
        facts=_facts(run),
        tiles=_tiles(report),
        cost=wording.cost(report),
        columns=[*(["gain", "idle"] if gains else []), *_NUMBERS, "op", "phase", "where"],
        context_of=_context,
        mark=wording.mark(report),
        headline=findings.headline(report),
        steady=findings.steady(report),
        set_up=findings.set_up(report),
        parts_of=_parts,
    )


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True,
        finalize=lambda value: wording.clean(value) if type(value) is str else value,  # markup is a type of its own
        keep_trailing_newline=True,
        loader=PackageLoader(__package__, ""),
        undefined=StrictUndefined,
    )
    return environment.get_template("page.html.jinja")


def _facts(run: RunInfo) -> list[str]:
    """What the run was; empty for what is not known."""
    return [
        run.device or "no device",
        wording.length(run),
        wording.processes(run),
        run.host,
        f"torch {run.torch}" if run.torch else "",
        f"CUDA {run.cuda}" if run.cuda else "",
        f"policy {run.policy}, detail {run.detail}",
        run.started,
    ]


def _tiles(report: Report) -> list[tuple[str, str]]:
    totals, agent = report.totals, report.overhead
    gain_ms = report.cost.gain_all_ms if report.cost else None
    tiles = [
        ("host syncs", wording.count(totals.syncs)),
        ("stalled", wording.duration(totals.stall_ms)),
        *((whole, wording.share(share)) for whole, share in totals.shares().items()),
        ("gain per step", "" if gain_ms is None else wording.duration(gain_ms)),
        ("agent, per step", "" if agent.agent_ms_per_step is None else wording.duration(agent.agent_ms_per_step)),
        ("agent, of the run", "" if agent.share is None else wording.share(agent.share)),
        ("dropped", wording.count(report.dropped) if report.dropped else ""),
    ]
    return [(name, value) for name, value in tiles if value]


def _parts(line: CallSite | SiteRow | OpRow) -> tuple[str, str, str]:
    """The source before what waits, that itself, and the rest."""
    begin, end = inside(line.source, line.line, None if isinstance(line, OpRow) else line.span)
    return line.source[:begin], line.source[begin:end], line.source[end:]


def _context(site: SiteRow) -> list[str]:
    """What is known of a site besides its line."""
    ops = [f"{share.op} {wording.count(share.count)}" for share in site.ops] if len(site.ops) > 1 else []
    facts = {
        "module": site.module,
        "range": " > ".join(site.ranges),
        "called as": site.api,
        "ops": ", ".join(ops),
        "waits": "depending on the driver's state" if site.conditional else "",
        "threads": ", ".join(site.threads) if site.threads not in {(), ("MainThread",)} else "",
        "allowed": site.allowed,
        "ranks": ", ".join(f"{part.rank}: {wording.duration(part.stall_ms)}" for part in site.ranks),
    }
    return [f"{name} {value}" for name, value in facts.items() if value]
