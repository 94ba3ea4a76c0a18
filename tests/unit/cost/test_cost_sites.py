"""A wait is tied to the line that made it: by the agent's events, or by what the trace says."""

from __future__ import annotations

import json

import pytest
import torch
from traced import AUTOGRAD, MAIN, Traced, training

from syncagent.cost import sites, trace
from syncagent.cost.program import build
from syncagent.events import CallSite, Phase, SyncEvent, SyncKind


def waits_of(traced):
    whole = trace.from_values(traced.file, "made up")
    bounds = whole.bounds or [whole.calls[0].start, whole.calls[-1].end + 1]
    return whole, build(whole, bounds).waits


def event(start_us, stall_us, line, thread="MainThread", **more):
    site = CallSite("a.py", line, "f", more.pop("source", ""))
    return SyncEvent(
        "aten::nonzero", None, SyncKind.DYNAMIC_SHAPE, round(start_us * 1e3), round(stall_us * 1e3), site,
        Phase.FORWARD, 0, None, "cuda:0", 0, thread, "kernels", **more,
    )  # fmt: skip


def test_time_ties_a_wait_to_the_event_around_it():
    traced = training(items=2)
    whole, waits = waits_of(traced)
    events = [(event(wait.start - 10, 100, 10 + number % 2), number % 2) for number, wait in enumerate(waits)]
    places = sites.from_events(whole, waits, events)
    assert [place.line for place in places] == [10 + number % 2 for number in range(len(waits))]


def test_a_wait_that_no_event_covers_stays_untied():
    whole, waits = waits_of(training())
    assert sites.from_events(whole, waits, [(event(waits[0].start - 5_000, 10, 1), 0)])[0] is None


def test_threads_that_wait_at_the_same_time_are_distinguished():
    """Two threads wait at once, again and again; each event goes with its own thread's wait."""
    traced = Traced()
    events = []
    for number in range(6):
        traced.launch(200.0)
        began = traced.now
        traced.wait()
        events.append((event(began - 2, traced.now - began, 1, "MainThread"), 0))
        if number % 2:
            other = began + 1.0
            traced.event("cuda_runtime", "cudaStreamSynchronize", other, traced.now - other, 300, correlation=0)
            events.append((event(other - 2, traced.now - other, 2, "reader"), 1))
        traced.host(500.0)
    whole, waits = waits_of(traced)
    for wait, place in zip(waits, sites.from_events(whole, waits, events), strict=True):
        assert place.line == (2 if wait.call.thread == 300 else 1)


def test_a_backward_sync_is_placed_at_its_forward_line():
    whole, waits = waits_of(training())
    forward = CallSite("loss.py", 57, "masked", "logits[mask]")
    found = sites.from_events(whole, waits, [(event(waits[0].start - 5, 100, 88, forward_site=forward), 3)])
    assert (found[0].file, found[0].line, found[0].row) == ("loss.py", 57, 3)


def test_stacks_in_the_trace_give_the_innermost_function_of_the_users_own():
    """The number in ``train.py(88): main`` is where ``main`` begins, so it is not given out as the line that waits."""
    traced = training(steps=1)
    for name in ("/home/ada/proj/train.py(88): main", "/usr/lib/python3.12/site-packages/torch/_tensor.py(40): item"):
        traced.event("python_function", name, 900.0, 1e7)
    whole, waits = waits_of(traced)
    place = sites.from_trace(whole, waits)[0]
    assert (place.file, place.line, place.function_line, place.function) == ("/home/ada/proj/train.py", 0, 88, "main")


SOURCE = """\
import torch

@torch.no_grad()
def train(loss, other):
    log = []

    if loss.item() > 3:
        return loss.cpu()

    def inner():
        return loss.cpu()

    log.append(float(other))
    log.append(float(loss))
"""


@pytest.mark.parametrize(
    ("named", "called", "line"),
    [(3, "item", 7), (8, "item", 7), (3, "cpu", 8), (3, "float", 0), (3, "numpy", 0), (11, "item", 0)],
    ids=["one call", "frame that ran already", "not that of a function inside", "two calls", "none", "inner frame"],
)
def test_where_the_source_is_here_and_one_line_makes_the_call_that_line_is_known(tmp_path, named, called, line):
    file = tmp_path / "train.py"
    file.write_text(SOURCE)
    traced = training(steps=1)
    function = "train" if named < 11 else "inner"
    for name in (f"{file}({named}): {function}", f"<built-in method {called} of Tensor object at 0x7f5a>"):
        traced.event("python_function", name, 900.0, 1e7)
    place = sites.from_trace(*waits_of(traced))[0]
    assert (place.line, place.function_line) == (line, 0 if line else named)
    assert place.source == ("" if not line else SOURCE.splitlines()[line - 1].strip())
    assert sites.branches(place) == (line == 7)


def test_a_trace_that_torch_writes_names_functions_not_lines(tmp_path):
    """What the look-up of lines is for; if torch comes to write lines, it can go."""

    def reads(x):
        y = x + 1
        return y.item()

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], with_stack=True) as profiler:
        reads(torch.ones(()))
    profiler.export_chrome_trace(str(tmp_path / "t.json"))
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    (named,) = {event["name"] for event in events if event["name"].endswith(": reads")}
    assert f"({reads.__code__.co_firstlineno}): " in named


def test_the_number_of_a_step_in_the_name_of_a_range_does_not_make_a_site():
    def place(*ranges, **more):
        return sites.WaitSite("aten::item", "scalar_read", ranges=ranges, **more)

    assert place("step 1").key == place("step 22").key != place("epoch 1").key
    assert place("train_batch/Iteration_1").key == place("train_batch/Iteration_12").key
    assert place("layer 1").key != place("layer 2").key
    assert place("loss", file="a.py", line=3).key == place("accuracy", file="a.py", line=3).key
    assert place("step 1", row=4).key == place("warm-up", row=4).key != place("step 1", row=5).key


def test_without_stacks_the_annotation_decides():
    traced = training(steps=1)
    traced.event("user_annotation", "log the loss", 900.0, 1e7)
    whole, waits = waits_of(traced)
    place = sites.from_trace(whole, waits)[0]
    assert (place.ranges, place.op, place.file) == (("log the loss",), "aten::item", "")


def test_ranges_of_another_thread_do_not_count():
    traced = training(steps=1)
    traced.event("user_annotation", "elsewhere", 900.0, 1e7, AUTOGRAD)
    whole, waits = waits_of(traced)
    assert sites.from_trace(whole, waits)[0].ranges == ()
    assert {wait.call.thread for wait in waits} == {MAIN}


def test_only_a_decision_by_the_value_counts_as_a_branch():
    def place(source, kind="scalar_read", op="aten::item"):
        return sites.WaitSite(op, kind, source=source)

    assert sites.branches(place("if loss.isnan():"))
    assert sites.branches(place("assert mask.any()"))
    assert sites.branches(place("stop = bool(bad)", op="aten::is_nonzero"))
    assert sites.branches(place("lr = small if loss.item() > 3 else large"))
    assert sites.branches(place("for box in range(int(count)):"))
    assert not sites.branches(place("value = x.item() if torch.is_tensor(x) else x"))
    assert not sites.branches(place("losses.append(loss.item())"))
    assert not sites.branches(place("if mask[x].numel():", kind="dynamic_shape"))
