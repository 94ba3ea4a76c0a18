"""Runs programs of other people's libraries on the simulated device and on the CPU, and compares.

    python -m tests.programs.run [NAME ...] [--accept] [--keep FOLDER]

Each program runs on the CPU and on the simulated device, under the agent with every sync recorded (``detail="syncs"``):
its sites and its time are from that run.  A program whose numbers need not be the CPU's runs on the device once more,
with the agent's own defaults, and has to come to the same.  The exit code, the numbers, how much slower it was and how
many sites it has go into results.json.  The sites are compared with the reviewed ones in sites.json: a new or a missing
one fails the run, with a line for each; ``--accept`` writes those that were found there, to be read by a person before
they are committed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.programs.catalogue import CLOSE, DRIVERS, EQUAL, PROGRAMS, Program
from tests.programs.results import RESULTS, SITES, load, note

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 900
UNDER_THE_AGENT = {
    "SYNCAGENT": "1", "SYNCAGENT_SIMULATE": "1", "SYNCAGENT_REPORT": "seen.json", "SYNCAGENT_JOURNAL": "off",
    "SYNCAGENT_CAPTURE": "off",
}  # fmt: skip
OWN_FILE = "outcome.py"
"""The file whose syncs are the suite's own."""


def environment(folder: Path) -> dict[str, str]:
    """The variables of a run: nothing of the agent's, no network, one thread."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SYNCAGENT", "PYTHON"))}
    return kept | {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0",
        "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "Agg",
        "YOLO_CONFIG_DIR": str(folder), "YOLO_OFFLINE": "true", "WANDB_MODE": "disabled", "COLUMNS": "160",
    }  # fmt: skip


def run(program: Program, keep: Path | None, label: str, *, simulated: bool, **settings: str) -> dict[str, Any]:
    """Run a program once; returns its exit code, its last line, and the sites that the report names."""
    with tempfile.TemporaryDirectory(prefix="program-") as name:
        folder = Path(name)
        words = [sys.executable, str(program.path)]
        variables = environment(folder) | (UNDER_THE_AGENT | settings if simulated else {})
        began = time.perf_counter()
        try:
            done = subprocess.run(
                words, cwd=folder, env=variables, capture_output=True, text=True, timeout=LIMIT_S, check=False
            )
            code, out, err = done.returncode, done.stdout, done.stderr
        except subprocess.TimeoutExpired as error:
            code, out, err = -1, "", f"not done after {error.timeout} s"
        result: dict[str, Any] = {"exit": code, "wall_s": round(time.perf_counter() - began, 1)}
        report = folder / "seen.json"
        if report.exists():
            result["sites"] = sites(json.loads(report.read_text(encoding="utf-8")))
            if keep is not None:
                (keep / f"{program.name}.{label}.report.json").write_bytes(report.read_bytes())
    if keep is not None:
        (keep / f"{program.name}.{label}.txt").write_text(f"{out}\n--- stderr ---\n{err}", encoding="utf-8")
    if code == 0:
        result |= json.loads(out.strip().splitlines()[-1])
    else:
        result["why"] = next((line for line in reversed(err.splitlines()) if "Error" in line), err[-300:])
    return result


def sites(report: dict[str, Any]) -> list[str]:
    """Name the sites of a report: the kind, the op and the place, which is the library's own line if there is one.

    A line may have several ops: it is named by the one that waits most often, and not, as in the report, for longest.
    """
    found = set()
    for site in report["sites"]:
        place = site["library"] or site
        if Path(site["file"]).name != OWN_FILE and Path(place["file"]).name != OWN_FILE:
            _, most = min(((-one["count"], one["op"]) for one in site["ops"]), default=(0, site["op"]))
            op = most.removeprefix("aten::").partition(".")[0]
            found.add(f"{site['kind']} {op} {_path(place['file'])}:{place['line']} {place['function']}")
    return sorted(found)


def _path(file: str) -> str:
    for folder in (
        "site-packages/",
        f"{DRIVERS.as_posix()}/",
        f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/",
    ):
        _, found, rest = file.rpartition(folder)
        if found:
            return rest
    return Path(file).name


def finite(values: Any) -> bool:
    """Whether all numbers are."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list):
        return all(map(finite, values))
    return not isinstance(values, float) or math.isfinite(values)


