"""A file that is no trace, or not enough of one, is refused in one sentence; the exit code is then 2."""

from __future__ import annotations

import copy
import gzip
import json
import math
import os
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from traced import MAIN, training

from syncagent.cli import main
from syncagent.cost import sites, trace
from syncagent.cost.estimate import estimate
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
        ({"traceEvents": launches_lost()}, "links no work of the GPU to the calls that launched it"),
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
    assert estimate(trace.from_values(traced.file, "a piece"), sites.from_trace).abstained is None


def test_a_bare_list_of_events_is_a_trace_too():
    assert trace.from_values(whole(), "list").bounds


def test_events_that_lack_what_a_trace_has_are_reported(tmp_path):
    with pytest.raises(SyncAgentError, match="an event lacks"):
        trace.from_values(events(cat="gpu_memcpy"), "bad")


# --- whatever is in the file ------------------------------------------------------------------------------------------

FILE = training(steps=4, kernels=4).file
EVENTS = FILE["traceEvents"]
KEYS = ["ph", "cat", "name", "ts", "dur", "pid", "tid", "args", "stream", "device", "correlation", "bytes"]
ODD = st.sampled_from(
    [
        math.nan, math.inf, -math.inf, 1e308, 1e17, 10**400, "9" * 5000, 2**64, -1, 0, 0.5, "nan", "x", "\ud800",
        "\x1b[2J", "\x9b2J", "", None, True, [], {}, [1], {"stream": 1}, "7", "M", "X",
    ]
)  # fmt: skip


def asked(capsys, file, *options):
    """The exit code; checked for what may never come."""
    code = main(["cost", str(file), *options])
    out, err = capsys.readouterr()
    assert "error of syncagent's own" not in err
    assert len(err.splitlines()) == (code == 2)
    assert (out + err).replace("\n", "").isprintable()
    out.encode()
    return code, err


@settings(
    max_examples=100, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(
    changes=st.lists(st.tuples(st.integers(0, len(EVENTS) - 1), st.sampled_from(KEYS), ODD), min_size=1, max_size=3),
    base_ns=st.just(0) | ODD,
)
def test_a_trace_with_wrong_values_is_replayed_or_refused(changes, base_ns, tmp_path, capsys):
    """With exit code 0 or 2, and never a traceback."""
    events = copy.deepcopy(EVENTS)
    for number, key, value in changes:
        event = events[number]
        place = event["args"] if key in KEYS[8:] and isinstance(event["args"], dict) else event
        place[key] = value
    (tmp_path / "x.json").write_text(json.dumps({**FILE, "traceEvents": events, "baseTimeNanoseconds": base_ns}))
    for form in ("text", "json"):
        assert asked(capsys, tmp_path / "x.json", "--format", form)[0] in {0, 2}


@pytest.mark.parametrize("kind", ["pipe", "device", "directory", "huge"])
def test_a_path_with_no_readable_trace_is_refused_at_once(kind, tmp_path, capsys):
    path = tmp_path / "x.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    else:
        with path.open("wb") as stream:
            stream.truncate(2**40)
    assert asked(capsys, path)[0] == 2


def test_what_unpacks_to_more_than_is_allowed_is_refused_before_it_is_unpacked(tmp_path, capsys):
    """And may be allowed."""
    packer = zlib.compressobj(wbits=31)
    spaces = b" " * 2**20
    packed = b"".join(packer.compress(spaces) for _ in range(40)) + packer.compress(json.dumps(FILE).encode())
    (tmp_path / "x.json.gz").write_bytes(packed + packer.flush())
    code, sentence = asked(capsys, tmp_path / "x.json.gz", "--memory", "0.1")
    assert code == 2
    assert "it has more than 25 MiB once it is unpacked; allow more with --memory GIB" in sentence
    assert asked(capsys, tmp_path / "x.json.gz", "--memory", "0.5")[0] == 0


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="only Linux says how much memory a process has")
@pytest.mark.parametrize("unit", [b"[],", b'{"a":[]},', b"1.5,"])
def test_what_takes_more_memory_than_is_allowed_is_refused(unit, tmp_path, capsys):
    """Small text can be large values."""
    (tmp_path / "x.json").write_bytes(b"[" + unit * (24_000_000 // len(unit)) + b"0]")
    code, sentence = asked(capsys, tmp_path / "x.json", "--memory", "0.1")
    assert code == 2
    assert "that takes more than 0.1 GiB of memory; allow more with --memory GIB" in sentence
