"""Which files may decide what a process does: those of root, of its user, and of the owner of the code that it runs."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress


def owners(script: str | None = None) -> frozenset[int]:
    """Return the users who decide what this process runs; empty where files have no owners.

    Containers often run as another user than the one who owns the mounted code: that one decides already.  ``script``
    is the file that is run, where that is not the main module's.
    """
    if not hasattr(os, "geteuid"):
        return frozenset()
    found = {0, os.geteuid()}
    for place in [script] if script is not None else _code():
        with suppress(OSError, ValueError):
            found.add(os.stat(place).st_uid)
    return frozenset(found)


def why_not(about: os.stat_result, trusted: frozenset[int]) -> str | None:
    """Return why a file or folder is not to be trusted, in words for its user; ``None`` where it is."""
    owned = why_not_owned(about, trusted)
    if owned is not None:
        return owned
    return "anyone may write to it" if trusted and about.st_mode & stat.S_IWOTH else None


def why_not_owned(about: os.stat_result, trusted: frozenset[int]) -> str | None:
    """The same by its owner alone: of a link, whose mode means nothing."""
    if not trusted or about.st_uid in trusted:
        return None
    return f"it belongs to user {about.st_uid}, who is neither root, nor you, nor the owner of the script"


def _code() -> list[str]:
    """Where the code comes from that this process runs: its main module, which may not have been loaded yet."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if isinstance(file, str):
        return [file]
    words = getattr(sys, "argv", None) or [""]
    if words[0] not in {"", "-", "-c", "-m"}:
        return [words[0]]
    # Python imports from the working folder then, unless it was asked not to.
    return [] if sys.flags.isolated or getattr(sys.flags, "safe_path", False) else [os.curdir]
