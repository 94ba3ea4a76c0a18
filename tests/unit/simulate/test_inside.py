"""Runs the tests in ``inside/`` in processes of their own, in which the simulated device stands in for CUDA."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

INSIDE = Path(__file__).parent / "inside"


PROCESSES = (
    "blocking_table rewrites",
    "amp checkpoints training",
    "data refusals streams tensors",
    "devices",
    "evaluation memory",
    "extensions inference_mode",
    "life",
)
"""Modules that share a process: each new one costs the seconds that torch takes to load."""


def test_every_module_runs_in_some_process():
    assert sorted(" ".join(PROCESSES).split()) == sorted(path.stem[3:] for path in INSIDE.glob("in_*.py"))


@pytest.mark.parametrize("names", PROCESSES)
def test_inside(names):
    modules = [str(INSIDE / f"in_{name}.py") for name in names.split()]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *modules]
    done = subprocess.run(command, capture_output=True, text=True, cwd=INSIDE, timeout=110, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
