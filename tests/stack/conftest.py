"""Phoenix and Prometheus, and jobs that are watched by the agent; what is not here is skipped, with the reason."""

from __future__ import annotations

import time

import pytest
from places import ROOT, TRAIN

from tests import processes

import services  # isort: skip


@pytest.fixture(scope="session")
def environ():
    """A job's environment: no setting of the person who runs the tests."""
    return processes.environment() | {
        "PYTHONPATH": str(ROOT),
        "NO_PROXY": "*",
        "OMP_NUM_THREADS": "1",
        "SYNCAGENT": "1",
        "SYNCAGENT_SIMULATE": "1",
        "SYNCAGENT_DETAIL": "syncs",
        "SYNCAGENT_COPIES": "all",
    }


@pytest.fixture(scope="session")
def phoenix(tmp_path_factory):
    try:
        service = services.phoenix(tmp_path_factory.mktemp("phoenix"))
    except services.NotHereError as why:
        pytest.skip(str(why))
    with service:
        yield service


@pytest.fixture(scope="session")
def start_prometheus():
    started = []

    def start(*arguments, **options):
        try:
            service = services.prometheus(*arguments, **options)
        except services.NotHereError as why:
            pytest.skip(str(why))
        started.append(service)
        return service

    yield start
    for service in started:
        service.stop()


@pytest.fixture(scope="session")
def line_of():
    """The line of ``train.py`` that ends in a mark, as its label says it."""

    def find(mark):
        return str(next(n for n, line in enumerate(TRAIN.read_text().splitlines(), 1) if line.endswith(f"# {mark}")))

    return find


@pytest.fixture(scope="session")
def until():
    """Call until it returns something true, and return that."""

    def wait(call, timeout_s=60):
        end = time.monotonic() + timeout_s
        while not (value := call()):
            assert time.monotonic() < end, f"nothing in {timeout_s} s: {call}"
            time.sleep(0.2)
        return value

    return wait
