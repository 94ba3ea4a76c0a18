"""Names of torch that a version may lack: a missing one costs only what needs it, and is kept for the report.

``aten`` here stands before ``torch.ops.aten``: an op that is not there becomes a placeholder, which can be looked at,
listed and registered like any other and says what is wrong only when it is called.
"""

from __future__ import annotations

from typing import Any

import torch

from syncagent.simulate import requirements
from syncagent.simulate.errors import SimulationError

__all__ = ["LOSSES", "Absent", "aten", "find", "lost"]

LOSSES: dict[str, str] = {}
"""Of each name that this torch lacks, or that could not be used, one sentence that says what is lost."""


def lost(name: str, what: str) -> None:
    """Note what is lost because torch lacks a name."""
    LOSSES.setdefault(name, f"torch {torch.__version__} lacks {name}: {what}")


def find(path: str) -> Any:
    """Return what one of :data:`requirements.OPTIONAL` stands for, or ``None``, and note the loss."""
    found = requirements.look_up(path)
    if found is None:
        lost(f"torch.{path}", requirements.OPTIONAL[path])
    return found


class Absent:
    """An op, or an overload of one, that this torch does not have."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name
        lost(name, "a call of it is not simulated")

    def __getattr__(self, overload: str) -> Absent:
        if overload.startswith("__"):
            raise AttributeError(overload)
        return self

    def overloads(self) -> list[str]:
        return []

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise SimulationError(f"the simulated device needs {self.name}, which torch {torch.__version__} does not have")


class _Op:
    """All overloads of one op; what was looked up becomes an attribute, and costs no more than in torch."""

    def __init__(self, packet: Any) -> None:
        self._packet = packet

    def __getattr__(self, overload: str) -> Any:
        try:
            found = getattr(self._packet, overload)
        except AttributeError:
            if overload.startswith("__"):
                raise
            found = Absent(f"aten::{self._packet.__name__}.{overload}")
        setattr(self, overload, found)
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._packet(*args, **kwargs)


class _Aten:
    """The namespace ``aten``."""

    def __getattr__(self, name: str) -> Any:
        packet = getattr(torch.ops.aten, name, None)
        if packet is None and name.startswith("__"):
            raise AttributeError(name)
        found = Absent(f"aten::{name}") if packet is None else _Op(packet)
        setattr(self, name, found)
        return found


aten: Any = _Aten()
