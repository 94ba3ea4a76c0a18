"""Random numbers of the agent's own: a program that has seeded :mod:`random` gets from it what it would get alone."""

from __future__ import annotations

import random
import secrets
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["SystemIdGenerator", "isolate_opentelemetry", "mark_agent_thread", "own_randomness"]

_own = random.SystemRandom()
_DRAWING = ("opentelemetry.exporter.", "opentelemetry.sdk.metrics._internal.exemplar")
"""Exporters draw how long to wait before they try again, reservoirs which measurements they keep as examples."""


class SystemIdGenerator:
    """Ids from the system's generator, where the SDK's are from Python's global one."""

    def generate_span_id(self) -> int:
        return secrets.randbits(64) or 1

    def generate_trace_id(self) -> int:
        return secrets.randbits(128) or 1

    def is_trace_id_random(self) -> bool:
        return True


class _Work(threading.local):
    is_ours = False


_work = _Work()


def mark_agent_thread() -> None:
    """Say that this thread does the agent's work only."""
    _work.is_ours = True


@contextmanager
def own_randomness() -> Iterator[None]:
    """What is drawn inside is drawn for the agent, on whichever thread."""
    before, _work.is_ours = _work.is_ours, True
    try:
        yield
    finally:
        _work.is_ours = before


def isolate_opentelemetry() -> None:
    """Have OpenTelemetry's modules draw from the agent's generator where they work for it, and for the program as ever.

    Called once the modules that will be used are loaded; those of the program that are loaded later are not touched.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith(_DRAWING):
            for word, found in list(vars(module).items()):
                stand_in = _stand_in(found)
                if stand_in is not None:
                    setattr(module, word, stand_in)


def _stand_in(found: Any) -> Any:
    if found is random:
        return _Either()
    name = getattr(found, "__name__", "")
    if name and getattr(found, "__self__", None) is getattr(random.randrange, "__self__", None):
        return _either(name)
    return None


class _Either:
    """Takes the place of the module :mod:`random`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_own if _work.is_ours else random, name)


def _either(name: str) -> Callable[..., Any]:
    """Take the place of a function that was imported from :mod:`random`."""

    def draw(*args: Any, **options: Any) -> Any:
        return getattr(_own if _work.is_ours else random, name)(*args, **options)

    return draw
