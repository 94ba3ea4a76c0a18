"""Where reports lie on disk: which suffix means which format, loading, atomic saving."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncagent import reading, storage
from syncagent.config import file_mode
from syncagent.errors import ConfigError, SyncAgentError
from syncagent.report.merge import merge
from syncagent.report.model import Report

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["destination", "load", "load_merged", "render", "save", "suffix_format", "write_atomically"]

# The longer suffix first: ".trace.json" also ends in ".json".
_FORMATS = {".trace.json": "trace", ".json": "json", ".html": "html", ".sarif": "sarif"}


def destination(path: str | Path, rank: int | None = None) -> tuple[Path, str]:
    """The file that a report path means, and the format (``json``, ``html``, ``sarif``, ``trace``).

    A directory that exists, or a path that ends in a slash, means ``rank{rank}.json`` in it, with 0 for a process that
    has no rank.  Nothing is written; a path that cannot be meant raises ``ConfigError``.
    """
    given = os.fspath(path)
    filled = given.replace("{rank}", str(rank or 0)).replace("{pid}", str(os.getpid()))
    if filled.endswith("/") or os.path.isdir(filled):
        return Path(filled) / f"rank{rank or 0}.json", "json"
    form = suffix_format(filled)
    if form:
        return Path(filled), form
    raise ConfigError(
        f"a report cannot be saved as {given!r}: the name has to end in .json, .html, .sarif or .trace.json, "
        "or be a directory"
    )


def suffix_format(path: str | Path) -> str | None:
    """The format that a file's name asks for; ``None`` where it asks for none."""
    name = Path(path).name
    return next((form for suffix, form in _FORMATS.items() if name.endswith(suffix) and name != suffix), None)


def render(report: Report, form: str) -> str:
    """The text of a report file in the given format."""
    if form == "html":
        from syncagent.report import html

        return html.render(report)
    if form == "sarif":
        from syncagent.report import sarif

        return json.dumps(sarif.log(report), indent=1) + "\n"
    if form == "trace":
        from syncagent.report import chrome_trace

        return json.dumps(chrome_trace.trace(report)) + "\n"
    return _one_row_a_line(report.to_dict())


def save(report: Report, path: str | Path, *, mode: int | None = None) -> Path:
    """Write a report; see ``Report.save``.  Without a ``mode``, it is the one that the environment says."""
    mode = file_mode() if mode is None else mode
    file, form = destination(path, report.run.rank)
    write_atomically(file, render(report, form), mode=mode)
    return file


def write_atomically(file: Path, text: str, *, mode: int = storage.DEFAULT_MODE) -> None:
    """Write a file for its reader; what is wrong with its path is one sentence."""
    try:
        storage.write_atomically(file, text, mode=mode)
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        raise ConfigError(f"the report cannot be written to {os.fspath(file)!r}: {_reason(error)}") from None


def load(path: str | Path) -> Report:
    """Read one report file; whatever is wrong with it is said in one sentence."""
    name = os.fspath(path)
    try:
        values = reading.from_json(reading.read(path, reading.REPORT_BYTES))
    except OSError as error:
        raise SyncAgentError(f"cannot read the report {name!r}: {_reason(error)}") from None
    except ValueError as error:
        raise SyncAgentError(f"{name!r} is not a syncagent report: it is not whole JSON ({error})") from None
    return Report.from_dict(values, name=repr(name))


def load_merged(paths: Sequence[str | Path]) -> Report:
    """Read reports of several ranks as one; a directory stands for all reports in it."""
    files: list[Path] = []
    for path in map(Path, paths):
        if os.path.isdir(path):  # unlike Path.is_dir, never an error
            inside = sorted(file for file in path.glob("*.json") if not file.name.endswith(".trace.json"))
            if not inside:
                raise SyncAgentError(f"there is no report in the directory {os.fspath(path)!r}: it has no .json file")
            files += inside
        else:
            files.append(path)
    return merge([load(file) for file in files])


def _one_row_a_line(values: dict[str, Any]) -> str:
    """JSON with a line for each row of each list: small, and fit for diff and grep."""
    parts = []
    for key, value in values.items():
        if isinstance(value, list) and value:
            rows = ",\n".join(f"  {json.dumps(row)}" for row in value)
            parts.append(f' "{key}": [\n{rows}\n ]')
        else:
            parts.append(f' "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return "a folder in this path is a file"
    return reading.reason(error) if isinstance(error, OSError) else str(error)
