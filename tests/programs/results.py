"""The two committed files: what the last run of each program came to, and the sites that were reviewed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.programs.catalogue import PROGRAMS

RESULTS = Path(__file__).with_name("results.json")
SITES = Path(__file__).with_name("sites.json")


def load(file: Path) -> dict[str, Any]:
    """Read a file of one entry per program."""
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def save(file: Path, rows: dict[str, Any], *, indent: int | None = None) -> None:
    """Write it in the order of the catalogue, without programs that are no more."""
    order = [program.name for program in PROGRAMS if program.name in rows]
    lines = (f"{json.dumps(name)}: {json.dumps(rows[name], indent=indent)}" for name in order)
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
