"""Fills DuckDB's tables with what the files of many ranks hold, a few files at a time."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from syncagent.errors import SyncAgentError
from syncagent.report import captured
from syncagent.report.engine import shapes
from syncagent.report.merge import MOST_ON_TIME_LINE
from syncagent.report.model import EventRow, OpRow, Report, SiteRow, SourceRow, StepRow
from syncagent.support import reading

_AT_ONCE = 32 * 1024 * 1024
"""Bytes of files that are in memory at once, besides DuckDB's tables of them."""
_BATCHES_BETWEEN = 8
"""After how many batches it is asked again which of their rows can still be among the newest of all."""
_MEMORY = "1GB"
_MOST_THREADS = 8
_WORST_FIRST = (
    "-coalesce(gain_ms, 0), -coalesce(idle_ms, 0), -coalesce(step_stall_ms, stall_ms), -stall_ms, file, line, op, nth"
)
"""The order of a report's sites."""


class _List(NamedTuple):
    """A list of a report that is read into a table."""

    table: str
    key: str
    row: type


_LISTS = (
    _List("sites", "sites", SiteRow),
    _List("ops", "ops", OpRow),
    _List("events", "events", EventRow),
    _List("step_times", "step_times", StepRow),
    _List("sources", "sources", SourceRow),
)
_PLAIN = re.compile(r"[/\w.-]+", re.ASCII)
"""A name in which DuckDB sees nothing but a name: no pattern, no address."""
_BEGIN = 256
_LONG_AGO = -(2**63)
_NO_ROWS: dict[str, Any] = {each.key: [] for each in _LISTS}
_HEAD = ("schema", *(each.name for each in dataclasses.fields(Report) if each.name not in _NO_ROWS))
_WHOLE = shapes.literal(
    json.dumps(dict.fromkeys(_HEAD, "JSON") | {each.key: [shapes.as_written(each.row)] for each in _LISTS})
)
"""What is taken out of a report: its lists as rows, and the rest as it is written."""
_TIMED = {"events": EventRow, "step_times": StepRow}


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
        for each in _LISTS:
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
            reader = _Reader(self.sql.cursor(), self._error, {number: numbered[number] for number in batch}, oldest)
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
        for table in _TIMED:
            self.sql.execute(
                f"CREATE OR REPLACE TABLE {table} AS SELECT * FROM {table} "
                f"ORDER BY start_ns DESC, part DESC, nth DESC LIMIT {MOST_ON_TIME_LINE}"
            )

    def _oldest_kept(self) -> dict[str, int]:
        """When the oldest of those rows began that are the newest so far, for tables that have enough of them."""
        found = {}
        for table in _TIMED:
            count, oldest = self.sql.execute(
                f"SELECT count(*), min(start_ns) FROM (SELECT start_ns FROM {table} ORDER BY start_ns DESC "
                f"LIMIT {MOST_ON_TIME_LINE})"
            ).fetchone()
            if count == MOST_ON_TIME_LINE:
                found[table] = oldest
        return found


