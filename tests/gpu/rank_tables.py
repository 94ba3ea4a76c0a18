"""The tables of reports of many ranks, and of ranks that hold the others up; see tables.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["MAKERS"]

RESULTS = Path(__file__).parent / "results"
_BUSY = 4.0
"""From such a load on, other programs have used the cores as well."""
_NOT_YET = "Not measured yet: `{}`."
_REASONS = {
    "item": "`.item()` in each layer", "sleep": "`time.sleep()` in each step", "loader": "a slow dataset",
    "gc": "a garbage collection in each step",
}  # fmt: skip
_FORMS = {"ddp": "DDP", "fsdp": "`fully_shard`", "tensor": "tensor parallel", "no_sync": "DDP with `no_sync`"}


def _result(name: str) -> Any:
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def merging() -> str:
    """How long `syncagent report` takes for the files of many ranks."""
    command = "python tests/benchmarks/merge.py --result FILE"
    result = _result("merge")
    if result is None:
        return _NOT_YET.format(command)
    lines = ["| files | with DuckDB | without | the page |", "|---|---|---|---|"]
    found = {(row["kind"], row["ranks"], row["engine"] is not None): row for row in result["rows"]}
    for kind, ranks in dict.fromkeys((kind, ranks) for kind, ranks, _ in found):
        ways = [found.get((kind, ranks, engine)) for engine in (True, False)]
        cells = [
            f"{row['passed_s']:.0f} s, {row['computed_s']:.0f} s computed, {row['most_mb']:,} MB"
            if row
            else "not measured"
            for row in ways
        ]
        size = next(row["page_mb"] for row in ways if row and "page_mb" in row)
        lines.append(f"| {ranks:,} {kind} | {cells[0]} | {cells[1]} | {size:.1f} MB |")
    most = max(row["load"] for row in result["rows"])
    busy = (
        f" Other programs used these cores at the same time (load up to {most:.0f}), so that more seconds passed than "
        "on a machine of one's own."
    )
    meaning = (
        "Each rank has 300 sites, 10,000 syncs and 1,000 steps. DuckDB shares the computing between the "
        f"{result['cores']} cores that it may use; without, one has all of it.{busy if most > _BUSY else ''} DuckDB "
        f"{result['duckdb']}, {result['date']}. `{command}`."
    )
    return "\n".join([*lines, "", meaning])


def lateness() -> str:
    """What a late rank costs, and what the report takes it to cost."""
    command = "python tests/benchmarks/lateness.py --result FILE"
    result = _result("lateness")
    if result is None:
        return _NOT_YET.format(command)
    late = [row for row in result["rows"] if "cost_ms" in row]
    others = [row for row in result["rows"] if "cost_ms" not in row]
    lines = [
        "| training | what makes the rank late | it costs | the report says | apart, in each run | named |",
        "|---|---|---|---|---|---|",
    ]
    for row in late:
        apart = f"{row['ratio_least'] - 1:+.0%} to {row['ratio_most'] - 1:+.0%}"
        lines.append(
            f"| {_FORMS[row['form']]} | {_REASONS[row['late']]} | {row['cost_ms']:.1f} ms a step | "
            f"{row['held_ms']:.1f} ms, {', '.join(row['causes'])} | {apart} | {row['named']} of {row['runs']} runs |"
        )
    runs, wrong = (sum(row[key] for row in others) for key in ("runs", "wrong"))
    where = result["gpu"] or "simulated devices over gloo, on two cores"
    steps = result["steps"]
    busy = (
        f" Other programs used these cores at the same time (load {result['load']:.0f})."
        if result["load"] > _BUSY
        else ""
    )
    meaning = (
        f"{result['ranks']} ranks, {steps} steps. What a rank costs is how much longer a step takes than in a run "
        f"in which nobody is late. In {runs} such runs a rank was named in {wrong}; in those with a late rank, another "
        f"one in {sum(row['wrong'] for row in late)}.{busy} {where[0].upper()}{where[1:]}, torch {result['torch']}, "
        f"{result['date']}. `{command}`."
    )
    return "\n".join([*lines, "", meaning])


MAKERS = {"merging": merging, "lateness": lateness}
