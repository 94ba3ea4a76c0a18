"""Calls of synchronize that are wrapped by name."""

from __future__ import annotations

import sys
import traceback

import pytest
import torch

from syncagent import HostSyncError
from syncagent.sensors.base import Conditions
from syncagent.sensors.explicit import ExplicitSensor
from tests.unit.tools import new_recorder


class Forbidding:
    is_passive = False
    mode = "raise"

    def judge(self, *_):
        raise HostSyncError("forbidden")


@pytest.fixture
def sensor():
    recorder = new_recorder()
    recorder.policy = Forbidding()
    sensor = ExplicitSensor(recorder, Conditions())
    sensor.start()
    yield sensor
    sensor.stop()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="an entry for the agent's own frame stays in Python 3.10")
@pytest.mark.usefixtures("sensor")
def test_what_the_policy_raises_comes_without_frames_of_the_sensor():
    with pytest.raises(HostSyncError) as error:
        torch._C._accelerator_synchronizeDevice(0)
    names = [entry.name for entry in traceback.extract_tb(error.tb)]
    assert names == ["test_what_the_policy_raises_comes_without_frames_of_the_sensor", "judge"]
