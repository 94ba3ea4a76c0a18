"""The condition of a statement that branches, where Python knows only the position of the statement.

What turns a value into true or false belongs to the ``if``, ``while``, ``assert`` or conditional expression as a whole,
with its body.
"""

from __future__ import annotations

import ast

from syncagent.attribution.statements import Statement
from syncagent.support.compat import Position


def condition_at(position: Position, statement: Statement, indent: int) -> Position:
    """Return where the condition stands, if ``position`` is that of what tests it; else ``position`` itself.

    ``indent`` is the column at which the statement begins.
    """
    for node in ast.walk(_parsed(statement.text)):
        if isinstance(node, (ast.If, ast.While, ast.Assert)):
            is_here = (position.line, position.column) == (statement.first, indent)
        elif isinstance(node, ast.IfExp):
            is_here = position == _placed(node, statement, indent)
        else:
            continue
        if is_here:
            test = node.test
            while isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
                test = test.operand
            return _placed(test, statement, indent)
    return position


def _parsed(text: str) -> ast.AST:
    if text.startswith("elif"):  # cannot stand alone; the blanks keep the columns
        text = text.replace("elif", "if  ", 1)
    try:
        return ast.parse(f"{text} pass" if text.endswith(":") else text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module([], [])


def _placed(node: ast.expr, statement: Statement, indent: int) -> Position:
    """Return where a part of the statement stands in its file: the text of the statement lacks its indentation."""
    line, end_line = node.lineno, node.end_lineno or node.lineno
    return Position(
        statement.first + line - 1, node.col_offset + (indent if line == 1 else 0),
        statement.first + end_line - 1, (node.end_col_offset or 0) + (indent if end_line == 1 else 0),
    )  # fmt: skip
