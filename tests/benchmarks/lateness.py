"""How near the report comes to what a late rank really costs: ranks with and without one that is late.

python tests/benchmarks/lateness.py [--rounds 4] [--steps 60] [--ranks 2] [--forms ddp fsdp tensor no_sync] [--real]
    [--keep FOLDER] [--result FILE.json]

Each round runs ``tests/integration/late_ranks.py`` once with nobody late and once for each reason, in random order, all
of them watched.  What a late rank really costs is the difference between the steps of such a run and those of the run
with nobody late; the report of the late run alone says what it takes it to be.  ``--real`` trains on GPUs, over NCCL;
else the device is simulated, and gloo stands in for NCCL.  A run that is in the FOLDER already is not run again: its
reports are read once more.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from syncagent.report import files
from syncagent.report.model import Report
from tests import processes

PROGRAM = ROOT / "tests" / "integration" / "late_ranks.py"
REASONS = ("item", "sleep", "loader", "gc")
FORMS = {"ddp": REASONS, "fsdp": REASONS, "tensor": ("sleep",), "no_sync": ("sleep",)}
"""Why a rank is late, by the form of parallel training: the forms differ in how ranks wait, whatever the reason."""
NOBODY = "none"
_PRINTED = "step_ms"
"""The file beside a run's reports that has what the program printed."""


class Run(NamedTuple):
    """What one run took, and what its report says."""

    report: Report
    step_ms: float
    held_ms: float
    cause: str
    """The largest cause of the last rank; empty if it was not named."""
    wrong: bool
    """Whether a rank was named that is not late."""


def run(form: str, late: str, folder: Path, options: argparse.Namespace) -> None:
    """Run the program once; its folder has the reports of its ranks then, and how long a step took."""
    done = processes.run(
        "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", options.ranks,
        "--master-port", processes.free_port(), "-m", "syncagent", "run", PROGRAM, form, late, options.steps,
        cwd=ROOT, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        SYNCAGENT_REPORT=f"{folder}/", SYNCAGENT_CAPTURE="off", SYNCAGENT_SIMULATE="0" if options.real else "1",
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"the program failed ({form}, {late}):\n{done.stderr}")
    step_ms = next(line for line in done.stdout.splitlines() if line.replace(".", "").isdigit())
    (folder / _PRINTED).write_text(f"{step_ms}\n", encoding="utf-8")


def read(late: str, folder: Path) -> Run:
    """Read what a run left."""
    report = files.load_merged([folder], leave_out=True)
    ranks = {each.rank: each for each in report.lateness.ranks} if report.lateness else {}
    step_ms = float((folder / _PRINTED).read_text(encoding="utf-8"))
    last = ranks.pop(max(report.run.ranks), None) if late != NOBODY else None
    if last is None:
        return Run(report, step_ms, 0.0, "", bool(ranks))
    return Run(report, step_ms, last.held_ms, last.causes[0].cause, bool(ranks))


def rows_of(form: str, runs: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """Compare the runs of one form, in their rounds, with those in which nobody was late."""
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


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds, and return the result."""
    runs: dict[str, dict[str, list[Run]]] = {
        form: {late: [] for late in (NOBODY, *FORMS[form])} for form in options.forms
    }
    for number in range(options.rounds):
        for form, of_form in runs.items():
            for late in random.sample(sorted(of_form), len(of_form)):
                place = folder / f"{form}-{late}-{number}"
                if not (place / _PRINTED).exists():
                    run(form, late, place, options)
                of_form[late].append(read(late, place))
                print(form, late, *of_form[late][-1][1:], flush=True)
    info = runs[options.forms[0]][NOBODY][0].report.run
    return {
        "date": info.started[:10],
        "torch": info.torch,
        "gpu": None if info.simulated else info.device,
        "ranks": info.world_size,
        "steps": info.steps,
        "rows": [row for form, of_form in runs.items() for row in rows_of(form, of_form)],
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--forms", nargs="+", default=[*FORMS], choices=[*FORMS])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--keep", type=Path, help="where the reports of the runs are kept")
    parser.add_argument("--result", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = measure(options.keep.absolute() if options.keep else Path(temporary), options)
    print(json.dumps(result, indent=1))
    if options.result:
        options.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
