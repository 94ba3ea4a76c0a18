"""The expression that waits, in its syntax tree, and what the program does with the value.

Only the function around a line is parsed, or at the top level of a file the statement: to parse a large file as a whole
would hold the interpreter for as long as that takes.
"""

from __future__ import annotations

import ast
import functools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from syncagent.events import Span

_NEAR = 80
"""Lines above and below that are read along, at the top level of a script."""
_LONGEST = 2_000
"""Lines of a function that are read at most."""
_LARGEST = 100_000
"""Characters of it: a table of numbers on a single line takes seconds."""
_INDENTED = "if True:\n"
"""Stands above code that is indented, which is then parsed as it is: columns stay, and so do lines further out."""
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LOOPS = (ast.For, ast.AsyncFor, ast.While)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_TREES = 8
"""How many are kept: a function of a hundred lines takes half a megabyte of the program's memory."""
_SHARED = (ast.expr_context, ast.operator, ast.unaryop, ast.cmpop, ast.boolop)
"""Nodes such as ``Load()``, of which a tree has one each."""
_CLOSES = (")", "]", "}")
_CONTINUES = ("elif", "else", "except", "finally", *_CLOSES, "@")


def words(text: str) -> frozenset[str]:
    """Return the words of a text: names of functions that are alike to a rule."""
    return frozenset(text.split())


class Place(NamedTuple):
    """A line of a file, counted from 1, and what waits there; without ``span`` the whole line may."""

    lines: Sequence[str]
    line: int
    span: Span | None


@dataclass(frozen=True)
class Waiting:
    """An expression that waits, and what is around it."""

    node: ast.expr
    around: tuple[ast.AST, ...]
    """What it stands in, innermost first, up to the function or the module."""
    is_certain: bool
    """Whether it is known that this expression waits, and not another one of the line."""

    @property
    def statement(self) -> ast.stmt:
        return next(node for node in self.around if isinstance(node, ast.stmt))

    @functools.cached_property
    def scope(self) -> ast.AST:
        """The function that it is in, or what was read of the module."""
        return next((node for node in self.around if isinstance(node, FUNCTIONS)), self.around[-1])

    @property
    def is_in_comprehension(self) -> bool:
        return any(isinstance(node, COMPREHENSIONS) for node in self.around)

    @property
    def function(self) -> str:
        return self.scope.name if isinstance(self.scope, FUNCTIONS) else ""

    @property
    def is_repeated(self) -> bool:
        """Whether it stands in a loop of its function."""
        for inner, node in zip((self.node, *self.around), self.around, strict=False):
            if isinstance(node, FUNCTIONS):
                return False
            if (
                isinstance(node, LOOPS)
                and inner not in getattr(node, "orelse", ())
                and inner is not getattr(node, "iter", None)
            ):
                return True
            if isinstance(node, COMPREHENSIONS):
                return True
        return False


def waiting_at(place: Place, calls: Sequence[str] = ()) -> Waiting | None:
    """Find what waits at a line; ``None`` where the source cannot be read.

    ``calls`` are names of functions and methods that may be what waits, for Pythons that do not know positions.
    """
    for first, text in _blocks(place.lines, place.line):
        tree = _parsed(text)
        if tree is None:
            continue
        parents = parents_in(tree)
        found = None if place.span is None else _at_span(tree, place, first)
        certain = found is not None
        if found is None:
            found = _most_likely(parents, place.line - first + 1, calls)
        if found is not None:
            return Waiting(found, outwards(found, parents), certain)
    return None


def _blocks(lines: Sequence[str], line: int) -> Iterator[tuple[int, str]]:
    """Give first line and text of what to parse, the larger first: the function, the statement at the top level."""
    if not 0 < line <= len(lines):
        return
    head = _head(lines, line)
    ends = {first: _end(lines, first, line) for first in (head, _statement(lines, line), line)}
    blocks = list(ends.items())
    if not lines[head - 1].lstrip().startswith(("def ", "async def ")):  # neighbours belong to a script's line, too
        blocks.insert(0, (_top(lines, head - _NEAR, up_to=head), _top(lines, ends[head] + _NEAR) - 1))
    for first, last in blocks:
        if last - first >= _LONGEST:
            continue
        text = "".join(_with_end(lines[first - 1 : last]))
        if len(text) <= _LARGEST:
            yield (first - 1, _INDENTED + text) if text[0].isspace() else (first, text)


def _with_end(lines: Sequence[str]) -> list[str]:
    return [line if line.endswith("\n") else f"{line}\n" for line in lines]


def _top(lines: Sequence[str], line: int, up_to: int = 0) -> int:
    """Return the first line from there on at which a statement of the top level begins; one too far off where none."""
    last = up_to or len(lines) + 1
    for number in range(max(line, 1), min(last, line + _LONGEST)):
        text = lines[number - 1]
        if text.strip() and not text[0].isspace() and not text.startswith(_CONTINUES[:-1]):
            return number
    return last


