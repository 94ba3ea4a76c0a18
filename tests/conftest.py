"""What tests of all kinds use."""

from __future__ import annotations

from functools import partial

import pytest

from tests import processes


@pytest.fixture
def environ():
    """The environment for a process: no setting of the person who runs the tests."""
    return processes.environment()


@pytest.fixture
def python(tmp_path):
    """``python(*words, **variables)``: a fresh interpreter in a folder of its own, nothing set but the variables."""
    return partial(processes.run, cwd=tmp_path)
