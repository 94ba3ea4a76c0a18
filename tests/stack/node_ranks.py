"""The ranks of one node in one process, each with the agent's own sinks and senders: ``node_ranks.py NODE RANK...``.

Each has its rank, host and process number on its resource, and what it sends is what a process of its own would: only
the records, whose numbers are known, are made up.  Each line of standard input is answered by one line of JSON:

- ``feed N``: N more steps of every rank, answered once the Collector has answered for all of their spans;
- ``end``: everything is sent, metrics last; answered by what each rank has made and sent.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from syncagent.events import CallSite, Phase, StepRecord, SyncEvent, SyncKind
from syncagent.telemetry import semconv
from syncagent.telemetry.metrics import MetricSink
from syncagent.telemetry.provider import build_metrics, build_resource, build_spans
from syncagent.telemetry.spans import SpanSink
from syncagent.telemetry.step_ids import ProcessIdentity

JOB = "fan-in"
STEP_NS = 50_000_000
LINE, OTHER_LINE = 12, 30
"""Each step has two syncs at the first; at the other one to three, by rank."""


class Rank:
    """One rank: its resource, its sinks, and how many steps and syncs it has had."""

    def __init__(self, number, node):
        self.number, self.steps, self.syncs = number, 0, 0
        self._at_ns = time.time_ns()
        own = {semconv.RANK: number, semconv.LOCAL_RANK: number % 8, semconv.JOB_ID: JOB}
        where = {semconv.HOST_NAME: f"node{node}", semconv.PROCESS_PID: 1000 + number}
        resource = build_resource({**own, **where})
        (provider, self._outbox), _ = build_spans(resource, None)
        identity = ProcessIdentity({semconv.HOST_NAME: where[semconv.HOST_NAME], semconv.JOB_ID: JOB}, JOB)
        self._spans = SpanSink(provider, identity=lambda: identity)
        self._metrics = MetricSink(spans=self._spans)
        self._metrics.spans_lost = self._outbox.lost
        self._sender = build_metrics(resource, self._metrics.data)

    def feed(self):
        """One more step, with its syncs."""
        events = [self._sync(line) for line, times in self.lines().items() for _ in range(times)]
        step = StepRecord(self.steps, self._at_ns, self._at_ns + STEP_NS, self.number)
        for sink in (self._spans, self._metrics):
            sink.events(events)
            sink.step(step)
        self._at_ns += STEP_NS
        self.steps += 1
        self.syncs += len(events)

    def lines(self):
        return {LINE: 2, OTHER_LINE: 1 + self.number % 3}

    def is_sent(self):
        without = sum(self._spans.without_span().values())
        return sum(self._outbox.stats().values()) + without == self.steps + self.syncs

    def begin_end(self):
        self._spans.close()
        self._outbox.begin_close()

    def end(self):
        self._outbox.close(30)
        self._sender.close(30)
        without = sum(self._spans.without_span().values())
        return {"steps": self.steps, "syncs": self.syncs, "without_span": without, "spans": self._outbox.stats()}

    def _sync(self, line):
        site = CallSite("/app/train/loss.py", line, "MaskedLoss.forward", "target = torch.nonzero(labels > 0)")
        return SyncEvent(
            "aten::nonzero", "torch.nonzero", SyncKind.DYNAMIC_SHAPE, self._at_ns + line * 1_000_000, 1_500_000, site,
            Phase.FORWARD, self.steps, self.number, "cuda:0", 0, "MainThread", "kernels", ((64, 3, 32, 32),),
        )  # fmt: skip


def main(node, *numbers):
    ranks = [Rank(int(number), node) for number in numbers]
    answer = partial(print, flush=True)
    for line in sys.stdin:
        verb, *amount = line.split()
        if verb == "feed":
            for _ in range(int(*amount)):
                for rank in ranks:
                    rank.feed()
            while not all(rank.is_sent() for rank in ranks):
                time.sleep(0.01)
            answer(json.dumps({"spans": [rank.steps + rank.syncs for rank in ranks]}))
        else:
            for rank in ranks:
                rank.begin_end()
            answer(json.dumps({rank.number: rank.end() for rank in ranks}))
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
