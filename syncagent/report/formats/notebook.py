"""The report as a piece of a notebook's page: a headline and a table of the worst sites, the rest folded.

No scripts, and no style sheet: a notebook removes both until its reader trusts it, and has its own colours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from syncagent.report import cells, wording
from syncagent.report.formats import rows
from syncagent.report.formats.rows import Row
from syncagent.report.lines import by_line
from syncagent.report.model import Report

_LEFT = ' style="text-align:left;vertical-align:top"'
_RIGHT = ' style="text-align:right;vertical-align:top"'
_MORE = 200


def render(report: Report, *, verbose: bool = False, page: Path | None = None) -> str:
    """One ``<div>``; everything that comes from the run is escaped.  With ``verbose`` nothing is folded.

    It ends with a link to ``page``, where the whole report has been saved.
    """
    report = by_line(cells.shown(report))
    worst, others = rows.split(report)
    parts = [
        f"<p><strong>{_text(rows.summed_up(report))}</strong><br><small>{_text(rows.title(report))}</small></p>",
        _table(worst),
        _folded(wording.plural(len(others), "more site"), _table(others, _MORE), is_open=verbose) if others else "",
    ]
    problems, notes = rows.remarks(report)
    parts.insert(2, _list(problems))
    if notes:
        parts.append(_folded("Notes", _list(notes), is_open=verbose))
    if report.sensors:
        parts.append(_folded("Sensors", _sensors(report), is_open=verbose))
    parts.append(f"<p><small>{_whole(page)}</small></p>")
    return "\n".join(['<div class="syncagent">', *filter(None, parts), "</div>", ""])


def _whole(page: Path | None) -> str:
    """Where the whole report is, or how to get it; a notebook follows links to files beside it alone."""
    if page is None:
        return "report.save(&quot;run.html&quot;) writes the page with all of it: charts, source and a time line."
    try:
        beside = page.resolve().relative_to(Path.cwd())
    except (OSError, ValueError):
        return f"All of it is in {_text(str(page))}"
    address = escape(quote(beside.as_posix(), errors="surrogateescape"))
    return f'<a href="{address}" target="_blank" rel="noopener">All of it: {_text(beside.name)}</a>'


def _table(sites: Sequence[Row], most: int = rows.WORST) -> str:
    if not sites:
        return ""
    heads = [(name, _RIGHT) for name in ("share", "syncs", "stall")]
    lines = [_line("th", [*heads, ("where", _LEFT), ("what waits", _LEFT)])]
    for row in sites[:most]:
        numbers = [(_text(value), _RIGHT) for value in (row.share, row.rate, row.stall)]
        lines.append(_line("td", [*numbers, (_where(row), _LEFT), (_what(row), _LEFT)]))
    left_out = f"<p>… and {wording.plural(len(sites) - most, 'more site')}</p>" if len(sites) > most else ""
    return f"<table>\n{''.join(lines)}</table>{left_out}"


def _line(tag: str, columns: Iterable[tuple[str, str]]) -> str:
    return f"<tr>{''.join(f'<{tag}{style}>{content}</{tag}>' for content, style in columns)}</tr>\n"


def _where(row: Row) -> str:
    function = f" in {_text(row.function)}" if row.function else ""
    notes = "".join(f"<br><small>{_text(note)}</small>" for note in row.notes)
    return f"<strong>{_text(row.place)}</strong>{function}{notes}"


def _what(row: Row) -> str:
    lines = [
        f"<code>{_text(row.source)}</code>" if row.source else "",
        f"<small>{_text(row.call)}</small>",
        f"→ {_text(row.advice)}" if row.advice else "",
    ]
    return "<br>".join(filter(None, lines))


def _sensors(report: Report) -> str:
    lines = [_line("th", [("sensor", _LEFT), ("", _LEFT), ("cannot see", _LEFT)])]
    for sensor in report.sensors:
        facts = [sensor.detail, sensor.cannot_see if sensor.live else ""]
        columns = (sensor.name, "live" if sensor.live else "off", " · ".join(fact for fact in facts if fact))
        lines.append(_line("td", [(_text(column), _LEFT) for column in columns]))
    return f"<table>\n{''.join(lines)}</table>"


def _list(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(sentence)}</li>' for sentence in sentences)}</ul>" if sentences else ""


def _folded(summary: str, content: str, *, is_open: bool) -> str:
    return f"<details{' open' * is_open}><summary>{summary}</summary>{content}</details>"


def _text(text: str) -> str:
    return escape(wording.clean(text))
