"""How the selftest judges: what was reported, held against what happened."""

from __future__ import annotations

import pytest

from syncagent.events import CallSite, Phase, SyncEvent, SyncKind
from syncagent.selftest import promises
from syncagent.selftest.cases import CASES, FILE, READ, line_of
from syncagent.selftest.probe import Shot, judge

MS = 1_000_000
QUIET = next(case for case in CASES if case.kind is None)


def event(stall_ms=10.0, kind=SyncKind.SCALAR_READ, line=None):
    site = CallSite(FILE, line or line_of(READ), "<module>", READ.call)
    return SyncEvent(
        "aten::item",
        None,
        kind,
        0,
        int(stall_ms * MS),
        site,
        Phase.OTHER,
        0,
        None,
        "cuda:0",
        0,
        "MainThread",
        "kernels",
    )


def verdict(case, *events, wall_ms=10.2, idle_ms=0.1):
    return judge(case, Shot(int(wall_ms * MS), int(idle_ms * MS), 10.0, events), "syncs")


def test_a_sync_that_is_reported_as_it_was_is_right():
    found = verdict(READ, event(10.0))
    assert (found.status, found.why, found.sensor, found.stall_ms, found.error_us) == ("ok", "", "kernels", 10.0, 200.0)


@pytest.mark.parametrize(
    ("events", "why"),
    [
        ((), "waited and was not reported"),
        ((event(kind=SyncKind.CHECK),), "reported as check, not scalar_read"),
        ((event(line=99),), f"reported at {FILE}:99, not {FILE}:{line_of(READ)}"),
        ((event(7.0),), "reported a stall of 7.00 ms in a call of 10.20 ms"),
        ((event(14.0),), "reported a stall of 14.00 ms in a call of 10.20 ms"),
    ],
)
def test_what_is_wrong_about_a_sync_is_reported(events, why):
    found = verdict(READ, *events)
    assert (found.status, found.why) == ("BROKEN", why)


def test_a_stall_may_be_off_by_what_the_call_takes_on_the_host():
    assert verdict(READ, event(10.0), wall_ms=15.0, idle_ms=0.1).status == "BROKEN"
    assert verdict(READ, event(10.0), wall_ms=15.0, idle_ms=2.5).status == "ok"


def test_of_several_reports_the_longest_counts():
    found = verdict(READ, event(0.01, kind=SyncKind.COPY_D2H), event(10.0))
    assert (found.status, found.reported) == ("ok", 2)


def test_a_known_sync_that_does_not_wait_here_proves_nothing():
    assert verdict(READ, event(0.1), wall_ms=0.2).status == "unclear"
    assert verdict(READ, wall_ms=0.2).status == "unclear"


def test_a_call_that_does_not_wait_is_not_to_be_reported():
    assert verdict(QUIET, wall_ms=0.2).status == "ok"
    found = verdict(QUIET, event(0.1), wall_ms=0.2)
    assert (found.status, found.why) == ("BROKEN", "reported as aten::item, but it does not wait")


def test_where_it_does_wait_it_is():
    assert verdict(QUIET, event(10.0)).status == "ok"
    assert verdict(QUIET).why == "waited, which it should not, and was not reported"


def test_a_kind_of_which_no_call_waited_is_a_broken_promise():
    seen = [verdict(READ, wall_ms=0.2), verdict(QUIET, wall_ms=0.2)]
    promise = promises.every_kind(seen, "syncs")
    assert (promise.status, promise.said) == ("BROKEN", "no scalar_read was caught")
    assert promises.every_kind([*seen, verdict(READ, event())], "syncs").status == "ok"


def test_what_stop_leaves_behind_is_named():
    before, during = {"a mode": 0, "a hook": 0}, {"a mode": 1, "a hook": 1}
    assert promises.leaves_nothing(before, during, before, "ops").status == "ok"
    left = promises.leaves_nothing(before, during, {"a mode": 0, "a hook": 1}, "ops")
    assert (left.status, left.said) == ("BROKEN", "a hook was not restored")


def test_a_clean_end_proves_nothing_where_nothing_was_put_in():
    assert promises.leaves_nothing({"a mode": 0}, {"a mode": 0}, {"a mode": 0}, "ops").status == "BROKEN"
