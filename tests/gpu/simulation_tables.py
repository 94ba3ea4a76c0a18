"""The tables of how true the simulated device is, and how slow; see tables.py."""

from __future__ import annotations

import statistics

from tests.gpu.driver_tables import result_of, signed

_COLUMNS = ("right", "missed", "invented", "wrong kind", "refused", "fails")


def fidelity() -> str:
    found = result_of("fidelity")
    if isinstance(found, str):
        return found
    rows = ["| half of the corpus | calls | " + " | ".join(_COLUMNS) + " |", "|---" * (2 + len(_COLUMNS)) + "|"]
    for title, half in (("rules may be written from it", "open"), ("held out", "held")):
        row = found["halves"][half]
        count = row["calls"] - row["skipped"] - row["not decided on the GPU"]
        rows.append(f"| {title} | {count} | " + " | ".join(str(row[name]) for name in _COLUMNS) + " |")
    return "\n".join(rows) + signed("fidelity", found)


def step_times() -> str:
    found = result_of("simulated")
    if isinstance(found, str):
        return found
    parts = {
        "of real size": {name: row for name, row in found["programs"].items() if row.get("is_of_real_size")},
        "small, of many ops": {name: row for name, row in found["programs"].items() if not row.get("is_of_real_size")},
    }
    rows = ["| program | size | CPU, fp32, ms | simulated device, ms | times |", "|---|---|---|---|---|"]
    rows += [
        f"| {name} | {size} | {row['cpu_ms']:.1f} | {row['simulated_ms']:.1f} | {_times(row):.2f} |"
        for size, programs in parts.items()
        for name, row in programs.items()
    ]
    medians = [statistics.median(map(_times, programs.values())) for programs in parts.values()]
    return "\n".join(rows) + (
        f"\n\nThe median is {medians[0]:.2f} times for those of real size, {medians[1]:.2f} for the small ones. torch "
        f"{found['torch']}, Python "
        f"{found['python']}, threads: {found['threads']}, {found['date'][:10]}. "
        "`python tests/benchmarks/simulated.py --out FILE`."
    )


def _times(row: dict[str, float]) -> float:
    return row["simulated_ms"] / row["cpu_ms"]
