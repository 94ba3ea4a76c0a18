"""Sensors and the set that an agent runs; the example of a new sensor is that of CONTRIBUTING.md."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import pytest

import syncagent
from syncagent.recording.recorder import Recorder
from syncagent.rules import table
from syncagent.selftest import promises
from syncagent.sensors import registry
from syncagent.sensors.base import Conditions
from syncagent.sensors.registry import SENSORS, SensorSet
from syncagent.settings import sources
from syncagent.torchbridge.internals import look_up
from tests import contributing
from tests.unit.tools import forbidden

# --- an example of a new sensor ---------------------------------------------------------------------------------------


class Camera:
    """A device that no other sensor knows."""

    @staticmethod
    def wait_for_frame():
        time.sleep(0.01)
        return "frame"


@pytest.fixture
def camera_sensor(monkeypatch, tmp_path):
    """The sensor of CONTRIBUTING.md, and its line in the registry."""
    monkeypatch.setitem(sys.modules, "camera", SimpleNamespace(Camera=Camera))
    added = contributing.entries("sensor", vars(contributing.module("sensor", tmp_path)))
    monkeypatch.setattr(registry, "SENSORS", (*SENSORS, *added))


def test_a_new_sensor_needs_a_line_in_the_registry(camera_sensor, cpu_agent, line_of):
    """The agent starts it, its syncs have lines, the report lists it, and the audit sees that it is gone."""
    before = promises.state()
    agent = cpu_agent(detail="syncs")
    assert "Camera.wait_for_frame" in promises.changed(before, promises.state())
    assert Camera.wait_for_frame() == "frame"  # <- waits for the camera
    syncagent.stop()
    [event] = agent.events()
    assert (event.op, event.kind, event.sensor) == ("camera.wait", "other", "camera")
    assert event.site.line == line_of("waits for the camera")
    assert event.stall_ns >= 10_000_000
    assert ("camera", True) in [(sensor.name, sensor.live) for sensor in agent.report().sensors]
    assert promises.changed(before, promises.state()) == []


def test_the_policy_judges_what_a_new_sensor_sees(camera_sensor, cpu_agent):
    """Before the wait, in the caller's frame."""
    agent = cpu_agent(policy="raise")
    assert forbidden(Camera.wait_for_frame)
    assert [event.violation for event in agent.events()] == [True]


# --- rules ------------------------------------------------------------------------------------------------------------


def test_a_rule_is_for_an_op_that_this_torch_or_another_has():
    """A name with overload, in no row twice."""
    ops = [rule.op for rule in table.RULES]
    assert len(set(ops)) == len(ops)
    assert all(table.find(op).op == op for op in ops)


# --- the set ----------------------------------------------------------------------------------------------------------


def sensors(**conditions):
    recorder = Recorder(sources.load({}, {}), look_up(simulated=True), lambda: 0)
    return SensorSet(recorder, Conditions(**conditions))


@pytest.mark.parametrize(
    ("conditions", "listed", "started"),
    [
        ({}, "driver kernels explicit monitored modes", "driver kernels explicit monitored"),
        ({"every_op": True}, "driver kernels explicit monitored modes", "driver kernels explicit monitored modes"),
        ({"has_cuda": False}, "driver kernels explicit monitored modes", ""),
        ({"simulate": True}, "driver simulated modes", "driver simulated"),
        ({"simulate": True, "every_op": True, "has_cuda": False}, "driver simulated modes", "driver simulated modes"),
    ],
)
def test_the_conditions_decide_which_sensors_there_are_and_which_start(conditions, listed, started):
    found, parts = sensors(**conditions), []
    assert [status.name for status in found.statuses()] == listed.split()
    found.start(lambda part, _start, _stop: parts.append(part))
    found.start(lambda part, _start, _stop: parts.append(part), on_thread=True)
    words = [{"the simulated device's sensor": "simulated"}.get(part, part.rpartition(" ")[2]) for part in parts]
    assert words == started.split()


def test_every_sensor_has_a_name_of_its_own():
    assert len({sensor.name for sensor in SENSORS}) == len(SENSORS)


def test_a_gate_has_blind_spots_where_a_sensor_that_it_needs_is_not_live():
    assert sensors().blind_spots() == ["the sensor kernels is not live", "the sensor explicit is not live"]
    assert sensors(simulate=True).blind_spots() == ["the sensor simulated is not live"]
    assert sensors(has_cuda=False).blind_spots() == []


@pytest.mark.parametrize(
    ("copies", "words"), [("all", "every one"), ("sampled", "one in 16, after 256 steps"), ("off", "not watched")]
)
def test_the_kernels_status_says_which_copies_are_watched(copies, words):
    [kernels] = [status for status in sensors(copies=copies).statuses() if status.name == "kernels"]
    assert words in kernels.detail


def test_statuses_stay_as_they_were_when_the_sensors_were_about_to_stop(camera_sensor):
    found = sensors()
    found.start(lambda part, start, _stop: start() if part == "the sensor camera" else None)
    found.conclude()
    found.start(lambda part, _start, stop: stop() if part == "the sensor camera" else None)
    assert [status.live for status in found.statuses() if status.name == "camera"] == [True]
