"""The window: warm-up, steps without the profiler, a capture, an estimate; and what keeps it from all that."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest
from traced import training

import syncagent
from syncagent.cost import window as windows
from syncagent.cost.window import Window
from syncagent.delivery.buffers import BufferReader
from syncagent.events import CallSite, Phase, SyncEvent, SyncKind
from syncagent.runtime.agent import ProcessAgent
from syncagent.settings.sources import load
from syncagent.support.faults import Faults

ITEM = CallSite("train.py", 12, "train", "losses.append(loss.item())")


class FakeGpu:
    """Stands in for torch.profiler and the driver: the file that it saves is a made-up trace."""

    def __init__(self, monkeypatch, traced=None, why=None):
        self.did: list[str] = []
        self.why = why
        self.traced = traced or training()
        self.error: Exception | None = None
        monkeypatch.setattr(windows.profiling, "why_not", lambda: self.why)
        monkeypatch.setattr(windows.profiling, "drain", lambda: self.did.append("drain"))
        monkeypatch.setattr(windows.profiling, "Capture", lambda _gave_way: self)

    def start(self):
        self.did.append("start")
        if self.error:
            raise self.error

    def mark(self, name):
        self.did.append(name)

    def stop(self):
        self.did.append("stop")

    def save(self, path):
        with open(path, "w") as file:
            json.dump(self.traced.file, file)


def events_of(traced):
    """The agent's events for each item() in the trace."""
    return [
        (
            SyncEvent(
                "aten::_local_scalar_dense", None, SyncKind.SCALAR_READ, round(event["ts"] * 1e3),
                round(event["dur"] * 1e3), ITEM, Phase.OTHER, 0, None, "cuda:0", 0, "MainThread", "kernels",
            ),
            7,
        )
        for event in traced.events if event["name"] == "aten::item"
    ]  # fmt: skip


def run(window, steps):
    for _ in range(steps):
        window.step_ended()


@pytest.fixture
def measured(monkeypatch):
    """Ten steps without the profiler take what the trace says: 1.07 ms each."""
    readings = iter([0])
    clock = SimpleNamespace(perf_counter_ns=lambda: next(readings, 10_700_000), time_ns=lambda: 0)
    monkeypatch.setattr(windows, "time", clock)
    monkeypatch.setattr(windows, "_PLAIN_S", 0.0)


def test_it_times_steps_between_drains_then_captures_one_step_more_than_asked_for(monkeypatch):
    gpu = FakeGpu(monkeypatch)
    monkeypatch.setattr(windows, "_PLAIN_S", 0.0)
    window = Window(5, 3, lambda _: [], Faults())
    run(window, 3)
    assert gpu.did == ["drain"]
    run(window, 10)
    assert gpu.did[1:3] == ["drain", "start"]
    assert window.capturing
    run(window, 6)
    assert not window.capturing
    marks = [name for name in gpu.did if name.startswith("syncagent#step")]
    assert marks == [f"syncagent#step {number}" for number in range(7)]
    assert gpu.did[-2:] == ["drain", "stop"]


def test_the_cost_is_matched_to_the_agents_own_events(monkeypatch, measured):
    traced = training()
    FakeGpu(monkeypatch, traced)
    window = Window(5, 1, lambda _: events_of(traced), Faults())
    run(window, 30)
    found = window.estimate()
    assert window.why is None
    assert found.abstained is None
    (site,) = found.sites
    assert (site.site.file, site.site.line, site.site.row) == ("train.py", 12, 7)
    assert site.site.source == ITEM.source
    assert found.unmatched == 0
    assert found is window.estimate()  # replayed once


def test_the_file_is_gone_afterwards(monkeypatch, measured, tmp_path):
    monkeypatch.setattr(windows.tempfile, "tempdir", str(tmp_path))
    FakeGpu(monkeypatch)
    window = Window(5, 1, lambda _: [], Faults())
    run(window, 30)
    assert len(os.listdir(tmp_path)) == 1
    window.estimate()
    assert os.listdir(tmp_path) == []


def test_another_profiler_is_respected(monkeypatch):
    gpu = FakeGpu(monkeypatch, why="another profiler is running in this process, and there can be only one")
    window = Window(5, 1, lambda _: [], Faults())
    run(window, 30)
    assert gpu.did == []
    assert window.estimate() is None
    assert window.why.startswith("another profiler is running")


