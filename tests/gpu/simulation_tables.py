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
    rows = ["| program | CPU, fp32, ms | simulated device, ms | times |", "|---|---|---|---|"]
    ratios = {name: row["simulated_ms"] / row["cpu_ms"] for name, row in found["programs"].items()}
    rows += [
        f"| {name} | {row['cpu_ms']:.1f} | {row['simulated_ms']:.1f} | {ratios[name]:.2f} |"
        for name, row in found["programs"].items()
    ]
    return "\n".join(rows) + (
        f"\n\nThe median is {statistics.median(ratios.values()):.2f} times. torch {found['torch']}, Python "
        f"{found['python']}, threads: {found['threads']}, {found['date'][:10]}. "
        "`python tests/benchmarks/simulated.py --out FILE`."
    )
