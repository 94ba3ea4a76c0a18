"""Keeps the agent's random numbers apart: a program that seeds :mod:`random` draws the same with and without it."""

from __future__ import annotations

import random
import sys
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["isolate_opentelemetry", "mark_agent_thread", "own_randomness"]

_own = random.SystemRandom()
_DRAWING = ("opentelemetry.exporter.", "opentelemetry.sdk.metrics._internal.exemplar")
"""Modules that draw: exporters how long to wait before a retry, reservoirs which measurements to keep as exemplars."""


class _Work(threading.local):
    is_ours = False


_work = _Work()


def mark_agent_thread() -> None:
    """Say that this thread does the agent's work only."""
    _work.is_ours = True


@contextmanager
def own_randomness() -> Iterator[None]:
    """Inside, this thread draws for the agent."""
    before, _work.is_ours = _work.is_ours, True
    try:
        yield
    finally:
        _work.is_ours = before


def isolate_opentelemetry() -> None:
    """Have OpenTelemetry's modules draw from the agent's generator when they work for it, else from the program's.

    Called once the modules that the agent uses are loaded; modules that the program loads later are not touched.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith(_DRAWING):
            for attribute, found in list(vars(module).items()):
                if found is random:
                    setattr(module, attribute, _RandomModule())
                elif getattr(found, "__self__", None) is getattr(random.randrange, "__self__", None):
                    setattr(module, attribute, partial(_draw, found.__name__))


class _RandomModule:
    """Stands in for the module :mod:`random`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_own if _work.is_ours else random, name)


def _draw(name: str, *args: Any, **options: Any) -> Any:
    """Stand in for a function that was imported from :mod:`random`."""
    return getattr(_own if _work.is_ours else random, name)(*args, **options)
