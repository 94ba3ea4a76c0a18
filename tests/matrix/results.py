"""The result of each combination of versions, kept in results.json."""

from __future__ import annotations

import json
import platform
import xml.etree.ElementTree as ET
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("results.json")


def of_run(junit: Path, *, torch: str, python: str, seconds: float) -> dict[str, Any]:
    """Sum up the report that pytest wrote."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failures = []
    for case in ET.parse(junit).getroot().iter("testcase"):
        outcomes = {child.tag for child in case}
        outcome = "failed" if outcomes & {"failure", "error"} else "skipped" if "skipped" in outcomes else "passed"
        counts[outcome] += 1
        if outcome == "failed":
            failures.append(f"{case.get('classname')}::{case.get('name')}")
    return {
        "torch": torch,
        "python": python,
        "platform": platform.platform(terse=True),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **counts,
        "failures": failures,
        "seconds": round(seconds),
    }


def load(file: Path = FILE) -> dict[str, Any]:
    """Return the results by the name of their combination."""
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def note(key: str, result: dict[str, Any], file: Path = FILE) -> None:
    """Put a result in the place of an older one of the same combination."""
    found = load(file) | {key: result}
    lines = (f"  {json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found))
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
