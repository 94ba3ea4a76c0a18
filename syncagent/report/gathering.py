"""Gathers the reports of one run from files and folders and merges them: many of them by DuckDB."""

from __future__ import annotations

import importlib
import itertools
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from syncagent.errors import SyncAgentError
from syncagent.report import origins, places, together
from syncagent.report.advising import advised
from syncagent.report.context import with_context
from syncagent.report.merge import merge, merge_sources
from syncagent.report.model import Report
from syncagent.report.together import Candidate

MUCH = 8 * 1024 * 1024
"""From so many bytes on DuckDB reads them, if it is installed: our own merge takes a second or two for as many."""
EXTRA = "syncagent[ranks]"
_SHOWN = 3

Load = Callable[..., Report]
"""Reads one file; see :func:`syncagent.report.files.load`."""


class _Gathered(NamedTuple):
    """The files that were asked for."""

    files: list[Path]
    named: frozenset[Path]
    """Those that were asked for by their own name: each of them has to be read."""
    of_folders: bool
    """Whether all are of folders, in which there may be anything."""


def load_merged(paths: Sequence[Path], load: Load, *, leave_out: bool) -> Report:
    """Merge what is there; see :func:`syncagent.report.files.load_merged`."""
    gathered = _gather(paths, load, leave_out=leave_out)
    much = len(gathered.files) > 1 and sum(map(_size, gathered.files)) > MUCH
    engine = _engine() if much else None
    if engine is not None:
        return _by_engine(engine, gathered, load, leave_out=leave_out)
    report = _by_ourselves(gathered, load, leave_out=leave_out)
    if not much:
        return report
    note = f"files of many ranks are merged much faster, and in less memory, with `pip install '{EXTRA}'`"
    return replace(report, notes=(*report.notes, note))


# --- which files -----------------------------------------------------------------------------------------------------


def _gather(paths: Sequence[Path], load: Load, *, leave_out: bool) -> _Gathered:
    files: list[Path] = []
    named: set[Path] = set()
    for path in paths:
        if os.path.isdir(path):  # unlike Path.is_dir, isdir never raises
            files += _in_folder(path, both=leave_out)
        else:
            files += [path, *_parts_of(path, load)]
            named.add(path)
    return _Gathered(files, frozenset(named), not named)


def _in_folder(folder: Path, *, both: bool) -> list[Path]:
    """The reports in a folder; where it has none, or with ``both``, the captures, too."""
    reports = sorted(file for file in folder.glob("*.json") if not file.name.endswith(".trace.json"))
    if reports and not both:
        return reports
    captures = [file for file in sorted(folder.glob("*.jsonl")) if origins.glance(file) is not None]
    if not reports and not captures:
        raise SyncAgentError(f"there is no report in the directory {os.fspath(folder)!r}: it has no .json file")
    return [*reports, *captures]


def _parts_of(file: Path, load: Load) -> list[Path]:
    """The files that other processes of the same run have saved beside it."""
    parts = places.parts_of(file)
    if not parts:
        return []
    origin = origins.of_run(load(file).run)
    others = [(part, origins.origin_of(part)) for part in parts]
    return [part for part, other in others if other is not None and other.part and origins.same_run(origin, other)]


def _size(file: Path) -> int:
    try:
        return os.stat(file).st_size
    except (OSError, ValueError):
        return 0


def _choose(gathered: _Gathered, candidates: list[Candidate], *, leave_out: bool) -> tuple[list[Candidate], list[str]]:
    """The candidates that are of one run, and sentences on those that are not."""
    are_captures = all(each.file.suffix == ".jsonl" for each in candidates)
    if gathered.of_folders and (leave_out or are_captures):
        return together.newest_run(candidates)
    return together.of_one_run(candidates), []


# --- merging ---------------------------------------------------------------------------------------------------------


