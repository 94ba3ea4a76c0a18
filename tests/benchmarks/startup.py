"""Start-up time of an interpreter: without the package, with its ``.pth``, with ``SYNCAGENT=1``, with torch on top.

    python tests/benchmarks/startup.py [--rounds 40]

Rounds are interleaved, so that a slow moment of the machine hits all variants alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

UNSET: dict[str, str] = {}
SET = {"SYNCAGENT": "1", "SYNCAGENT_DETAIL": "syncs", "SYNCAGENT_JOURNAL": "off", "SYNCAGENT_LOG_LEVEL": "error"}
VARIANTS = {
    "python, no .pth": ("bare", UNSET, "pass"),
    "python, .pth there, variable unset": ("with .pth", UNSET, "pass"),
    "python, SYNCAGENT=1, torch never imported": ("own", SET, "pass"),
    "import torch, variable unset": ("own", UNSET, "import torch"),
    "import torch, SYNCAGENT=1 SYNCAGENT_DETAIL=syncs": ("own", SET, "import torch"),
}


def environments(folder: Path) -> dict[str, str]:
    """Two fresh environments that differ in the ``.pth`` alone, and the one that runs this."""
    found = {"own": sys.executable}
    for name in ("bare", "with .pth"):
        home = folder / name.strip(". ").replace(" ", "-")
        venv.create(home, symlinks=True)
        found[name] = str(home / "bin/python")
    [packages] = (Path(found["with .pth"]).parent.parent / "lib").glob("python*/site-packages")
    shutil.copy(ROOT / "syncagent_autostart.pth", packages)
    return found


def one_ms(python: str, extra: dict[str, str], code: str) -> float:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SYNCAGENT")} | extra
    began = time.perf_counter()
    subprocess.run([python, "-c", code], env=environment, check=True, capture_output=True, cwd="/")
    return (time.perf_counter() - began) * 1e3


def pth_us() -> float:
    """The line of the ``.pth`` itself, with the variable unset, in microseconds."""
    os.environ.pop("SYNCAGENT", None)
    line = (ROOT / "syncagent_autostart.pth").read_text().partition(" and ")[0] + " and None"
    code = compile(line, "pth", "exec")
    times = []
    for _ in range(2000):
        began = time.perf_counter_ns()
        exec(code, {})
        times.append(time.perf_counter_ns() - began)
    return statistics.median(times) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        pythons = environments(Path(folder))
        for _ in range(arguments.rounds):
            for name, (python, extra, code) in VARIANTS.items():
                if "torch" in code and len(times[name]) >= max(arguments.rounds // 8, 3):
                    continue
                times[name].append(one_ms(pythons[python], extra, code))
    result = {name: {"median_ms": round(statistics.median(t), 2), "rounds": len(t)} for name, t in times.items()}
    for name, row in result.items():
        print(f"{row['median_ms']:9.2f} ms  {name}")
    print(f"{pth_us():9.2f} µs  the line of the .pth itself")
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as stream:
            json.dump(
                {"python": platform.python_version(), "pth_line_us": pth_us(), "variants": result}, stream, indent=1
            )


if __name__ == "__main__":
    main()
