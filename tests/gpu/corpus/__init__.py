"""The corpus: every way of waiting for the GPU that we know of, and as many calls that do not wait.

Each module of this package holds ``CASES`` for some families; the GPU decides what waits.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from .case import Case

__all__ = ["CASES", "Case"]

CASES: tuple[Case, ...] = tuple(
    case
    for path in sorted(Path(__file__).parent.glob("families_*.py"))
    for case in import_module(f".{path.stem}", __package__).CASES
)
