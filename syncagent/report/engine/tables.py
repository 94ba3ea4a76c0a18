"""Fills DuckDB's tables with what the files of many ranks hold, a few files at a time."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, TypeAlias

from syncagent.errors import SyncAgentError
from syncagent.report import captured
from syncagent.report.engine import captures, reports, shapes
from syncagent.report.engine.rows import LISTS, TIMED, NewRows
from syncagent.report.merge import MOST_ON_TIME_LINE
from syncagent.report.model import Report, SiteRow
from syncagent.support import reading

_AT_ONCE = 32 * 1024 * 1024
"""Bytes of files that are in memory at once, besides DuckDB's tables of them."""
_BATCHES_BETWEEN = 8
"""After how many batches it is asked again which of their rows can still be among the newest of all."""
_MEMORY = "1GB"
_MOST_THREADS = 8
_PLAIN = re.compile(r"[/\w.-]+", re.ASCII)
"""A name in which DuckDB sees nothing but a name: no pattern, no address."""
_BEGIN = 256

_Add: TypeAlias = Callable[[NewRows, dict[int, str | None]], tuple[dict[int, Report], list[int]]]
"""Adds the rows of files; returns the rest of each, and the numbers of those that are read in another way."""


class Head(NamedTuple):
    """What of a file is not in the tables."""

    report: Report
    """Without sites, ops, syncs, steps and sources."""
    is_capture: bool


