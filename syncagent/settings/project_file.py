"""``[tool.syncagent]`` of the project's pyproject.toml: which file that is, and whether it may be believed.

A setting may name files to be written and read, so the file of a stranger in some parent folder must not count.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from syncagent.sites import working_folder
from syncagent.support import reading, trust
from syncagent.support.compat import load_toml

NAME = "pyproject.toml"
_ROOTS = (".git", ".hg", ".svn", ".jj")
"""What the top folder of a repository has."""
_LARGEST = 4 * reading.MIB


class Project(NamedTuple):
    """What the nearest pyproject.toml says."""

    file: Path | None = None
    table: Mapping[str, object] = {}
    ignored: str = ""
    """Why the file was not read, as a sentence; empty where it was, and where there is none."""


def find(script: str | None = None) -> Project:
    """Return what the nearest pyproject.toml says, from the working folder up to the top of the repository or the home.

    The nearest one decides, whether it has a table for syncagent or not, and whether it can be read or not.
    """
    for folder in _folders():
        file = folder / NAME
        try:
            link = os.lstat(file)
        except FileNotFoundError:
            continue
        except OSError as error:  # a folder that may not be looked into: what is above it is not this project's
            return Project(file, ignored=_ignored(file, reading.reason(error)))
        return _read(file, link, script)
    return Project()


def _folders() -> Iterator[Path]:
    start = Path(working_folder())
    if not start.is_absolute():
        return
    home = os.path.realpath(os.path.expanduser("~"))
    for folder in (start, *start.parents):
        yield folder
        if str(folder) == home or any(os.path.lexists(folder / root) for root in _ROOTS):
            return


def _read(file: Path, link: os.stat_result, script: str | None) -> Project:
    trusted = trust.owners(script)
    try:
        with open(reading.open_regular(file), "rb") as stream:
            why = trust.why_not(os.fstat(stream.fileno()), trusted)
            if why is None and stat.S_ISLNK(link.st_mode):  # whoever made the link chose what it points at
                why = trust.why_not_owned(link, trusted)
            content = stream.read(_LARGEST + 1) if why is None else b""
        if len(content) > _LARGEST:
            raise reading.TooLargeError(_LARGEST)
        tool = load_toml(io.BytesIO(content)).get("tool", {})
        table = tool.get("syncagent", {}) if isinstance(tool, dict) else {}
        if not isinstance(table, dict):
            why = "its tool.syncagent is not a table"
    except OSError as error:
        why = reading.reason(error)
    except RecursionError:
        why = "it is nested too deeply"
    except ValueError as error:  # TOML's own error and a wrong encoding are ValueErrors
        why = f"it is not TOML ({error})"
    return Project(file, table) if why is None else Project(file, ignored=_ignored(file, why))


def _ignored(file: Path, why: str) -> str:
    return f"{os.fspath(file)!r} was not read for settings: {why}"
