"""The report as Markdown, for a pull request, an issue or the summary of a CI job: the worst sites, the rest folded."""

from __future__ import annotations

import json
from collections.abc import Sequence

from syncagent.report import cells, markup, origins, wording
from syncagent.report.formats import rows
from syncagent.report.formats.rows import Row
from syncagent.report.lines import by_line
from syncagent.report.markup import code, folded, text
from syncagent.report.model import Report

_IN_COMMENT = str.maketrans({"<": r"\u003c", ">": r"\u003e"})
_MORE = 100
"""How many sites there are in the folded part: a comment on GitHub has 65,536 characters at most."""


def render(report: Report) -> str:
    """What the run was, a table of the worst sites, and below it all others, the sensors and the notes, folded."""
    report = by_line(cells.shown(report))
    worst, others = rows.split(report)
    more = wording.plural(len(others), "more site")
    problems, notes = map(markup.listed, rows.remarks(report))
    parts = [
        _origin(report),
        f"**{text(rows.summed_up(report))}**",
        *map(text, wording.lateness(report)),
        text(rows.title(report)),
        _table(worst),
        problems,
        *([] if not others else [folded(more, _table(others[:_MORE], len(others)))]),
        *([] if not notes else [folded("Notes", notes)]),
        *([] if not report.sensors else [folded("Sensors", _sensors(report))]),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _origin(report: Report) -> str:
    """A comment, which is not shown.  It stands first: text of the program cannot be taken for it."""
    origin = json.dumps({origins.KEY: origins.of_run(report.run).to_dict()})
    return f"<!-- {origin.translate(_IN_COMMENT)} -->"


def _table(sites: Sequence[Row], count: int = 0) -> str:
    if not sites:
        return ""
    lines = ["| share | syncs | stall | where | what waits |", "|--:|--:|--:|---|---|", *map(_line, sites)]
    left_out = f"\n\n… and {wording.plural(count - len(sites), 'more site')}" if count > len(sites) else ""
    return "\n".join(lines) + left_out


def _line(row: Row) -> str:
    where = [f"{code(row.place)}{f' in {code(row.function)}' if row.function else ''}", *map(text, row.notes)]
    what = [code(row.source), code(row.call), f"→ {text(row.advice)}" if row.advice else ""]
    columns = [*map(text, (row.share, row.rate, row.stall)), "<br>".join(where), "<br>".join(filter(None, what))]
    return f"| {' | '.join(columns)} |"


def _sensors(report: Report) -> str:
    lines = ["| sensor | | cannot see |", "|---|---|---|"]
    for sensor in report.sensors:
        facts = [sensor.detail, sensor.cannot_see if sensor.live else ""]
        said = " · ".join(text(wording.clean(fact)) for fact in facts if fact)
        lines.append(f"| {text(wording.clean(sensor.name))} | {'live' if sensor.live else 'off'} | {said} |")
    return "\n".join(lines)
