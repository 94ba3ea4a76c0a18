"""Reports on disk: loading, atomic saving, and which files belong together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from syncagent.attribution import processes
from syncagent.errors import ConfigError, SyncAgentError
from syncagent.report import formats, origins, places
from syncagent.report.formats import render
from syncagent.report.model import Report
from syncagent.settings.sources import file_mode
from syncagent.support import reading, report_formats, storage
from syncagent.support.log import log_once


def destination(path: str | Path, rank: int | None = None) -> tuple[Path, str]:
    """The file that a report path means, and the name of its format.

    A directory that exists, or a path that ends in a slash, means ``rank{rank}.json`` in it, with 0 for a process that
    has no rank.  Nothing is written.  Raises :class:`ConfigError` for a name that asks for no format.
    """
    given = os.fspath(path)
    filled = given.replace("{rank}", str(rank or 0)).replace("{pid}", str(os.getpid()))
    if filled.endswith("/") or os.path.isdir(filled):
        return Path(filled) / f"rank{rank or 0}.json", "json"
    form = report_formats.saved_format_of(filled)
    if form is None:
        raise ConfigError(
            f"a report cannot be saved as {given!r}: the name has to end in {report_formats.saved_suffixes()}, "
            "or be a directory"
        )
    return Path(filled), form


def save(report: Report, path: str | Path, *, mode: int | None = None) -> Path:
    """Write a report; see ``Report.save``.  Without ``mode`` its permissions are those that the environment says."""
    saved = save_beside(report, path, mode=mode)
    assert saved is not None
    return saved


def save_beside(report: Report, path: str | Path, *, mode: int | None = None, may_add: bool = True) -> Path | None:
    """As :func:`save`, but ``None`` where another process of the run has taken the name and ``may_add`` is false."""
    mode = file_mode() if mode is None else mode
    file, form = destination(path, report.run.rank)
    if report.run.process != processes.process_id():  # of another process, merged or made by hand: saved exactly there
        write_atomically(file, render(report, form), mode=mode)
        _remember(report, file, form)
        return file
    try:
        placed = places.place(
            file,
            origins.of_run(report.run),
            lambda part: render(replace(report, run=replace(report.run, part=part)), form),
            mode=mode,
            may_add=may_add,
        )
    except (OSError, ValueError) as error:
        raise _unwritable(file, error) from None
    if placed is None:
        return None
    if placed[1]:
        log_once(
            f"part-{placed[0]}",
            "the report has a number in its name: another process of this run has saved its own without",
            level="info",
            report=placed[0],
            other=file,
        )
    _remember(report, placed[0], form)
    return placed[0]


_pages: dict[tuple[str, str], Path] = {}
"""Where this process has saved the page of a run, by the run's process and start."""
_PAGES = 100


def page_of(report: Report) -> Path | None:
    """Where this process has saved the report as a page, or an earlier one of its run; ``None`` where it has not."""
    return _pages.get((report.run.process, report.run.started))


def _remember(report: Report, place: Path, form: str) -> None:
    if form == "html":
        if len(_pages) >= _PAGES:
            _pages.clear()
        _pages[report.run.process, report.run.started] = place.absolute()


def rendered(report: Report, form: str, **options: Any) -> str:
    """The report in one of the formats, shown with those of its options."""
    if form == "notebook":
        options.setdefault("page", page_of(report))
    text: str = formats.load(form).render(report, **options)
    return text


def saved_by_others(report: Report, path: str | Path) -> list[Path]:
    """Where other processes of this run have saved their reports under that name."""
    file, _ = destination(path, report.run.rank)
    ours = origins.of_run(report.run)
    found = [(place, origins.origin_of(place)) for place in (file, *places.parts_of(file))]
    return [
        place
        for place, origin in found
        if origin is not None and origin.process != ours.process and origins.same_run(origin, ours)
    ]


def write_atomically(file: Path, text: str, *, mode: int = storage.DEFAULT_MODE) -> None:
    """Write a file; raises :class:`ConfigError` with one sentence where the path cannot be written."""
    try:
        storage.write_atomically(file, text, mode=mode)
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        raise _unwritable(file, error) from None


def write_to(file: Path, text: str, *, mode: int) -> None:
    """Write what a command was asked for: atomically, or into a pipe or ``/dev/stdout``, which no file can replace."""
    if os.path.exists(file) and not os.path.isfile(file):
        try:
            file.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise _unwritable(file, error) from None
    else:
        write_atomically(file, text, mode=mode)


def _unwritable(file: Path, error: OSError | ValueError) -> ConfigError:
    return ConfigError(f"the report cannot be written to {os.fspath(file)!r}: {_reason(error)}")


def load(path: str | Path, *, explain: bool = True) -> Report:
    """Read a report or capture; raises :class:`SyncAgentError` with one sentence where it cannot be read.

    A capture gets its advice and its source where ``explain`` says so.
    """
    from syncagent.report import captured  # an agent that starts reads no report

    name = os.fspath(path)
    try:
        content = reading.read(path, reading.REPORT_BYTES)
        if captured.is_capture(content):
            return captured.read(Path(path), content, explain=explain)
        values = reading.from_json(content)
    except OSError as error:
        raise SyncAgentError(f"cannot read the report {name!r}: {_reason(error)}") from None
    except ValueError as error:
        if content.startswith(b'{"resourceSpans":'):
            raise SyncAgentError(
                f"{name!r} is a journal of spans, for an OpenTelemetry Collector, not a report"
            ) from None
        raise SyncAgentError(f"{name!r} is not a syncagent report: it is not whole JSON ({error})") from None
    return Report.from_dict(values, name=repr(name))


def load_merged(paths: Sequence[str | Path], *, leave_out: bool = False) -> Report:
    """Read the reports of one run as one.

    A directory stands for all reports in it, or for the newest run's captures where it has none.  A file includes those
    that other processes of the same run saved beside it, under its name with a number.  With ``leave_out`` whatever
    else is in a directory, such as a file that is cut or of another run, is left out, and the report says so; without,
    and for a file that is named, it is a :class:`SyncAgentError`.
    """
    from syncagent.report import gathering

    return gathering.load_merged([*map(Path, paths)], load, leave_out=leave_out)


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return "a folder in this path is a file"
    return reading.reason(error) if isinstance(error, OSError) else str(error)
