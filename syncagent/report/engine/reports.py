"""Reads reports into rows."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from syncagent.errors import SyncAgentError
from syncagent.report.engine import shapes
from syncagent.report.engine.rows import LISTS, NewRows
from syncagent.report.model import Report
from syncagent.support import reading

_NO_ROWS: dict[str, Any] = {each.key: [] for each in LISTS}
_HEAD = ("schema", *(each.name for each in dataclasses.fields(Report) if each.name not in _NO_ROWS))
_WHOLE = shapes.literal(
    json.dumps(dict.fromkeys(_HEAD, "JSON") | {each.key: [shapes.as_written(each.row)] for each in LISTS})
)
"""What is taken out of a report: its lists as rows, and the rest as it is written."""


def add(new: NewRows, contents: dict[int, str | None]) -> tuple[dict[int, Report], list[int]]:
    """Add the rows of these reports; return the rest of each, and the numbers of those that are read in another way."""
    new.put(contents)
    heads: dict[int, Report] = {}
    written: dict[int, Any] = {}
    # Each text is gone through twice, however many lists are taken out of it.
    new.sql.execute(
        f"CREATE OR REPLACE TEMP TABLE whole AS SELECT part, try(json_structure(content)::VARCHAR) AS structure, "
        f"try(json_transform(content, {_WHOLE})) AS report FROM texts"
    )
    for number, structure, *parts in new.sql.execute(
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
    for each in LISTS:
        rows = f"report.{shapes.quoted(each.key)}"
        new.sql.execute(
            f"CREATE OR REPLACE TEMP TABLE new_{each.table} AS SELECT part, unnest({rows}) AS row, "
            f"generate_subscripts({rows}, 1)::BIGINT AS nth FROM whole WHERE NOT list_contains(?, part)",
            [sorted(odd)],
        )
        odd |= new.not_whole(each, {number: _keys(found, each.key) for number, found in written.items()})
    new.sql.execute("DROP TABLE whole")
    new.take(odd)
    return {number: head for number, head in heads.items() if number not in odd}, sorted(odd)


def _keys(structure: Any, name: str) -> frozenset[str]:
    """The keys that any row of a list has."""
    rows = structure.get(name) if isinstance(structure, dict) else None
    return frozenset(rows[0]) if isinstance(rows, list) and isinstance(rows[0], dict) else frozenset()
