"""torch's own profiler in the middle of a run: it is used only where nothing else profiles, and makes way."""

from __future__ import annotations

import json
import os

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from syncagent.cost import trace
from syncagent.errors import SyncAgentError
from syncagent.torchbridge import profiling
from syncagent.torchbridge.profiling import Capture


def work():
    return (torch.ones(8) @ torch.ones(8)).item()


def test_a_profiler_that_runs_is_seen():
    with profile(activities=[ProfilerActivity.CPU], acc_events=True):  # torch 2.10 warns without
        work()
        assert profiling.why_not() == profiling.ANOTHER
    assert profiling.why_not() != profiling.ANOTHER


def test_a_process_without_a_gpu_has_no_window():
    assert profiling.why_not() == "the process does not use a GPU"


def test_a_capture_has_its_marks_and_no_gpu_here(tmp_path):
    capture = Capture()
    capture.start()
    for number in range(3):
        capture.mark(f"{trace.BOUNDARY} {number}")
        work()
    capture.stop()
    capture.save(str(tmp_path / "t.json"))
    names = {event.get("name") for event in json.loads((tmp_path / "t.json").read_text())["traceEvents"]}
    assert {f"{trace.BOUNDARY} {number}" for number in range(3)} <= names
    with pytest.raises(SyncAgentError, match="no GPU activity"):
        trace.read(tmp_path / "t.json")


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")  # torch 2.10, of any profiler
def test_a_capture_makes_way_for_a_profiler_of_the_programs_own():
    """Else torch would raise in the program's frame: there can be only one."""
    told = []
    capture = Capture(lambda: told.append("gave way"))
    capture.start()
    with profile(activities=[ProfilerActivity.CPU]) as own, record_function("mine"):
        work()
    assert told == ["gave way"]
    assert not capture.running
    assert any(event.key == "mine" for event in own.key_averages())


def test_a_capture_that_has_ended_leaves_nothing_behind():
    before = torch.autograd.profiler.profile._prepare_trace, dict(os.environ)
    capture = Capture()
    capture.start()
    capture.stop()
    assert (torch.autograd.profiler.profile._prepare_trace, dict(os.environ)) == before


def test_cupti_is_given_back_unless_somebody_has_decided_otherwise(monkeypatch):
    seen = []
    stop = profile.stop
    monkeypatch.setattr(profile, "stop", lambda self: (seen.append(os.environ.get("TEARDOWN_CUPTI")), stop(self)))
    monkeypatch.delenv("TEARDOWN_CUPTI", raising=False)
    for decided in (None, "0"):
        if decided:
            monkeypatch.setenv("TEARDOWN_CUPTI", decided)
        capture = Capture()
        capture.start()
        capture.stop()
    assert seen == ["1", "0"]
