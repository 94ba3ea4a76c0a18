"""Which sites have a series of their own, and that nothing is lost when that changes."""

from __future__ import annotations

import random
import time

import pytest

from syncagent.telemetry.series import SeriesTable

BOUNDS = (0.001, 0.1)
BEGAN_NS = time.time_ns()


@pytest.fixture
def table():
    return SeriesTable(BOUNDS, 3, BEGAN_NS)


def add(table, key, times=1, total_s=0.01):
    for _ in range(times):
        table.of(key, 1, lambda: {"syncagent.op": key}).add(total_s, 1)


def counts(table):
    return {series.attributes["syncagent.op"]: series.count for series in table.taken()}


def test_the_first_have_their_own_and_the_rest_is_one(table):
    for key in "abcdeded":
        add(table, key)
    assert counts(table) == {"a": 1, "b": 1, "c": 1, "other": 5}
    assert table.folded == 2


def test_one_that_turns_out_hot_takes_the_place_of_the_coldest(table):
    """A line that is reached late in the run, when lines of its start have taken all series."""
    add(table, "a", 500)
    add(table, "b", 3)
    add(table, "c", 500)
    add(table, "hot", 1000)
    found = counts(table)
    assert found["a"] == found["c"] == 500
    assert "b" not in found
    assert found["hot"] == 1000 - 127  # what it had before is in the one for the rest
    assert found["other"] == 127 + 3
    assert table.folded == 1


def test_one_that_is_not_twice_as_hot_does_not(table):
    """So that two of about the same do not change places all the time."""
    for key in "abc":
        add(table, key, 1000)
    add(table, "d", 1900)
    assert counts(table) == {"a": 1000, "b": 1000, "c": 1000, "other": 1900}


def test_a_series_that_begins_later_says_so(table):
    for key in "abc":
        add(table, key)
    add(table, "hot", 300)
    began = {series.attributes["syncagent.op"]: series.began_ns for series in table.taken()}
    assert began["b"] == began["other"] == BEGAN_NS
    assert began["hot"] > BEGAN_NS


def test_the_sums_over_all_series_are_exact_whatever_changes_places(table):
    dice = random.Random(7)
    keys = [f"site {n}" for n in range(40)]
    weights = [2 ** dice.randrange(10) for _ in keys]
    total_s = made = 0
    for _ in range(20_000):
        stall_s = dice.choice((0.0005, 0.05, 5.0))
        add(table, dice.choices(keys, weights)[0], total_s=stall_s)
        total_s += stall_s
        made += 1
    series = table.taken()
    assert len(series) == 4
    assert sum(one.count for one in series) == made
    assert sum(sum(one.buckets) for one in series) == made
    assert sum(one.total_s for one in series) == pytest.approx(total_s)
    assert min(one.min_s for one in series) == 0.0005
    assert max(one.max_s for one in series) == 5.0
    assert table.folded == 37


def test_what_is_folded_is_distinguished_up_to_a_bound(table):
    for n in range(30_000):
        add(table, f"site {n}")
    assert table.folded == 10_000
    assert counts(table)["other"] == 29_997
