"""structlog for the agent alone: the program's random numbers, and a structlog of its own, stay as they are.

structlog loads rich where it is installed, and rich draws from the global ``random`` when it is loaded: a program that
has set a seed would draw other numbers than without the agent.  So structlog is loaded without rich here, and the
program's own ``import structlog`` finds neither.
"""

from __future__ import annotations

import functools
import importlib
import sys
from threading import get_ident
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

__all__ = ["structlog"]


@functools.cache
def structlog() -> Any:
    """Return structlog's package: the program's, if the program has loaded it, or else one that only the agent has."""
    if "structlog" in sys.modules:
        return importlib.import_module("structlog")
    hidden = _Hidden("rich", get_ident())
    sys.meta_path.insert(0, hidden)
    try:
        return importlib.import_module("structlog")
    finally:
        sys.meta_path.remove(hidden)
        for name in list(sys.modules):  # a copy, made in one piece: other threads import meanwhile
            if name.partition(".")[0] == "structlog":
                sys.modules.pop(name, None)


class _Hidden:
    """A finder that keeps one package from being loaded by one thread."""

    def __init__(self, package: str, ident: int) -> None:
        self._package = package
        self._ident = ident

    def find_spec(self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None) -> None:
        if name.partition(".")[0] == self._package and get_ident() == self._ident:
            raise ModuleNotFoundError(f"{name} is not loaded for the agent's log", name=name)