class _Reader:
    """Reads a few files into the tables, over a connection of its own."""

    def __init__(
        self, sql: Any, error: type[Exception], files: dict[int, Path], oldest: Mapping[str, int]
    ) -> None:  # fmt: skip
        """``oldest`` says from when on a row may still be one of the newest, by table; it changes meanwhile."""
        self._oldest = oldest
        self._sql = sql
        self._error = error
        self._files = files
        self.heads: dict[int, Head] = {}
        self.refused: dict[int, str] = {}
        self.seen: Counter[str] = Counter()

    def read_all(self, load: Callable[[Path], Report]) -> None:
        self._sql.execute("CREATE TEMP TABLE texts (part INTEGER, content VARCHAR)")
        try:
            self._read_all(load)
        finally:
            self._sql.close()

    def _read_all(self, load: Callable[[Path], Report]) -> None:
        reports: dict[int, str | None] = {}
        captures: dict[int, str | None] = {}
        plainly: list[int] = []
        for number, file in self._files.items():
            is_plain = _PLAIN.fullmatch(os.path.abspath(file)) is not None
            try:
                if is_plain:  # DuckDB opens it, which takes far less time than handing over its text
                    begin, text = reading.begin(file, _BEGIN, reading.REPORT_BYTES), None
                else:
                    begin = reading.read(file, reading.REPORT_BYTES)
                    text = begin.decode("utf-8")
                (captures if captured.is_capture(begin) else reports)[number] = text
            except (OSError, ValueError):
                plainly.append(number)
        plainly += self._try(self._add_reports, reports)
        plainly += self._try(self._add_captures, captures)
        again: dict[int, str | None] = {}
        for number in plainly:
            try:
                report = load(self._files[number])
            except SyncAgentError as error:
                self.refused[number] = str(error)
            else:
                again[number] = json.dumps(report.to_dict())
        for number in self._try(self._add_reports, again):
            self.refused[number] = f"{str(self._files[number])!r} has values that DuckDB cannot add up"

    def _try(self, add: Callable[[dict[int, Any]], list[int]], contents: dict[int, Any]) -> list[int]:
        """Return the numbers of those files that could not be added; where DuckDB fails, each is tried alone."""
        if not contents:
            return []
        seen = Counter(self.seen)
        try:
            self._sql.execute("BEGIN")
            left = add(contents)
            self._sql.execute("COMMIT")
        except self._error:
            self._sql.execute("ROLLBACK")
            self.seen = seen
            for number in contents:
                self.heads.pop(number, None)
            if len(contents) == 1:
                return [*contents]
            return [number for one in contents.items() for number in self._try(add, dict([one]))]
        return left

    # --- reports

    def _add_reports(self, contents: dict[int, str | None]) -> list[int]:
        self._put(contents)
        heads: dict[int, Report] = {}
        written: dict[int, Any] = {}
        # Each text is gone through twice, however many lists are taken out of it.
        self._sql.execute(
            f"CREATE OR REPLACE TEMP TABLE whole AS SELECT part, try(json_structure(content)::VARCHAR) AS structure, "
            f"try(json_transform(content, {_WHOLE})) AS report FROM texts"
        )
        for number, structure, *parts in self._sql.execute(
            f"SELECT part, structure, {', '.join(f'report.{shapes.quoted(key)}::VARCHAR' for key in _HEAD)} FROM whole"
        ).fetchall():
            known = {key: part for key, part in zip(_HEAD, parts, strict=True) if part is not None}
            try:
                found = json.loads(structure or "")
                values = {key: reading.from_json(part.encode()) for key, part in known.items()}
                heads[number] = Report.from_dict(values | _NO_ROWS, name="")
            except (ValueError, SyncAgentError):
                continue
            if shapes.fits(Report, found):
                written[number] = found
        odd = set(contents) - set(written)
        for each in _LISTS:
            rows = f"report.{shapes.quoted(each.key)}"
            self._sql.execute(
                f"CREATE OR REPLACE TEMP TABLE new_{each.table} AS SELECT part, unnest({rows}) AS row, "
                f"generate_subscripts({rows}, 1)::BIGINT AS nth FROM whole WHERE NOT list_contains(?, part)",
                [sorted(odd)],
            )
            odd |= self._not_whole(each, {number: _keys(found, each.key) for number, found in written.items()})
        self._sql.execute("DROP TABLE whole")
        self._take(odd)
        self.heads.update({number: Head(head, False) for number, head in heads.items() if number not in odd})
        return sorted(odd)

    def _put(self, contents: dict[int, str | None]) -> None:
        self._sql.execute("DELETE FROM texts")
        for number, content in contents.items():
            if content is not None:
                self._sql.execute("INSERT INTO texts VALUES (?, ?)", [number, content])
        numbers = [number for number, content in contents.items() if content is None]
        if numbers:
            names = [os.path.abspath(self._files[number]) for number in numbers]
            self._sql.execute(
                "INSERT INTO texts SELECT part, content FROM read_text(?) JOIN "
                "(SELECT unnest(?::INTEGER[]) AS part, unnest(?::VARCHAR[]) AS filename) USING (filename)",
                [names, numbers, names],
            )

    def _not_whole(self, each: _List, keys: dict[int, frozenset[str]]) -> set[int]:
        """The files in which a row lacks something, or has something out of place."""
        missing = shapes.missing(each.row, "row")
        conditions = ["row IS NULL", shapes.out_of_place(each.row, "row"), *missing.values()]
        found = self._sql.execute(
            f"SELECT part, {', '.join(f'bool_or({condition})' for condition in conditions)} FROM new_{each.table} "
            "GROUP BY part"
        ).fetchall()
        required = shapes.must_be_there(each.row)
        odd = set()
        for number, is_none, is_out_of_place, *lacks in found:
            written = keys.get(number, frozenset())
            names = {name for name, lack in zip(missing, lacks, strict=True) if lack}
            if is_none or is_out_of_place or any(name in required or name in written for name in names):
                odd.add(number)
        return odd

    def _take(self, odd: Iterable[int]) -> None:
        """Have the new rows in the tables, those of the odd files left out."""
        left_out = [sorted(odd)]
        for each in _LISTS:
            columns = [_with_default(each.row, field) for field in dataclasses.fields(each.row)]
            rows = f"SELECT part, nth, {', '.join(columns)} FROM new_{each.table} WHERE NOT list_contains(?, part)"
            if each.row is SiteRow:
                place = (
                    "md5(to_json({'k': kind, 'f': file, 'l': line, 'n': function, 's': source, 't': statement, "
                    "'c': conditional, 'w': forward, 'y': library})::VARCHAR)"
                )
                rows = (
                    f"SELECT * REPLACE (row_number() OVER (PARTITION BY part ORDER BY {_WORST_FIRST}) AS nth), "
                    f"{place} AS place FROM ({rows})"
                )
            if each.key in _TIMED:
                self._take_timed(each.table, rows, left_out)
            else:
                self._sql.execute(f"INSERT INTO {each.table} BY NAME {rows}", left_out)

    def _take_timed(self, table: str, rows: str, left_out: list[Any]) -> None:
        self.seen[table] += self._sql.execute(f"SELECT count(*) FROM ({rows})", left_out).fetchone()[0]
        if table == "step_times":
            self._sql.execute(
                f"INSERT INTO steps SELECT part, step, start_ns, end_ns, collective_ms FROM ({rows})", left_out
            )
        self._sql.execute(
            f"INSERT INTO {table} BY NAME SELECT * FROM ({rows}) "
            f"WHERE start_ns >= {self._oldest.get(table, _LONG_AGO)} ORDER BY start_ns DESC, part DESC, nth DESC "
            f"LIMIT {MOST_ON_TIME_LINE}", left_out,
        )  # fmt: skip

    # --- captures

    def _add_captures(self, contents: dict[int, str | None]) -> list[int]:
        self._put(contents)
        self._sql.execute(
            "CREATE OR REPLACE TEMP TABLE raw AS SELECT part, unnest(l) AS line, generate_subscripts(l, 1)::BIGINT "
            "AS nth FROM (SELECT part, string_split(content, chr(10)) AS l FROM texts)"
        )
        # Most lines are of these two kinds: what they are is not looked up in each.
        for table, kind in _SHORT.items():
            self._sql.execute(
                f"CREATE OR REPLACE TEMP TABLE new_{table} AS SELECT part, "
                f"try(json_transform(line, {shapes.wanted(_LINES[kind])})) AS row, nth "
                f"FROM raw WHERE starts_with(line, {shapes.literal(_begin(kind))})"
            )
        is_short = " OR ".join(f"starts_with(line, {shapes.literal(_begin(kind))})" for kind in _SHORT.values())
        self._sql.execute(
            "CREATE OR REPLACE TEMP TABLE lines AS SELECT part, nth, line, found[2] AS site, "
            "coalesce(found[1], CASE WHEN line IS NOT NULL THEN '' END) AS type FROM ("
            "SELECT part, nth, line, json_extract_string(line, ['$.type', '$.site']) AS found FROM ("
            "SELECT part, nth, CASE WHEN starts_with(line, '{') THEN try_cast(line AS JSON) END AS line FROM raw "
            f"WHERE NOT ({is_short}) AND trim(line, ' ' || chr(9) || chr(13)) <> ''))"
        )
        for table, kind in _SHORT.items():
            self._sql.execute(
                f"INSERT INTO new_{table} SELECT part, json_transform(line, {shapes.wanted(_LINES[kind])}) AS row, nth "
                f"FROM lines WHERE type = {shapes.literal(kind)}"
            )
        self._sql.execute(  # a step of which more has become known is there again
            "CREATE OR REPLACE TEMP TABLE new_step_times AS SELECT part, arg_max(row, nth) AS row, min(nth) AS nth "
            "FROM new_step_times GROUP BY part, row.step, row.start_ns, CASE WHEN row IS NULL THEN nth END"
        )
        facts = self._facts_of_captures()
        odd = {number for number, fact in facts.items() if not fact.is_whole} | (contents.keys() - facts.keys())
        self._join_lines_of_captures({number: fact for number, fact in facts.items() if number not in odd})
        structures: dict[int, Any] = {
            number: json.loads(structure)
            for number, structure in self._sql.execute(
                "SELECT part, json_group_structure(line)::VARCHAR FROM joined GROUP BY part"
            ).fetchall()
        }
        odd |= {
            number
            for number, found in structures.items()
            if not isinstance(found, dict) or not shapes.fits(SiteRow, found) or found.get("site") != "UBIGINT"
        }
        self._make_rows_of_captures(odd)
        for each in _LISTS:
            rows = structures.items() if each.row is SiteRow else ()
            written = {number: frozenset(found) | {"id"} for number, found in rows if number not in odd}
            odd |= self._not_whole(each, written)
        sums = {
            number: (syncs, stall_ms)
            for number, syncs, stall_ms in self._sql.execute(
                "SELECT part, sum(row.count), sum(row.stall_ms) FROM new_sites GROUP BY part"
            ).fetchall()
        }
        heads = {}
        for number in facts.keys() - odd:
            try:
                heads[number] = facts[number].head(self._files[number], *sums.get(number, (0, 0.0)))
            except SyncAgentError:
                odd.add(number)
        self._take(odd)
        self.heads.update({number: Head(head, True) for number, head in heads.items()})
        return sorted(odd)

    def _facts_of_captures(self) -> dict[int, _Facts]:
        found = self._sql.execute(
            "SELECT part, arg_min(line, nth) FILTER (type IS NOT NULL)::VARCHAR, "
            "arg_max(line, nth) FILTER (type = 'run')::VARCHAR, arg_max(line, nth) FILTER (type = 'totals')::VARCHAR, "
            "count(*) FILTER (type IS NULL), count(*) FILTER (type = 'end') > 0 FROM lines GROUP BY part"
        ).fetchall()
        cut: Counter[int] = Counter()
        for table in _SHORT:
            cut.update(
                dict(
                    self._sql.execute(
                        f"SELECT part, count(*) FROM new_{table} WHERE row IS NULL GROUP BY part"
                    ).fetchall()
                )
            )
            self._sql.execute(f"DELETE FROM new_{table} WHERE row IS NULL")
        events = dict(self._sql.execute("SELECT part, count(*) FROM new_events GROUP BY part").fetchall())
        host = dict(
            self._sql.execute(
                "SELECT part, to_json(list(line ORDER BY nth))::VARCHAR FROM (SELECT part, min(nth) FILTER "
                "(type = 'host') AS nth, json_merge_patch(arg_max(line, nth) FILTER (type = 'host'), "
                "arg_max(line, nth)) AS line FROM (SELECT *, line->>'$.host' AS host FROM lines "
                "WHERE type IN ('host', 'host_sums')) GROUP BY part, host HAVING count(*) FILTER (type = 'host') > 0) "
                "GROUP BY part"
            ).fetchall()
        )
        before = dict(
            self._sql.execute(
                "SELECT part, count(*) FROM lines LEFT JOIN (SELECT part, site, min(nth) AS first FROM lines "
                "WHERE type = 'site' GROUP BY part, site) USING (part, site) "
                "WHERE type = 'sums' AND (first IS NULL OR first > nth) GROUP BY part"
            ).fetchall()
        )
        facts = {}
        for number, *lines, no_json, ended in found:
            try:
                header, run, totals = (reading.from_json((line or "{}").encode()) for line in lines)
            except ValueError:
                continue
            broken = no_json + before.get(number, 0) + cut[number]
            rows = json.loads(host.get(number, "[]"))
            facts[number] = _Facts(header, run, totals, broken, events.get(number, 0), ended, rows)
        return facts

    def _join_lines_of_captures(self, facts: dict[int, _Facts]) -> None:
        """Have the newest line in full of each site, with its newest sums and what a capture does not say."""
        rows = [(number, fact.steps, fact.totals.get("step_stall_ms") is not None) for number, fact in facts.items()]
        fill(self._sql, "facts", {"part": "INTEGER", "steps": "DOUBLE", "in_steps": "BOOLEAN"}, rows)
        # In a patch, what is null is taken away, and is null then.
        self._sql.execute(
            "CREATE OR REPLACE TEMP TABLE joined AS SELECT part, nth, json_merge_patch(line, json_object("
            "'id', site::BIGINT, 'per_step', CASE WHEN steps > 0 THEN (line->>'$.count')::DOUBLE / steps END, "
            "'step_stall_ms', CASE WHEN in_steps THEN coalesce((line->>'$.step_stall_ms')::DOUBLE, 0.0) END"
            ")) AS line FROM (SELECT part, site, steps, in_steps, min(nth) FILTER (type = 'site') AS nth, "
            "json_merge_patch(arg_max(line, nth) FILTER (type = 'site'), arg_max(line, nth)) AS line "
            "FROM lines JOIN facts USING (part) WHERE type IN ('site', 'sums') "
            "GROUP BY ALL HAVING count(*) FILTER (type = 'site') > 0)"
        )

    def _make_rows_of_captures(self, odd: set[int]) -> None:
        """Make the rows of those that may be read, as those of reports are."""
        self._sql.execute(
            f"CREATE OR REPLACE TEMP TABLE new_sites AS SELECT part, json_transform(line, {shapes.wanted(SiteRow)}) "
            "AS row, nth FROM joined WHERE NOT list_contains(?, part)",
            [sorted(odd)],
        )
        for table, row in (("ops", OpRow), ("sources", SourceRow)):
            self._sql.execute(
                f"CREATE OR REPLACE TEMP TABLE new_{table} (part INTEGER, row {shapes.sql_type(row)}, nth BIGINT)"
            )


