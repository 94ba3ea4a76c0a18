from __future__ import annotations

from syncagent.recording.collectives import CollectiveWaits, StepWait


def waits_of(*steps, joins=()) -> CollectiveWaits:
    waits = CollectiveWaits()
    for moment_ns, waited_ns, *facts in joins:
        waits.add(moment_ns=moment_ns, waited_ns=waited_ns, **dict.fromkeys(facts, True))
    for step in steps:
        waits.step_ended(*step)
    return waits


def test_a_step_is_whole_once_a_later_join_has_been_passed():
    waits = waits_of((0, 0, 100), joins=[(10, 5), (90, 7)])
    assert waits.take() == []  # there may be more joins of it on the GPU
    waits.step_ended(1, 100, 200)
    waits.add(moment_ns=150, waited_ns=3)
    assert waits.take() == [StepWait(0, 0, 12, 2)]
    assert waits.take() == []


def test_a_step_without_joins_is_left_out():
    waits = waits_of((0, 0, 100), (1, 100, 200), (2, 200, 300), joins=[(10, 5), (250, 1), (310, 9)])
    waits.step_ended(3, 300, 400)
    assert waits.take() == [StepWait(0, 0, 5, 1), StepWait(2, 200, 1, 1)]


def test_joins_between_steps_belong_to_none():
    waits = waits_of((0, 0, 100), (1, 150, 200), joins=[(50, 1), (120, 1000), (160, 2), (260, 0)])
    waits.step_ended(2, 250, 300)
    assert waits.take() == [StepWait(0, 0, 1, 1), StepWait(1, 150, 2, 1)]


def test_waits_count_if_the_gpu_is_still_behind_or_the_host_has_waited():
    """Else the GPU would have had to wait for its own host."""
    joins = [
        (10, 5), (20, 7),
        (110, 100),  # the GPU is a step behind: all of the first counts
        (210, 30, "caught_up"), (220, 40),  # it has caught up: nothing of the second does
        (310, 8, "caught_up", "host_waited"),  # it has because the host has waited for it
        (320, 900), (330, 2, "caught_up"),
        (410, 0),
    ]  # fmt: skip
    waits = waits_of(*((step, 100 * step, 100 * step + 100) for step in range(5)), joins=joins)
    assert waits.take() == [
        StepWait(0, 0, 5 + 7, 2), StepWait(1, 100, 0, 1), StepWait(2, 200, 30 + 40, 2), StepWait(3, 300, 2, 3),
    ]  # fmt: skip


def test_a_process_without_collectives_keeps_nothing():
    waits = waits_of(*((step, step, step + 1) for step in range(10)))
    waits.add(moment_ns=3, waited_ns=1)
    waits.add(moment_ns=20, waited_ns=1)
    assert waits.take() == []


def ahead(behind_ns, waited_ns=40):
    """Steps of 100 ns with a join in each, at which the GPU is so far behind its host, and then waits."""
    waits = CollectiveWaits()
    for step, ns in enumerate(behind_ns):
        waits.add(moment_ns=100 * step + 50, waited_ns=waited_ns, behind_ns=ns)
        waits.step_ended(step, 100 * step, 100 * step + 100)
    return [step.waited_ns for step in waits.take()]


def test_a_host_that_is_ahead_and_no_faster_than_the_others_is_not_delayed_by_what_its_gpu_waits():
    """As much as it is ahead, it is delayed once: without the waits the GPU would have caught up with it by then."""
    assert ahead([100] * 8) == [40, 40, 20, 0, 0, 0, 0]


def test_a_host_that_gets_further_and_further_ahead_is_delayed_by_as_much():
    assert ahead([100 + 40 * step for step in range(8)]) == [40] * 7
    assert ahead([30 * step for step in range(8)]) == [30] * 7


def test_a_host_that_has_waited_for_the_gpu_begins_anew():
    waits = CollectiveWaits()
    for step in range(6):
        waits.add(moment_ns=100 * step + 50, waited_ns=40, behind_ns=45, host_waited=True)
        waits.step_ended(step, 100 * step, 100 * step + 100)
    assert [step.waited_ns for step in waits.take()] == [40] * 5
