from __future__ import annotations

import json
from dataclasses import replace

import pytest
from training_run import MASK, backward_sync, report_of, step, sync, whole_report

from syncagent.errors import ConfigError
from syncagent.report.formats.trace import trace
from syncagent.report.merge import merge


def drawn(report, cat=None):
    return [item for item in trace(report)["traceEvents"] if item["ph"] == "X" and cat in {None, item["cat"]}]


def test_a_sync_is_a_slice_of_its_length_at_its_time():
    first, second = drawn(report_of(sync(ms=2, at_ms=10), sync(MASK, ms=0.5, at_ms=20.25)))
    assert (first["name"], first["ts"], first["dur"]) == ("aten::nonzero", 0, 2_000)
    assert (second["ts"], second["dur"]) == (10_250, 500)
    assert second["args"]["where"] == "loss.py:57"


def test_a_sync_has_the_cost_of_its_site():
    report = report_of(sync())
    assert "advice" not in drawn(report)[0]["args"]
    with_cost = replace(report.sites[0], gain_ms=1.5, idle_ms=0.0, advice="write this")
    arguments = drawn(replace(report, sites=(with_cost,)))[0]["args"]
    assert (arguments["site_gain_ms_a_step"], arguments["site_idle_ms_a_step"]) == (1.5, 0.0)
    assert arguments["advice"] == "write this"


def test_a_backward_sync_names_its_forward_line():
    (item,) = drawn(report_of(backward_sync()))
    assert item["args"]["forward"] == "loss.py:57"


def test_steps_have_a_track_of_their_own_that_contains_their_syncs():
    report = report_of(sync(ms=2, at_ms=10), steps=1)
    (one,) = drawn(report, "step")
    (stall,) = drawn(report, "dynamic_shape")
    assert one["ts"] <= stall["ts"]
    assert stall["ts"] + stall["dur"] <= one["ts"] + one["dur"]
    assert one["tid"] != stall["tid"]


def test_every_track_is_named():
    report = merge([whole_report(rank=rank) for rank in (0, 1)])
    values = trace(report)["traceEvents"]
    named = {(item["pid"], item["tid"]): item["args"]["name"] for item in values if item["name"] == "thread_name"}
    assert {(item["pid"], item["tid"]) for item in values if item["ph"] == "X"} == set(named)
    assert sorted(named.values()) == ["MainThread", "MainThread", "autograd", "autograd", "steps", "steps"]
    assert {item["args"]["name"] for item in values if item["name"] == "process_name"} == {
        "rank 0 on node7",
        "rank 1 on node7",
    }


def test_when_it_was_is_kept_to_the_nanosecond():
    assert trace(report_of(sync(), steps=1))["otherData"]["start_ns"] == str(step().start_ns)


def test_it_is_json():
    json.dumps(trace(whole_report()), allow_nan=False)


def test_an_empty_run_draws_nothing():
    assert trace(report_of())["traceEvents"] == []


def test_sums_alone_cannot_be_drawn():
    with pytest.raises(ConfigError, match="cannot be drawn as a trace"):
        trace(replace(whole_report(), events=()))
