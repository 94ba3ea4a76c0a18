"""What the agent prints: on the program's stderr, or nowhere.

``print(file=None)`` and rich print on stdout where there is no stderr, and what stays in a buffer whose file is full or
gone turns the program's exit code into 120: all of it comes through here instead.
"""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress
from typing import TextIO

_PATIENCE_S = 1.0


def stream() -> TextIO | None:
    """Return what ``sys.stderr`` is now; ``None`` where the program has none, or has closed it."""
    found: TextIO | None = sys.stderr
    try:
        return None if found is None or found.closed else found
    except Exception:
        return found


def is_terminal() -> bool:
    try:
        found = stream()
        return found is not None and found.isatty()
    except Exception:
        return False


def write(text: str) -> bool:
    """Print; say whether that worked.  Never raises: a lost message must not stop a training job."""
    try:
        found = stream()
        if found is None:
            return False
        is_pythons_own = found is sys.__stderr__
        if not is_pythons_own or os.name != "posix":
            found.write(text)
            found.flush()
            return True
        with suppress(RuntimeError):  # a signal handler has come in the middle of a write
            found.flush()
        _write(found.fileno(), text.encode(getattr(found, "encoding", None) or "utf-8", "backslashreplace"))
    except Exception:
        return False
    return True


def _write(descriptor: int, rest: bytes) -> None:
    """Past the buffers: nothing is left in them that would fail again when the interpreter ends."""
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            if not select.select([], [descriptor], [], _PATIENCE_S)[1]:
                return
