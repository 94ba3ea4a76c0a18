"""Tens of spans a second, whatever the program does; the first of each line, and the slowest."""

from __future__ import annotations

from syncagent.event import CallSite, Phase, StepRecord, SyncEvent, SyncKind
from syncagent.sinks.ration import FIRST, MOST, Ration

S = 1_000_000_000


def sync(at_s, stall_ns=1000, line=1, **rest):
    site = CallSite("train.py", line, "step")
    values = (SyncKind.SCALAR_READ, int(at_s * S), stall_ns, site, Phase.OTHER, 0, None, "cuda:0", 0, "t", "kernels")
    return SyncEvent("aten::item", None, *values, **rest)


def test_the_first_of_each_line_get_a_span():
    """However fast they come."""
    ration = Ration()
    assert all(ration.wants(sync(0, line=line)) for line in (1, 2) for _ in range(FIRST))
    assert ration.withheld == 0


def test_then_those_that_are_the_slowest_so_far_in_their_second():
    """So that the worst of each second is always there."""
    ration = Ration(first=0)
    stalls = [5, 3, 5, 7, 6, 9]
    assert [ration.wants(sync(10, stall)) for stall in stalls] == [True, False, False, True, False, True]
    assert ration.wants(sync(11, 2))
    assert ration.withheld == 3


def test_a_thousand_a_second_give_tens_of_spans():
    """Of one line or of hundreds."""
    for lines in (1, 300):
        ration = Ration()
        events = [sync(n / 1000, (n * 7919) % 1000, n % lines) for n in range(60_000)]
        given = sum(ration.wants(event) for event in events)
        assert given <= lines * FIRST + 60 * MOST
        assert given + ration.withheld == 60_000


def test_what_stands_for_many_has_no_span_and_is_counted():
    """A span of summed stalls would lie about when they were."""
    ration = Ration()
    assert not ration.wants(sync(0, repeats=40))
    assert ration.withheld == 40


def test_a_step_without_a_span_inside_has_one_at_the_start_and_then_each_second():
    """The trace view shows that the job lives."""
    ration = Ration(first=2)
    steps = [StepRecord(n, n * S // 4, (n + 1) * S // 4 - 1) for n in range(12)]
    assert [ration.wants_step(step) for step in steps] == [True, True, *[False] * 2, *[True, False, False, False] * 2]