def _by_ourselves(gathered: _Gathered, load: Load, *, leave_out: bool) -> Report:
    reports: dict[Path, Report] = {}
    refused: dict[Path, str] = {}
    alone = len(gathered.files) == 1
    for file in gathered.files:
        try:
            reports[file] = load(file) if alone else load(file, explain=False)
        except SyncAgentError as error:
            if file in gathered.named or not leave_out:
                raise
            refused[file] = str(error)
    if not reports:
        raise SyncAgentError(next(iter(refused.values())))
    candidates = [Candidate(file, origins.of_run(report.run), report.run.ended) for file, report in reports.items()]
    chosen, sentences = _choose(gathered, candidates, leave_out=leave_out)
    together.refuse_sums([(each.file, reports[each.file]) for each in chosen])
    merged = merge([reports[each.file] for each in chosen])
    return _finished(merged, chosen, sentences, refused, alone=alone)


def _by_engine(engine: ModuleType, gathered: _Gathered, load: Load, *, leave_out: bool) -> Report:
    from syncagent.report.engine import adding
    from syncagent.report.engine.tables import Tables

    candidates, refused = _glanced(gathered, load, leave_out=leave_out)
    if not candidates:
        raise SyncAgentError(next(iter(refused.values())))
    chosen, sentences = _choose(gathered, candidates, leave_out=leave_out)
    try:
        with tempfile.TemporaryDirectory(prefix="syncagent-") as folder:
            tables = Tables(engine, Path(folder), load=lambda file: load(file, explain=False))
            try:
                tables.add([each.file for each in chosen])
                for number, sentence in tables.refused.items():
                    if chosen[number].file in gathered.named or not leave_out:
                        raise SyncAgentError(sentence)
                    refused[chosen[number].file] = sentence
                parts = [number for number in range(len(chosen)) if number not in tables.refused]
                if not parts:
                    raise SyncAgentError(next(iter(refused.values())))
                together.refuse_sums([(chosen[number].file, tables.heads[number].report) for number in parts])
                merged = adding.add_up(tables, parts)
            finally:
                tables.close()
    except (engine.Error, OSError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise SyncAgentError(f"DuckDB could not merge these {len(chosen):,} files: {first}") from None
    return _finished(merged, [chosen[number] for number in parts], sentences, refused)


def _glanced(gathered: _Gathered, load: Load, *, leave_out: bool) -> tuple[list[Candidate], dict[Path, str]]:
    """What the files say of themselves at their beginning; a file that says nothing there is read as a whole."""
    candidates, refused = [], {}
    for file in gathered.files:
        origin = origins.glance(file)
        if origin is None:
            try:
                origin = origins.of_run(load(file, explain=False).run)
            except SyncAgentError as error:
                if file in gathered.named or not leave_out:
                    raise
                refused[file] = str(error)
                continue
        candidates.append(Candidate(file, origin, file.suffix != ".jsonl"))
    return candidates, refused


def _finished(
    merged: Report, chosen: Sequence[Candidate], sentences: Sequence[str], refused: dict[Path, str], *,
    alone: bool = False,
) -> Report:  # fmt: skip
    """The merged report with what is to be said of the files, and with what explains captures."""
    if not alone and any(each.file.suffix == ".jsonl" for each in chosen):
        merged = advised(merged)
        merged = replace(merged, sources=merge_sources((*merged.sources, *with_context(merged).sources)))
    if len(chosen) > 1:
        merged = together.with_missing(merged)
    notes = [*merged.notes, *sentences]
    problems = [f"left out: {sentence}" for sentence in itertools.islice(refused.values(), _SHOWN)]
    if len(refused) > _SHOWN:
        names = together.some(file.name for file in itertools.islice(refused, _SHOWN, None))
        problems.append(f"left out: {len(refused) - _SHOWN:,} more files that cannot be read ({names})")
    return replace(merged, notes=(*problems, *notes), problems=(*merged.problems, *problems))


def _engine() -> ModuleType | None:
    try:
        return importlib.import_module("duckdb")
    except ImportError:
        return None
