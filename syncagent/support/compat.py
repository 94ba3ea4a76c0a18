"""Differences between the Pythons that syncagent runs on, evened out; each part says when it can be removed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import accumulate, chain, islice, repeat, takewhile
from operator import attrgetter, is_not, methodcaller
from types import CodeType, FrameType
from typing import IO, Any, NamedTuple

from syncagent.support.pace import yield_gil

__all__ = [
    "Position", "Standing", "StrEnum", "expression_at", "has_gil", "is_at_a_call", "load_toml", "qualified_name",
    "read_frames", "running_threads", "standing", "standing_of",
]  # fmt: skip


class Position(NamedTuple):
    """Where an expression stands in its file: lines from 1, columns in bytes of UTF-8 from 0."""

    line: int
    column: int
    end_line: int
    end_column: int


if sys.version_info >= (3, 11):
    from enum import StrEnum

    _AT_ONCE = 500
    """Instructions; they take about 0.1 ms."""

    def expression_at(code: CodeType, offset: int) -> Position | None:
        """Return the expression that the instruction at byte ``offset`` belongs to; ``None`` where it is not known."""
        positions, left = code.co_positions(), offset // 2
        while left >= _AT_ONCE:  # they can only be counted off, with the interpreter held
            next(islice(positions, _AT_ONCE - 1, None), None)
            left -= _AT_ONCE
            yield_gil()
        line, end_line, column, end_column = next(islice(positions, left, None), (None,) * 4)
        if line is None or end_line is None or column is None or end_column is None:
            return None
        return Position(line, column, end_line, end_column)

    def qualified_name(code: CodeType) -> str:
        """Return the name of a function as Python shows it, with the classes and functions that it is in."""
        return code.co_qualname

else:
    import enum
    from functools import lru_cache
    from inspect import CO_OPTIMIZED

    def expression_at(code: CodeType, offset: int) -> Position | None:  # noqa: ARG001 - code objects lack it
        """Return ``None``: before 3.11 Python knows the line alone."""
        return None

    class StrEnum(str, enum.Enum):
        """An enumeration whose members are strings, also where they are formatted."""

        __str__ = str.__str__

    def qualified_name(code: CodeType) -> str:
        """Return the name of a function as Python shows it, with the classes and functions that it is in.

        Code objects do not say it before 3.11, but the source does; without source it is the plain name.
        """
        return _names_in(code.co_filename).get((code.co_name, code.co_firstlineno), code.co_name)

    @lru_cache(maxsize=256)
    def _names_in(file: str) -> dict[tuple[str, int], str]:
        """Map name and first line of all code in a file to its qualified name."""
        from syncagent.support.reading import source_lines

        names: dict[tuple[str, int], str] = {}

        def visit(code: CodeType, prefix: str) -> None:
            for inner in code.co_consts:
                if isinstance(inner, type(code)):
                    name = prefix + inner.co_name
                    names.setdefault((inner.co_name, inner.co_firstlineno), name)
                    # Only the bodies of functions keep their variables in fast slots; those of classes do not.
                    visit(inner, f"{name}.<locals>." if inner.co_flags & CO_OPTIMIZED else f"{name}.")

        try:
            visit(compile("".join(source_lines(file)), file, "exec", dont_inherit=True), "")
        except (SyntaxError, ValueError):
            return {}
        return names


# --- frames of other threads
#
# The agent never holds one, not for a moment: all that it asks of them is asked from C, within one call, so that the
# thread cannot go on meanwhile.  Else the thread might leave a function while its frame was held, and what stood in the
# function's variables would end later, on the agent's thread.  Guards of torch stand there, such as the one with which
# a tensor is printed (``_DisableFuncTorch``).  They restore the state of the thread on which they end, and the
# program's own thread would keep for good what they had set.


if sys.version_info >= (3, 12) or sys.version_info < (3, 11):

    def _without_collection(call: Callable[[], list[Any]]) -> list[Any]:
        return call()

else:
    import gc
    import operator

    def _without_collection(call: Callable[[], list[Any]]) -> list[Any]:
        """Make a call of C, which must not raise, without a garbage collection meanwhile.

        On 3.11 ``sys._current_frames`` may collect while it holds the lock of the list of threads.  A tensor that is
        collected then gives up the GIL, and if a thread that ends takes it, both wait for each other for good
        (python/cpython#106883).  And asking for ``f_back`` makes an object: where that starts a collection which gives
        up the GIL, the frame is gone when its object is finished, and what uses that object crashes.  From 3.12 on no
        collection begins inside a C function.
        """
        if not gc.isenabled():
            return call()
        # All three calls are made from C: no other thread can run, and turn collection on, between them.
        calls: Any = (gc.disable, call, gc.enable)
        found: list[Any]
        _, found, _ = map(operator.call, calls)
        return found


def _all_frames() -> Iterator[Any]:
    """The frames of all threads by their idents, as the only element: they are taken when it is asked for."""
    return islice(iter(sys._current_frames, None), 1)


def running_threads() -> list[int]:
    """Return the idents of all threads that run Python code."""
    return _without_collection(partial(list, chain.from_iterable(_all_frames())))


_is_there = partial(is_not, None)


def _read(innermost: Iterator[Any], attributes: Iterable[str]) -> list[Any]:
    """Read attributes of that frame and of those around it, outwards."""
    around: Iterator[Any] = accumulate(chain(innermost, repeat("f_back")), getattr)
    return _without_collection(partial(list, map(attrgetter(*attributes), takewhile(_is_there, around))))


def read_frames(ident: int, *attributes: str) -> list[Any]:
    """Read two or more attributes of a thread's frames, innermost first; none of a thread that runs no Python code."""
    return _read(map(methodcaller("get", ident), _all_frames()), attributes)


class Standing:
    """Where a thread stood when it was looked at: what a frame says of its code, and nothing that it holds."""

    __slots__ = ("f_back", "f_code", "f_lasti")

    def __init__(self, f_code: CodeType, f_lasti: int, f_back: Standing | None) -> None:
        self.f_code = f_code
        self.f_lasti = f_lasti
        self.f_back = f_back


_PLACE = ("f_code", "f_lasti")


def standing(frame: FrameType) -> Standing:
    """Copy code and instruction of a frame of the thread that asks, and of those around it."""
    outer = _standing(_read(iter((frame,)), _PLACE))
    assert outer is not None
    return outer


def standing_of(ident: int) -> Standing | None:
    """Copy code and instruction of a thread's frames at one moment; ``None`` where it runs no Python code."""
    return _standing(read_frames(ident, *_PLACE))


def _standing(places: Sequence[tuple[CodeType, int]]) -> Standing | None:
    outer: Standing | None = None
    for code, offset in reversed(places):
        outer = Standing(code, offset, outer)
    return outer


@cache
def _calls() -> frozenset[int]:
    from opcode import opmap  # of use only where a wait holds the GIL

    return frozenset(
        number for name, number in opmap.items() if name.startswith(("CALL", "PRECALL")) and "INTRINSIC" not in name
    )


def is_at_a_call(frame: FrameType) -> bool:
    """Return whether the instruction at which a frame is, or was interrupted, calls something."""
    return frame.f_code.co_code[frame.f_lasti] in _calls()


def has_gil() -> bool:
    """Return whether one thread at a time runs Python code; free-threaded builds (3.13 and later) may do without."""
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def load_toml(stream: IO[bytes]) -> dict[str, Any]:
    """Read a TOML file; what is wrong with it is a :class:`ValueError`.  The parser is imported only here."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    document: dict[str, Any] = tomllib.load(stream)
    return document
