"""The contract of sinks: in which order they are served, and what each is given; CONTRIBUTING.md has an example."""

from __future__ import annotations

import threading

import pytest
import torch
from opentelemetry.sdk.trace import TracerProvider

import syncagent
from syncagent.delivery.sink import Sink
from syncagent.errors import ConfigError
from syncagent.runtime import sinks
from syncagent.runtime.sinks import SINKS
from syncagent.settings import sources
from syncagent.support import log

X = torch.tensor([1.0, 0.0, 2.0])


class Witness(Sink):
    """Notes every call."""

    name = "witness"

    def __init__(self):
        self.calls = []
        self.ticked = threading.Event()

    def connect(self, source):
        self.calls.append("connect")
        self.source = source

    def events(self, batch):
        self.calls.append("events")
        self.counted = self.source.summary.recorded

    def policy_changed(self, policy):
        self.calls.append(policy)

    def tick(self):
        self.ticked.set()

    def close(self):
        self.calls.append("close")


def test_a_sink_gets_every_call_of_the_contract(cpu_agent):
    """It is connected before anything else, and the sums have what it is given already."""
    witness = Witness()
    agent = cpu_agent(detail="syncs", sinks=(witness,))
    assert witness.ticked.wait(10)
    X.nonzero()
    agent.flush()
    agent.policy = "warn"
    report = syncagent.stop()
    assert witness.calls == ["connect", "events", "warn", "close"]
    assert witness.counted == 1
    assert (witness.source.lost, witness.source.facts().run.policy) == ({}, "warn")
    assert report.totals.syncs == 1


def test_one_whose_tick_fails_is_off(cpu_agent, capsys):
    class Broken(Witness):
        def tick(self):
            self.ticked.set()
            raise OSError("disk full")

    broken = Broken()
    agent = cpu_agent(detail="syncs", sinks=(broken,))
    assert broken.ticked.wait(10)
    agent.flush()
    X.nonzero()
    report = syncagent.stop()
    assert "events" not in broken.calls
    assert "sink witness failed and is off: OSError: disk full" in report.notes
    assert "disk full" in capsys.readouterr().err


def names(outputs):
    return [sink.name for sink in outputs.sinks]


@pytest.fixture
def script(no_settings, monkeypatch):
    """``script(**variables)``: the sinks of a script under these variables of the environment."""
    built = []

    def build(*, settings=None, **variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        built.append(sinks.build(sources.load(settings or {})))
        return built[-1]

    yield build
    for outputs in built:
        outputs.close()


def test_what_asks_the_spans_stands_behind_them(script):
    """They know the span of a record only while its batch is the latest that they were given."""
    outputs = script(OTEL_METRICS_EXPORTER="otlp", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert names(outputs) == ["spans", "metrics", "log", "progress", "capture"]
    metrics = outputs.sinks[1]
    assert metrics.spans is outputs.spans is outputs.sinks[0]


def test_a_program_that_has_set_nothing_up_gets_no_progress_and_no_capture(no_settings):
    """Its own provider is used, and nothing is built beside it."""
    provider = TracerProvider(shutdown_on_exit=False)
    outputs = sinks.build(sources.load({}), {"tracer_provider": provider})
    assert names(outputs)[0] == "spans"
    assert not {"progress", "capture"} & {*names(outputs)}
    assert (outputs.outbox, outputs.is_script) == (None, False)


def test_a_sink_that_cannot_be_built_is_left_out_and_reported(no_settings, monkeypatch, capsys):
    """The others are there."""

    def unbuildable(_outputs):
        raise RuntimeError("no such device")

    def refused(_outputs):
        raise ConfigError("OTEL_SOMETHING='x' is not allowed")

    monkeypatch.setattr(log, "_said", set())
    monkeypatch.setattr(sinks, "SINKS", {"lamps": unbuildable, "bells": refused, "log": SINKS["violations"]})
    outputs = sinks.build(sources.load({}), {})
    assert names(outputs) == ["log"]
    said = capsys.readouterr().err
    assert "lamps could not be set up; the run is still watched" in said
    assert "no such device" in said
    assert "OTEL_SOMETHING='x' is not allowed. No bells are sent; the run is still watched." in said
