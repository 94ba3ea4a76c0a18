"""The process in which the selftest runs: prints its outcome as one line of JSON."""

from __future__ import annotations

import faulthandler
import json
import os
import platform
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncagent._version import __version__
from syncagent.selftest import promises
from syncagent.selftest.cases import CASES
from syncagent.selftest.probe import BROKEN, Delay, Verdict, applies, failure, probe

if TYPE_CHECKING:
    from syncagent.settings.schema import Detail

DETAILS: tuple[Detail, ...] = ("syncs", "ops")
_DELAY_MS = 10.0
_HANGS_S = 240.0


def main(*, simulate: bool | None) -> dict[str, Any]:
    """Test everything; ``simulate=None`` takes the simulated device only where there is no CUDA device."""
    try:
        import torch
    except Exception as error:
        return {"unable": f"torch cannot be imported: {error!r}"}
    if simulate is None:
        simulate = not torch.cuda.is_available()
    if simulate:
        from syncagent import simulate as device

        try:
            device.install()
        except device.SimulationError as error:
            return {"unable": str(error)}
    elif not torch.cuda.is_available():
        return {"unable": f"there is no CUDA device here that torch {torch.__version__} can use; try --simulate"}
    try:
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()
    except RuntimeError as error:
        return {"unable": f"the CUDA device cannot be used: {error}"}
    return _test(simulated=simulate)


def _test(*, simulated: bool) -> dict[str, Any]:
    import torch

    import syncagent
    from syncagent import native

    delay = Delay(_DELAY_MS)
    cases = [case for case in CASES if applies(case, simulated=simulated)]
    failed = {case: failure(case) for case in cases}
    verdicts: list[Verdict] = []
    kept: list[promises.Promise] = []
    notes: list[str] = []
    for detail in DETAILS:
        before = promises.state()
        # "all": every copy, also under detail="syncs", which would sample them.
        with syncagent.watch(detail=detail, copies="all", simulate=simulated) as agent:
            during = promises.state()
            verdicts += [probe(case, delay, agent, failed[case]) for case in cases]
        kept.append(promises.leaves_nothing(before, during, promises.state(), detail))
        kept.append(promises.every_kind(verdicts, detail))
        kept.append(promises.forbids(delay, detail, simulate=simulated))
        kept.append(promises.allows(delay, detail, simulate=simulated))
        notes += agent.report().notes
    spent = promises.measure_cost(DETAILS, simulate=simulated)
    kept.append(promises.is_bearable(spent))
    kept.append(promises.makes_spans(simulate=simulated))
    outcomes = [*(verdict.status for verdict in verdicts), *(promise.status for promise in kept)]
    return {
        "schema": 1,
        "passed": BROKEN not in outcomes,
        "syncagent": __version__,
        "torch": torch.__version__,
        "cuda": None if simulated else torch.version.cuda,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(),
        "simulated": simulated,
        "native": {"there": not (why_not := native.why_not()), "why_not": why_not},
        "queued_ms": delay.ms,
        "calls": [asdict(verdict) for verdict in verdicts],
        "promises": [asdict(promise) for promise in kept],
        "cost_us": spent,
        "notes": list(dict.fromkeys(notes)),
    }


def _run(word: str) -> None:
    # What torch prints is no part of the outcome.
    answer, sys.stdout = sys.stdout, sys.stderr
    faulthandler.dump_traceback_later(_HANGS_S, exit=True)
    home = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "pyproject.toml").touch()  # the nearest one: settings of the project around it do not count
        os.chdir(folder)
        try:
            outcome = main(simulate={"simulate": True, "no-simulate": False}.get(word))
        finally:
            os.chdir(home)
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps(outcome), file=answer)


if __name__ == "__main__":
    _run(sys.argv[1])
