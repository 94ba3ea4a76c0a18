"""The agent's own folder, ``.syncagent``: what its files are called and how many of them may stay."""

from __future__ import annotations

import os
import re
import stat
import tempfile
import time
from pathlib import Path

from syncagent.attribution import ranks
from syncagent.support import storage, trust

__all__ = ["DIRECTORY", "file_path", "is_off", "make_directory", "own_temporary_folder", "remove_old"]

DIRECTORY = ".syncagent"
_KEPT_FILES = 50
_KEPT_BYTES = 256 * 1024 * 1024


def file_path(kind: str, setting: str | None = None) -> Path:
    """Where a file of that kind (``journal``, ``capture``) goes: nothing is created yet.

    ``setting`` names a file, or a directory if it is one or ends in a slash; ``{pid}`` and ``{rank}`` are filled in,
    the latter with 0 for a process that has none.
    """
    name = f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.jsonl"
    if not setting:
        path = Path(DIRECTORY, name)
    else:
        filled = setting.replace("{pid}", str(os.getpid())).replace("{rank}", str(ranks.read().rank or 0))
        path = Path(os.path.expanduser(filled))
        if filled.endswith(("/", os.sep)) or os.path.isdir(path):
            path /= name
    try:
        return path.absolute()  # the program may change its directory
    except OSError:  # which may be gone already
        return path


def is_off(setting: str | None) -> bool:
    """Does the setting of a file say that there is to be none?"""
    return (setting or "").strip().lower() in {"off", "0", "none", os.devnull}


def make_directory(directory: Path) -> None:
    """Make it if need be; the agent's own directory keeps itself out of git.

    Raises ``OSError`` where it is there already and somebody else may put files, or links, in its place or into it.
    """
    if os.path.isdir(directory):
        why = trust.why_not(os.stat(directory), trust.owners()) if directory.name == DIRECTORY else None
        if why is not None:
            raise OSError(f"{os.fspath(directory)!r} is not used: {why}")
        return
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)  # whatever the umask says
    if directory.name == DIRECTORY:
        storage.write_atomically(directory / ".gitignore", "*\n")


def own_temporary_folder() -> Path:
    """A folder for temporary files that is this user's alone, and the same in every run, so that it can be tidied.

    Raises ``OSError`` where somebody else has something of that name.
    """
    folder = Path(tempfile.gettempdir(), f"syncagent-{os.getuid() if hasattr(os, 'getuid') else 0}")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "getuid") and status.st_uid != os.getuid()):
        raise PermissionError(f"{os.fspath(folder)!r} is not this user's own folder")
    return folder


def remove_old(kind: str, directory: Path) -> None:
    """Remove the oldest files of that kind that no process writes: a job that runs each minute must not fill the disk.

    The newest 50 stay, as far as they have 256 MB together; files with other names always do.
    """
    pattern = re.compile(rf"{kind}-\d{{8}}-\d{{6}}-\d+(\.\d+)?\.jsonl")
    found: list[tuple[float, int, Path]] = []
    for path in directory.iterdir():
        if pattern.fullmatch(path.name):
            try:
                status = path.lstat()
            except OSError:  # another process tidies, too
                continue
            found.append((status.st_mtime, status.st_size, path))
    kept_bytes = 0
    for number, (_, size, path) in enumerate(sorted(found, reverse=True)):
        kept_bytes += size
        if (number >= _KEPT_FILES or kept_bytes > _KEPT_BYTES) and not storage.is_locked(path):
            try:
                path.unlink(missing_ok=True)
            except OSError:  # somebody else's
                continue
