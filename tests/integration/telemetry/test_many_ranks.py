"""The processes of a job at one collector: exact counts, flat memory, one trace per step.

Short here; ``make test-telemetry`` runs 8 ranks at 1,000 syncs a second each for three minutes.
"""

from __future__ import annotations

import statistics
from collections import defaultdict

import pytest

from syncagent.telemetry.span_budget import LINES, MOST
from tests import soak
from tests.soak import RANKS

PARTS = {"after a third": 3.0, "after two thirds": 1.5, "at the end": 1.0}
GROWTH_MB = 6.0
"""Between the first half and the second; Python's own allocator moves by as much."""


@pytest.mark.timeout(soak.TIMEOUT_S)
def test_counts_are_exact_memory_is_flat_and_ranks_share_their_steps(receiver, environ, tmp_path):
    collector = receiver()
    ranks = soak.run(collector.endpoint, environ, tmp_path)

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
    sees_all = sum(len(members) == RANKS for members in late)
    soak.keep(
        f"{RANKS} ranks",
        {
            "ranks": RANKS,
            "seconds": soak.SECONDS,
            "wanted_syncs_a_second": soak.RATE,
            "syncs_a_second": [round(told["reported"] / told["seconds"]) for told in ranks],
            "syncs": sum(told["reported"] for told in ranks),
            "spans_a_second": [round(received[told["rank"]] / told["seconds"], 1) for told in ranks],
            "steps_after_the_first": {"with a span": len(late), "of all ranks": sees_all},
            "cpu_s": [round(told["cpu_s"], 1) for told in ranks],
            "rss_mb": {name: third(ranks, part) for name, part in PARTS.items()},
        },
    )


def third(ranks, part):
    return [told["rss_mb"][int(len(told["rss_mb"]) / part) - 1] for told in ranks]