def _as_on_cpu(program: Program, value: Any, expected: Any) -> bool:
    """Whether a number, or each of a list, is what the program's kind asks for."""
    if program.numbers == EQUAL:
        return bool(value == expected)
    if program.numbers != CLOSE or isinstance(value, str):
        return True
    if isinstance(value, list):
        return len(value) == len(expected) and all(
            _as_on_cpu(program, *pair) for pair in zip(value, expected, strict=True)
        )
    return math.isclose(value, expected, rel_tol=1e-4)


def differences(program: Program, found: list[str], reviewed: dict[str, list[str]]) -> list[str]:
    """Say which sites are not those that were reviewed."""
    known = reviewed.get(program.name, [])
    return [
        *(f"{program.name}: a new site: {site}" for site in found if site not in known),
        *(f"{program.name}: a reviewed site was not seen: {site}" for site in known if site not in found),
    ]


def judged(program: Program, on_cpu: dict[str, Any], first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Say what is wrong with the exit codes and the numbers of its runs."""
    for name, one in (("the CPU", on_cpu), ("the simulated device", first), ("it again", second)):
        if one["exit"]:
            return [f"{program.name}: exit code {one['exit']} on {name}: {one['why']}"]
        if not finite(one["values"]):
            return [f"{program.name}: a number is not finite on {name}"]
    if (on_cpu["device"], first["device"]) != ("cpu", "cuda"):
        return [f"{program.name}: it ran on {on_cpu['device']} and {first['device']}"]
    wrong = []
    for key, value in first["values"].items():
        if value != second["values"][key]:
            wrong.append(f"{program.name}: {key} differs between two runs on the simulated device")
        elif not _as_on_cpu(program, value, on_cpu["values"][key]):
            wrong.append(
                f"{program.name}: {key} is {value} on the simulated device and {on_cpu['values'][key]} on the CPU"
            )
    return wrong


def measure(program: Program, keep: Path | None) -> tuple[dict[str, Any], list[str], list[str]]:
    """Run a program on both devices; returns its result, its sites, and what is wrong."""
    on_cpu = run(program, keep, "cpu", simulated=False)
    second = run(program, keep, "sites", simulated=True, SYNCAGENT_DETAIL="syncs", SYNCAGENT_COPIES="all")
    first = second if program.numbers == EQUAL else run(program, keep, "device", simulated=True)
    wrong = judged(program, on_cpu, first, second)
    result = {
        "torch": version("torch").partition("+")[0], "python": platform.python_version(), "cpu": _processor(),
        "date": datetime.now(timezone.utc).date().isoformat(), "exit": first["exit"], "numbers": program.numbers,
    }  # fmt: skip
    if not any(one["exit"] for one in (on_cpu, first, second)):
        result |= {
            "cpu_s": round(on_cpu["processor_s"], 3), "device_s": round(second["processor_s"], 3),
            "slow_down": round(second["processor_s"] / on_cpu["processor_s"], 2),
            "sites": len(second["sites"]), "values": _shortened(first["values"]),
        }  # fmt: skip
    if wrong:
        result["wrong"] = wrong
    return result, second.get("sites", []), wrong


def _shortened(values: dict[str, Any]) -> dict[str, Any]:
    """Drop what is long, but for its end."""
    return {key: value[-3:] if isinstance(value, list) else value for key, value in values.items()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--accept", action="store_true", help="write the sites that were found into sites.json")
    parser.add_argument("--keep", type=Path, help="a folder for what the programs print, and their reports")
    options = parser.parse_args()
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
    chosen = [program for program in PROGRAMS if not options.names or program.name in options.names]
    if unknown := set(options.names) - {program.name for program in chosen}:
        parser.error(f"no such program: {', '.join(sorted(unknown))}")
    failed = 0
    for program in chosen:
        result, found, wrong = measure(program, options.keep)
        note(RESULTS, program.name, result)
        if options.accept and found and result["exit"] == 0:
            note(SITES, program.name, found, indent=1)
        elif not result["exit"]:
            wrong = [*wrong, *differences(program, found, load(SITES))]
        shown = " ".join(f"{key} {result[key]}" for key in ("exit", "slow_down", "sites") if key in result)
        print(f"{'FAILED' if wrong else 'passed'}  {program.name}: {shown}", *wrong, sep="\n    ", flush=True)
        failed += bool(wrong)
    print(f"{len(chosen) - failed} of {len(chosen)} programs passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
