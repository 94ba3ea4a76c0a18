"""What the agent holds in memory after ten million syncs at a thousand lines, and that it stops growing.

    python tests/benchmarks/memory.py --out FILE.json [--device cpu|cuda] [--syncs 10000000] [--spans journal|off]

A day of training in minutes: as many steps as a job of one a second makes in a day and more, syncs as fast as the agent
takes them.  Where its buffer fills up the training thread waits a little, so that every sync must be in the report.
The lines are of a generated file.  Resident memory is read all along, against what the process had before the agent's
first import.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

if __package__ in {None, ""}:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

_SITES = 1_000
_A_STEP = 100
_SAMPLES = 200
_FULL = 12_000
"""Syncs that wait to be delivered; the agent drops what comes beyond 16,384."""


def rss_mb() -> float:
    """Return resident memory as the system counts it."""
    with open("/proc/self/statm", encoding="ascii") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def sites(folder: str) -> list[Callable[[Any], object]]:
    """Return a thousand functions, each of which syncs at a line of its own."""
    file = Path(folder, "lines.py")
    file.write_text("".join(f"def read_{i}(t): return t.item()\n" for i in range(_SITES)), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("lines", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [getattr(module, f"read_{i}") for i in range(_SITES)]


def load(agent: Any, reads: Sequence[Callable[[Any], object]], tensor: Any, syncs: int) -> list[tuple[int, float]]:
    """Make the syncs, cycling through the lines; return memory by the number of syncs made."""
    state = agent._recorder.threads.current()
    samples: list[tuple[int, float]] = []
    every = max(syncs // _SAMPLES, 1)
    began = told = time.perf_counter()
    for number in range(syncs):
        reads[number % _SITES](tensor)
        if number % _A_STEP == _A_STEP - 1:
            agent.steps.mark(None)
            while len(state.buffer) > _FULL:
                time.sleep(0.005)
        if (number + 1) % every == 0:
            samples.append((number + 1, rss_mb()))
            if time.perf_counter() - told > 10:
                told = time.perf_counter()
                share = (number + 1) / syncs
                left_s = (told - began) * (1 / share - 1)
                print(f"{share:6.1%}  {samples[-1][1]:8.1f} MB  {left_s:6.0f} s to go", flush=True)
    return samples


def quarters(samples: Sequence[tuple[int, float]]) -> list[dict[str, float]]:
    """Return median and maximum of memory in each quarter of the load."""
    size = max(len(samples) // 4, 1)
    found = []
    for first in range(0, 4 * size, size):
        column = [mb for _, mb in samples[first : first + size]]
        found.append({"median_mb": round(statistics.median(column), 1), "max_mb": round(max(column), 1)})
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu", choices=("cuda", "cpu"))
    parser.add_argument("--syncs", type=int, default=10_000_000)
    parser.add_argument("--spans", default="journal", choices=("journal", "off"))
    options = parser.parse_args()
    if options.syncs < _SITES:
        parser.error(f"--syncs must be {_SITES} or more: each line syncs")
    for name in tuple(os.environ):
        if name.startswith(("OTEL_", "SYNCAGENT")):
            del os.environ[name]
    import torch

    torch.set_num_threads(1)
    tensor = torch.ones((), device=options.device)
    with tempfile.TemporaryDirectory() as folder:
        reads = sites(folder)
        for read in reads:
            read(tensor)
        gc.collect()
        bare_mb = rss_mb()
        row = measure(options, reads, tensor, folder, bare_mb)

    from tests.benchmarks.per_sync import write

    write(options.out, options.device, {"cases": {f"spans {options.spans}": row}})
    for key, value in row.items():
        if key != "samples":
            print(f"{key:18s} {value}")
    return 0


def measure(
    options: argparse.Namespace, reads: Sequence[Callable[[Any], object]], tensor: Any, folder: str, bare_mb: float
) -> dict[str, Any]:
    from syncagent.runtime.sinks import build
    from syncagent.settings import sources
    from tests.benchmarks.per_sync import begin

    journal = str(Path(folder, "journal.jsonl")) if options.spans == "journal" else "off"
    ends = build(sources.load({"detail": "syncs", "journal": journal}, {}))
    agent = begin(options.device, ends.sinks, by_hand=False, journal=journal)
    started_mb = rss_mb()
    began = time.perf_counter()
    try:
        samples = load(agent, reads, tensor, options.syncs)
    finally:
        lasted_s = time.perf_counter() - began
        report = agent.stop()
        if ends.outbox is not None:
            ends.outbox.close()
    parts = quarters(samples)
    lines = [site for site in report.sites if site.op == "aten::_local_scalar_dense"]
    counts = {site.count for site in lines}
    even = {options.syncs // _SITES, -(-options.syncs // _SITES)}
    return {
        "syncs": options.syncs, "reported": report.totals.syncs, "dropped": report.dropped, "sites": len(lines),
        "steps": report.run.steps,
        "exact": report.totals.syncs == options.syncs and len(lines) == _SITES and counts <= even,
        "spans": ends.outbox.stats() if ends.outbox is not None else None,
        "journal_mb": round(sum(file.stat().st_size for file in Path(folder).glob("journal*")) / 2**20, 1),
        "bare_mb": round(bare_mb, 1), "started_above_bare_mb": round(started_mb - bare_mb, 1),
        "end_above_bare_mb": round(samples[-1][1] - bare_mb, 1),
        "most_above_bare_mb": round(max(mb for _, mb in samples) - bare_mb, 1), "quarters": parts,
        "growth_mb": round(parts[3]["median_mb"] - parts[0]["median_mb"], 1),
        "growth_since_half_mb": round(parts[3]["median_mb"] - parts[1]["median_mb"], 1),
        "a_second": round(options.syncs / lasted_s), "took_s": round(lasted_s, 1), "notes": list(report.notes),
        "samples": [[number, round(mb, 1)] for number, mb in samples],
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
