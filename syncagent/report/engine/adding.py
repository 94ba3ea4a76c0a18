"""Adds up what is in DuckDB's tables: the same sums as :mod:`syncagent.report.merge`, for any number of ranks."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from syncagent.events import CallSite
from syncagent.report.blame import LateStep
from syncagent.report.decode import decode_row
from syncagent.report.engine import shapes
from syncagent.report.engine.rows import fill
from syncagent.report.engine.tables import Tables
from syncagent.report.merge import (
    MOST_SHARES,
    compared,
    key_of_row,
    left_out,
    merge_costs,
    merge_heads,
    merge_sources,
    ranks_of,
)
from syncagent.report.model import EventRow, OpRow, OpShare, PhaseShare, RankShare, Report, SiteRow, SourceRow, StepRow
from syncagent.sites import naming

_ROWS = 1_000_000
"""More rows than a file may have of one kind: the order of all rows is that of their files, then of themselves."""


def add_up(tables: Tables, parts: Sequence[int]) -> Report:
    """Merge the reports of these files, which are of one run."""
    heads = [tables.heads[part].report for part in parts]
    _place(tables, parts, heads)
    _group(tables, heads)
    events = tuple(
        EventRow(*row)
        for row in tables.sql.execute(
            "SELECT coalesce(grp, -1), start_ns, stall_ns, step, thread, k.rank FROM events e JOIN kept k USING (part) "
            "LEFT JOIN (SELECT part, id, any_value(grp) AS grp FROM placed GROUP BY part, id) s "
            "ON s.part = e.part AND s.id = e.site ORDER BY k.pos, e.nth"
        ).fetchall()
    )
    step_times = tuple(
        StepRow(*row)
        for row in tables.sql.execute(
            "SELECT step, start_ns, end_ns, k.rank, collective_ms FROM step_times JOIN kept k USING (part) "
            "ORDER BY k.pos, nth"
        ).fetchall()
    )
    head = merge_heads(heads)
    notes = left_out(
        heads, events=len(events), step_times=len(step_times),
        seen_events=tables.seen["events"], seen_steps=tables.seen["step_times"],
    )  # fmt: skip
    new_ids = _new_ids(tables, parts, heads)
    ranks = ranks_of(heads)
    merged = replace(
        head,
        sites=_sites(tables),
        ops=_ops(tables, heads),
        notes=(*head.notes, *notes),
        events=events,
        step_times=step_times,
        cost=merge_costs(heads, lambda index, site: new_ids.get((index, site), -1)),
        sources=_sources(tables),
        host=tuple(
            replace(row, rank=rank if row.rank is None else row.rank)
            for rank, part in zip(ranks, heads, strict=True)
            for row in part.host
        ),
    )
    return compared(merged, {rank: part.run for rank, part in zip(ranks, heads, strict=True)}, _late(tables))


def _late(tables: Tables) -> list[LateStep]:
    """The ranks compared in each step, as :func:`syncagent.report.blame.late_steps` does it."""
    found = tables.sql.execute(
        "WITH known AS (SELECT s.step, k.rank, k.pos, s.collective_ms AS ms, s.end_ns - s.start_ns AS ns "
        "FROM steps s JOIN kept k USING (part) WHERE s.collective_ms IS NOT NULL "
        "QUALIFY row_number() OVER (PARTITION BY s.step, k.rank ORDER BY k.pos DESC, s.start_ns DESC) = 1), "
        "placed_ranks AS (SELECT *, row_number() OVER (PARTITION BY step ORDER BY ms, pos) AS nth FROM known) "
        "SELECT step, max(rank) FILTER (nth = 1), max(ms) FILTER (nth = 2) - max(ms) FILTER (nth = 1), avg(ns) / 1e6, "
        "max(ms) FILTER (nth = 1) FROM placed_ranks GROUP BY step HAVING count(*) > 1 "
        "AND step <> (SELECT min(step) FROM steps JOIN kept USING (part)) ORDER BY step"
    ).fetchall()
    return [LateStep(*row) for row in found]


def _place(tables: Tables, parts: Sequence[int], heads: Sequence[Report]) -> None:
    """Say of each file where it stands, which rank it counts as, and from where its files are named."""
    ranks = ranks_of(heads)
    steps_of = {rank: head.run.steps for rank, head in zip(ranks, heads, strict=True)}
    homes: dict[Any, int] = {}
    rows = [
        [part, place, rank, steps_of[rank], homes.setdefault(head.run.home, len(homes)), head.run.duration_s]
        for place, (part, rank, head) in enumerate(zip(parts, ranks, heads, strict=True))
    ]
    columns = {
        "part": "INTEGER", "pos": "BIGINT", "rank": "BIGINT", "steps": "BIGINT", "home": "INTEGER",
        "duration_s": "DOUBLE",
    }  # fmt: skip
    fill(tables.sql, "kept", columns, rows)


def _group(tables: Tables, heads: Sequence[Report]) -> None:
    """Find the sites that are the same in several ranks; what names a site is looked at once for each place."""
    homes = [*dict.fromkeys(head.run.home for head in heads)]
    named = [naming(home, heads[0].run.home)[0] for home in homes]
    ids: dict[Any, int] = {}
    rows = []
    for home, place, row in tables.sql.execute(
        "SELECT home, place, arg_min(to_json({'kind': kind, 'file': file, 'line': line, 'function': function, "
        "'source': source, 'statement': statement, 'conditional': conditional, 'forward': forward, "
        f"'library': library}}), pos * {_ROWS} + nth)::VARCHAR FROM sites JOIN kept USING (part) GROUP BY home, place "
        f"ORDER BY min(pos * {_ROWS} + nth)"
    ).fetchall():
        site = decode_row(SiteRow, shapes.as_read(SiteRow, _UNKNOWN | json.loads(row)))
        rows.append([home, place, ids.setdefault(key_of_row(site, named[home]), len(ids))])
    fill(tables.sql, "groups", {"home": "INTEGER", "place": "VARCHAR", "grp": "BIGINT"}, rows)
    tables.sql.execute(
        f"CREATE OR REPLACE TEMP VIEW placed AS SELECT s.*, k.pos * {_ROWS} + s.nth AS ord, k.rank, k.steps, g.grp "
        "FROM sites s JOIN kept k USING (part) JOIN groups g USING (home, place)"
    )


_UNKNOWN = {
    "op": "", "api": None, "phase": "", "count": 0, "per_step": None, "stall_ms": 0.0, "stall_ms_p50": 0.0,
    "stall_ms_max": 0.0, "sampled": False, "allowed": None,
}  # fmt: skip
"""What of a site does not name it."""


def _new_ids(tables: Tables, parts: Sequence[int], heads: Sequence[Report]) -> dict[tuple[int, int], int]:
    """The rows that the sites are in, for files that know what their syncs cost."""
    index_of = {part: index for index, (part, head) in enumerate(zip(parts, heads, strict=True)) if head.cost}
    found = tables.sql.execute(
        "SELECT part, id, grp FROM placed WHERE list_contains(?, part)", [[*index_of]]
    ).fetchall() if index_of else []  # fmt: skip
    return {(index_of[part], site): group for part, site, group in found}


def _sites(tables: Tables) -> tuple[SiteRow, ...]:
    names = [each.name for each in dataclasses.fields(SiteRow)]
    columns = ", ".join(f"{shapes.literal(name)}: {shapes.quoted(name)}" for name in names)
    like = tables.sql.execute(
        "WITH most AS (SELECT grp, max(stall_ms) AS most FROM placed GROUP BY grp), "
        "first AS (SELECT grp, min(ord) AS ord FROM placed JOIN most USING (grp) WHERE stall_ms = most GROUP BY grp) "
        f"SELECT grp, to_json({{{columns}}})::VARCHAR FROM placed JOIN first USING (grp, ord) ORDER BY grp"
    ).fetchall()
    sums = _sums(tables)
    ops, phases = _shares(tables, "ops", OpShare), _shares(tables, "phases", PhaseShare)
    ranks, rank_counts = _ranks(tables)
    threads, sensors = _distinct(tables, "threads"), _distinct(tables, "sensors")
    rows = {group: decode_row(SiteRow, shapes.as_read(SiteRow, json.loads(row))) for group, row in like}
    return tuple(
        replace(
            row, id=group, op=ops[group][0].op, api=ops[group][0].api, ops=ops[group], phases=phases[group],
            ranks=ranks[group], rank_count=rank_counts.get(group, 0), threads=threads.get(group, ()),
            sensors=sensors.get(group, ()), **sums[group],
        )
        for group, row in rows.items()
    )  # fmt: skip


def _sums(tables: Tables) -> dict[int, dict[str, Any]]:
    """What is one number, or one value of the first site that has it, by group."""
    found = tables.sql.execute(
        "WITH medians AS (SELECT grp, min(p50) AS p50 FROM ("
        "SELECT grp, stall_ms_p50 AS p50, sum(count) OVER (PARTITION BY grp) AS whole, "
        "sum(count) OVER (PARTITION BY grp ORDER BY stall_ms_p50, count, ord ROWS UNBOUNDED PRECEDING) AS passed "
        "FROM placed) WHERE passed >= whole / 2.0 GROUP BY grp), "
        "rates AS (SELECT grp, sum(steps) AS steps FROM (SELECT DISTINCT grp, rank, steps FROM placed) GROUP BY grp), "
        "stacks AS (SELECT grp, max({'has': len(stack) > 0, 'ms': stall_ms_max, 'ord': -ord}) AS best FROM placed "
        "GROUP BY grp) "
        "SELECT grp, sum(count), sum(count) / nullif(any_value(r.steps), 0), sum(stall_ms), any_value(m.p50), "
        "max(stall_ms_max), bool_or(sampled), "
        "CASE WHEN bool_and(coalesce(allowed, '') <> '') THEN arg_min(allowed, ord) END, "
        "avg(idle_ms), avg(gain_ms), arg_min(advice, ord) FILTER (advice <> ''), sum(allowed_count), sum(violations), "
        "sum(step_stall_ms), sum(estimated_ms), "
        "CASE WHEN bool_and(NOT sampled OR count_error IS NOT NULL) "
        "THEN sqrt(sum(count_error * count_error) FILTER (sampled)) END, "
        "to_json(any_value(stack) FILTER (best.ord = -ord))::VARCHAR "
        "FROM placed JOIN medians m USING (grp) JOIN rates r USING (grp) JOIN stacks USING (grp) GROUP BY grp"
    ).fetchall()
    return {group: _decoded(dict(zip(_SUMS, values, strict=True))) for group, *values in found}


_SUMS = (
    "count", "per_step", "stall_ms", "stall_ms_p50", "stall_ms_max", "sampled", "allowed", "idle_ms", "gain_ms",
    "advice", "allowed_count", "violations", "step_stall_ms", "estimated_ms", "count_error", "stack",
)  # fmt: skip


def _decoded(sums: dict[str, Any]) -> dict[str, Any]:
    frames = (shapes.as_read(CallSite, frame) for frame in json.loads(sums["stack"] or "[]"))
    stack = tuple(decode_row(CallSite, frame) for frame in frames)
    return sums | {"count": int(sums["count"]), "stack": stack}


def _shares(tables: Tables, column: str, kind: Any) -> dict[int, tuple[Any, ...]]:
    """The parts of each op or phase; a report of an earlier version has one of them in a row."""
    names = [each.name for each in dataclasses.fields(kind) if each.name not in {"count", "stall_ms"}]
    own = ", ".join(f"'{name}': {name}" for name in (*names, "count", "stall_ms"))
    keys = ", ".join(f"e.{name} AS {name}" for name in names)
    found = tables.sql.execute(
        f"SELECT grp, {keys}, sum(e.count), sum(e.stall_ms) AS stall, min(ord * 1000 + nth) AS first FROM ("
        f"SELECT grp, ord, unnest(l) AS e, generate_subscripts(l, 1) AS nth FROM ("
        f"SELECT grp, ord, CASE WHEN len({column}) > 0 THEN {column} ELSE [{{{own}}}] END AS l FROM placed)) "
        "GROUP BY ALL_KEYS".replace("ALL_KEYS", ", ".join(["grp", *(f"e.{name}" for name in names)]))
    ).fetchall()
    shares: dict[int, list[Any]] = defaultdict(list)
    for group, *values, _ in sorted(found, key=lambda row: row[-1]):
        shares[group].append(kind(*values))
    return {
        group: tuple(sorted(parts, key=lambda share: (-share.stall_ms, -share.count)))
        for group, parts in shares.items()
    }


def _ranks(tables: Tables) -> tuple[dict[int, tuple[RankShare, ...]], dict[int, int]]:
    """The shares of the ranks that tell most, and of how many ranks they are where they are not of all."""
    half = MOST_SHARES // 2
    found = tables.sql.execute(
        "SELECT grp, rank, count, stall, in_steps, ranks FROM (SELECT *, "
        "row_number() OVER (PARTITION BY grp ORDER BY stall, rank) AS nth, count(*) OVER (PARTITION BY grp) AS ranks "
        "FROM (SELECT grp, rank, sum(count)::BIGINT AS count, sum(stall_ms) AS stall, "
        "sum(step_stall_ms) AS in_steps FROM placed GROUP BY grp, rank)) "
        f"WHERE ranks <= {MOST_SHARES} OR nth <= {half} OR nth > ranks - {half} ORDER BY grp, rank"
    ).fetchall()
    shares: dict[int, list[RankShare]] = defaultdict(list)
    counts = {}
    for group, rank, count, stall_ms, step_stall_ms, ranks in found:
        shares[group].append(RankShare(rank, count, stall_ms, step_stall_ms))
        if ranks > MOST_SHARES:
            counts[group] = ranks
    return {group: tuple(parts) for group, parts in shares.items()}, counts


def _distinct(tables: Tables, column: str) -> dict[int, tuple[str, ...]]:
    """The names in a column of lists, in the order in which they come first."""
    found = tables.sql.execute(
        f"SELECT grp, list(name ORDER BY first) FROM (SELECT grp, name, min(ord * 1000 + nth) AS first FROM ("
        f"SELECT grp, ord, unnest({column}) AS name, generate_subscripts({column}, 1) AS nth FROM placed) "
        "GROUP BY grp, name) GROUP BY grp"
    ).fetchall()
    return {group: tuple(names) for group, names in found}


def _ops(tables: Tables, heads: Sequence[Report]) -> tuple[OpRow, ...]:
    duration_ms = sum(head.run.duration_s for head in heads) * 1e3
    found = tables.sql.execute(
        f"SELECT op, file, line, arg_min(function, pos * {_ROWS} + nth), arg_min(source, pos * {_ROWS} + nth), phase, "
        "sum(count)::BIGINT, sum(host_ms), sum(stall_ms) FROM ops JOIN kept USING (part) "
        f"GROUP BY op, file, line, phase ORDER BY min(pos * {_ROWS} + nth)"
    ).fetchall()
    rows = [OpRow(*row) for row in found]
    shared = (replace(row, share=row.busy_ms / duration_ms if duration_ms else None) for row in rows)
    return tuple(sorted(shared, key=lambda row: -row.busy_ms))


def _sources(tables: Tables) -> tuple[SourceRow, ...]:
    found = tables.sql.execute(
        "SELECT file, first, lines FROM sources JOIN kept USING (part) GROUP BY file, first, lines "
        f"ORDER BY min(pos * {_ROWS} + nth)"
    ).fetchall()
    return merge_sources(SourceRow(file, first, tuple(lines)) for file, first, lines in found)