class Tables:
    """The tables of all ranks, in a database of their own that grows on disk rather than in memory."""

    heads: dict[int, Head]
    """By the number of the file."""
    refused: dict[int, str]
    """Why a file is not in the tables, in a sentence, by its number."""
    seen: Counter[str]
    """How many syncs and steps there were in all files; the tables keep the newest."""

    def __init__(self, engine: ModuleType, folder: Path, *, load: Callable[[Path], Report]) -> None:
        """``load`` reads a file as one process does, for what DuckDB reads in another way or not at all."""
        self.sql = engine.connect(os.fspath(folder / "ranks.duckdb"))
        self._error: type[Exception] = engine.Error
        self._load = load
        self.heads, self.refused, self.seen = {}, {}, Counter()
        self._threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS)
        for name, value in (
            ("threads", self._threads), ("memory_limit", _MEMORY), ("temp_directory", os.fspath(folder / "spilled")),
            ("preserve_insertion_order", False), ("enable_progress_bar", False),
            ("autoinstall_known_extensions", False), ("autoload_known_extensions", False),
        ):  # fmt: skip
            self.sql.execute(f"SET {name} = {shapes.literal(str(value))}")
        self._make()

    def _make(self) -> None:
        for each in LISTS:
            columns = [
                f"{shapes.quoted(name)} {shapes.sql_type(hint)}" for name, hint in shapes.hints(each.row).items()
            ]
            more = ", place VARCHAR" if each.row is SiteRow else ""
            self.sql.execute(f"CREATE TABLE {each.table} (part INTEGER, nth BIGINT{more}, {', '.join(columns)})")
        self.sql.execute("CREATE TABLE waits (part INTEGER, step BIGINT, syncs BIGINT, stall_ns BIGINT)")
        self.sql.execute(
            "CREATE TABLE steps (part INTEGER, step BIGINT, start_ns BIGINT, end_ns BIGINT, collective_ms DOUBLE)"
        )

    def close(self) -> None:
        self.sql.close()

    def add(self, files: Sequence[Path]) -> None:
        """Read all files; their numbers are their places in the sequence."""
        numbered = dict(enumerate(files))
        oldest: dict[str, int] = {}

        def read(batch: list[int]) -> _Reader:
            with self.sql.cursor() as sql:
                reader = _Reader(NewRows(sql, {number: numbered[number] for number in batch}, oldest), self._error)
                reader.read_all(self._load)
            return reader

        # DuckDB goes through a few long texts with one thread: each batch has its own.
        with ThreadPoolExecutor(self._threads) as pool:
            for count, reader in enumerate(pool.map(read, _batches(numbered, _AT_ONCE // self._threads))):
                self.heads.update(reader.heads)
                self.refused.update(reader.refused)
                self.seen.update(reader.seen)
                if count % _BATCHES_BETWEEN == 0:
                    oldest.update(self._oldest_kept())
        # The newest of each batch are more than the newest of all.
        for table in TIMED:
            self.sql.execute(
                f"CREATE OR REPLACE TABLE {table} AS SELECT * FROM {table} "
                f"ORDER BY start_ns DESC, part DESC, nth DESC LIMIT {MOST_ON_TIME_LINE}"
            )

    def _oldest_kept(self) -> dict[str, int]:
        """When the oldest of those rows began that are the newest so far, for tables that have enough of them."""
        found = {}
        for table in TIMED:
            count, oldest = self.sql.execute(
                f"SELECT count(*), min(start_ns) FROM (SELECT start_ns FROM {table} ORDER BY start_ns DESC "
                f"LIMIT {MOST_ON_TIME_LINE})"
            ).fetchone()
            if count == MOST_ON_TIME_LINE:
                found[table] = oldest
        return found


class _Reader:
    """Reads a few files into the tables, over a connection of its own."""

    def __init__(self, new: NewRows, error: type[Exception]) -> None:
        self._new = new
        self._error = error
        self.heads: dict[int, Head] = {}
        self.refused: dict[int, str] = {}

    @property
    def seen(self) -> Counter[str]:
        return self._new.seen

    def read_all(self, load: Callable[[Path], Report]) -> None:
        in_reports: dict[int, str | None] = {}
        in_captures: dict[int, str | None] = {}
        plainly: list[int] = []
        for number, file in self._new.files.items():
            is_plain = _PLAIN.fullmatch(os.path.abspath(file)) is not None
            try:
                if is_plain:  # DuckDB opens it, which takes far less time than handing over its text
                    begin, text = reading.begin(file, _BEGIN, reading.REPORT_BYTES), None
                else:
                    begin = reading.read(file, reading.REPORT_BYTES)
                    text = begin.decode("utf-8")
                (in_captures if captured.is_capture(begin) else in_reports)[number] = text
            except (OSError, ValueError):
                plainly.append(number)
        plainly += self._try(reports.add, in_reports)
        plainly += self._try(captures.add, in_captures)
        again: dict[int, str | None] = {}
        for number in plainly:
            try:
                report = load(self._new.files[number])
            except SyncAgentError as error:
                self.refused[number] = str(error)
            else:
                again[number] = json.dumps(report.to_dict())
        for number in self._try(reports.add, again):
            self.refused[number] = f"{str(self._new.files[number])!r} has values that DuckDB cannot add up"

    def _try(self, add: _Add, contents: dict[int, str | None]) -> list[int]:
        """Return the numbers of those files that could not be added; where DuckDB fails, each is tried alone."""
        if not contents:
            return []
        seen = Counter(self._new.seen)
        try:
            self._new.sql.execute("BEGIN")
            found, left = add(self._new, contents)
            self._new.sql.execute("COMMIT")
        except self._error:
            self._new.sql.execute("ROLLBACK")
            self._new.seen = seen
            if len(contents) == 1:
                return [*contents]
            return [number for one in contents.items() for number in self._try(add, dict([one]))]
        self.heads.update({number: Head(head, add is captures.add) for number, head in found.items()})
        return left


def _batches(files: dict[int, Path], most: int) -> Iterator[list[int]]:
    batch: list[int] = []
    size = 0
    for number, file in files.items():
        try:
            length = os.stat(file).st_size
        except (OSError, ValueError):
            length = 0
        if batch and size + length > most:
            yield batch
            batch, size = [], 0
        batch.append(number)
        size += length
    if batch:
        yield batch