def _indent(text: str) -> int:
    return len(text) - len(text.lstrip())


def _head(lines: Sequence[str], line: int) -> int:
    """Return the line of the ``def`` around a line, or of the statement at the top level."""
    indent = _indent(lines[line - 1])
    for number in range(line, max(line - _LONGEST, 0), -1):
        text = lines[number - 1]
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        own = _indent(text)
        if own < indent or number == line:
            indent = own
            if text.lstrip().startswith(("def ", "async def ")):
                return number
        if own == 0 and not text.startswith(_CONTINUES):
            return number
    return line


def _statement(lines: Sequence[str], line: int) -> int:
    """Return where the statement may begin that a line is in: the last line above that is indented less or as much."""
    number, indent = line, _indent(lines[line - 1])
    while number > 1 and (lines[number - 1].lstrip().startswith(_CONTINUES[:-1]) or not _opens(lines[number - 1])):
        number -= 1
        if lines[number - 1].strip() and _indent(lines[number - 1]) <= indent:
            break
    return number


def _opens(text: str) -> bool:
    return text.count("(") >= text.count(")")


def _end(lines: Sequence[str], first: int, line: int) -> int:
    """Return the last line of the block that begins at ``first``, or one that makes it too long to be read."""
    indent = _indent(lines[first - 1])
    for number in range(max(first, line) + 1, min(len(lines), first + _LONGEST) + 1):
        text = lines[number - 1]
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        own = _indent(text)
        if own <= indent and not text.lstrip().startswith(_CONTINUES[:-1] if own == indent else _CLOSES):
            return number - 1
    return min(len(lines), first + _LONGEST)


@functools.lru_cache(maxsize=_TREES)
def _parsed(text: str) -> ast.Module | None:
    for attempt in (text, f"{text.rstrip()} pass\n" if text.rstrip().endswith(":") else text):
        try:
            return ast.parse(attempt)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return None


@functools.lru_cache(maxsize=_TREES)
def parents_in(tree: ast.AST) -> dict[ast.AST, ast.AST]:
    """Return what each node below this one stands in, the outer ones first; without those that all nodes share."""
    found: dict[ast.AST, ast.AST] = {}
    todo = deque((tree,))
    while todo:
        node = todo.popleft()
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, _SHARED):
                found[child] = node
                todo.append(child)
    return found


def outwards(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> tuple[ast.AST, ...]:
    """Return what a node stands in, innermost first."""
    found = []
    while node in parents:
        node = parents[node]
        found.append(node)
    return tuple(found)


def forget() -> None:
    """Give back the memory of what has been parsed."""
    for cached in (_parsed, parents_in, _positions):
        cached.cache_clear()


def _at_span(tree: ast.AST, place: Place, first: int) -> ast.expr | None:
    """Return the largest expression that has exactly that position."""
    assert place.span is not None
    begin = len(place.lines[place.line - 1][: place.span.column].encode())
    end = len(place.lines[place.span.end_line - 1][: place.span.end_column].encode())
    return _positions(tree).get((place.line - first + 1, begin, place.span.end_line - first + 1, end))


@functools.lru_cache(maxsize=_TREES)
def _positions(tree: ast.AST) -> dict[tuple[int, int, int | None, int | None], ast.expr]:
    """Return the outermost expression at each position."""
    found: dict[tuple[int, int, int | None, int | None], ast.expr] = {}
    for node in parents_in(tree):
        if isinstance(node, ast.expr):
            found.setdefault((node.lineno, node.col_offset, node.end_lineno, node.end_col_offset), node)
    return found


def _most_likely(parents: dict[ast.AST, ast.AST], row: int, calls: Sequence[str]) -> ast.expr | None:
    """Return the innermost call of those names on the line, or else a condition if it may be one, or what is first."""
    here: list[ast.expr] = [
        node
        for node in parents
        if isinstance(node, ast.expr)
        and node.lineno <= row <= (node.end_lineno or node.lineno)
        and not (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    ]
    named = [node for node in here if isinstance(node, ast.Call) and called(node) in calls]
    if named:
        return named[-1]
    if "bool" in calls:
        for node in here:
            around = parents[node]
            if isinstance(around, (ast.If, ast.IfExp, ast.While, ast.Assert)) and around.test is node:
                return node
    on_line = [node for node in here if node.lineno == row]
    return on_line[0] if on_line else here[-1] if here else None


def called(node: ast.AST) -> str:
    """Return the last name of what is called: ``item`` for ``loss.item()``; empty for what is no call."""
    if not isinstance(node, ast.Call):
        return ""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def dotted(node: ast.AST) -> str:
    """Return a name as it is written: ``torch.nn.functional.one_hot``; empty for what is no plain name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else node.attr
    return ""
