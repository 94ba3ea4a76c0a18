"""How long the GPU waits for other ranks; the native library's part is tried in tests/native/harness.c."""

from __future__ import annotations

import pytest
import torch

import syncagent
from syncagent import native
from syncagent.native import Join, Status
from syncagent.recording.collectives import StepWait
from syncagent.recording.recorder import Recorder
from syncagent.sensors.base import Conditions
from syncagent.sensors.collectives import CollectiveSensor
from syncagent.sensors.registry import SensorSet
from syncagent.settings import sources
from syncagent.torchbridge.internals import look_up

OFF = Status(*[0] * len(Status._fields))
ON = OFF._replace(live=1, hooks=9, joins=native.JOINS_ON)


class Library:
    """The native library, as far as this sensor uses it."""

    def __init__(self):
        self.now, self.joins, self.streams, self.is_on = ON, [], [], False

    def measure_joins(self, wanted):
        self.is_on = wanted
        return 9 if wanted else 0

    def take_joins(self):
        taken, self.joins = self.joins, []
        return taken

    def compute_stream(self, handle):
        self.streams.append(handle)

    def status(self):
        return self.now


@pytest.fixture
def library(monkeypatch):
    found = Library()
    monkeypatch.setattr(native, "load", lambda: found)
    return found


@pytest.fixture
def recorder():
    return Recorder(sources.load({}, {}), look_up(simulated=True), lambda: 0)


@pytest.fixture
def sensor(library, recorder):
    sensor = CollectiveSensor(recorder, Conditions(several_ranks=True, collectives=True))
    sensor.start()
    yield sensor
    sensor.stop()


def names(recorder, **conditions):
    return [status.name for status in SensorSet(recorder, Conditions(**conditions)).statuses()]


def test_it_is_there_where_there_are_several_ranks_on_gpus(recorder):
    assert "collectives" in names(recorder, several_ranks=True)
    assert "collectives" not in names(recorder)
    assert "collectives" not in names(recorder, several_ranks=True, simulate=True)
    assert "collectives" not in names(recorder, several_ranks=True, has_cuda=False)


def test_a_setting_turns_it_off(recorder):
    assert CollectiveSensor.is_wanted(Conditions(several_ranks=True, collectives=True))
    assert not CollectiveSensor.is_wanted(Conditions(several_ranks=True, collectives=False))
    sensor = CollectiveSensor(recorder, Conditions(several_ranks=True, collectives=False))
    assert (sensor.live, sensor.detail) == (False, "off: SYNCAGENT_COLLECTIVES is 0")


def test_it_comes_when_the_process_turns_out_to_be_one_of_several(recorder, library):
    sensors = SensorSet(recorder, Conditions(collectives=True))
    stops = []
    sensors.join_ranks(lambda _part, start, stop: (start(), stops.append(stop)))
    try:
        assert library.is_on
        assert [status.name for status in sensors.statuses()][-2:] == ["host time", "collectives"]
    finally:
        for stop in stops:
            stop()
    assert not library.is_on


def test_waits_that_are_over_are_handed_on(sensor, library, recorder):
    assert library.is_on
    library.joins = [Join(1_000, 20, 0, 0), Join(3_000, 40, 0, native.DIRECT)]
    sensor.poll()
    library.joins = [Join(5_000, 60, 0, native.CAUGHT_UP)]
    sensor.stop()  # the last ones, too
    recorder.collectives.step_ended(7, 500, 2_000)
    recorder.collectives.step_ended(8, 2_000, 4_000)
    assert recorder.collectives.take() == [StepWait(7, 500, 20, 1), StepWait(8, 2_000, 0, 1)]
    assert not library.is_on
    assert not sensor.live


def test_it_is_live_where_calls_of_nccl_were_found(sensor, library):
    assert (sensor.live, sensor.detail, sensor.notes) == (True, "", [])
    library.now = ON._replace(joins=native.JOINS_WITHOUT_DRIVER)  # the program has not used the GPU yet
    assert sensor.live
    library.now = ON._replace(hooks=0)
    assert not sensor.live
    assert sensor.detail.startswith("no call into NCCL was found")


def test_what_was_not_measured_is_said(sensor, library):
    library.now = ON._replace(joins_measured=90, joins_dropped=10, hooks_missed=2)
    dropped, missed = sensor.notes
    assert dropped.startswith("10 of 100 waits of the GPU for other ranks were not measured")
    assert missed.startswith("2 calls of collectives and events go through another tool's patches")
    sensor.stop()
    assert sensor.notes == [dropped, missed]


def test_a_call_that_fails_ends_it_and_is_said(sensor, library):
    at = native.FAILED_AT.index("cudaEventRecord")
    library.now = ON._replace(joins=native.JOINS_FAILED, failed_at=at, failed_with=400)
    sensor.poll()
    assert not library.is_on  # the program is not led through the hooks any longer
    assert not sensor.live
    assert sensor.detail == "switched off: cudaEventRecord failed with error 400"
    assert sensor.notes == [f"waits of the GPU for other ranks are not measured from some step on: {sensor.detail}"]


def test_a_fault_of_its_own_ends_it(sensor, library, recorder, monkeypatch):
    monkeypatch.setattr(library, "take_joins", lambda: 1 / 0)
    sensor.poll()
    sensor.poll()
    assert not library.is_on
    assert recorder.faults.sentences == ["the sensor collectives failed: ZeroDivisionError: division by zero"]


def test_without_the_driver_sensor_it_is_off(library, recorder, monkeypatch):
    monkeypatch.setattr(library, "measure_joins", lambda _wanted: -1)
    sensor = CollectiveSensor(recorder, Conditions(several_ranks=True, collectives=True))
    sensor.start()
    assert (sensor.live, sensor.detail) == (False, "off: it needs the sensor driver, which is not on")


def test_the_stream_in_which_the_optimizer_runs_is_the_one_that_counts(sensor, library, monkeypatch):
    assert library.streams == [0]
    sensor.step_ended()  # CUDA is not in use
    stream = type("Stream", (), {"cuda_stream": 4096})
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    sensor.step_ended()
    sensor.step_ended()
    assert library.streams == [0, 4096]


@pytest.mark.skipif(native.load() is None, reason=native.why_not() or "there")
@pytest.mark.skipif(torch.version.cuda is None, reason="torch is not built for CUDA")
@pytest.mark.usefixtures("cpu_device")
def test_torchs_calls_of_nccl_are_hooked_and_restored(monkeypatch):
    """Where torch is built for CUDA, though there is no GPU."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with syncagent.watch(collectives=True) as agent:
        status = native.load().status()
        assert (status.hooks_missed, status.unresolved) == (0, 0)
        assert status.hooks >= 3 + 11  # of libtorch_cuda.so alone
        assert ("collectives", True) in [(sensor.name, sensor.live) for sensor in agent.report().sensors]
    assert native.load().status().hooks == 0
