"""The report as one page that needs nothing but itself; its template, style and script lie beside this file."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from syncagent.report import origins, wording

if TYPE_CHECKING:
    from jinja2 import Template

    from syncagent.report.model import Report, RunInfo, SiteRow

__all__ = ["render"]

_NUMBERS = ["stall", "share", "count", "per step", "median", "max"]


def render(report: Report) -> str:
    """The page; all that comes from the run is escaped, and nothing is loaded from anywhere."""
    run = report.run
    gains = any(site.gain_ms is not None or site.idle_ms is not None for site in report.sites)
    return _template().render(
        report=report,
        run=run,
        wording=wording,
        key=origins.KEY,
        origin=json.dumps(origins.of_run(run).to_dict()),
        script=wording.short_path(run.script, run.cwd) or "syncagent",
        facts=_facts(run),
        tiles=_tiles(report),
        cost=wording.cost(report),
        columns=[*(["gain", "idle"] if gains else []), *_NUMBERS, "op", "phase", "where"],
        context_of=_context,
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
    if run.processes:
        process = f"{run.processes:,} processes"
    elif run.ranks:
        process = wording.plural(len(run.ranks), "rank")
    else:
        process = "" if run.rank is None else f"rank {run.rank}"
    return [
        run.device or "no device",
        f"{wording.plural(run.steps, 'step')} in {wording.duration(run.duration_s * 1e3)}",
        process,
        run.host,
        f"torch {run.torch}" if run.torch else "",
        f"CUDA {run.cuda}" if run.cuda else "",
        f"policy {run.policy}, detail {run.detail}",
        run.started,
    ]


def _tiles(report: Report) -> list[tuple[str, str]]:
    totals, cost = report.totals, report.overhead
    tiles = [
        ("host syncs", wording.count(totals.syncs)),
        ("stalled", wording.duration(totals.stall_ms)),
        ("of the run", wording.share(totals.stall_share)),
    ]
    if totals.step_ms and totals.step_stall_ms is not None:
        tiles.append(("of step time", wording.share(totals.step_stall_ms / totals.step_ms)))
    if report.cost is not None and report.cost.gain_all_ms is not None:
        tiles.append(("gain per step", wording.duration(report.cost.gain_all_ms)))
    if cost.agent_ms_per_step is not None:
        tiles.append(("agent, per step", wording.duration(cost.agent_ms_per_step)))
    if cost.share is not None:
        tiles.append(("agent, of the run", wording.share(cost.share)))
    if report.dropped:
        tiles.append(("dropped", wording.count(report.dropped)))
    return tiles


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