_SHORT = {"events": "event", "step_times": "step"}


def _begin(kind: str) -> str:
    """How the capture's writer begins such a line."""
    return f'{{"type":"{kind}",'


_LINES: dict[str, type] = {"site": SiteRow, "sums": SiteRow, "event": EventRow, "step": StepRow}


class _Facts(NamedTuple):
    """What a capture says besides its rows."""

    header: dict[str, Any]
    run: dict[str, Any]
    totals: dict[str, Any]
    broken: int
    events: int
    ended: bool
    host: list[Any]

    @property
    def is_whole(self) -> bool:
        return bool(self.header.get("capture") == captured.VERSION and self.run and self.totals)

    @property
    def steps(self) -> float:
        return captured.number(self.totals.get("steps"))

    def head(self, file: Path, syncs: int, stall_ms: float) -> Report:
        values = captured.values_of(self.run, self.totals, [], syncs=syncs, stall_ms=stall_ms)
        values["host"] = captured.found_rows(self.host)
        return captured.report_of(
            file, values, broken=self.broken, totals=self.totals, events=self.events, ended=self.ended
        )


def fill(sql: Any, name: str, columns: dict[str, str], rows: Sequence[Sequence[Any]]) -> None:
    """Make a table of rows of ours, which goes with this connection; ``columns`` gives its types."""
    typed = ", ".join(f"{column} {kind}" for column, kind in columns.items())
    sql.execute(f"CREATE OR REPLACE TEMP TABLE {name} ({typed})")
    if rows:  # one statement for all: each takes as long as thousands of rows
        lists = ", ".join(f"unnest(?::{kind}[])" for kind in columns.values())
        sql.execute(f"INSERT INTO {name} SELECT {lists}", [[*values] for values in zip(*rows, strict=True)])


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


def _keys(structure: Any, name: str) -> frozenset[str]:
    """The keys that any row of a list has."""
    rows = structure.get(name) if isinstance(structure, dict) else None
    return frozenset(rows[0]) if isinstance(rows, list) and isinstance(rows[0], dict) else frozenset()


def _with_default(kind: type, field: dataclasses.Field[Any]) -> str:
    """A column of a row; what an earlier version did not write is what it is by default."""
    name = shapes.quoted(field.name)
    default = field.default
    if default is dataclasses.MISSING or default is None:
        return f"row.{name} AS {name}"
    if isinstance(default, tuple):
        value = f"[]::{shapes.sql_type(shapes.hints(kind)[field.name])}"
    else:
        value = shapes.literal(default) if isinstance(default, str) else str(default)
    return f"coalesce(row.{name}, {value}) AS {name}"
