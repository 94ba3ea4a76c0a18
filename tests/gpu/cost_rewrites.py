"""Tries every rewrite on a GPU: what it replaces waits, and it does not.

python tests/gpu/cost_rewrites.py --out FILE.json

The test is physical: a call that is queued behind a kernel which sleeps for 10 ms either returns at once or does not.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from syncagent.cost.rewrites import REWRITES, Rewrite

_CYCLES = 20_000_000


def names_of(rewrite: Rewrite) -> dict[str, Any]:
    torch.manual_seed(0)
    names = {"torch": torch, "F": torch.nn.functional, "device": "cuda"}
    exec(rewrite.setup, names)
    return names


def behind_a_sleep_ms(rewrite: Rewrite, code: str) -> float:
    times = []
    for attempt in range(4):
        names = names_of(rewrite)
        torch.cuda.synchronize()
        if attempt:
            torch.cuda._sleep(_CYCLES)
        began = time.perf_counter()
        exec(code, names)
        times.append((time.perf_counter() - began) * 1e3)
        torch.cuda.synchronize()
    return statistics.median(times[1:])


def same(rewrite: Rewrite) -> bool:
    results = []
    for code in (rewrite.before, rewrite.after):
        names = names_of(rewrite)
        exec(code, names)
        torch.cuda.synchronize()
        if code == rewrite.after:
            exec(rewrite.late, names)
        results.append(names["result"])
    try:
        torch.testing.assert_close(results[1], results[0], check_dtype=False, check_device=False)
    except AssertionError as error:
        print(rewrite.name, error)
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    torch.cuda._sleep(1)
    found = {}
    for rewrite in REWRITES:
        try:
            found[rewrite.name] = {
                "before_ms": round(behind_a_sleep_ms(rewrite, rewrite.before), 3),
                "after_ms": round(behind_a_sleep_ms(rewrite, rewrite.after), 3),
                "same": same(rewrite),
            }
        except Exception as error:
            found[rewrite.name] = {"error": repr(error)[:300]}
        print(rewrite.name, found[rewrite.name], flush=True)
    result = {
        "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "python": platform.python_version(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "sleep_ms": 10, "rewrites": found,
    }  # fmt: skip
    Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
