"""Reads captures into rows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from syncagent.errors import SyncAgentError
from syncagent.report import captured
from syncagent.report.engine import shapes
from syncagent.report.engine.rows import LISTS, NewRows, fill
from syncagent.report.model import EventRow, OpRow, Report, SiteRow, SourceRow, StepRow
from syncagent.support import reading

_SHORT = {"events": "event", "step_times": "step"}


def _begin(kind: str) -> str:
    """How the capture's writer begins such a line."""
    return f'{{"type":"{kind}",'


_LINES: dict[str, type] = {"event": EventRow, "step": StepRow}


def add(new: NewRows, contents: dict[int, str | None]) -> tuple[dict[int, Report], list[int]]:
    """Do for captures as :func:`syncagent.report.engine.reports.add` does."""
    new.put(contents)
    new.sql.execute(
        "CREATE OR REPLACE TEMP TABLE raw AS SELECT part, unnest(l) AS line, generate_subscripts(l, 1)::BIGINT "
        "AS nth FROM (SELECT part, string_split(content, chr(10)) AS l FROM texts)"
    )
    # Most lines are of these two kinds: what they are is not looked up in each.
    for table, kind in _SHORT.items():
        new.sql.execute(
            f"CREATE OR REPLACE TEMP TABLE new_{table} AS SELECT part, "
            f"try(json_transform(line, {shapes.wanted(_LINES[kind])})) AS row, nth "
            f"FROM raw WHERE starts_with(line, {shapes.literal(_begin(kind))})"
        )
    is_short = " OR ".join(f"starts_with(line, {shapes.literal(_begin(kind))})" for kind in _SHORT.values())
    new.sql.execute(
        "CREATE OR REPLACE TEMP TABLE lines AS SELECT part, nth, line, found[2] AS site, "
        "coalesce(found[1], CASE WHEN line IS NOT NULL THEN '' END) AS type FROM ("
        "SELECT part, nth, line, json_extract_string(line, ['$.type', '$.site']) AS found FROM ("
        "SELECT part, nth, CASE WHEN starts_with(line, '{') THEN try_cast(line AS JSON) END AS line FROM raw "
        f"WHERE NOT ({is_short}) AND trim(line, ' ' || chr(9) || chr(13)) <> ''))"
    )
    for table, kind in _SHORT.items():
        new.sql.execute(
            f"INSERT INTO new_{table} SELECT part, json_transform(line, {shapes.wanted(_LINES[kind])}) AS row, nth "
            f"FROM lines WHERE type = {shapes.literal(kind)}"
        )
    new.sql.execute(  # a step of which more has become known is there again
        "CREATE OR REPLACE TEMP TABLE new_step_times AS SELECT part, arg_max(row, nth) AS row, min(nth) AS nth "
        "FROM new_step_times GROUP BY part, row.step, row.start_ns, CASE WHEN row IS NULL THEN nth END"
    )
    facts = _facts(new)
    odd = {number for number, fact in facts.items() if not fact.is_whole} | (contents.keys() - facts.keys())
    _join_lines(new, {number: fact for number, fact in facts.items() if number not in odd})
    structures: dict[int, Any] = {
        number: json.loads(structure)
        for number, structure in new.sql.execute(
            "SELECT part, json_group_structure(line)::VARCHAR FROM joined GROUP BY part"
        ).fetchall()
    }
    odd |= {
        number
        for number, found in structures.items()
        if not isinstance(found, dict) or not shapes.fits(SiteRow, found) or found.get("site") != "UBIGINT"
    }
    _make_rows(new, odd)
    for each in LISTS:
        rows = structures.items() if each.row is SiteRow else ()
        written = {number: frozenset(found) | {"id"} for number, found in rows if number not in odd}
        odd |= new.not_whole(each, written)
    sums = {
        number: (syncs, stall_ms)
        for number, syncs, stall_ms in new.sql.execute(
            "SELECT part, sum(row.count), sum(row.stall_ms) FROM new_sites GROUP BY part"
        ).fetchall()
    }
    heads = {}
    for number in facts.keys() - odd:
        try:
            heads[number] = facts[number].head(new.files[number], *sums.get(number, (0, 0.0)))
        except SyncAgentError:
            odd.add(number)
    new.take(odd)
    return heads, sorted(odd)


