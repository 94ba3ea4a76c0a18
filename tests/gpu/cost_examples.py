"""Keeps what the READMEs show of the examples' reports with costs.

python tests/gpu/cost_examples.py NAME=REPORT.json ... --out tests/gpu/results/cost_examples.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from syncagent.report.model import Report


def kept(path: str) -> dict[str, Any]:
    report = Report.load(path)
    values = report.to_dict()
    names = (
        "id", "op", "kind", "line", "source", "phase", "count", "per_step", "stall_ms", "stall_ms_p50", "idle_ms",
        "gain_ms", "advice", "forward",
    )  # fmt: skip
    return {
        "gpu": report.run.device, "torch": report.run.torch, "date": report.run.started,
        "argv": list(report.run.argv[1:]), "steps": report.run.steps,
        "step_stall_ms": report.totals.step_stall_ms, "step_ms": report.totals.step_ms,
        "cost": values["cost"],
        "sites": [{name: site[name] for name in names} for site in values["sites"] if (site["per_step"] or 0) >= 0.5],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reports", nargs="+", metavar="NAME=REPORT")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    found = {name: kept(path) for name, _, path in (text.partition("=") for text in arguments.reports)}
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
