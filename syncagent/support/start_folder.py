"""The folder that relative paths in settings start from: the one in which the process began, wherever it goes later."""

from __future__ import annotations

import os

_folder: str | None = None


def note() -> None:
    """Remember the working directory, before the script's first line."""
    global _folder
    try:
        _folder = os.getcwd()
    except OSError:  # it has been deleted
        _folder = None


def absolute(path: str, *, now: bool = False) -> str:
    """Return the path from there, or from the working directory as it is ``now``; one in a home stays as it is."""
    if path.startswith("~"):
        return path
    try:
        start = os.getcwd() if now or _folder is None else _folder
    except OSError:
        return path
    return os.path.join(start, "" if path == os.curdir else path.removeprefix("./"))