def _facts(new: NewRows) -> dict[int, _Facts]:
    found = new.sql.execute(
        "SELECT part, arg_min(line, nth) FILTER (type IS NOT NULL)::VARCHAR, "
        "arg_max(line, nth) FILTER (type = 'run')::VARCHAR, arg_max(line, nth) FILTER (type = 'totals')::VARCHAR, "
        "count(*) FILTER (type IS NULL), count(*) FILTER (type = 'end') > 0 FROM lines GROUP BY part"
    ).fetchall()
    cut: Counter[int] = Counter()
    for table in _SHORT:
        cut.update(
            dict(new.sql.execute(f"SELECT part, count(*) FROM new_{table} WHERE row IS NULL GROUP BY part").fetchall())
        )
        new.sql.execute(f"DELETE FROM new_{table} WHERE row IS NULL")
    events = dict(new.sql.execute("SELECT part, count(*) FROM new_events GROUP BY part").fetchall())
    host = dict(
        new.sql.execute(
            "SELECT part, to_json(list(line ORDER BY nth))::VARCHAR FROM (SELECT part, min(nth) FILTER "
            "(type = 'host') AS nth, json_merge_patch(arg_max(line, nth) FILTER (type = 'host'), "
            "arg_max(line, nth)) AS line FROM (SELECT *, line->>'$.host' AS host FROM lines "
            "WHERE type IN ('host', 'host_sums')) GROUP BY part, host HAVING count(*) FILTER (type = 'host') > 0) "
            "GROUP BY part"
        ).fetchall()
    )
    before = dict(
        new.sql.execute(
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


def _join_lines(new: NewRows, facts: dict[int, _Facts]) -> None:
    """Have the newest line in full of each site, with its newest sums and what a capture does not say."""
    rows = [(number, fact.steps, fact.totals.get("step_stall_ms") is not None) for number, fact in facts.items()]
    fill(new.sql, "facts", {"part": "INTEGER", "steps": "DOUBLE", "in_steps": "BOOLEAN"}, rows)
    # In a patch, what is null is taken away, and is null then.
    new.sql.execute(
        "CREATE OR REPLACE TEMP TABLE joined AS SELECT part, nth, json_merge_patch(line, json_object("
        "'id', site::BIGINT, 'per_step', CASE WHEN steps > 0 THEN (line->>'$.count')::DOUBLE / steps END, "
        "'step_stall_ms', CASE WHEN in_steps THEN coalesce((line->>'$.step_stall_ms')::DOUBLE, 0.0) END"
        ")) AS line FROM (SELECT part, site, steps, in_steps, min(nth) FILTER (type = 'site') AS nth, "
        "json_merge_patch(arg_max(line, nth) FILTER (type = 'site'), arg_max(line, nth)) AS line "
        "FROM lines JOIN facts USING (part) WHERE type IN ('site', 'sums') "
        "GROUP BY ALL HAVING count(*) FILTER (type = 'site') > 0)"
    )


def _make_rows(new: NewRows, odd: set[int]) -> None:
    """Make the rows of those that may be read, as those of reports are."""
    new.sql.execute(
        f"CREATE OR REPLACE TEMP TABLE new_sites AS SELECT part, json_transform(line, {shapes.wanted(SiteRow)}) "
        "AS row, nth FROM joined WHERE NOT list_contains(?, part)",
        [sorted(odd)],
    )
    for table, row in (("ops", OpRow), ("sources", SourceRow)):
        new.sql.execute(
            f"CREATE OR REPLACE TEMP TABLE new_{table} (part INTEGER, row {shapes.sql_type(row)}, nth BIGINT)"
        )


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
