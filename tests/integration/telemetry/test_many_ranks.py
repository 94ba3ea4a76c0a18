"""The processes of a job at one collector: exact counts, flat memory, one trace per step.

Short here; ``make test-telemetry`` runs 8 ranks at 1,000 syncs a second each for three minutes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from syncagent.telemetry.span_budget import LINES, MOST
from tests.benchmarks.per_sync import write

RANKS = int(os.environ.get("SOAK_RANKS", "2"))
RATE = float(os.environ.get("SOAK_RATE", "300"))
SECONDS = float(os.environ.get("SOAK_SECONDS", "8"))
RESULT = os.environ.get("SOAK_RESULT")
PARTS = {"after a third": 3.0, "after two thirds": 1.5, "at the end": 1.0}
GROWTH_MB = 6.0
"""Between the first half and the second; Python's own allocator moves by as much."""


@pytest.fixture
def soak(environ, tmp_path):
    def run(endpoint):
        own = {
            "WORLD_SIZE": str(RANKS),
            "LOCAL_WORLD_SIZE": str(RANKS),
            "TORCHELASTIC_RUN_ID": "soak",
            "OMP_NUM_THREADS": "1",
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_METRIC_EXPORT_INTERVAL": "5000",
        }
        command = [sys.executable, str(Path(__file__).with_name("rank.py")), str(RATE), str(SECONDS)]
        processes = [
            subprocess.Popen(
                command,
                env=environ | own | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(RANKS)
        ]
        try:
            outputs = [process.communicate(timeout=SECONDS + 100 + 10 * RANKS) for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert [process.returncode for process in processes] == [0] * RANKS, outputs
        assert [errors for _, errors in outputs] == [""] * RANKS
        return [json.loads(output) for output, _ in outputs]

    return run


@pytest.mark.timeout(SECONDS + 150 + 15 * RANKS)
def test_counts_are_exact_memory_is_flat_and_ranks_share_their_steps(receiver, soak):
    collector = receiver()
    ranks = soak(collector.endpoint)

    newest = {}
    for point in collector.points():
        key = (point["resource"]["syncagent.rank"], point["name"], point["attributes"].get("code.line.number"))
        newest[key] = point
    received = defaultdict(int)
    ids = defaultdict(set)
    for span in collector.spans():
        rank = span["attributes"]["syncagent.rank"]
        received[rank] += 1
        if span["name"] == "train.step":
            ids[span["attributes"]["syncagent.step"], span["trace"]].add(rank)

    for told in ranks:
        rank = told["rank"]
        # Counts: each line's, at the collector as in the process.
        for number, count in enumerate(told["counts"], 1):
            assert newest[rank, "syncagent.syncs", number]["value"] == count
            assert newest[rank, "syncagent.stall.duration", number]["count"] == count
        assert sum(told["counts"]) == told["reported"]
        assert newest[rank, "syncagent.step.duration", None]["count"] == told["steps"] - 1
        assert (told["dropped"], newest[rank, "syncagent.events.dropped", None]["value"]) == (0, 0)
        # Spans: each accounted for, tens a second.
        assert told["spans"] == {"exported": received[rank], "failed": 0, "dropped": 0}
        roots = sum(rank in members for members in ids.values())
        assert received[rank] - roots + sum(told["without_span"].values()) == told["reported"]
        first = 100 * len(told["counts"]) + 100
        assert received[rank] <= first + (MOST + LINES + 50) * (told["seconds"] + 1)
        half = len(told["rss_mb"]) // 2
        assert statistics.median(told["rss_mb"][half:]) - max(told["rss_mb"][:half]) < GROWTH_MB
    # One trace per step, whichever rank sends it; the first hundred steps are there from all ranks.
    assert len({step for step, _ in ids}) == len(ids)
    shared = min(100, *(told["steps"] for told in ranks))
    assert all(members == set(range(RANKS)) for (step, _), members in ids.items() if step < shared)
    late = [members for (step, _), members in ids.items() if step >= shared]
    if RESULT:
        sees_all = sum(len(members) == RANKS for members in late)
        result = {
            "ranks": RANKS,
            "seconds": SECONDS,
            "wanted_syncs_a_second": RATE,
            "syncs_a_second": [round(told["reported"] / told["seconds"]) for told in ranks],
            "syncs": sum(told["reported"] for told in ranks),
            "spans_a_second": [round(received[told["rank"]] / told["seconds"], 1) for told in ranks],
            "steps_after_the_first": {"with a span": len(late), "of all ranks": sees_all},
            "cpu_s": [round(told["cpu_s"], 1) for told in ranks],
            "rss_mb": {name: third(ranks, part) for name, part in PARTS.items()},
        }
        write(Path(RESULT).absolute(), "cpu", {"cases": {f"{RANKS} ranks": result}})


def third(ranks, part):
    return [told["rss_mb"][int(len(told["rss_mb"]) / part) - 1] for told in ranks]
