"""Differences between the Pythons that syncagent runs on, evened out; each part says when it can be removed."""

from __future__ import annotations

import sys
from types import CodeType, FrameType
from typing import IO, Any

__all__ = ["StrEnum", "current_frames", "load_toml", "qualified_name"]


if sys.version_info >= (3, 11):
    from enum import StrEnum

    def qualified_name(code: CodeType) -> str:
        """Return the name of a function as Python shows it, with the classes and functions that it is in."""
        return code.co_qualname

else:
    import enum
    from functools import lru_cache
    from inspect import CO_OPTIMIZED

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


if sys.version_info >= (3, 12) or sys.version_info < (3, 11):

    def current_frames() -> dict[int, FrameType]:
        """Return the frame that each thread is in, by the thread's ident."""
        return sys._current_frames()

else:
    import gc
    import operator

    def current_frames() -> dict[int, FrameType]:
        """Return the frame that each thread is in, by the thread's ident, without a garbage collection meanwhile.

        On 3.11 ``sys._current_frames`` may collect while it holds the lock of the list of threads.  A tensor that is
        collected then gives up the GIL, and if a thread that ends takes it, both wait for each other for good
        (python/cpython#106883).  From 3.12 on no collection begins inside a C function.
        """
        if not gc.isenabled():
            return sys._current_frames()
        # All three calls are made from C: no other thread can run, and turn collection on, between them.
        _, frames, _ = map(operator.call, (gc.disable, sys._current_frames, gc.enable))
        return frames  # type: ignore[return-value]  # map() loses the type


def load_toml(stream: IO[bytes]) -> dict[str, Any]:
    """Read a TOML file; what is wrong with it is a :class:`ValueError`.  The parser is imported only here."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    document: dict[str, Any] = tomllib.load(stream)
    return document
