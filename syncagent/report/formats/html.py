"""The report as one page that needs nothing but itself."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from syncagent.report import costs, origins, wording
from syncagent.report.model import Line

if TYPE_CHECKING:
    from collections.abc import Iterable

    from syncagent.report.model import OpRow, Report, SiteRow

__all__ = ["render"]

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="{key}" content="{origin}">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
<header>
<h1>{heading}</h1>
<p class="facts">{facts}</p>
{warning}</header>
<main>
{body}
</main>
<script>
{script}</script>
</html>
"""


def render(report: Report) -> str:
    """The page; all that comes from the run is escaped, and nothing is loaded from anywhere."""
    run = report.run
    script = wording.short_path(run.script, run.cwd) or "syncagent"
    here = files("syncagent.report")
    facts = [
        run.device or "no device",
        f"{wording.plural(run.steps, 'step')} in {wording.duration(run.duration_s * 1e3)}",
        f"{run.processes:,} processes"
        if run.processes
        else wording.plural(len(run.ranks), "rank")
        if run.ranks
        else ""
        if run.rank is None
        else f"rank {run.rank}",
        run.host,
        f"torch {run.torch}" if run.torch else "",
        f"CUDA {run.cuda}" if run.cuda else "",
        f"policy {run.policy}, detail {run.detail}",
        run.started,
    ]
    warning = "Simulated device: every time on this page is a CPU's, not a GPU's."
    return _PAGE.format(
        key=origins.KEY,
        origin=escape(json.dumps(origins.of_run(run).to_dict())),
        title=_text(f"{script}: host syncs"),
        style=here.joinpath("page.css").read_text(encoding="utf-8"),
        script=here.joinpath("page.js").read_text(encoding="utf-8"),
        heading=_text(script),
        facts=" · ".join(_text(fact) for fact in facts if fact),
        warning=f'<p class="warning">{warning}</p>\n' if run.simulated else "",
        body="\n".join(_sections(report)),
    )


def _text(value: str) -> str:
    return escape(wording.clean(value))


def _sections(report: Report) -> Iterable[str]:
    yield _tiles(report)
    if report.sites:
        priced = "".join(f"<p>{_text(line)}</p>\n" for line in costs.sentences(report))
        yield f"<section><h2>Sites</h2>\n{priced}{_site_table(report)}</section>"
    else:
        live = any(sensor.live for sensor in report.sensors)
        says = "The sensors below were live." if live else "But no sensor was live: this says nothing about the run."
        yield f'<section><p class="none">No host sync was seen. {says}</p></section>'
    if report.ops:
        yield f"<section><h2>Host time between syncs</h2>\n{_op_table(report)}</section>"
    yield f"<section><h2>Sensors</h2>\n{_sensor_table(report)}</section>"
    if report.notes:
        yield f"<section><h2>Notes</h2><ul>{''.join(f'<li>{_text(note)}</li>' for note in report.notes)}</ul></section>"


def _tiles(report: Report) -> str:
    totals, cost = report.totals, report.overhead
    tiles = [
        ("host syncs", wording.count(totals.syncs)),
        ("stalled", wording.duration(totals.stall_ms)),
        ("of the run", wording.share(totals.stall_share)),
    ]
    if totals.step_ms and totals.step_stall_ms is not None:
        tiles.append(("of step time", wording.share(totals.step_stall_ms / totals.step_ms)))
    if report.cost is not None and report.cost.gain_all_ms is not None:
        tiles.append(("a step, to gain", wording.duration(report.cost.gain_all_ms)))
    if cost.agent_ms_per_step is not None:
        tiles.append(("agent, a step", wording.duration(cost.agent_ms_per_step)))
    if cost.share is not None:
        tiles.append(("agent, of the run", wording.share(cost.share)))
    if report.dropped:
        tiles.append(("dropped", wording.count(report.dropped)))
    return '<div class="tiles">' + "".join(f"<div><b>{value}</b>{name}</div>" for name, value in tiles) + "</div>"


def _table(columns: Iterable[tuple[str, bool]], rows: Iterable[str]) -> str:
    """A table whose headings sort it; a column is its heading and whether it holds numbers."""
    head = "".join(
        f'<th scope="col"{" class=n" if numeric else ""}><button>{name}</button></th>' for name, numeric in columns
    )
    return (
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{"".join(rows)}</tbody></table></div>'
    )


def _number(value: float | None, shown: str) -> str:
    """A cell that sorts by its value, not by what it shows."""
    return f'<td class=n data-value="{-1 if value is None else value}">{shown}</td>'


