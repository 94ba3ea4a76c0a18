"""What forked children let go of: objects that belong to the parent, and its signal handlers.

A child inherits the handlers, and a signal may arrive before any code of the child's has run: they are reset from the
child's first moment on.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress

_resets: dict[int, Callable[[], None]] = {}
_masks = threading.local()


def call_in_children(method: Callable[[], None]) -> None:
    """Have a bound method called in every forked child, for as long as its object is alive."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        found = reference()
        if found is not None:
            found()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=call)


def reset_in_children(number: int, reset: Callable[[], None]) -> None:
    """Have ``reset`` called in every forked child, before signal ``number`` can arrive there."""
    _resets[number] = reset
    _register()


@functools.cache
def _register() -> None:
    if hasattr(os, "register_at_fork") and hasattr(signal, "pthread_sigmask"):
        os.register_at_fork(before=_before_fork, after_in_parent=_unblock, after_in_child=_reset_child)


def keep_in_children(number: int) -> None:
    """Undo :func:`reset_in_children`."""
    _resets.pop(number, None)


def _before_fork() -> None:
    # The child begins with the signal mask of the thread that forks.  Python would note a signal that arrives before
    # the child's own handlers are in place, and then forget it.
    if _resets:
        _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, tuple(_resets))


def _unblock() -> None:
    before = vars(_masks).pop("before", None)
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _reset_child() -> None:
    resets = tuple(_resets.values())
    _resets.clear()
    try:
        for reset in resets:
            with suppress(Exception):
                reset()
    finally:
        _unblock()
