"""The agent's own folder, ``.syncagent``: names of its files, and how many of them are kept."""

from __future__ import annotations

import os
import re
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from syncagent.attribution import ranks
from syncagent.support import start_folder, storage, trust

DIRECTORY = ".syncagent"
_KEPT_FILES = 50
_KEPT_BYTES = 256 * 1024 * 1024


def file_path(kind: str, setting: str | None = None) -> Path:
    """Return where a file of that kind (``journal``, ``capture``) goes; nothing is created yet.

    ``setting`` names a file, or a directory if it is one or ends in a slash; ``{pid}`` and ``{rank}`` are filled in,
    the latter with 0 for a process that has none.
    """
    name = f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.jsonl"
    if not setting:
        return Path(start_folder.absolute(DIRECTORY), name)
    filled = setting.replace("{pid}", str(os.getpid())).replace("{rank}", str(ranks.read().rank or 0))
    path = Path(os.path.expanduser(start_folder.absolute(filled)))
    is_folder = filled.endswith(("/", os.sep)) or os.path.isdir(path)
    return path / name if is_folder else path


def is_off(setting: str | None) -> bool:
    """Return whether the setting for a file says that there is to be none."""
    return (setting or "").strip().lower() in {"off", "0", "none", os.devnull}


def make_directory(directory: Path) -> None:
    """Make the directory if it does not exist; the agent's own contains a ``.gitignore`` for all of it.

    Raises ``OSError`` for an agent's directory that other users can replace, or can put files or links into.
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
    """Return a folder for temporary files that is this user's alone, the same in every run so that it can be tidied.

    Raises ``OSError`` where another user has a file or folder of that name.
    """
    folder = Path(tempfile.gettempdir(), f"syncagent-{os.getuid() if hasattr(os, 'getuid') else 0}")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "getuid") and status.st_uid != os.getuid()):
        raise PermissionError(f"{os.fspath(folder)!r} is not this user's own folder")
    return folder


def remove_old(kind: str, directory: Path) -> None:
    """Remove the oldest files of that kind that no process writes: a job that runs every minute must not fill the disk.

    The newest 50 are kept, up to 256 MiB together; files with other names are never touched.
    """
    pattern = re.compile(rf"{kind}-\d{{8}}-\d{{6}}-\d+(\.\d+)?\.jsonl")
    found: list[tuple[float, int, Path]] = []
    for path in directory.iterdir():
        if pattern.fullmatch(path.name):
            with suppress(OSError):  # another process tidies as well
                status = path.lstat()
                found.append((status.st_mtime, status.st_size, path))
    kept_bytes = 0
    for number, (_, size, path) in enumerate(sorted(found, reverse=True)):
        kept_bytes += size
        if (number >= _KEPT_FILES or kept_bytes > _KEPT_BYTES) and not storage.is_locked(path):
            with suppress(OSError):  # another user's
                path.unlink(missing_ok=True)
