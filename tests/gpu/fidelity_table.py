"""The table of how true the simulated device is; see tables.py."""

from __future__ import annotations

from tests.gpu.driver_tables import result_of, signed

__all__ = ["fidelity"]

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
