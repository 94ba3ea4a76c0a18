"""Which line each wait of a trace belongs to: from the agent's own events, or from what the trace says of itself."""

from __future__ import annotations

import ast
import re
from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from syncagent.events import CallSite
from syncagent.support import reading

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from syncagent.cost.program import Wait
    from syncagent.cost.trace import Trace
    from syncagent.events import SyncEvent

_SLACK_US = 50.0
"""How far the profiler's clock and the agent's may be apart."""

_FRAME = re.compile(r"(?P<file>.+?)\((?P<line>\d+)\): (?P<function>.+)")
_COUNTED = re.compile(r"(?<=step|iter|atch|poch|tion)[\W_]*\d+", re.IGNORECASE)
_BUILT_IN = re.compile(r"<built-in (?:method|function) (?P<function>\w+)\b.*>")
_INSTALLED = re.compile(r"(^|/)(site-packages|dist-packages|lib/python3\.\d+|torch|threading\.py|runpy\.py)(/|$)|^<")
_KINDS = {
    "item": "scalar_read", "is_nonzero": "scalar_read", "_local_scalar_dense": "scalar_read", "equal": "scalar_read",
    "nonzero": "dynamic_shape", "_unique2": "dynamic_shape", "unique_dim": "dynamic_shape", "index": "dynamic_shape",
    "unique_consecutive": "dynamic_shape", "masked_select": "dynamic_shape", "index_put_": "dynamic_shape",
    "repeat_interleave": "dynamic_shape", "bincount": "dynamic_shape", "nonzero_numpy": "dynamic_shape",
}  # fmt: skip

_LARGEST = 16 * reading.MIB
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


@dataclass(frozen=True, slots=True)
class WaitSite:
    """What identifies a wait; empty where it is not known."""

    op: str
    kind: str
    file: str = ""
    line: int = 0
    function: str = ""
    source: str = ""
    phase: str = "other"
    ranges: tuple[str, ...] = ()
    row: int | None = None
    """The ``id`` of the report's row, where there is a report."""
    function_line: int = 0
    """Where ``line`` is not known: the line by which the trace names the function."""

    @property
    def key(self) -> Hashable:
        """What all waits of one site have in common: the report's row, else the line, else the names around it.

        ``step 1`` and ``step 2`` are one site, ``layer 1`` and ``layer 2`` are not.
        """
        if self.row is not None:
            return self.row
        ranges = () if self.file else tuple(_COUNTED.sub("", name) for name in self.ranges)
        return (self.op, self.kind, self.file, self.line, self.function_line, self.function, self.phase, ranges)


_BRANCH = re.compile(
    r"(el)?if\b|while\b|assert\b|for\b.*\brange\(|.*\bif\b(?:(?!\belse\b).)*(\.item\(\)|\b(float|int|bool)\()"
)


def branches(site: WaitSite) -> bool:
    """Does the host decide by the value that it waits for?  Then the wait cannot go without a rewrite of the line."""
    if site.op.endswith(("::is_nonzero", "::equal")):
        return True
    return site.kind == "scalar_read" and bool(_BRANCH.match(site.source))


def from_events(trace: Trace, waits: Sequence[Wait], events: Sequence[tuple[SyncEvent, int]]) -> list[WaitSite | None]:
    """Match each wait with the event of the agent (and the id of its row) that spans it, on the same thread."""
    placed = sorted(
        ((event.start_ns - trace.base_ns) / 1e3, (event.start_ns + event.stall_ns - trace.base_ns) / 1e3, index)
        for index, (event, _) in enumerate(events)
    )
    starts = [start for start, *_ in placed]
    candidates: list[list[int]] = []
    threads: dict[str, Counter[int]] = defaultdict(Counter)
    for wait in waits:
        near: list[tuple[float, int]] = []
        for start, end, index in reversed(placed[: bisect_right(starts, wait.start + _SLACK_US)][-16:]):
            if start - _SLACK_US <= wait.start <= end + _SLACK_US:
                near.append((abs(start - wait.start), index))
                threads[events[index][0].thread][wait.call.thread] += 1
        candidates.append([index for _, index in sorted(near)])
    # A thread has one number in the trace and a name in the events: its waits are in the time of its own events.
    totals = Counter(wait.call.thread for wait in waits)
    number = {
        name: max((counts[thread] / totals[thread], counts[thread], thread) for thread in counts)[2]
        for name, counts in threads.items()
    }
    sites: list[WaitSite | None] = []
    for wait, found in zip(waits, candidates, strict=True):
        own = [index for index in found if number[events[index][0].thread] == wait.call.thread]
        sites.append(_of_event(*events[own[0]]) if own else None)
    return sites


