"""What is no trace, or not enough of one, is told in one sentence; the command's exit code is then 2."""

from __future__ import annotations

import gzip
import json

import pytest
from traced import MAIN, training

from syncagent.cli import main
from syncagent.cost import sites, trace
from syncagent.cost.price import price
from syncagent.errors import SyncAgentError


def events(**changed):
    return [{"ph": "X", "ts": 1.0, "dur": 1.0, "pid": 1, "tid": 1, "name": "x", "args": {}, **changed}]


def whole():
    return training().events


def two_processes():
    found = whole()
    return found + [{**event, "pid": 2} for event in found if event["cat"] == "cuda_runtime"]


def two_devices():
    found = whole()
    kernels = [event for event in found if event["cat"] == "kernel"]
    return found + [{**event, "args": {**event["args"], "device": 1}} for event in kernels]


def launches_lost():
    return [
        {**event, "args": {**event["args"], "correlation": 0}} if event["cat"] == "cuda_runtime" else event
        for event in whole()
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"traceEvents": [{"ph": "X", "na', "is not whole JSON, so it is cut off or no trace"),
        (gzip.compress(json.dumps({"traceEvents": whole()}).encode())[:-900], "its gzip stream has no end"),
        (b"\x1f\x8bnot gzip at all", "is cut off"),
        (b"[1, 2]", "is not a Chrome trace: it has no list of events"),
        (b'{"profiles": []}', "is not a Chrome trace: it has no list of events"),
        ({"traceEvents": []}, "is not a trace of torch.profiler"),
        ({"traceEvents": events(cat="browser")}, "is not a trace of torch.profiler"),
        ({"traceEvents": events(cat="cpu_op")}, "has no GPU activity: profile with ProfilerActivity.CUDA"),
        ({"traceEvents": events(cat="cuda_runtime")}, "has no GPU activity: nothing ran on the GPU"),
        ({"traceEvents": [e for e in whole() if e["cat"] == "kernel"]}, "has no calls of the CUDA API"),
        ({"traceEvents": events(cat="hip_runtime")}, "is of an AMD GPU"),
        ({"traceEvents": two_processes()}, "holds 2 processes: give one rank's trace at a time"),
        ({"traceEvents": two_devices()}, "is of 2 GPUs driven by one process"),
        ({"traceEvents": launches_lost()}, "ties no work of the GPU to the calls that launched it"),
        ({"traceEvents": events(cat="kernel", args={"stream": "seven"})}, "is not a trace that torch.profiler wrote"),
        ({"schema": 1}, "is not a whole syncagent report"),
    ],
)
def test_one_sentence_and_exit_code_two(tmp_path, capsys, content, says):
    file = tmp_path / "x.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    assert main(["cost", str(file)]) == 2
    printed = capsys.readouterr().err
    assert says in printed
    assert len(printed.splitlines()) == 1


def test_a_file_that_is_not_there(capsys, tmp_path):
    assert main(["cost", str(tmp_path / "none.json")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_gzip_and_plain_are_both_read(tmp_path):
    values = json.dumps(training().file).encode()
    (tmp_path / "a.json").write_bytes(values)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(values))
    assert len(trace.read(tmp_path / "a.json").ops) == len(trace.read(tmp_path / "a.json.gz").ops) > 100


def test_a_piece_of_a_trace_with_the_backward_pass_alone_is_replayed():
    traced = training(steps=3)
    traced.events.append({"ph": "M", "name": "thread_name", "tid": MAIN, "args": {"name": "pt_autograd_0"}})
    assert price(trace.from_values(traced.file, "a piece"), sites.from_trace).abstained is None


def test_a_bare_list_of_events_is_a_trace_too():
    assert trace.from_values(whole(), "list").bounds


def test_events_without_what_a_trace_has_are_told(tmp_path):
    with pytest.raises(SyncAgentError, match="an event lacks"):
        trace.from_values(events(cat="gpu_memcpy"), "bad")
