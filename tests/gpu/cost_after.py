"""What a job's steps cost after a window: before any, after one that gives CUPTI back, after one that keeps it.

python tests/gpu/cost_after.py --out FILE.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path

import cost_programs
from cost_pairs import block_ms

from syncagent.torchbridge.profiling import Capture


def measured(step) -> list[float]:
    block_ms(step, 20, "cuda")
    return [round(block_ms(step, 40, "cuda"), 4) for _ in range(15)]


def window(step) -> None:
    capture = Capture()
    capture.start()
    block_ms(step, 6, "cuda")
    capture.stop()
    capture.save("/tmp/cost_after.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    step = cost_programs.PAIRS["transformer_small_item_step"].build("cuda", False)[1]
    found = {"before": measured(step)}
    window(step)
    found["after, given back"] = measured(step)
    os.environ["TEARDOWN_CUPTI"] = "0"
    window(step)
    found["after, kept"] = measured(step)
    os.environ.pop("TEARDOWN_CUPTI")
    window(step)
    found["after, given back again"] = measured(step)
    for name, times in found.items():
        print(name, statistics.median(times), times, flush=True)
    Path(arguments.out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
