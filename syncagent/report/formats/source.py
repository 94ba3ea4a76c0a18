"""A line of source as people read it: what waits is underlined, and what does not fit is cut off around that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import cell_len

from syncagent.events import Span
from syncagent.report import wording
from syncagent.report.context import AROUND
from syncagent.report.model import SourceRow

_CUT = "…"
_AHEAD = 0.25
"""How much of the room is left for what stands before the expression, where both sides are cut."""


class Excerpt(NamedTuple):
    """What to print, and under it the underline; empty where it is not known what waits, or all of it does."""

    text: str
    underline: str


def excerpt(source: str, line: int, span: Span | None, room: int | None = None) -> Excerpt:
    """Return a line of source that takes at most ``room`` columns; ``None``: as many as it needs.

    ``source`` is the line without the blanks around it.
    """
    begin, end = inside(source, line, span)
    before, waits, after = (wording.clean(part) for part in (source[:begin], source[begin:end], source[end:]))
    if room is not None and cell_len(before + waits + after) > room:
        before, waits, after = _cut(before, waits, after, max(room, 8))
    underline = "" if not waits or not (before or after) else " " * cell_len(before) + "^" * cell_len(waits)
    return Excerpt(before + waits + after, underline)


def inside(source: str, line: int, span: Span | None) -> tuple[int, int]:
    """Return where in a line of source the expression begins and ends; both 0 where that is not known."""
    if span is None:
        return 0, 0
    begin = span.column - span.indent
    end = span.end_column - span.indent if span.end_line == line else len(source)
    return (begin, min(end, len(source))) if 0 <= begin < min(end, len(source)) else (0, 0)


def _cut(before: str, inside: str, after: str, room: int) -> tuple[str, str, str]:
    if not inside:
        return "", "", _first(after, room)
    inside = _first(inside, room - 2 * len(_CUT) if before or after else room)
    if inside.endswith(_CUT):
        after = ""
    left = room - cell_len(inside)
    if cell_len(before) + cell_len(after) > left:
        ahead = min(cell_len(before), max(int(left * _AHEAD), left - cell_len(after)))
        before = _last(before, ahead)
        after = _first(after, left - cell_len(before))
    return before, inside, after


def _first(text: str, room: int) -> str:
    if cell_len(text) <= room:
        return text
    while text and cell_len(text) + 1 > room:
        text = text[: min(len(text) - 1, max(room, 0))]
    return text + _CUT


def _last(text: str, room: int) -> str:
    if cell_len(text) <= room:
        return text
    while text and cell_len(text) + 1 > room:
        text = text[max(1, len(text) - room) :]
    return _CUT + text


def surrounding(
    sources: Sequence[SourceRow], file: str, line: int, span: Span | None
) -> list[tuple[int, str, str, str]]:
    """Return the lines around one, without the blanks that all have: number, text before what waits, that, the rest.

    Empty where a report has no source for that line.
    """
    row = next((row for row in sources if row.file == file and 0 <= line - row.first < len(row.lines)), None)
    if row is None:
        return []
    begin = max(line - AROUND, row.first)
    texts = row.lines[begin - row.first : line - row.first + AROUND + 1]
    margin = min((len(text) - len(text.lstrip()) for text in texts if text.strip()), default=0)
    found = []
    for number, text in enumerate(texts, begin):
        first, last = _marked(text, number, line, span)
        found.append((number, text[margin:first], text[max(first, margin) : last], text[max(last, margin) :]))
    return found


def _marked(text: str, number: int, line: int, span: Span | None) -> tuple[int, int]:
    """Return where in one line of a file what waits begins and ends."""
    end = len(text)
    if span is None or not line <= number <= span.end_line:
        return end, end
    first = span.column if number == line else len(text) - len(text.lstrip())
    last = span.end_column if number == span.end_line else end
    return (min(first, end), min(last, end)) if first < last else (end, end)
