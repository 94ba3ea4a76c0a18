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
    """What a late rank costs on GPUs, and what the report takes it to cost."""
    return _compared("lateness_gpu", "python tests/benchmarks/lateness.py --real --result FILE")


def lateness_simulated() -> str:
    """The same on simulated devices."""
    return _compared("lateness", "python tests/benchmarks/lateness.py --result FILE")


def _compared(name: str, command: str) -> str:
    result = _result(name)
    if result is None:
        return _NOT_YET.format(command)
    late = [row for row in result["rows"] if "cost_ms" in row]
    others = [row for row in result["rows"] if "cost_ms" not in row]
    lines = [
        "| training | what makes the rank late | it costs | the report says | apart, in each run | named |",
        "|---|---|---|---|---|---|",
    ]
    for row in late:
        aparts = dict.fromkeys(f"{row[ratio] - 1:+.0%}" for ratio in ("ratio_least", "ratio_most"))
        lines.append(
            f"| {_FORMS[row['form']]} | {_REASONS[row['late']]} | {row['cost_ms']:.1f} ms a step | "
            f"{row['held_ms']:.1f} ms, {', '.join(row['causes'])} | {' to '.join(aparts)} | "
            f"{row['named']} of {row['runs']} runs |"
        )
    runs, wrong = (sum(row[key] for row in others) for key in ("runs", "wrong"))
    where = f"{result['gpu']}, NCCL" if result["gpu"] else "Simulated devices over gloo, on two cores"
    busy = (
        f" Other programs used these cores at the same time (load {result['load']:.0f})."
        if result["load"] > _BUSY and not result["gpu"]
        else ""
    )
    meaning = (
        f"{result['ranks']} ranks, {result['steps']} steps. What a rank costs is how much longer a step takes than "
        f"in a run in which nobody is late. In {runs} such runs a rank was named in {wrong}; in those with a late rank "
        f"another one was in {sum(row['wrong'] for row in late)}.{busy} {where}, torch {result['torch']}, "
        f"{result['date']}. `{command}`."
    )
    return "\n".join([*lines, "", meaning])


def collectives() -> str:
    """How long each rank's GPU stands still for collectives, as the native library measures it."""
    command = "torchrun --nproc-per-node 2 tests/gpu/collectives.py --out FILE"
    result = _result("collectives")
    if result is None:
        return _NOT_YET.format(command)
    lines = [
        "| training | what makes rank 1 late | a step | the same, measured | rank 0's GPU waits | rank 1's GPU waits |",
        "|---|---|---|---|---|---|",
    ]
    first, second = result["ranks"]
    reasons = {"none": "nothing", **_REASONS}
    for name, row in first.items():
        if not name.endswith(", measured"):
            continue
        kind, late = name.removesuffix(", measured").split(", late: ")
        bare, other = first[f"{kind}, late: {late}, not measured"], second[name]
        training = {"ddp": "DDP", "fully_shard": "`fully_shard`"}[kind]
        lines.append(
            f"| {training} | {reasons[late]} | {bare['step_ms']:.1f} ms | {row['step_ms']:.1f} ms | "
            f"{row['waited_ms']:.2f} ms | {other['waited_ms']:.2f} ms |"
        )
    costs = [ranks["wait_us_measured"] - ranks["wait_us_not_measured"] for ranks in (first, second)]
    meaning = (
        f"Medians of 30 steps; a collective takes the host {min(costs):.1f} to {max(costs):.1f} µs more. "
        f"{len(result['ranks'])} {result['device']}, NCCL {result['nccl']}, torch {result['torch']}, {result['date']}. "
        f"`{command}`."
    )
    return "\n".join([*lines, "", meaning])


MAKERS = {
    "merging": merging, "lateness": lateness, "latenesssimulated": lateness_simulated, "collectives": collectives,
}  # fmt: skip
