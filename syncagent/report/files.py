"""Where reports lie on disk: which suffix means which format, loading, atomic saving."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    if filled.endswith("/") or (filled and Path(filled).is_dir()):
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


def save(report: Report, path: str | Path) -> Path:
    """Write a report; see ``Report.save``."""
    file, form = destination(path, report.run.rank)
    write_atomically(file, render(report, form))
    return file


def write_atomically(file: Path, text: str) -> None:
    """Write through a temporary file beside it, so that no reader ever sees half of it.  Missing folders are made."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Names of files may hold bytes that are not UTF-8; an escape in the report beats no report.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        temporary.replace(file)
    except OSError as error:
        if file.parent.is_dir():
            temporary.unlink(missing_ok=True)
        raise ConfigError(f"the report cannot be written to {os.fspath(file)!r}: {_reason(error)}") from None


def load(path: str | Path) -> Report:
    """Read one report file; whatever is wrong with it is said in one sentence."""
    name = os.fspath(path)
    try:
        values = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise SyncAgentError(f"cannot read the report {name!r}: {_reason(error)}") from None
    except (ValueError, RecursionError) as error:
        raise SyncAgentError(f"{name!r} is not a syncagent report: it is not whole JSON ({error})") from None
    return Report.from_dict(values, name=repr(name))


def load_merged(paths: Sequence[str | Path]) -> Report:
    """Read reports of several ranks as one; a directory stands for all reports in it."""
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
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


def _reason(error: OSError) -> str:
    if isinstance(error, FileExistsError):
        return "a folder in this path is a file"
    return (error.strerror or str(error)).lower()
