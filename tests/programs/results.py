"""The two committed files: what the last run of each program came to, and the sites that were reviewed."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

from tests.programs.catalogue import PROGRAMS

RESULTS = Path(__file__).with_name("results.json")
SITES = Path(__file__).with_name("sites.json")


def load(file: Path) -> dict[str, Any]:
    """Read a file of one entry per program."""
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def note(file: Path, name: str, row: Any, *, indent: int | None = None) -> None:
    """Put a program in the place of its older entry, in the order of the catalogue, while other runs may do so."""
    with file.open("a+", encoding="utf-8") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        opened.seek(0)
        rows = {**json.loads(opened.read() or "{}"), name: row}
        order = [program.name for program in PROGRAMS if program.name in rows]
        lines = (f"{json.dumps(name)}: {json.dumps(rows[name], indent=indent)}" for name in order)
        opened.seek(0)
        opened.truncate()
        opened.write("{\n" + ",\n".join(lines) + "\n}\n")
