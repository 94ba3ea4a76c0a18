"""Tens of spans a second, whatever the program does; the first of each line, and the slowest."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

from syncagent.events import CallSite, Phase, StepRecord, SyncEvent, SyncKind
from syncagent.telemetry.span_budget import FIRST, LINES, MOST, SpanBudget

S = 1_000_000_000


def sync(at_s, stall_ns=1000, line=1, **rest):
    site = CallSite("train.py", line, "step")
    values = (SyncKind.SCALAR_READ, int(at_s * S), stall_ns, site, Phase.OTHER, 0, None, "cuda:0", 0, "t", "kernels")
    return SyncEvent("aten::item", None, *values, **rest)


def test_the_first_of_each_line_get_a_span():
    """However fast they come."""
    budget = SpanBudget()
    assert all(budget.allows(sync(0, line=line)) for line in (1, 2) for _ in range(FIRST))
    assert budget.withheld == 0


def test_then_those_that_are_the_slowest_so_far_in_their_second():
    """So that the worst of each second is always there."""
    budget = SpanBudget(first=0)
    stalls = [5, 3, 5, 7, 6, 9]
    assert [budget.allows(sync(10, stall)) for stall in stalls] == [True, False, False, True, False, True]
    assert budget.allows(sync(11, 2))
    assert budget.withheld == 3


def test_a_thousand_a_second_give_tens_of_spans():
    """Of one line or of hundreds."""
    for lines in (1, 300):
        budget = SpanBudget()
        events = [sync(n / 1000, (n * 7919) % 1000, n % lines) for n in range(60_000)]
        given = sum(budget.allows(event) for event in events)
        assert given <= lines * FIRST + 60 * MOST
        assert given + budget.withheld == 60_000


def test_what_stands_for_many_has_no_span_and_is_counted():
    """A span of summed stalls would lie about when they were."""
    budget = SpanBudget()
    assert not budget.allows(sync(0, repeats=40))
    assert budget.withheld == 40


def picked(budget, per_s, seconds, begin=0):
    """Steps that get a span although none of their syncs does, at a given rate per second."""
    steps = [StepRecord(n, *(begin + at * S // per_s for at in (n, n + 1))) for n in range(per_s * seconds)]
    return {step.step for step in steps if budget.allows_step(step)}


def draw(step):
    return int.from_bytes(sha256(str(step).encode()).digest()[:8], "big")


def test_the_first_steps_have_a_span_and_then_about_one_a_second():
    """The trace view shows that the job lives."""
    steps = picked(SpanBudget(first=5, draw=draw), per_s=20, seconds=300)
    assert {0, 1, 2, 3, 4} <= steps
    assert 100 < len(steps) < 400


def test_steps_that_take_seconds_each_have_one():
    budget = SpanBudget(first=0, draw=draw)
    steps = [StepRecord(n, 3 * n * S, 3 * (n + 1) * S) for n in range(10)]
    assert [budget.allows_step(step) for step in steps][2:] == [True] * 8


def test_ranks_pick_the_same_steps():
    """Though their clocks differ, as here by an hour and a bit; a rank that counts fewer steps a second picks more."""
    one, other = (picked(SpanBudget(first=0, draw=draw), 20, 300, begin) for begin in (0, 3601 * S + S // 3))
    assert len(one) > 100
    assert len(one ^ other) < len(one) / 20
    slow, fast = (picked(SpanBudget(first=0, draw=draw), per_s, 6000 // per_s) for per_s in (16, 20))
    assert {step for step in fast if step > 100} <= slow


def test_each_line_has_one_span_in_a_step_that_is_picked():
    """So that one view shows which rank waited where; of a step with hundreds of lines, the first twenty."""
    budget = SpanBudget(first=0, draw=lambda step: step % 2)
    for n in range(4):
        budget.allows_step(StepRecord(n, n * S // 2, (n + 1) * S // 2))
    for stall in range(MOST):  # nothing is left for the slowest
        assert budget.allows(replace(sync(50, stall_ns=1000 + stall, line=-1), step=1))
    for line in (*range(LINES + 5), *range(LINES)):
        budget.allows(sync(50, stall_ns=2000 + line, line=line))  # step 0
    assert budget.withheld == 5 + LINES
