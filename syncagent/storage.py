"""Files that the agent writes: private to their owner, and never through a link that somebody laid there before."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["DEFAULT_MODE", "append_to", "write_atomically"]

DEFAULT_MODE = 0o600
"""Reports, journals and captures hold source lines, paths and arguments."""

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)


def write_atomically(file: Path, text: str, *, mode: int = DEFAULT_MODE) -> None:
    """Write through a temporary file beside ``file``, so that no reader ever sees half of it.

    Missing folders are made.  The temporary file has a name that nobody can guess and is always a new one: a link that
    stands in its place is never followed.  Raises ``OSError``; nothing is left behind then.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    # Not derived from the file's name, which may already be as long as the file system allows.
    temporary = file.parent / f".syncagent-{secrets.token_hex(8)}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _CLOEXEC, mode)
    try:
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
            # Names of files may hold bytes that are not UTF-8; an escape in the report is better than no report.
            os.fchmod(descriptor, mode)  # whatever the umask says
            stream.write(text)
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append_to(file: Path, *, mode: int = DEFAULT_MODE) -> int:
    """Open a file for appending, made with ``mode`` if it is new, and return its descriptor.

    Raises ``OSError``, also where the last part of the path is a link or is not a regular file.
    """
    import stat

    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | _NOFOLLOW | _CLOEXEC
    descriptor = os.open(file, flags, mode)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{os.fspath(file)!r} is not a regular file")
    return descriptor
