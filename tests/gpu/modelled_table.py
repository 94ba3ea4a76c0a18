"""The tables of how far modelled times are from a GPU's; see tables.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["modelled", "modelled_pairs"]

_RESULTS = Path(__file__).with_name("results")
_TIMES = {"step_ms": "step", "stall_ms": "stall", "busy_ms": "GPU busy"}


def modelled() -> str:
    """The ten programs of modelled_programs.py."""
    return _table("modelled", "python tests/gpu/modelled.py measure|model|compare")


def modelled_pairs() -> str:
    """Programs of cost_programs.py, with their syncs and without."""
    return _table("modelled_pairs", "python tests/gpu/modelled.py model|compare --pairs")


def _table(name: str, command: str) -> str:
    file = _RESULTS / f"{name}.json"
    if not file.exists():
        return f"Not measured yet: `{command}`."
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    programs: dict[str, Any] = found["programs"]
    times = [key for key in _TIMES if any(key in row for row in programs.values())]
    heads = [f"{_TIMES[key]}, ms: {side}" for key in times for side in ("measured", "modelled", "ratio")]
    rows = [f"| program | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for program, row in programs.items():
        cells = [_cell(row.get(key, {}).get(side)) for key in times for side in ("measured", "modelled", "ratio")]
        rows.append(f"| {program} | {' | '.join(cells)} |")
    most = f"{found['off_by_most']:.2f} at most"
    made = f"{found['gpu']}, torch {found['torch']}, Python {found['python']}, {found['date'][:10]}"
    return "\n".join(rows) + (
        f"\n\nThe step is off by a factor of {found['off_by_median']:.2f} at the median, {most}. "
        f"Measured: {made}. Modelled: for an {found['modelled_for']}, torch {found['modelled_with']}, "
        f"{found['modelled_on'][:10]}. `{command}`."
    )


def _cell(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.2f}"
