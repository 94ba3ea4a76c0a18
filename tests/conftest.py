"""What tests of all kinds use."""

from __future__ import annotations

import os
from functools import partial

import pytest

from tests import processes
from tests.forked import Forker


@pytest.fixture
def environ():
    """The environment for a process: no setting of the person who runs the tests."""
    return processes.environment()


@pytest.fixture
def no_settings(monkeypatch, tmp_path):
    """No setting, rank or pyproject.toml of the person who runs the tests."""
    for name in filter(processes.is_setting, tuple(os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def python(tmp_path):
    """``python(*words, **variables)``: a fresh interpreter in a folder of its own, nothing set but the variables."""
    return partial(processes.run, cwd=tmp_path)


@pytest.fixture(scope="session")
def forker(tmp_path_factory):
    """What ``forked`` runs its scripts with; started by the first of them."""
    forker = Forker(tmp_path_factory.mktemp("forker"))
    yield forker
    forker.stop()


@pytest.fixture
def forked(forker, tmp_path, environ):
    """``forked(script, *words, **variables)``: as ``python`` does, in a process that has loaded torch already."""

    def run(*words, **variables):
        return forker.run(*words, cwd=tmp_path, **environ | variables)

    return run
