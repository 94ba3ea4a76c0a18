"""Which steps are watched for copies, and what one copy that was seen stands for."""

from __future__ import annotations

import pytest

from syncagent.sensors.copies import CopySampling


def watched(steps, sampling=None):
    sampling = sampling or CopySampling(on=True)
    return [step for step in steps if sampling.watches(step)]


def test_the_first_steps_are_watched_then_one_in_sixteen_and_later_one_in_sixty_four():
    assert watched(range(4)) == [0, 1, 2, 3]
    assert len(watched(range(4, 16))) == 1
    for begin in range(16, 256, 16):
        assert len(watched(range(begin, begin + 16))) == 1
    for begin in range(256, 4096, 64):
        assert len(watched(range(begin, begin + 64))) == 1


@pytest.mark.parametrize("steps", [48, 256, 1024, 64_000])
def test_a_copy_in_every_step_is_counted_exactly(steps):
    sampling = CopySampling(on=True)
    assert sum(sampling.weight(step) for step in watched(range(steps), sampling)) == steps


@pytest.mark.parametrize("period", [2, 5, 8, 10, 16, 50, 64, 100])
def test_a_copy_at_regular_steps_is_neither_missed_nor_met_each_time(period):
    """Where the sampled steps are evenly spaced, one in 16 of them would be met always or never."""
    sampling = CopySampling(on=True)
    steps = 200_000
    seen = sum(sampling.weight(step) for step in watched(range(0, steps, period), sampling))
    assert seen == pytest.approx(steps / period, rel=0.25)


def test_where_all_are_watched_each_stands_for_itself_and_nothing_is_turned_on_or_off():
    sampling = CopySampling(on=False)
    assert watched(range(100), sampling) == list(range(100))
    assert {sampling.weight(step) for step in range(100)} == {1.0}
    assert not sampling.has_work


def test_a_change_counts_from_its_step_on():
    """Under a policy that began to raise, all are watched; what was seen before is scaled up as it was sampled."""
    sampling = CopySampling(on=True)
    sampling.change(100, on=False)
    assert sampling.watches(101)
    assert (sampling.weight(99), sampling.weight(100), sampling.has_work) == (16.0, 1.0, True)
