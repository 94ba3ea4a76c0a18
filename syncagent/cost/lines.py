"""The line of a call in a function that a trace names.

Kineto's ``file.py(12): train`` is where the function begins, or where it stood when the profiler started: not the line
that waits.  That one is found in the source, where the source is here and only one line of the function makes the call.
"""

from __future__ import annotations

import ast
from functools import lru_cache
from typing import TYPE_CHECKING

from syncagent.support import reading

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["line_of"]

_LARGEST = 16 * reading.MIB
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


def line_of(file: str, named: int, function: str, called: str) -> tuple[int, str] | None:
    """Return the line that calls ``called``, and its source; ``None`` where none or more than one would do.

    ``named`` is the line by which the trace names the function.
    """
    source = _source(file)
    if source is None:
        return None
    tree, lines = source
    scope = tree if function == "<module>" else _function(tree, named, function)
    if scope is None:
        return None
    found = {
        node.func.end_lineno
        for node in _own(scope)
        if isinstance(node, ast.Call) and called == getattr(node.func, "attr", getattr(node.func, "id", None))
    }
    line = found.pop() if len(found) == 1 else None
    return None if line is None else (line, lines[line - 1].strip())


@lru_cache(maxsize=64)
def _source(file: str) -> tuple[ast.Module, list[str]] | None:
    try:
        text = reading.read(file, _LARGEST).decode("utf-8")
        return ast.parse(text), text.splitlines()
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):  # the last: too deeply nested
        return None


def _function(tree: ast.Module, named: int, function: str) -> _Function | None:
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.name == function
        and _begins(node) <= named <= (node.end_lineno or node.lineno)
    ]
    return max(around, key=_begins, default=None)


def _begins(node: _Function) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _own(scope: ast.AST) -> Iterator[ast.AST]:
    """What is in a scope without the functions in it, which have frames of their own."""
    for node in ast.iter_child_nodes(scope):
        yield node
        if not isinstance(node, _SCOPES):
            yield from _own(node)
