"""A report cut down to a baseline: what a comparison needs of each site, the same bytes for the same sites.

It is a report like any other, of schema 1, so that all that reads one reads it.  It has no times, no name of a machine
and no path of one: files are named from the project's folder, for which a dot stands.
"""

from __future__ import annotations

import json
import os
from typing import Any

from syncagent.events import CallSite
from syncagent.report.model import SCHEMA, Report, RunInfo, SiteRow
from syncagent.sites import short_name

NOTE = "this is a baseline, written by `syncagent check --update`: it has lines and counts, and no times"
BY_BASELINE = "baseline"
"""The reason with which the policy lets the syncs of a known site pass."""


def render(report: Report) -> str:
    """The file's text: one site after the other, by file and line, each on three lines or four."""
    root = report.run.project or report.run.folder or report.run.cwd
    rows = sorted((_site(site, root, report.run.cwd) for site in report.sites if not site.conditional), key=_place)
    head = {
        "schema": SCHEMA,
        "run": _run(report.run, root),
        "sensors": [{"name": each.name, "live": each.live, "cannot_see": ""} for each in report.sensors],
        "overhead": {"agent_ms_per_step": None, "share": None},
        "dropped": report.dropped,
        "totals": {"syncs": sum(row["count"] for row in rows), "stall_ms": 0, "stall_share": 0},
        "notes": [NOTE],
    }
    lines = [f'"{key}": {json.dumps(value)}' for key, value in head.items()]
    sites = ",\n".join(f" {{{_lines(row)}}}" for row in rows)
    return "{\n" + ",\n".join(lines) + ',\n"sites": [' + (f"\n{sites}\n" if sites else "") + "]\n}\n"


_GROUPS = (
    ("file", "line", "function", "source", "statement"),
    ("kind", "op", "api", "count", "per_step", "allowed"),
    ("library",),
    ("forward",),
)
"""What of a site stands on one line; the rest, which says nothing, on the last."""


def _lines(row: dict[str, Any]) -> str:
    groups = [{key: row[key] for key in group if key in row} for group in _GROUPS]
    said = {key for group in _GROUPS for key in group}
    groups.append({key: value for key, value in row.items() if key not in said})
    return ",\n  ".join(json.dumps(group)[1:-1] for group in groups if group)


def _run(run: RunInfo, root: str) -> dict[str, Any]:
    """What a comparison and a merge look at."""
    folder = os.path.relpath(run.folder, root).replace(os.sep, "/") if run.folder and root else ""
    known: dict[str, Any] = {
        "script": os.path.basename(run.script), "steps": run.steps, "device": run.device, "simulated": run.simulated,
        "detail": run.detail, "world_size": run.world_size, "ranks": list(run.ranks), "processes": run.processes,
        "project": "." if run.project else "", "folder": folder,
        "started": "", "duration_s": 0, "torch": None, "cuda": None, "host": "", "rank": None, "policy": "observe",
    }  # fmt: skip
    return known if run.modelled is None else known | {"modelled": run.modelled}


def _site(site: SiteRow, root: str, cwd: str) -> dict[str, Any]:
    line: dict[str, Any] = _line(site, root, cwd)
    lines = {"library": site.library, "forward": site.forward}
    allowed = None if site.allowed == BY_BASELINE else site.allowed
    return {
        **line,
        "kind": site.kind, "op": site.op, "api": site.api, "count": site.count, "per_step": site.per_step,
        "allowed": allowed,
        **{name: _line(each, root, cwd) for name, each in lines.items() if each is not None},
        "phase": site.phase, "stall_ms": 0, "stall_ms_p50": 0, "stall_ms_max": 0, "sampled": site.sampled,
    }  # fmt: skip


def _line(line: CallSite | SiteRow, root: str, cwd: str) -> dict[str, Any]:
    file = short_name(line.file, root, cwd)
    values = {"file": file, "line": line.line, "function": line.function, "source": line.source}
    return values | ({"statement": line.statement} if line.statement else {})


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["file"], row["line"], json.dumps(row))
