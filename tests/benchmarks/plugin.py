"""What the pytest plugin adds to a session: blocked, there and not asked for, and watching one test.

    python tests/benchmarks/plugin.py --out FILE.json [--rounds 15]

Each session is a process of its own with one test that imports torch and runs one op on a simulated device.  The
sessions take turns.  What counts is the CPU time of the process, in ms; the wall-clock time is beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

TEST = "import pytest\n{mark}def test_one():\n    import torch\n    torch.arange(4.0).sum()\n"
SESSIONS = {
    "plugin blocked": ("", ["-p", "no:syncagent"]),
    "plugin blocked, again": ("", ["-p", "no:syncagent"]),
    "plugin there": ("", []),
    "simulated device": ("", ["--syncagent-simulate"]),
    "one test watched, simulated device": ("@pytest.mark.no_host_sync\n", ["--syncagent-simulate"]),
}
"""By name: what stands above the test, and the options."""


def one(folder: Path, mark: str, options: list[str]) -> tuple[float, float]:
    """CPU and wall-clock time of a session, in ms."""
    (folder / "test_one.py").write_text(TEST.format(mark=mark), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SYNCAGENT", "PYTEST"))}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:asyncio",
        *options,
        "test_one.py",
    ]
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL) as process:
        _, code, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(code)
    wall_ms = (time.perf_counter() - began) * 1e3
    if process.returncode:
        raise SystemExit(f"a session ended with {process.returncode}: {' '.join(command)}")
    return (used.ru_utime + used.ru_stime) * 1e3, wall_ms


def measure(rounds: int) -> dict[str, Any]:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in SESSIONS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            for name in random.sample(list(SESSIONS), len(SESSIONS)):
                times = one(Path(folder), *SESSIONS[name])
                if number:  # the first round compiles
                    found[name].append(times)
    base = found["plugin blocked"]
    rows = {}
    for name, times in found.items():
        more = [cpu - other for (cpu, _), (other, _) in zip(times, base, strict=True)]
        rows[name] = {
            "cpu_ms": round(statistics.median(cpu for cpu, _ in times), 1),
            "wall_ms": round(statistics.median(wall for _, wall in times), 1),
            "more_cpu_ms": round(statistics.median(more), 1),
            "more_cpu_ms_quartiles": [round(value, 1) for value in statistics.quantiles(more, n=4)[::2]],
        }
    return rows


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    about = {
        "python": platform.python_version(), "torch": torch.__version__, "rounds": options.rounds,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }  # fmt: skip
    result = {**about, "sessions": measure(options.rounds)}
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["sessions"], indent=1))


if __name__ == "__main__":
    main()