def _site_table(report: Report) -> str:
    gains = any(site.gain_ms is not None or site.idle_ms is not None for site in report.sites)
    columns = [("gain", True), ("idle", True)] if gains else []
    columns += [("stall", True), ("share", True), ("count", True), ("a step", True), ("median", True), ("max", True)]
    columns += [("op", False), ("phase", False), ("where", False)]
    return _table(columns, (_site_row(report, site, gains=gains) for site in report.sites))


def _site_row(report: Report, site: SiteRow, *, gains: bool) -> str:
    share = report.share(site)
    cells = [
        _number(site.stall_ms, wording.duration(site.stall_ms)),
        _number(share, _bar(share)),
        _number(site.count, f"{'~' if site.sampled else ''}{wording.count(site.count)}"),
        _number(site.per_step, wording.per_step(site.per_step)),
        _number(site.stall_ms_p50, wording.duration(site.stall_ms_p50)),
        _number(site.stall_ms_max, wording.duration(site.stall_ms_max)),
        f"<td><code>{_text(site.op)}</code><br><small>{_text(site.kind)}</small></td>",
        f"<td>{_text(site.phase)}</td>",
        f"<td>{_where(report, site)}</td>",
    ]
    if gains:
        for value in (site.idle_ms, site.gain_ms):
            cells.insert(0, _number(value, wording.DASH if value is None else wording.duration(value)))
    return f"<tr{' class=allowed' if site.allowed else ''}>{''.join(cells)}</tr>\n"


def _bar(share: float | None) -> str:
    if share is None:
        return wording.DASH
    return f'{wording.share(share)}<i style="width:{min(share, 1) * 100:.1f}%"></i>'


def _where(report: Report, site: SiteRow) -> str:
    cwd = report.run.cwd
    here = Line(site.file, site.line, site.function, site.source)
    parts = [_line(site.forward, cwd, "forward"), _line(here, cwd, "backward")] if site.forward else [_line(here, cwd)]
    if site.library:
        parts.append(_line(site.library, cwd, "library"))
    facts = [
        ("module", site.module),
        ("range", " > ".join(site.ranges)),
        ("called as", site.api),
        (
            "ops",
            ", ".join(f"{share.op} {wording.count(share.count)}" for share in site.ops) if len(site.ops) > 1 else "",
        ),
        ("waits", "only by the driver's state" if site.conditional else ""),
        ("threads", ", ".join(site.threads) if site.threads not in {(), ("MainThread",)} else ""),
        ("allowed", site.allowed),
        ("ranks", ", ".join(f"{part.rank}: {wording.duration(part.stall_ms)}" for part in site.ranks)),
    ]
    told = " · ".join(f"{name} {_text(value)}" for name, value in facts if value)
    if told:
        parts.append(f"<div><small>{told}</small></div>")
    if site.stack:
        frames = "".join(_line(frame, cwd) for frame in site.stack)
        parts.append(f"<details><summary>stack of the longest, innermost first</summary>{frames}</details>")
    if site.advice:
        parts.append(f'<div class="advice">→ {_text(site.advice)}</div>')
    return "".join(parts)


def _line(line: Line, cwd: str, label: str = "") -> str:
    place = f'<span title="{_text(line.file)}">{_text(wording.place(line.file, line.line, cwd))}</span>'
    label = f"<small>{label}</small> " if label else ""
    function = f" in {_text(line.function)}" if line.function else ""
    source = f"<pre>{_text(line.source)}</pre>" if line.source else ""
    return f"<div>{label}{place}{function}{source}</div>"


def _op_table(report: Report) -> str:
    columns = [("host", True), ("share", True), ("count", True), ("op", False), ("phase", False), ("where", False)]
    return _table(columns, (_op_row(report, op) for op in report.ops[:100]))


def _op_row(report: Report, op: OpRow) -> str:
    return (
        "<tr>"
        + _number(op.busy_ms, wording.duration(op.busy_ms))
        + _number(op.share, _bar(op.share))
        + _number(op.count, wording.count(op.count))
        + f"<td><code>{_text(op.op)}</code></td><td>{_text(op.phase)}</td>"
        + f"<td>{_line(Line(op.file, op.line, op.function, op.source), report.run.cwd)}</td></tr>\n"
    )


def _sensor_table(report: Report) -> str:
    rows = []
    for sensor in report.sensors:
        facts = " · ".join(fact for fact in (sensor.detail, sensor.cannot_see) if fact) or wording.DASH
        state = "live" if sensor.live else "off"
        rows.append(f"<tr><td>{_text(sensor.name)}</td><td>{state}</td><td>{_text(facts)}</td></tr>\n")
    return _table([("sensor", False), ("state", False), ("cannot see", False)], rows)
