"""Files that the agent writes: private to their owner, and never through a link that another user has prepared."""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from syncagent.support import reading

DEFAULT_MODE = 0o600
"""Reports, journals and captures hold source lines, paths and arguments."""

fcntl: Any = None
with suppress(ImportError):  # not on this system
    fcntl = import_module("fcntl")

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)


def write_atomically(file: Path, text: str, *, mode: int = DEFAULT_MODE) -> None:
    """Write through a temporary file beside ``file``, so that no reader ever sees half of it.

    Missing folders are made.  The temporary file has a name that cannot be guessed and is always a new one: a link that
    stands in its place is never followed.  Raises ``OSError``; nothing is left behind then.
    """
    with _temporary(file, text, mode) as temporary:
        temporary.replace(file)


def write_new(file: Path, text: str, *, mode: int = DEFAULT_MODE) -> None:
    """As :func:`write_atomically`, where nothing has that name yet: of several processes, one succeeds.

    Raises ``FileExistsError`` in the others.
    """
    with _temporary(file, text, mode) as temporary:
        try:
            os.link(temporary, file, follow_symlinks=False)
        except FileExistsError:
            raise
        except (OSError, NotImplementedError):  # a file system without links
            os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
            try:
                temporary.replace(file)
            except BaseException:
                file.unlink(missing_ok=True)
                raise


@contextmanager
def _temporary(file: Path, text: str, mode: int) -> Iterator[Path]:
    """Write a temporary file beside ``file``, and remove it where it is still there at the end."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # Not derived from the file's name, which may already be as long as the file system allows.
    temporary = file.parent / f".syncagent-{secrets.token_hex(8)}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
            # Names of files may hold bytes that are not UTF-8; an escape in the report is better than no report.
            os.fchmod(descriptor, mode)  # whatever the umask says
            stream.write(text)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def append_to(file: Path, *, mode: int = DEFAULT_MODE) -> int:
    """Open a file for appending, made with ``mode`` if it is new, and return its descriptor.

    Raises ``OSError``, also where the last part of the path is a link or is not a regular file.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | _NOFOLLOW
    descriptor = os.open(file, flags, mode)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{os.fspath(file)!r} is not a regular file")
    return descriptor


def read(file: Path, *, most: int) -> bytes | None:
    """The first ``most`` bytes of a file; ``None`` where it is not there, no regular file or cannot be read.

    Never waits, as opening a pipe would.
    """
    try:
        with open(reading.open_regular(file), "rb") as stream:
            return stream.read(most)
    except (OSError, ValueError):
        return None


def read_end(file: Path, *, most: int) -> bytes:
    """The last ``most`` bytes of a regular file; nothing where it cannot be read."""
    try:
        with open(reading.open_regular(file), "rb") as stream:
            stream.seek(max(os.fstat(stream.fileno()).st_size - most, 0))
            return stream.read(most)
    except (OSError, ValueError):
        return b""


def append_alone(file: Path, *, mode: int = DEFAULT_MODE) -> tuple[int, Path]:
    """As :func:`append_to`, for a file that no other process opens in this way; return its descriptor and path.

    Where another process has the file, the name gets a number, ``NAME-2``; the file is this one's until it is closed.
    """
    number = 1
    while number < _MOST_WRITERS:
        path = file if number == 1 else file.with_name(f"{file.stem}-{number}{file.suffix}")
        descriptor, is_new = _made_or_found(path, mode)
        held = lock(descriptor)
        try:
            is_there = os.path.samestat(os.fstat(descriptor), os.stat(path))
        except FileNotFoundError:  # renamed between the two calls, being full
            is_there = False
        if is_there and (held or (held is None and is_new)):
            return descriptor, path
        os.close(descriptor)
        if held is None:
            # There is no way to see who else has it open.
            path = file.with_name(f"{file.stem}-{secrets.token_hex(4)}{file.suffix}")
            return append_to(path, mode=mode), path
        number += not held
    raise OSError(f"{_MOST_WRITERS:,} processes have a file of the name {file.name!r}")


def _made_or_found(path: Path, mode: int) -> tuple[int, bool]:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, mode), True
    except FileExistsError:
        return append_to(path, mode=mode), False


_MOST_WRITERS = 10_000


def lock(descriptor: int, *, shared: bool = False) -> bool | None:
    """Lock an open file for this process, without waiting; false where another has, ``None`` where files have no locks.

    The lock ends with the process at the latest.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def is_locked(file: Path) -> bool:
    """Is there a process that has locked this file?  False where that cannot be found out."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return lock(descriptor, shared=True) is False
    finally:
        os.close(descriptor)


_PATIENCE_S = 5.0


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Have a folder, which is made if need be, to oneself among the processes that ask for it.

    Waits for five seconds at most, and goes on without where it cannot be had: some file systems know no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # may be written to and not be read
        yield
        return
    try:
        ending_s = time.monotonic() + _PATIENCE_S
        while lock(descriptor) is False and time.monotonic() < ending_s:
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)
