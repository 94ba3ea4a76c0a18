"""The report as Markdown, for a pull request, an issue or the summary of a CI job: the worst sites, the rest folded."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from syncagent.report import cells, origins, wording
from syncagent.report.formats import rows
from syncagent.report.formats.rows import Row
from syncagent.report.lines import by_line
from syncagent.report.model import Report

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>&#|~!@$])")
_IN_COMMENT = str.maketrans({"<": r"\u003c", ">": r"\u003e"})
_MORE = 100
"""How many sites there are in the folded part: a comment on GitHub has 65,536 characters at most."""


def render(report: Report) -> str:
    """What the run was, a table of the worst sites, and below it all others, the sensors and the notes, folded."""
    report = by_line(cells.shown(report))
    worst, others = rows.split(report)
    problems, notes = map(_list, rows.remarks(report))
    parts = [
        _origin(report),
        f"**{_text(rows.summed_up(report))}**",
        _text(rows.title(report)),
        _table(worst),
        problems,
        *([] if not others else _folded(wording.plural(len(others), "more site"), _table(others[:_MORE], len(others)))),
        *([] if not notes else _folded("Notes", notes)),
        *([] if not report.sensors else _folded("Sensors", _sensors(report))),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _origin(report: Report) -> str:
    """A comment, which is not shown.  It stands first: text of the program cannot be taken for it."""
    text = json.dumps({origins.KEY: origins.of_run(report.run).to_dict()})
    return f"<!-- {text.translate(_IN_COMMENT)} -->"


def _table(sites: Sequence[Row], count: int = 0) -> str:
    if not sites:
        return ""
    lines = ["| share | syncs | stall | where | what waits |", "|--:|--:|--:|---|---|", *map(_line, sites)]
    left_out = f"\n\n… and {wording.plural(count - len(sites), 'more site')}" if count > len(sites) else ""
    return "\n".join(lines) + left_out


def _line(row: Row) -> str:
    where = [f"{_code(row.place)}{f' in {_code(row.function)}' if row.function else ''}", *map(_text, row.notes)]
    what = [_code(row.source), _code(row.call), f"→ {_text(row.advice)}" if row.advice else ""]
    columns = [*map(_text, (row.share, row.rate, row.stall)), "<br>".join(where), "<br>".join(filter(None, what))]
    return f"| {' | '.join(columns)} |"


def _list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {_text(sentence)}" for sentence in sentences)


def _folded(summary: str, content: str) -> list[str]:
    return [f"<details><summary>{summary}</summary>", content, "</details>"]


def _sensors(report: Report) -> str:
    lines = ["| sensor | | cannot see |", "|---|---|---|"]
    for sensor in report.sensors:
        facts = [sensor.detail, sensor.cannot_see if sensor.live else ""]
        said = " · ".join(_text(wording.clean(fact)) for fact in facts if fact)
        lines.append(f"| {_text(wording.clean(sensor.name))} | {'live' if sensor.live else 'off'} | {said} |")
    return "\n".join(lines)


def _text(text: str) -> str:
    """Plain words: nothing in them is markup, a mention or a line's end."""
    return _SPECIAL.sub(r"\\\1", text).replace(r"\@", "@\N{ZERO WIDTH SPACE}")


def _code(text: str) -> str:
    """Code between more backticks than it has in a row; a bar would end the cell even there.

    No escape between backticks tells a bar behind a backslash from an escaped bar.
    """
    if not text:
        return ""
    if r"\|" in text:
        return f"<code>{_text(text)}</code>"
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    room = " " if text.startswith("`") or text.endswith("`") else ""
    return "".join((fence, room, text.replace("|", r"\|"), room, fence))
