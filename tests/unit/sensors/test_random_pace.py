"""Looks at random moments are as seldom as their cost asks for."""

from __future__ import annotations

import random

from syncagent.sensors.look_pace import HANDOVER_NS
from syncagent.sensors.random_pace import BETWEEN_NS, SHARE, RandomPace


def test_cheap_looks_come_at_their_mean_time():
    pace = RandomPace()
    for _ in range(1000):
        pace.looked(10_000)
    assert pace.mean_ns == BETWEEN_NS
    gaps = [pace.next_ns() for _ in range(20_000)]
    assert 0.9 * BETWEEN_NS < sum(gaps) / len(gaps) < 1.05 * BETWEEN_NS
    assert max(gaps) <= 4 * BETWEEN_NS


def test_expensive_looks_come_so_seldom_that_they_stay_within_their_share():
    pace = RandomPace()
    for _ in range(1000):
        pace.looked(950_000)
    assert abs((950_000 + HANDOVER_NS) / pace.mean_ns - SHARE) < SHARE / 100
    for _ in range(1000):
        pace.looked(10_000)
    assert pace.mean_ns == BETWEEN_NS


def test_the_programs_random_numbers_stay_as_they_are():
    random.seed(1)
    expected = random.random()
    random.seed(1)
    RandomPace().next_ns()
    assert random.random() == expected
