"""What the agent adds to one ``.item()`` of a value that is there already, in a step that is not sampled.

    python tests/gpu/ready.py --out FILE [--rounds 40] [--simulate]

Processes differ from one another by up to a microsecond, which is more than what is measured here, so one process does
it all: in each round it is watched in each way in turn, and not at all twice, in another order every time.
What is given is the difference from the reads of the same round that nothing watched: the median over the rounds, with
its 95 % interval by the sign test, and the same for the second time without the agent.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

BARE = "without"
_FIRST = 20
"""Steps that ``detail="auto"`` watches whole at the start."""
_READS = 1_000
_BLOCKS = 20


def ways() -> dict[str, Callable[[], Any]]:
    import syncagent

    return {
        BARE: nullcontext,
        "without, again": nullcontext,
        "driver alone": lambda: syncagent.watch(overhead=0),
        "default": syncagent.watch,
    }


def ns_a_read(device: str) -> float:
    """The median over some blocks of reads, in ns a read, after the steps that are watched whole."""
    value = torch.ones((), device=device)
    weight = torch.ones(8, device=device, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for _ in range(_FIRST + 5):
        weight.sum().backward()
        optimizer.step()
        value.item()
    times = []
    for _ in range(_BLOCKS):
        began_ns = time.perf_counter_ns()
        for _ in range(_READS):
            value.item()
        times.append((time.perf_counter_ns() - began_ns) / _READS)
    return statistics.median(times)


def summed_up(differences: list[float]) -> dict[str, float]:
    ordered = sorted(differences)
    count = len(ordered)
    reach = math.floor((count - 1.96 * math.sqrt(count)) / 2)
    low, high = ordered[max(reach, 0)], ordered[min(count - 1 - reach, count - 1)]
    return {"median": round(statistics.median(ordered), 1), "low": round(low, 1), "high": round(high, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.simulate:
        from syncagent import simulate

        simulate.install()
    all_ways = ways()
    found: dict[str, list[float]] = {way: [] for way in all_ways}
    for number in range(options.rounds + 1):
        for way in random.sample(list(all_ways), len(all_ways)):
            with all_ways[way]():
                ns = ns_a_read("cuda")
            if number:  # the first round loads what is loaded once
                found[way].append(ns)
    result = {
        "torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version(),
        "gpu": torch.cuda.get_device_name(), "simulated": options.simulate,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "rounds": options.rounds,
        "bare_ns": round(statistics.median(found[BARE]), 1),
        "more_ns": {
            way: summed_up([one - bare for one, bare in zip(times, found[BARE], strict=True)])
            for way, times in found.items()
            if way != BARE
        },
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
