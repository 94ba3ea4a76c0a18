"""The services of ``otel/local``, and watched jobs; tests of what is not here are skipped, with the reason."""

from __future__ import annotations

import time

import pytest
from jobs import Pipeline
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
        "SYNCAGENT_VERBOSE": "1",  # where the spans went is said in the whole report
    }


@pytest.fixture(scope="session")
def start():
    """Start a service until the tests end, or skip what needs it: ``start(services.jaeger, folder)``."""
    started = []

    def begin(service, *arguments, **options):
        try:
            started.append(service(*arguments, **options))
        except services.NotHereError as why:
            pytest.skip(str(why))
        return started[-1]

    yield begin
    for service in reversed(started):
        service.stop()


@pytest.fixture(scope="session")
def phoenix(start, tmp_path_factory):
    return start(services.phoenix, tmp_path_factory.mktemp("phoenix"))


@pytest.fixture(scope="session")
def pipeline(start, tmp_path_factory):
    """Collector and Prometheus, with Jaeger where it is built."""
    return Pipeline(start, tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="session")
def jaeger(pipeline):
    if pipeline.jaeger is None:
        pytest.skip("Jaeger is not built: `make test-stack` does that where Go is installed.")
    return pipeline.jaeger


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
