"""The agent's own threads, and what keeps them apart from the program's: signals, and random numbers.

A program that seeds :mod:`random` draws the same with and without the agent.
"""

from __future__ import annotations

import random
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

_FAULTS = {signal.SIGSEGV, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, getattr(signal, "SIGBUS", signal.SIGSEGV)}


class AgentThread(threading.Thread):
    """A daemon thread that may have been started before gevent took the place of threads.

    It is then registered under another identity than the one it has at its end.  Signals are the program's threads' to
    take: those that block one, to wait for it, find it as they would without the agent.
    """

    def __init__(self, *, target: object, name: str, args: tuple[object, ...] = ()) -> None:
        super().__init__(target=target, name=name, args=args, daemon=True)  # type: ignore[arg-type]  # it is a callable

    def start(self) -> None:
        if not hasattr(signal, "pthread_sigmask"):
            super().start()
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)  # a new thread inherits it
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _delete(self) -> None:
        try:
            super()._delete()  # type: ignore[misc]  # private in threading
        except KeyError:
            registered = getattr(threading, "_active", {})
            for ident, thread in list(registered.items()):
                if thread is self:
                    registered.pop(ident, None)


# --- random numbers

_own = random.SystemRandom()
_DRAWING = ("opentelemetry.exporter.", "opentelemetry.sdk.metrics._internal.exemplar")
"""Modules that draw: exporters how long to wait before a retry, reservoirs which measurements to keep as exemplars."""


class _Work(threading.local):
    is_ours = False


_work = _Work()


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
