"""What the pytest plugin adds to a session: blocked, there and not asked for, and watching one test in several ways.

    python tests/benchmarks/plugin.py [--rounds 15] [--real] [--result FILE.json]

Each session is a process of its own, of which the time from when pytest and torch are imported counts, and has one test
that runs one op on the CPU.  The sessions take turns, in another order in each round.  What is printed is the CPU time
of the session, in ms, and how much more that is than without the plugin in the same round: medians, and the quartiles
of the difference.  With ``--real`` nothing is simulated, the op runs on the GPU, and CUDA's context is made before the
session as well.
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
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

TEST = """
import pytest
{mark}def test_one({argument}):
    import torch
    torch.arange(4.0, device={device!r}).sum()
"""
SIMULATE = "--syncagent-simulate"
MARK = "@pytest.mark.no_host_sync\n"
BLOCKED, SIMULATED = "blocked", "simulated device"
MARKED = "marker"
SESSIONS = {
    BLOCKED: ("", "", ["-p", "no:syncagent"]),
    "blocked, again": ("", "", ["-p", "no:syncagent"]),
    "there": ("", "", []),
    SIMULATED: ("", "", [SIMULATE]),
    MARKED: (MARK, "", [SIMULATE]),
    "fixture": ("", "host_syncs", [SIMULATE]),
    "raise": (MARK, "", [SIMULATE, "--syncagent=raise"]),
}
"""By name: what stands above the test, what it takes, and the options."""
ON_A_GPU = (BLOCKED, "blocked, again", MARKED)
PROGRAM = """
import sys, time
import pytest, torch
if "{device}" == "cuda":
    torch.arange(4.0, device="cuda").sum().item()
began = time.process_time()
code = pytest.main(sys.argv[1:])
print((time.process_time() - began) * 1e3, "ms")
sys.exit(code)
"""
PLAIN = ["-q", "-p", "no:cacheprovider", "-p", "no:asyncio"]
PLUGIN = "syncagent.integrations.pytest_plugin"
IS_INSTALLED = any(entry.value == PLUGIN for entry in metadata.entry_points(group="pytest11"))
ROOT = Path(__file__).resolve().parents[2]


def one_ms(folder: Path, mark: str, argument: str, options: list[str], device: str) -> float:
    """CPU time of a session, in ms."""
    test = folder / "test_one.py"
    test.write_text(TEST.format(mark=mark, argument=argument, device=device), encoding="utf-8")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SYNCAGENT", "PYTEST"))}
    environment |= {"PYTHONPATH": path, "PYTHONPYCACHEPREFIX": str(folder / "compiled"), "PYTHONDONTWRITEBYTECODE": ""}
    words = [sys.executable, "-c", PROGRAM.format(device=device), *PLAIN, *options, str(test)]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"a session with {options} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return float(done.stdout.splitlines()[-1].removesuffix(" ms"))


def measure(rounds: int, *, simulate: bool) -> dict[str, dict[str, Any]]:
    sessions = {name: session for name, session in SESSIONS.items() if simulate or name in ON_A_GPU}
    found: dict[str, list[float]] = {name: [] for name in sessions}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            for name in random.sample(list(sessions), len(sessions)):
                mark, argument, options = sessions[name]
                options = [option for option in options if simulate or option != SIMULATE]
                options += [] if IS_INSTALLED or options[:1] == ["-p"] else ["-p", PLUGIN]
                time_ms = one_ms(Path(folder), mark, argument, options, "cpu" if simulate else "cuda")
                if number:  # the first round compiles
                    found[name].append(time_ms)
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
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--result", type=lambda name: Path(name).resolve())
    options = parser.parse_args()
    result: dict[str, Any] = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "python": platform.python_version(), "torch": torch.__version__, "pytest": pytest.__version__,
        "machine": platform.machine(), "rounds": options.rounds,
        "sessions": measure(options.rounds, simulate=not options.real),
        "gpu": torch.cuda.get_device_name() if options.real else None,
        "cores": os.cpu_count(), "load": round(os.getloadavg()[1], 1),
    }  # fmt: skip
    for name, row in result["sessions"].items():
        low, high = row["more_cpu_ms_quartiles"]
        print(f"{name:<17} {row['cpu_ms']:7.1f} ms, {row['more_cpu_ms']:6.1f} ms more ({low:.1f} to {high:.1f})")
    if options.result:
        options.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
