"""Calls of C methods that cannot be wrapped, with ``list.sort`` in the place of a stream's ``synchronize``."""

from __future__ import annotations

import sys

import pytest

from syncagent import HostSyncError
from syncagent.sensors import monitored
from syncagent.sensors.base import Conditions
from tests.unit.tools import new_recorder, waiting

pytestmark = pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring came with 3.12")
TARGETS = {list.__dict__["sort"]: "list.sort"}


def sort_some():
    [2, 1].sort()


def sort_bound():
    later = [2, 1].sort
    later()


@pytest.fixture
def recorder():
    return new_recorder()


@pytest.fixture
def sensor(monkeypatch, recorder):
    monkeypatch.setattr(monitored, "_NAME", "sort")
    made = monitored.MonitoredSensor(recorder, Conditions())
    yield made
    made.stop()


def seen(recorder):
    return [(o.context.op, o.context.where.user[0].co_name) for o in waiting(recorder)]


def test_a_call_is_seen_at_its_line_by_method_and_bound(sensor, recorder):
    sensor.start(TARGETS)
    sort_some()
    sort_bound()
    assert seen(recorder) == [("list.sort", "sort_some"), ("list.sort", "sort_bound")]


def test_a_second_watch_sees_code_that_the_first_has_looked_at(sensor, recorder):
    """What the interpreter was told not to ask again about is asked again."""
    sensor.start(TARGETS)
    sort_some()
    sensor.stop()
    sort_some()
    sensor.start(TARGETS)
    sort_some()
    assert seen(recorder) == [("list.sort", "sort_some")] * 2


def test_its_end_leaves_nothing_on(sensor):
    sensor.start(TARGETS)
    sort_some()
    [tool] = [number for number in range(6) if sys.monitoring.get_tool(number) == "syncagent"]
    sensor.stop()
    assert sys.monitoring.get_tool(tool) is None
    sys.monitoring.use_tool_id(tool, "looking")
    try:
        assert sys.monitoring.get_local_events(tool, sort_some.__code__) == 0
    finally:
        sys.monitoring.free_tool_id(tool)


def test_the_policy_is_asked_before_the_call(sensor, recorder):
    """What it raises comes out at the caller, and the call has not been made."""

    class Forbidding:
        is_passive = False
        mode = "raise"

        def judge(self, *_):
            raise HostSyncError("forbidden")

    recorder.policy = Forbidding()
    sensor.start(TARGETS)
    values = [2, 1]
    with pytest.raises(HostSyncError) as error:
        values.sort()
    assert values == [2, 1]
    frames = [entry.name for entry in error.traceback]
    assert frames == ["test_the_policy_is_asked_before_the_call", "judge"]  # and none of the sensor's
