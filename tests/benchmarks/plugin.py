"""What the pytest plugin adds to a session: blocked, there and not asked for, and watching one test in several ways.

    python tests/benchmarks/plugin.py [--rounds 40] [--result FILE.json]

Each session is forked from a process that has imported pytest and torch, and has one test that runs one op on the CPU.
The sessions take turns, in another order in each round.  What is printed is the CPU time of the session, in ms, and how
much more that is than without the plugin in the same round: medians, and the quartiles of the difference.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch

TEST = "import pytest\n{mark}def test_one({argument}):\n    import torch\n    torch.arange(4.0).sum()\n"
MARK = "@pytest.mark.no_host_sync\n"
BLOCKED = "blocked"
SESSIONS = {
    BLOCKED: ("", "", ["-p", "no:syncagent"]),
    "blocked, again": ("", "", ["-p", "no:syncagent"]),
    "there": ("", "", []),
    "simulated device": ("", "", ["--syncagent-simulate"]),
    "marker": (MARK, "", ["--syncagent-simulate"]),
    "fixture": ("", "host_syncs", ["--syncagent-simulate"]),
    "raise": (MARK, "", ["--syncagent-simulate", "--syncagent=raise"]),
}
"""By name: what stands above the test, what it takes, and the options."""
PLAIN = ["-q", "-p", "no:cacheprovider", "-p", "no:asyncio"]


def one_ms(folder: Path, mark: str, argument: str, options: list[str]) -> float:
    """CPU time of a session, in ms."""
    test = folder / "test_one.py"
    test.write_text(TEST.format(mark=mark, argument=argument), encoding="utf-8")
    child = os.fork()
    if not child:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = int(pytest.main([*PLAIN, *options, str(test)]))
        finally:
            os._exit(code)
    _, status, used = os.wait4(child, 0)
    if status:
        raise SystemExit(f"a session with {options} ended with {os.waitstatus_to_exitcode(status)}")
    return (used.ru_utime + used.ru_stime) * 1e3


def measure(rounds: int) -> dict[str, dict[str, Any]]:
    found: dict[str, list[float]] = {name: [] for name in SESSIONS}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(Path(folder, "compiled"))
        for number in range(rounds + 1):
            for name in random.sample(list(SESSIONS), len(SESSIONS)):
                time_ms = one_ms(Path(folder), *SESSIONS[name])
                if number:  # the first round compiles
                    found[name].append(time_ms)
        os.chdir("/")
    rows = {}
    for name, times in found.items():
        more = [time_ms - base for time_ms, base in zip(times, found[BLOCKED], strict=True)]
        rows[name] = {
            "cpu_ms": round(statistics.median(times), 1),
            "more_cpu_ms": round(statistics.median(more), 1),
            "more_cpu_ms_quartiles": [round(value, 1) for value in statistics.quantiles(more, n=4)[::2]],
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--result", type=lambda name: Path(name).resolve())
    options = parser.parse_args()
    for name in [name for name in os.environ if name.startswith(("SYNCAGENT", "PYTEST"))]:
        del os.environ[name]
    result: dict[str, Any] = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "python": platform.python_version(), "torch": torch.__version__, "pytest": pytest.__version__,
        "machine": platform.machine(), "rounds": options.rounds, "sessions": measure(options.rounds),
        "cores": os.cpu_count(), "load": round(os.getloadavg()[1], 1),
    }  # fmt: skip
    for name, row in result["sessions"].items():
        low, high = row["more_cpu_ms_quartiles"]
        print(f"{name:<17} {row['cpu_ms']:7.1f} ms, {row['more_cpu_ms']:6.1f} ms more ({low:.1f} to {high:.1f})")
    if options.result:
        options.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
