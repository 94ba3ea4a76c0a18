"""What Python 3.10 has not yet, the same on every Python that syncagent runs on; goes when 3.10 does."""

from __future__ import annotations

import sys
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import CodeType

__all__ = ["StrEnum", "load_toml", "qualified_name"]


if sys.version_info >= (3, 11):
    from enum import StrEnum

    def qualified_name(code: CodeType) -> str:
        """Return the name of a function as Python shows it, with the classes and functions that it is in."""
        return code.co_qualname

else:
    import enum
    import linecache
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
        names: dict[tuple[str, int], str] = {}

        def visit(code: CodeType, prefix: str) -> None:
            for inner in code.co_consts:
                if isinstance(inner, type(code)):
                    name = prefix + inner.co_name
                    names.setdefault((inner.co_name, inner.co_firstlineno), name)
                    # Only the bodies of functions keep their variables in fast slots; those of classes do not.
                    visit(inner, f"{name}.<locals>." if inner.co_flags & CO_OPTIMIZED else f"{name}.")

        try:
            visit(compile("".join(linecache.getlines(file)), file, "exec", dont_inherit=True), "")
        except (SyntaxError, ValueError):
            return {}
        return names


def load_toml(stream: IO[bytes]) -> dict[str, Any]:
    """Read a TOML file; what is wrong with it is a :class:`ValueError`.  The parser is imported only here."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    document: dict[str, Any] = tomllib.load(stream)
    return document
