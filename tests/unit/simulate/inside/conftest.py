"""Every module here runs in a process of its own, most with the simulated device installed: see ../test_inside.py."""

from __future__ import annotations

import sys

import pytest
import torch
from harness import Observed

from syncagent import simulate

torch.set_num_threads(1)
if not any(name in " ".join(sys.argv) for name in ("in_devices.py", "in_life.py")):
    simulate.install()


@pytest.fixture
def observed():
    """What the observer was told, in order."""
    observer = Observed()
    torch.cuda.synchronize()
    simulate.observe_waits(observer)
    yield observer
    simulate.observe_waits(None)


@pytest.fixture(autouse=True)
def _quiet_device():
    yield
    if simulate.installed():
        torch.cuda.synchronize()
