"""The time of the steps is shared out among what looks have found; collections are added up as measured."""

from __future__ import annotations

import pytest

from syncagent.attribution.callsite import CallSites
from syncagent.events import HostCause
from syncagent.recording.host_time import MOST_ROWS, HostTime, Place

MS = 1_000_000
MEAN = 40 * MS


def place(file, cause=HostCause.LINE):
    """A place in that file, in code whose text is the same in all of them."""
    return Place(cause, (compile("def f(): pass", file, "exec").co_consts[0], 0))


TRAIN, LOAD = place("/proj/train.py"), place("/proj/data.py", HostCause.DATA_LOADER)


@pytest.fixture
def host():
    return HostTime()


def rows(host, *names):
    resolve = CallSites().resolve
    return [tuple(getattr(row, name) for name in names) for row in host.rows(resolve)]


def test_each_place_has_the_share_of_the_looks_that_found_the_thread_there(host):
    """A look that found it in a wait belongs to no row, and yet to the whole."""
    for number, found in enumerate([TRAIN, LOAD, TRAIN, None]):
        host.looked(number * MS, MEAN, found)
    host.step_ended(0, 10 * MS)
    host.settle()
    assert rows(host, "cause", "file", "count", "ms") == [
        ("line", "/proj/train.py", 2, 5.0),
        ("data loader", "/proj/data.py", 1, 2.5),
    ]


def test_a_look_stands_for_its_own_mean_time(host):
    host.looked(1 * MS, MEAN, TRAIN)
    host.looked(2 * MS, 3 * MEAN, LOAD)
    host.step_ended(0, 8 * MS)
    host.settle()
    assert rows(host, "cause", "count", "ms") == [("data loader", 1, 6.0), ("line", 1, 2.0)]


def test_what_lies_between_two_steps_belongs_to_none(host):
    host.step_ended(0, 10 * MS)
    host.step_ended(30 * MS, 40 * MS)
    for moment in (5, 20, 35):
        host.looked(moment * MS, MEAN, TRAIN if moment != 20 else LOAD)
    host.settle(lambda: [(moment * MS, moment * MS + 100_000) for moment in (1, 10, 29, 30, 39)])
    assert rows(host, "cause", "count", "ms") == [("line", 2, 20.0), ("garbage collection", 3, 0.3)]


def test_what_belongs_to_a_step_that_has_not_ended_is_kept_for_its_end(host):
    host.looked(1 * MS, MEAN, TRAIN)
    host.settle(lambda: [(2 * MS, 3 * MS)])
    assert rows(host) == []
    host.step_ended(0, 4 * MS)
    host.settle()
    assert rows(host, "cause", "ms") == [("line", 4.0), ("garbage collection", 1.0)]


def test_a_step_of_many_minutes_is_kept_within_bounds(host):
    """Of looks every second one is enough; collections are measured, and none is lost."""
    for number in range(30_000):
        host.looked(number, MEAN, TRAIN if number % 3 else LOAD)
    host.settle(lambda: [(number, number + MS) for number in range(30_001)])
    host.step_ended(0, 900 * MS)
    host.settle()
    (collections, collected_ms), (line, line_ms), (_, load_ms) = rows(host, "count", "ms")
    assert (collections, collected_ms) == (30_001, 30_001)
    assert line < 8_192
    assert (line_ms, load_ms) == (pytest.approx(600, rel=0.02), pytest.approx(300, rel=0.02))


def test_the_smallest_rows_are_one_and_those_without_a_line_are_with_them(host):
    places = [place(f"/proj/{number:03}.py") for number in range(100)]
    loads = [place(f"/proj/{number:03}.py", HostCause.DATA_LOADER) for number in range(2)]
    for number, found in enumerate([*places, *loads]):
        host.looked(number, (200 - number) * MEAN, found)
    host.looked(200, MEAN, Place(HostCause.LINE, None))
    host.step_ended(0, MS)
    host.settle(lambda: [(1, 2)])
    found = rows(host, "cause", "file", "count")
    assert len(found) == MOST_ROWS
    assert [row for row in found if not row[1]] == [
        ("line", "", 100 - (MOST_ROWS - 3) + 1),
        ("data loader", "", 2),
        ("garbage collection", "", 1),
    ]
    assert sum(row[2] for row in found) == 104


def test_rows_are_the_largest_first(host):
    for weight, found in enumerate([LOAD, TRAIN, place("/proj/other.py")]):
        host.looked(weight, weight + 1, found)
    host.step_ended(0, MS)
    host.settle()
    assert rows(host, "file") == [("/proj/other.py",), ("/proj/train.py",), ("/proj/data.py",)]
