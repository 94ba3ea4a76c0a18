"""How near the report comes to what a late rank really costs: ranks with and without one that is late.

python tests/benchmarks/lateness.py [--rounds 4] [--steps 60] [--ranks 2] [--forms ddp fsdp tensor no_sync] [--real]
    [--keep FOLDER] [--result FILE.json]

Each round runs ``tests/integration/late_ranks.py`` once with nobody late and once for each reason, in random order, all
of them watched.  What a late rank really costs is the difference between the steps of such a run and those of the run
with nobody late; the report of the late run alone says what it takes it to be.  ``--real`` trains on GPUs, over NCCL;
else the device is simulated, and gloo stands in for NCCL.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch

from syncagent.report import files
from tests import processes

PROGRAM = ROOT / "tests" / "integration" / "late_ranks.py"
FORMS = {
    "ddp": ("item", "sleep", "loader", "gc"),
    "fsdp": ("item", "sleep", "loader", "gc"),
    "tensor": ("sleep",),
    "no_sync": ("sleep",),
}
"""Why a rank is late, by the form of parallel training: the forms differ in how ranks wait, whatever the reason."""
NOBODY = "none"


class Run(NamedTuple):
    """What one run took, and what its report says."""

    step_ms: float
    held_ms: float
    cause: str
    """The largest cause of the last rank; empty if it was not named."""
    wrong: bool
    """Whether a rank was named that is not late."""


def run(form: str, late: str, options: argparse.Namespace) -> Run:
    """Run the program once and read its report."""
    with tempfile.TemporaryDirectory() as folder:
        done = processes.run(
            "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", options.ranks,
            "--master-port", processes.free_port(), "-m", "syncagent", "run", PROGRAM, form, late, options.steps,
            cwd=folder, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            SYNCAGENT_REPORT="ranks/", SYNCAGENT_CAPTURE="off", SYNCAGENT_SIMULATE="0" if options.real else "1",
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"the program failed ({form}, {late}):\n{done.stderr}")
        if options.keep:
            shutil.copytree(Path(folder, "ranks"), options.keep / f"{form}-{late}", dirs_exist_ok=True)
        found = files.load_merged([Path(folder, "ranks")], leave_out=True).lateness
    step_ms = float(next(line for line in done.stdout.splitlines() if line.replace(".", "").isdigit()))
    ranks = {each.rank: each for each in found.ranks} if found else {}
    last = ranks.pop(options.ranks - 1, None) if late != NOBODY else None
    if last is None:
        return Run(step_ms, 0.0, "", bool(ranks))
    return Run(step_ms, last.held_ms, last.causes[0].cause, bool(ranks))


def rows_of(form: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all rounds of one form."""
    runs: dict[str, list[Run]] = {late: [] for late in (NOBODY, *FORMS[form])}
    for _ in range(options.rounds):
        for late in random.sample(sorted(runs), len(runs)):
            runs[late].append(run(form, late, options))
            print(form, late, *runs[late][-1], flush=True)
    alone = [each.step_ms for each in runs[NOBODY]]
    rows = []
    for late, found in runs.items():
        row: dict[str, Any] = {
            "form": form, "late": late, "runs": len(found), "wrong": sum(each.wrong for each in found),
            "step_ms": round(statistics.mean(each.step_ms for each in found), 2),
        }  # fmt: skip
        if late != NOBODY:
            costs = [each.step_ms - without for each, without in zip(found, alone, strict=True)]
            ratios = [each.held_ms / cost for each, cost in zip(found, costs, strict=True)]
            row |= {
                "named": sum(bool(each.cause) for each in found),
                "causes": sorted({each.cause for each in found if each.cause}),
                "cost_ms": round(statistics.mean(costs), 2),
                "held_ms": round(statistics.mean(each.held_ms for each in found), 2),
                "ratio_least": round(min(ratios), 3),
                "ratio_most": round(max(ratios), 3),
            }
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--forms", nargs="+", default=[*FORMS], choices=[*FORMS])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--keep", type=Path, help="where the reports of the last round are kept")
    parser.add_argument("--result", type=Path)
    options = parser.parse_args()
    result = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if options.real else None,
        "platform": platform.platform(),
        "ranks": options.ranks,
        "steps": options.steps,
        "rows": [row for form in options.forms for row in rows_of(form, options)],
    }
    result["load"] = round(os.getloadavg()[0], 1)
    print(json.dumps(result, indent=1))
    if options.result:
        options.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
