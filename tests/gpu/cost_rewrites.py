"""Tries every rewrite on a GPU: the original must wait, the rewrite must not.

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
from rewrite_examples import EXAMPLES, Example

_CYCLES = 20_000_000


def names_of(example: Example) -> dict[str, Any]:
    torch.manual_seed(0)
    names = {"torch": torch, "F": torch.nn.functional, "device": "cuda"}
    exec(example.setup, names)
    return names


def behind_a_sleep_ms(example: Example, code: str) -> float:
    times = []
    for attempt in range(4):
        names = names_of(example)
        torch.cuda.synchronize()
        if attempt:
            torch.cuda._sleep(_CYCLES)
        began = time.perf_counter()
        exec(code, names)
        times.append((time.perf_counter() - began) * 1e3)
        torch.cuda.synchronize()
    return statistics.median(times[1:])


def same(name: str, example: Example) -> bool:
    results = []
    for code in (example.before, example.after):
        names = names_of(example)
        exec(code, names)
        torch.cuda.synchronize()
        if code == example.after:
            exec(example.late, names)
        results.append(names["result"])
    try:
        torch.testing.assert_close(results[1], results[0], check_dtype=False, check_device=False)
    except AssertionError as error:
        print(name, error)
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    torch.cuda._sleep(1)
    found = {}
    for name, example in EXAMPLES.items():
        try:
            found[name] = {
                "before_ms": round(behind_a_sleep_ms(example, example.before), 3),
                "after_ms": round(behind_a_sleep_ms(example, example.after), 3),
                "same": same(name, example),
            }
        except Exception as error:
            found[name] = {"error": repr(error)[:300]}
        print(name, found[name], flush=True)
    result = {
        "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "python": platform.python_version(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "sleep_ms": 10, "rewrites": found,
    }  # fmt: skip
    Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
