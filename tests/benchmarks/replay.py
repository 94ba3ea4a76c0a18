"""How long the estimate of a large window takes: five steps of 2,000 GPU ops, thirty sites.

python tests/benchmarks/replay.py [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/unit/cost"))

from traced import Traced

from syncagent.cost import sites, trace
from syncagent.cost.estimate import estimate

SITES, KERNELS = 30, 65


def large() -> Traced:
    traced = Traced()
    for number in range(6):
        began = traced.now
        for site in range(SITES):
            at = traced.now
            for _ in range(KERNELS):
                traced.host(3.0)
                traced.launch(8.0 + site % 5)
            traced.host(2.0)
            traced.item()
            traced.annotated(f"site {site}", at)
        traced.annotated(f"ProfilerStep#{number}", began)
    return traced


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    values = large().file
    times = []
    for _ in range(5):
        began = time.perf_counter()
        whole = trace.from_values(values, "made up")
        read = time.perf_counter()
        found = estimate(whole, sites.from_trace, measured_ms=21.5)
        times.append((read - began, time.perf_counter() - read))
    assert found.abstained is None, found.abstained
    result = {
        "python": platform.python_version(), "gpu_ops": len(whole.ops), "sites": len(found.sites),
        "order": len(found.order), "read_s": round(statistics.median(t for t, _ in times), 3),
        "priced_s": round(statistics.median(t for _, t in times), 3),
    }  # fmt: skip
    print(json.dumps(result))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
