"""Finds the whole statement that a line is part of, in its source file."""

from __future__ import annotations

import tokenize
from bisect import bisect_left
from operator import attrgetter
from types import CodeType
from typing import NamedTuple

from syncagent.support.pace import yield_gil
from syncagent.support.reading import source_lines

_INSIDE_A_LINE = frozenset({"<lambda>", "<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>", "<module>"})
"""Code whose first line may be in the middle of a statement: its file is read from the top."""
_SKIPPED = frozenset({tokenize.NL, tokenize.COMMENT, tokenize.ENCODING})
_LAST = attrgetter("last")
_SCOPES = 500
_LONGEST = 2_000


class Statement(NamedTuple):
    """A simple statement, or the head of a compound one (``if x.item():``), without comments."""

    first: int
    last: int
    text: str


_read: dict[tuple[str, int], tuple[list[str], tuple[Statement, ...]]] = {}


def shown(line: str) -> str:
    """Return a line of source without the blanks around it, and of a table of numbers only its beginning."""
    return line.strip()[:_LONGEST]


def statement_at(code: CodeType, line: int) -> Statement | None:
    """Return the statement at a line of this code; ``None`` where the source is not available."""
    statements = statements_of(code)
    found = bisect_left(statements, line, key=_LAST)  # of several on one line, the first
    return statements[found] if found < len(statements) and statements[found].first <= line else None


def statements_of(code: CodeType) -> tuple[Statement, ...]:
    """Return the statements of a function, those of functions inside it included; of other code all in its file.

    Each is read once, token by token: to parse a file as a whole would hold the interpreter for as long as that takes.
    """
    lines = source_lines(code.co_filename)
    begin = 1 if code.co_name in _INSIDE_A_LINE else code.co_firstlineno
    known = _read.get((code.co_filename, begin))
    if known is None or known[0] is not lines:  # the file has been read again
        if len(_read) >= _SCOPES:
            _read.clear()
        known = _read[code.co_filename, begin] = (lines, tuple(_statements(lines, begin)))
    return known[1]


def _statements(lines: list[str], begin: int) -> list[Statement]:
    found: list[Statement] = []
    start: tuple[int, int] | None = None
    comments: dict[int, int] = {}
    depth, outermost, has_head = 0, None, begin == 1
    rest = iter(lines[begin - 1 :])
    try:
        for token in tokenize.generate_tokens(lambda: next(rest, "")):
            kind = token.type
            yield_gil()
            if kind == tokenize.INDENT:
                depth += 1
            elif kind == tokenize.DEDENT:
                depth -= 1
            elif kind == tokenize.COMMENT:
                comments[token.start[0]] = token.start[1]
            elif kind == tokenize.NEWLINE and start is not None:
                first, last = start[0] + begin - 1, token.start[0] + begin - 1
                found.append(Statement(first, last, _text(lines, first, last, start[1], comments, begin)))
                start, comments = None, {}
            elif start is None and kind not in _SKIPPED and kind != tokenize.NEWLINE:
                outermost = depth if outermost is None else outermost
                if has_head and depth <= outermost and begin > 1:
                    break  # what follows the function
                has_head = has_head or token.string != "@"
                start = token.start
    except (tokenize.TokenError, SyntaxError):  # the rest of the file is another function's, or not Python
        pass
    return found


def _text(lines: list[str], first: int, last: int, column: int, comments: dict[int, int], begin: int) -> str:
    parts = [lines[number - 1][: comments.get(number - begin + 1)] for number in range(first, last + 1)]
    parts[0] = parts[0][column:]
    return "\n".join(part.rstrip() for part in parts).strip()[:_LONGEST]
