"""What whole processes need of the one that runs the tests."""

from __future__ import annotations

import signal

import pytest

from tests.integration.forked import Forker


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_not_ignored():
    """A shell has its jobs in the background ignore it, and so would every process that the tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