def test_a_profiler_that_fails_closes_the_window_and_nothing_else(monkeypatch):
    gpu = FakeGpu(monkeypatch)
    gpu.error = RuntimeError("CUPTI is busy")
    faults = Faults()
    monkeypatch.setattr(windows, "_PLAIN_S", 0.0)
    window = Window(5, 1, lambda _: [], faults)
    run(window, 30)
    assert window.why == "the window failed: CUPTI is busy"
    assert "the cost window failed" in faults.sentences[0]


def test_a_run_that_ends_too_soon_says_how_many_steps_it_takes(monkeypatch):
    FakeGpu(monkeypatch)
    window = Window(5, 3, lambda _: [], Faults())
    run(window, 8)
    window.end()
    assert window.why == "the run ended before the window: it opens after 3 steps and takes up to 66"


def test_a_trace_that_cannot_be_read_is_reported(monkeypatch, measured):
    gpu = FakeGpu(monkeypatch)
    gpu.traced.events = []
    window = Window(5, 1, lambda _: [], Faults())
    run(window, 30)
    assert window.estimate() is None
    assert window.why.startswith("the window's trace is not a trace of torch.profiler")


@pytest.fixture
def opened(monkeypatch):
    """The windows that agents have opened, the newest last."""
    made = []
    monkeypatch.setattr(windows, "Window", lambda *words: made.append(Window(*words)) or made[-1])
    return made


class TestAgent:
    def report(self, **settings):
        with syncagent.watch(**settings) as agent:
            pass
        return agent.report()

    def test_cost_without_a_gpu_says_why_there_is_none(self):
        assert self.report(cost=True).cost.abstained.startswith("the run ended before the window")

    def test_without_cost_the_report_has_no_cost(self):
        assert self.report().cost is None

    def test_cost_makes_syncs_the_default_detail(self):
        assert load({"cost": True}).detail_in_force == "syncs"
        assert load().detail_in_force == "auto"

    def test_ops_and_cost_do_not_go_together(self):
        assert 'detail is "ops"' in self.report(cost=True, detail="ops").cost.abstained
        with syncagent.watch(detail="ops") as agent, pytest.raises(syncagent.ConfigError, match="detail"):
            agent.measure_cost()

    def test_measure_cost_takes_a_number_of_steps(self, opened):
        agent = ProcessAgent(load({"detail": "syncs"}))
        agent.measure_cost(steps=8)
        assert opened[-1].steps == 8
        with pytest.raises(syncagent.ConfigError, match="cost_steps"):
            agent.measure_cost(steps=0)

    @pytest.mark.parametrize("steps", [13, 30], ids=["while the first captures", "after it"])
    def test_a_window_that_is_asked_for_later_takes_the_place_of_the_first(
        self, monkeypatch, measured, opened, tmp_path, steps
    ):
        """Left running, the first one's profiler would slow the job and be another profiler to the second."""
        monkeypatch.setattr(windows.tempfile, "tempdir", str(tmp_path))
        gpu = FakeGpu(monkeypatch)
        agent = ProcessAgent(load({"detail": "syncs"}))
        agent.measure_cost()
        run(opened[-1], steps)
        agent.measure_cost()
        assert (gpu.did.count("start"), gpu.did.count("stop")) == (1, 1)
        assert os.listdir(tmp_path) == []
        assert [window.capturing for window in opened] == [False, False]

    def test_the_cost_lands_in_the_reports_columns(self, monkeypatch, measured, opened):
        traced = training()
        FakeGpu(monkeypatch, traced)
        agent = ProcessAgent(load({"detail": "syncs", "cost_steps": 5}))
        agent.measure_cost()
        given = [[event for event, _ in events_of(traced)]]
        monkeypatch.setattr(BufferReader, "take_events", lambda _: given.pop() if given else [])
        run(opened[-1], 30)
        report = agent.report()
        (site,) = report.sites
        assert report.cost.abstained is None
        assert site.gain_ms == pytest.approx(report.cost.gain_all_ms)
        assert site.idle_ms > 0
        assert site.advice.startswith("not waiting here gains")
        assert report.cost.order[0].site == site.id
        assert type(report).from_dict(json.loads(json.dumps(report.to_dict()))) == report
