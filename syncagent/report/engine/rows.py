"""The rows that a few files bring, as tables of their own, before they go into those of all ranks."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from syncagent.report.engine import shapes
from syncagent.report.merge import MOST_ON_TIME_LINE
from syncagent.report.model import EventRow, OpRow, SiteRow, SourceRow, StepRow

_WORST_FIRST = (
    "-coalesce(gain_ms, 0), -coalesce(idle_ms, 0), -coalesce(step_stall_ms, stall_ms), -stall_ms, file, line, op, nth"
)
"""The order of a report's sites."""


class RowList(NamedTuple):
    """A list of a report that is read into a table."""

    table: str
    key: str
    row: type


LISTS = (
    RowList("sites", "sites", SiteRow),
    RowList("ops", "ops", OpRow),
    RowList("events", "events", EventRow),
    RowList("step_times", "step_times", StepRow),
    RowList("sources", "sources", SourceRow),
)
TIMED = {"events": EventRow, "step_times": StepRow}
_LONG_AGO = -(2**63)


class NewRows:
    """The new rows of a few files, over a connection of its own: ``texts`` has the files, ``new_...`` their rows."""

    def __init__(self, sql: Any, files: Mapping[int, Path], oldest: Mapping[str, int]) -> None:
        """``oldest`` says from when on a row may still be one of the newest, by table; it changes meanwhile."""
        self.sql = sql
        self.files = files
        self.seen: Counter[str] = Counter()
        self._oldest = oldest
        self.sql.execute("CREATE TEMP TABLE texts (part INTEGER, content VARCHAR)")

    def put(self, contents: dict[int, str | None]) -> None:
        """Have these texts; DuckDB reads those that are not given."""
        self.sql.execute("DELETE FROM texts")
        for number, content in contents.items():
            if content is not None:
                self.sql.execute("INSERT INTO texts VALUES (?, ?)", [number, content])
        numbers = [number for number, content in contents.items() if content is None]
        if numbers:
            names = [os.path.abspath(self.files[number]) for number in numbers]
            self.sql.execute(
                "INSERT INTO texts SELECT part, content FROM read_text(?) JOIN "
                "(SELECT unnest(?::INTEGER[]) AS part, unnest(?::VARCHAR[]) AS filename) USING (filename)",
                [names, numbers, names],
            )

    def not_whole(self, each: RowList, keys: dict[int, frozenset[str]]) -> set[int]:
        """The files in which a row lacks something, or has something out of place."""
        missing = shapes.missing(each.row, "row")
        conditions = ["row IS NULL", shapes.out_of_place(each.row, "row"), *missing.values()]
        found = self.sql.execute(
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

    def take(self, odd: Iterable[int]) -> None:
        """Have the new rows in the tables, those of the odd files left out."""
        left_out = [sorted(odd)]
        for each in LISTS:
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
            if each.key in TIMED:
                self._take_timed(each.table, rows, left_out)
            else:
                self.sql.execute(f"INSERT INTO {each.table} BY NAME {rows}", left_out)

    def _take_timed(self, table: str, rows: str, left_out: list[Any]) -> None:
        self.seen[table] += self.sql.execute(f"SELECT count(*) FROM ({rows})", left_out).fetchone()[0]
        if table == "step_times":
            self.sql.execute(
                f"INSERT INTO steps SELECT part, step, start_ns, end_ns, collective_ms FROM ({rows})", left_out
            )
        self.sql.execute(
            f"INSERT INTO {table} BY NAME SELECT * FROM ({rows}) "
            f"WHERE start_ns >= {self._oldest.get(table, _LONG_AGO)} ORDER BY start_ns DESC, part DESC, nth DESC "
            f"LIMIT {MOST_ON_TIME_LINE}", left_out,
        )  # fmt: skip


def fill(sql: Any, name: str, columns: dict[str, str], rows: Sequence[Sequence[Any]]) -> None:
    """Make a table of rows of ours, which goes with this connection; ``columns`` gives its types."""
    typed = ", ".join(f"{column} {kind}" for column, kind in columns.items())
    sql.execute(f"CREATE OR REPLACE TEMP TABLE {name} ({typed})")
    if rows:  # one statement for all: each takes as long as thousands of rows
        lists = ", ".join(f"unnest(?::{kind}[])" for kind in columns.values())
        sql.execute(f"INSERT INTO {name} SELECT {lists}", [[*values] for values in zip(*rows, strict=True)])


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
