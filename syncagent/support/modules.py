"""What is in a module that somebody has imported, without importing what may only stand in for it."""

from __future__ import annotations

from typing import Any


def names_in(module: object) -> dict[str, Any]:
    """Return the names in a module, or none where ``sys.modules`` holds something else.

    A module of ``importlib.util.LazyLoader`` is imported once it is asked for anything, and that is up to the program.
    """
    try:
        names = object.__getattribute__(module, "__dict__")
    except AttributeError:
        return {}
    return names if isinstance(names, dict) else {}
