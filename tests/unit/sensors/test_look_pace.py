"""Looks cost what they keep a thread from; where that is too much, only longer waits are looked at."""

from __future__ import annotations

from syncagent.sensors.look_pace import GRACE_NS, HANDOVER_NS, LEAST_NS, MOST_NS, LookPace

SECOND = 1_000_000_000


def test_a_look_that_is_over_in_time_costs_a_tenth_of_what_it_took():
    pace = LookPace(0.0025)
    for _ in range(10 * GRACE_NS // 100_000):
        pace.looked(100_000, came_late=False)
    assert not pace.changes(0)
    pace.looked(100_000, came_late=False)
    assert pace.changes(0)
    assert pace.after_ns == 2 * LEAST_NS


def test_a_look_that_comes_late_costs_all_of_it_and_the_way_back():
    pace = LookPace(0.0025)
    pace.looked(GRACE_NS - HANDOVER_NS, came_late=True)
    assert not pace.changes(0)
    pace.looked(0, came_late=True)
    assert pace.changes(0)


def test_the_age_grows_while_looks_cost_too_much_and_falls_when_they_do_not():
    pace = LookPace(0.0025)
    pace.looked(2 * GRACE_NS, came_late=True)
    ages = [pace.after_ns for _ in range(10) if pace.changes(SECOND)]
    assert ages == [200_000, 400_000, 800_000, 1_600_000, 3_200_000, 6_400_000, MOST_NS]
    assert not pace.changes(21 * SECOND)
    assert pace.changes(41 * SECOND)
    assert pace.after_ns == MOST_NS // 2
    while pace.changes(41 * SECOND):
        pass
    assert pace.after_ns == LEAST_NS
