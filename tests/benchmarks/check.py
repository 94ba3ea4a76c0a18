"""How long ``syncagent check`` takes, as a command: with a report of few lines, of many, and of many with a time line.

    python tests/benchmarks/check.py [--rounds 10] [--result FILE.json]

Each form is written once a round; the median is printed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

SIZES = {"10 lines": (10, 0), "500 lines": (500, 0), "500 lines, 10,000 syncs": (500, 10_000)}
FORMS = ("text", "markdown", "sarif", "junit")


def report(lines: int, events: int) -> dict[str, Any]:
    """A report's JSON with that many sites and events on its time line."""
    return {
        "schema": 1,
        "run": {
            "started": "", "duration_s": 60, "torch": None, "cuda": None, "device": "GPU", "host": "", "rank": None,
            "world_size": None, "steps": 100, "policy": "observe", "detail": "syncs", "simulated": False,
            "script": "train.py", "folder": "/job", "project": "/job", "cwd": "/job",
        },
        "sensors": [{"name": "kernels", "live": True, "cannot_see": ""}],
        "overhead": {"agent_ms_per_step": None, "share": None},
        "dropped": 0,
        "totals": {"syncs": lines * 100, "stall_ms": 1, "stall_share": 0},
        "sites": [
            {
                "op": "aten::item", "api": "torch.Tensor.item", "kind": "scalar_read", "file": f"/job/part{n % 7}.py",
                "line": n + 1, "function": f"step{n % 11}", "source": f"seen[{n}] = (loss * {n}).item()",
                "phase": "other", "count": 100, "per_step": 1, "stall_ms": 1, "stall_ms_p50": 1, "stall_ms_max": 1,
                "sampled": False, "allowed": None, "id": n,
            }
            for n in range(lines)
        ],
        "events": [
            {"site": n % lines, "start_ns": n, "stall_ns": 1, "step": n // 100, "thread": "MainThread"}
            for n in range(events)
        ],
    }  # fmt: skip


def one_s(*words: str) -> float:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "syncagent", "check", *words], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--result", type=Path)
    options = parser.parse_args()
    medians_s: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size, (lines, events) in SIZES.items():
            path, base = (str(Path(folder) / f"{lines}-{events}.{name}.json") for name in ("new", "known"))
            Path(path).write_text(json.dumps(report(lines, events)), encoding="utf-8")
            one_s(path, "--baseline", base, "--update")
            for form in FORMS:
                times = [one_s(path, "--baseline", base, "--format", form) for _ in range(options.rounds)]
                medians_s.setdefault(size, {})[form] = round(statistics.median(times), 3)
                print(f"{size:<24} {form:<9} {medians_s[size][form]:.2f} s")
    if options.result:
        result = {
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            "python": platform.python_version(), "torch": version("torch"), "machine": platform.machine(),
            "rounds": options.rounds, "seconds": medians_s,
        }  # fmt: skip
        options.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
