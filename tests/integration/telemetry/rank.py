"""One rank of a job that syncs at a given rate: ``rank.py RATE SECONDS``.

CPU tensors stand for CUDA's.  Works through a few syncs each ten milliseconds and sleeps in between, as a thread that
waits for the GPU does; a step is 50 ms.  Prints what it did as JSON: syncs by line, steps, seconds, resident memory in
MB over the time, and the account of its spans.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch

from syncagent.runtime.sinks import build
from syncagent.settings import sources
from tests.benchmarks.memory import rss_mb
from tests.benchmarks.per_sync import begin

LINES = 20
TURN_S = 0.01
STEP_TURNS = 5
SAMPLES = 60


def lines():
    """Functions that sync, each at a line of its own."""
    space: dict = {}
    source = "".join(f"def read_{n}(t): return t.item()\n" for n in range(LINES))
    exec(compile(source, "/app/lines.py", "exec"), space)
    return [space[f"read_{n}"] for n in range(LINES)]


def work(agent, reads, rate, seconds):
    tensor = torch.ones(())
    counts, samples = [0] * LINES, []
    began = due = time.perf_counter()
    turn = done = 0
    while (now := time.perf_counter()) < began + seconds:
        if now < due:
            time.sleep(due - now)
        wanted = min(int((time.perf_counter() - began) * rate) - done, int(rate))
        for _ in range(max(wanted, 0)):
            line = done % LINES
            reads[line](tensor)
            counts[line] += 1
            done += 1
        turn += 1
        due += TURN_S
        if not turn % STEP_TURNS:
            agent.steps.mark(None)
        if len(samples) < (time.perf_counter() - began) / seconds * SAMPLES:
            samples.append(round(rss_mb(), 2))
    return counts, samples, turn // STEP_TURNS, time.perf_counter() - began


def main(rate, seconds):
    torch.set_num_threads(1)
    settings = sources.load({"detail": "syncs", "summary": False}, {})
    ends = build(settings)
    agent = begin("cpu", ends.sinks)
    counts, samples, steps, lasted_s = work(agent, lines(), rate, seconds)
    agent.events()  # delivers, for as long as it takes: the end waits for seconds only
    report = agent.stop()
    ends.close()
    print(
        json.dumps(
            {
                "rank": int(os.environ["RANK"]),
                "counts": counts,
                "reported": report.totals.syncs,
                "dropped": report.dropped,
                "steps": steps,
                "seconds": lasted_s,
                "cpu_s": time.process_time(),
                "rss_mb": samples,
                "spans": ends.outbox.stats(),
                "without_span": ends.spans.without_span(),
            }
        )
    )


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]))
