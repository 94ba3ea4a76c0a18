"""The Collector ends and comes back while jobs send to it: they go on, and every sync and span is accounted for.

What the agent counts as delivered is what the Collector has answered for, and this one answers once it has written.  So
with SIGTERM, after which it still answers what it has begun, the two agree to a span.  With SIGKILL it may have written
a batch and be killed before its answer: the agent cannot know of that, sends the batch again, or counts it as lost in
the end.  Then what was delivered is a lower limit of what is there, and what is there twice is no more than a batch.
"""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections import Counter

import pytest
from keeping import Kept, start, total

from tests.forked import Forker

import services  # isort: skip

SCRIPT = """\
import sys
import time
from pathlib import Path
import torch
from torch import nn

torch.manual_seed(0)
net = nn.Linear(16, 4).to("cuda")
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
steps = 0
while steps < 100 or not Path("stop").exists():
    y = net(torch.ones(32, 16, device="cuda"))
    loss = y[y > 0].sum()
    torch.unique(y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    steps += 1
    if steps == 100:
        result = loss.detach().clone()
    if not Path("stop").exists():
        time.sleep(0.03)
print("loss", result.item())
"""
BATCH = 16
PROTOCOLS = {"http": "http/protobuf", "grpc": "grpc"}


class Job:
    """One that sends often, in small batches, until it is told to stop."""

    def __init__(self, forker, name, folder, variables):
        self.name, self._folder = name, folder
        folder.mkdir()
        (folder / "train.py").write_text(SCRIPT)
        own = {
            "SYNCAGENT_REPORT": str(folder / "report.json"),
            "OTEL_SERVICE_NAME": name,
            "OTEL_EXPORTER_OTLP_PROTOCOL": PROTOCOLS[name],
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": str(BATCH),
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
        }
        self._thread = threading.Thread(target=self._run, args=(forker, variables | own))
        self._thread.start()

    def _run(self, forker, variables):
        self._done = forker.run("train.py", cwd=self._folder, **variables)

    def stop(self):
        (self._folder / "stop").touch()

    def end(self):
        """Wait for it; then ``out`` is what it printed, and the rest is what the agent says of it."""
        self._thread.join()
        assert self._done.returncode == 0, self._done.stderr
        lines = self._done.stderr.splitlines()
        self.out = self._done.stdout
        self.report = json.loads((self._folder / "report.json").read_text())
        self.syncs = self.report["totals"]["syncs"]
        self.complaints = [line for line in lines if line.startswith("[syncagent]")]
        (line,) = [line for line in lines if line.startswith("spans: ")]
        self.sent, self.lost, self.without = (
            int(found[1].replace(",", "")) if (found := re.search(pattern, line)) else 0
            for pattern in (r"\(([\d,]+) sent", r" ([\d,]+) lost", r"; ([\d,]+) syncs have no span")
        )


class Lives:
    """A Collector that is ended and started again at the same ports, and what it has written over all of them."""

    def __init__(self, folder):
        self._folder, self._folders, self._ports = folder, [], services.Ports()

    def begin(self):
        self._folders.append(self._folder / f"life{len(self._folders)}")
        self.service = start(self._folders[-1], self._ports)

    def end(self, how):
        self.service.process.send_signal(how)
        self.service.process.wait(30)

    def endpoint(self, name):
        return self.service.grpc if name == "grpc" else self.service.otlp

    def have_all(self):
        """Whether this life has spans and metrics of all jobs."""
        kept = Kept(self._folders[-1])
        return all(
            {one["resource"]["service.name"] for one in of_signal} == set(PROTOCOLS)
            for of_signal in (kept.spans(), kept.points())
        )

    def of(self, job):
        kept = Kept(*self._folders)
        return (
            [span for span in kept.spans() if span["resource"]["service.name"] == job.name],
            [point for point in kept.points() if point["resource"]["service.name"] == job.name],
        )


@pytest.fixture(scope="module")
def forkers(tmp_path_factory):
    both = {name: Forker(tmp_path_factory.mktemp(name)) for name in PROTOCOLS}
    yield both
    for forker in both.values():
        forker.stop()


@pytest.fixture(scope="module")
def result(forkers, environ, tmp_path_factory):
    """What the job prints where nothing is sent."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "train.py").write_text(SCRIPT)
    (folder / "stop").touch()
    done = forkers["http"].run("train.py", cwd=folder, **environ, OTEL_TRACES_EXPORTER="none")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def lives(tmp_path):
    one = Lives(tmp_path / "collector")
    one.begin()
    yield one
    one.service.stop()


@pytest.fixture
def run(environ, tmp_path, lives, forkers, result, until):
    """Jobs over both protocols at once; the Collector goes for some seconds while they send."""
    jobs = []

    def begin(how, away_s, **variables):
        for name, forker in forkers.items():
            own = {"OTEL_EXPORTER_OTLP_ENDPOINT": lives.endpoint(name)}
            jobs.append(Job(forker, name, tmp_path / name, environ | own | variables))
        until(lives.have_all)
        time.sleep(1)
        lives.end(how)
        time.sleep(away_s)
        lives.begin()
        until(lives.have_all)
        for job in jobs:
            job.stop()
        for job in jobs:
            job.end()
        assert [job.out for job in jobs] == [result] * len(jobs)
        return jobs

    yield begin
    for job in jobs:
        job.stop()


def test_with_sigterm_nothing_is_lost_and_nothing_comes_twice(run, lives):
    for job in run(signal.SIGTERM, 1.0, OTEL_EXPORTER_OTLP_TIMEOUT="60"):  # a Collector may take long to start
        spans, points = lives.of(job)
        of_syncs = [span for span in spans if span["name"] != "train.step"]
        assert job.complaints == []
        assert len({span["id"] for span in spans}) == len(spans) == job.sent
        assert len(of_syncs) + job.without == job.syncs == total(points, "syncagent.syncs")
        assert total(points, "syncagent.spans.dropped") == total(points, "syncagent.events.dropped") == job.lost == 0


def test_with_sigkill_what_is_lost_is_counted(run, lives):
    """Away for longer than the agent tries again, and than there is room for in its queue."""
    for job in run(signal.SIGKILL, 3.0, OTEL_EXPORTER_OTLP_TIMEOUT="1", OTEL_BSP_MAX_QUEUE_SIZE="32"):
        spans, points = lives.of(job)
        times = Counter(span["id"] for span in spans)
        made_of_syncs = job.syncs - job.without
        made_of_steps = job.sent + job.lost - made_of_syncs
        assert 0 < made_of_steps <= job.report["run"]["steps"] + 1  # what comes after the last step has one, too
        assert job.sent <= len(times) <= min(job.sent + BATCH, job.sent + job.lost)
        assert sum(times.values()) - len(times) <= BATCH
        (said,) = job.complaints
        assert "spans are being lost; training goes on, reported once" in said
        assert any(note.startswith(f"{job.lost:,} spans were lost") for note in job.report["notes"])
        # Metrics have everything since the start, whatever has happened in between.
        assert total(points, "syncagent.syncs") == job.syncs
        assert total(points, "syncagent.spans.dropped") == job.lost > 0
        assert total(points, "syncagent.events.dropped") == 0
