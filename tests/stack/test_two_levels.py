"""64 ranks on two nodes, their Collectors, and a gateway: what comes out is exact, whoever is away meanwhile.

One story, told once: all is well; the gateway ends and is away for ten seconds; meanwhile one node's Collector is
killed and comes back; so does the gateway; all is well again.  Ranks go on sending all the time.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from dataclasses import dataclass

import pytest
from levels import Levels, Node, all_do

from tests import processes

import services  # isort: skip

pytestmark = pytest.mark.timeout(300)  # it takes less than a minute; a busy machine takes its time

NODES, RANKS = 2, 64
EACH = RANKS // NODES
AWAY_S = 10.0
STEPS = 25
"""In all, of each rank."""
LEFT_OUT = ("events_dropped_total", "spans_dropped_total", "spans_withheld_total")
BY_RANK = ("syncagent_rank", "host_name", "process_pid")


@dataclass
class Outcome:
    """What the ranks say that they have made, by rank, and what has come out at the gateway's end."""

    told: dict
    spans: list
    counted: dict
    waiting: list
    """Bytes of spans in the queue of each node while the gateway was away; last, of the one that was killed since."""


@pytest.fixture(scope="module")
def levels(tmp_path_factory):
    if not services.has("collector"):
        pytest.skip("the Collector is not built: `make test-stack` does that where Go is installed.")
    both = Levels(tmp_path_factory.mktemp("levels"), NODES)
    yield both
    both.stop()


@pytest.fixture(scope="module")
def nodes(levels, tmp_path_factory):
    environ = processes.environment(NO_PROXY="*", OMP_NUM_THREADS="1")
    folder = tmp_path_factory.mktemp("ranks")
    both = [
        Node(number, range(number * EACH, (number + 1) * EACH), levels.endpoint(number), environ, folder)
        for number in range(NODES)
    ]
    yield both
    for node in both:
        node.stop()


@pytest.fixture(scope="module")
def outcome(levels, nodes, until):
    def have_come(answers):
        return lambda: levels.come() >= sum(sum(one["spans"]) for one in answers)

    until(have_come(all_do(nodes, "feed 10")))
    levels.end("gateway", signal.SIGTERM)
    gone = time.monotonic()
    all_do(nodes, "feed 5")
    waiting = [levels.queued(node, "traces") for node in range(NODES)]
    levels.end(0, signal.SIGKILL)
    levels.begin_node(0)
    waiting.append(levels.queued(0, "traces"))
    all_do(nodes, "feed 5")
    time.sleep(max(gone + AWAY_S - time.monotonic(), 0.0))
    levels.begin_gateway()
    until(have_come(all_do(nodes, "feed 5")))
    told = {int(rank): one for answer in all_do(nodes, "end") for rank, one in answer.items()}
    until(lambda: sum(levels.counted("syncagent_syncs_total").values()) >= sum(one["syncs"] for one in told.values()))
    until(lambda: not any(levels.queued(node, "traces") for node in range(NODES)))
    names = ("syncs_total", "stall_duration_seconds_count", "step_duration_seconds_count", *LEFT_OUT)
    counted = {name: levels.counted(f"syncagent_{name}", *BY_RANK) for name in names}
    return Outcome(told, levels.spans(), counted, waiting)


def test_every_rank_was_answered_for_all_that_it_made(outcome):
    assert sorted(outcome.told) == list(range(RANKS))
    for rank, told in outcome.told.items():
        assert told == {
            "steps": STEPS,
            "syncs": STEPS * (3 + rank % 3),
            "without_span": 0,
            "spans": {"exported": STEPS * (4 + rank % 3), "failed": 0, "dropped": 0},
        }


def test_all_spans_of_every_rank_come_out_once(outcome):
    assert Counter(span["id"] for span in outcome.spans).most_common(1)[0][1] == 1
    of_ranks = Counter(
        tuple(span["resource"][name] for name in ("syncagent.rank", "host.name", "process.pid"))
        for span in outcome.spans
    )
    assert of_ranks == {where(rank): STEPS * (4 + rank % 3) for rank in range(RANKS)}


def test_each_step_is_one_trace_of_all_ranks(outcome):
    steps = Counter((span["trace"], span["attributes"]["syncagent.step"]) for span in outcome.spans)
    assert len(steps) == STEPS
    assert set(steps.values()) == {sum(4 + rank % 3 for rank in range(RANKS))}


def test_the_counters_of_every_rank_are_exact(outcome):
    def of_all(count):
        return {tuple(map(str, where(rank))): count(rank) for rank in range(RANKS)}

    syncs = of_all(lambda rank: STEPS * (3 + rank % 3))
    assert outcome.counted["syncs_total"] == outcome.counted["stall_duration_seconds_count"] == syncs
    assert outcome.counted["step_duration_seconds_count"] == of_all(lambda _: STEPS - 1)  # without the first
    for name in LEFT_OUT:
        assert outcome.counted[name] == of_all(lambda _: 0)


def test_what_waited_was_on_disk(outcome):
    """So that it was the queue that kept it, and not the ranks that sent it again."""
    assert all(outcome.waiting)
    assert outcome.waiting[-1] >= outcome.waiting[0]


def where(rank):
    return rank, f"node{rank // EACH}", 1000 + rank
