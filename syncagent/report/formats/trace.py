"""The newest syncs as a Chrome trace, for Perfetto and chrome://tracing: a process a rank, a track a thread."""

from __future__ import annotations

import json
from typing import Any

from syncagent.errors import ConfigError
from syncagent.report import origins, wording
from syncagent.report.model import EventRow, Report, SiteRow

_STEPS = 0
"""Track of the steps; threads count from 1."""


def render(report: Report) -> str:
    """The trace on one line."""
    return json.dumps(trace(report)) + "\n"


def trace(report: Report) -> dict[str, Any]:
    """The trace as JSON values.

    Times are microseconds since the first thing drawn, because a float cannot hold nanoseconds since 1970; that moment
    is in ``otherData.start_ns``.  Raises :class:`ConfigError` for a report that holds no single syncs.
    """
    if report.sites and not report.events:
        raise ConfigError("this report cannot be drawn as a trace: it holds sums for each site, but no single syncs")
    sites = {site.id: site for site in report.sites}
    starts_ns = [event.start_ns for event in report.events] + [step.start_ns for step in report.step_times]
    zero_ns = min(starts_ns, default=0)
    threads: dict[tuple[int, str], int] = {}
    for event in report.events:
        threads.setdefault((event.rank or 0, event.thread), len(threads) + 1)
    drawn: list[dict[str, Any]] = [
        {
            "ph": "X", "cat": "step", "name": f"step {step.step}", "pid": step.rank or 0, "tid": _STEPS,
            "ts": (step.start_ns - zero_ns) / 1e3, "dur": (step.end_ns - step.start_ns) / 1e3,
        }
        for step in report.step_times
    ]  # fmt: skip
    drawn += [
        _slice(event, sites.get(event.site), zero_ns, threads[event.rank or 0, event.thread], report.run.cwd)
        for event in report.events
    ]
    drawn.sort(key=lambda item: item["ts"])
    return {
        "displayTimeUnit": "ms",
        "otherData": {
            "start_ns": str(zero_ns),
            "started": report.run.started,
            "simulated": report.run.simulated,
            "modelled": report.run.modelled,
            origins.KEY: origins.of_run(report.run).to_dict(),
        },
        "traceEvents": [*_names(report, threads), *drawn],
    }


def _slice(event: EventRow, site: SiteRow | None, zero_ns: int, track: int, cwd: str) -> dict[str, Any]:
    args: dict[str, Any] = {"step": event.step}
    if site:
        args |= {"where": wording.place(site.file, site.line, cwd), "function": site.function, "source": site.source}
        args |= {"phase": site.phase, "api": site.api}
        cost = {"site_gain_ms_a_step": site.gain_ms, "site_idle_ms_a_step": site.idle_ms, "advice": site.advice}
        args |= {name: value for name, value in cost.items() if value is not None}
        lines = {"forward": site.forward, "library": site.library}
        args |= {name: wording.place(line.file, line.line, cwd) for name, line in lines.items() if line}
        if site.stack:
            args["stack of the longest"] = [
                f"{wording.place(frame.file, frame.line, cwd)} {frame.function}" for frame in site.stack
            ]
    return {
        "ph": "X", "cat": site.kind if site else "other", "name": site.op if site else "other",
        "pid": event.rank or 0, "tid": track, "ts": (event.start_ns - zero_ns) / 1e3, "dur": event.stall_ns / 1e3,
        "args": args,
    }  # fmt: skip


def _names(report: Report, threads: dict[tuple[int, str], int]) -> list[dict[str, Any]]:
    ranks = sorted({rank for rank, _ in threads} | {step.rank or 0 for step in report.step_times})
    host = f" on {report.run.host}" if report.run.host else ""
    tracks = [(rank, _STEPS, "steps") for rank in ranks if report.step_times]
    tracks += [(rank, track, thread) for (rank, thread), track in threads.items()]
    return [
        *({"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"rank {rank}{host}"}} for rank in ranks),
        *(
            {"ph": "M", "name": "thread_name", "pid": rank, "tid": track, "args": {"name": name}}
            for rank, track, name in tracks
        ),
    ]