def _of_event(event: SyncEvent, row: int) -> WaitSite:
    site = event.forward_site or event.site or CallSite("", 0, "")
    return WaitSite(
        op=event.op,
        kind=event.kind.value,
        file=site.file,
        line=site.line,
        function=site.function,
        source=site.source,
        phase=event.phase.value,
        ranges=event.ranges,
        row=row,
    )


def from_trace(trace: Trace, waits: Sequence[Wait]) -> list[WaitSite]:
    """Find sites by the ranges around each wait: Python frames (``with_stack=True``), annotations and ops."""
    by_thread: dict[int, list[tuple[float, float, str, str]]] = defaultdict(list)
    for start, end, thread, category, name in trace.spans:
        by_thread[thread].append((start, end, category, name))
    numbers: dict[int, list[int]] = defaultdict(list)
    for number, wait in enumerate(waits):
        numbers[wait.call.thread].append(number)
    around: dict[int, list[tuple[str, str]]] = {}
    for thread, mine in numbers.items():
        spans, opened, next_span = by_thread.get(thread, []), [], 0
        for number in sorted(mine, key=lambda n: waits[n].start):
            moment = waits[number].start
            while next_span < len(spans) and spans[next_span][0] <= moment:
                opened.append(spans[next_span])
                next_span += 1
            opened = [span for span in opened if span[1] >= moment]
            around[number] = [(category, name) for _, _, category, name in opened]
    return [_of_ranges(around[number], waits[number]) for number in range(len(waits))]


def _of_ranges(around: list[tuple[str, str]], wait: Wait) -> WaitSite:
    ops = [name for category, name in around if category == "cpu_op" and name.startswith(("aten::", "torch"))]
    ranges = tuple(
        name
        for category, name in around
        if category == "user_annotation" and not name.startswith(("ProfilerStep#", "syncagent#", "Optimizer."))
    )
    op = ops[0] if ops else wait.call.name
    backward = any(name.startswith("autograd::engine") for _, name in around)
    site = WaitSite(op, _kind(ops, wait), phase="backward" if backward else "other", ranges=ranges)
    called = ""
    for name in reversed([name for category, name in around if category == "python_function"]):
        frame = _FRAME.fullmatch(name)
        if frame and not _INSTALLED.search(frame["file"]):
            file, named, function = frame["file"], int(frame["line"]), frame["function"]
            found = _line_of(file, named, function, called) if called else None
            line, source = found or (0, "")
            function_line = 0 if found else named
            return replace(site, file=file, line=line, function=function, source=source, function_line=function_line)
        inner = frame or _BUILT_IN.fullmatch(name)
        called = inner["function"] if inner else ""
    return site


def _kind(ops: Sequence[str], wait: Wait) -> str:
    kind = next(filter(None, (_KINDS.get(name.partition("::")[2]) for name in ops)), None)
    if kind is not None:
        return kind
    if wait.copy is not None and wait.copy.op is not None:
        return "copy_d2h" if wait.copy.op.to_host else "copy_h2d"
    return "other" if ops else "explicit"


def _line_of(file: str, named: int, function: str, called: str) -> tuple[int, str] | None:
    """Return the line that calls ``called``, and its source; ``None`` where none or more than one would do.

    Kineto's ``file.py(12): train`` (``named``) is where the function begins, or where it stood when the profiler
    started: not the line that waits.
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
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):  # the parser's word for too deep
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
