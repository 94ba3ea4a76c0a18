"""Collectors that refuse, hang, throttle, break off and come back, over both protocols of OTLP."""

from __future__ import annotations

import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from syncagent.telemetry.metrics import MetricSink
from syncagent.telemetry.provider import build_metrics, build_resource, build_spans
from syncagent.telemetry.span_budget import SpanBudget
from syncagent.telemetry.spans import SpanSink

sys.path.insert(0, str(Path(__file__).parents[2] / "unit"))
from sink_records import step, sync

EXPORTER = tuple(map(int, version("opentelemetry-exporter-otlp-proto-http").split(".")[:2]))
TELLS_WHY_UNAVAILABLE = EXPORTER >= (1, 43)
"""Whether the gRPC exporter says more than ``StatusCode.UNAVAILABLE``."""
READS_RETRY_AFTER = EXPORTER >= (1, 45)
"""Whether the HTTP exporter does as the header says, and not just back off."""
MAY_TRY_AS_IT_SHUTS_DOWN = EXPORTER < (1, 41)
"""Whether the HTTP exporter, if it is shut down while it waits, may send once more at once."""

PROTOCOLS = {"http": "http/protobuf", "grpc": "grpc"}
BAD = [
    ("http", "cut", "closes the connection"),
    ("http", "short", "closes the connection"),
    ("http", "401", "credentials"),
    ("grpc", "refuse", "connection refused" if TELLS_WHY_UNAVAILABLE else "cannot be reached over gRPC"),
    ("grpc", "500", "INTERNAL"),
    ("grpc", "401", "credentials"),
    ("grpc", "hang", "no answer within 1 s"),
]


@pytest.mark.parametrize(("protocol", "mode", "reason"), BAD)
def test_one_that_is_not_well_costs_spans_and_one_line(receiver, job, protocol, mode, reason):
    """The job ends in time, with its own exit code; each span is accounted for."""
    collector = receiver(mode, protocol)
    result = job(
        close_timeout=1.0,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
        OTEL_EXPORTER_OTLP_PROTOCOL=PROTOCOLS[protocol],
    )
    assert result.code == 7
    assert result.account["threads"] == ["MainThread"]
    assert result.account["failed"] + result.account["dropped"] == 9
    (line,) = result.messages
    assert "spans are being lost" in line
    assert f"to={collector.endpoint}" in line
    assert reason in line


def test_spans_arrive_over_grpc(receiver, job):
    collector = receiver("ok", "grpc")
    result = job(OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    assert (result.account["exported"], result.stderr) == (9, "")
    assert result.account["where"] == f"OTLP grpc to {collector.endpoint}"
    assert len(collector.spans()) == 9


def test_spans_that_a_collector_does_not_take_are_lost_though_it_says_ok(receiver, job):
    collector = receiver("part")
    result = job(OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)
    assert (result.account["exported"], result.account["failed"]) == (8, 1)
    (line,) = result.messages
    assert "it rejected some: one is too old" in line


@pytest.mark.parametrize(("protocol", "speaks"), [("http/protobuf", "grpc"), ("grpc", "http")])
def test_an_endpoint_with_the_other_protocol_is_reported_as_such(receiver, job, protocol, speaks):
    hint = f"OTEL_EXPORTER_OTLP_PROTOCOL={speaks}"
    collector = receiver("ok", speaks)
    result = job(
        close_timeout=20.0,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
    )
    (line,) = result.messages
    assert hint in line


def test_tls_where_there_is_none_is_reported_as_such(receiver, job):
    result = job(
        close_timeout=20.0,
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver().endpoint.replace("http:", "https:"),
    )
    (line,) = result.messages
    assert "does not speak TLS" in line


class Run:
    """Spans and metrics of a job that goes on, in this process."""

    def __init__(self, monkeypatch, endpoint, protocol, budget=None, **variables):
        self.ended = self.syncs = 0
        for name, value in {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": PROTOCOLS[protocol],
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_METRIC_EXPORT_INTERVAL": "100",
            "NO_PROXY": "*",
        }.items():
            monkeypatch.setenv(name, variables.get(name, value))
        (provider, self.outbox), _ = build_spans(build_resource({}), None)
        self.spans, self.counts = SpanSink(provider, budget=budget), MetricSink()
        self.metrics = build_metrics(provider.resource, self.counts.data)

    def steps(self, count):
        for _ in range(count):
            events = [sync(20 * self.ended + 1, step=self.ended), sync(20 * self.ended + 4, step=self.ended)]
            record = step(20 * self.ended, 20 * self.ended + 10, self.ended)
            for sink in (self.spans, self.counts):
                sink.events(events)
                sink.step(record)
            self.ended += 1
            self.syncs += 2

    def close(self):
        self.metrics.begin_close()
        self.outbox.close()
        self.metrics.close()


def until(holds, seconds=30):
    ending = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ending
        time.sleep(0.02)


def counted(collector):
    """The newest counts at the collector, over all series."""
    newest = {str(p["attributes"]): p["value"] for p in collector.points() if p["name"] == "syncagent.syncs"}
    return sum(newest.values())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_that_goes_and_comes_back_is_used_again(receiver, monkeypatch, capsys, protocol):
    """What was lost meanwhile is counted, and said once; the counts of metrics lack nothing."""
    first = receiver("ok", protocol)
    run = Run(monkeypatch, first.endpoint, protocol)
    run.steps(3)
    until(lambda: run.outbox.stats()["exported"] == 9 and counted(first) == 6)
    first.stop()
    run.steps(4)
    until(lambda: run.outbox.stats()["failed"] == 12)
    second = receiver("ok", protocol, first.port)
    until(lambda: run.steps(1) or time.sleep(0.3) or second.spans())  # gRPC looks again after a while only
    run.close()
    stats = run.outbox.stats()
    assert sum(stats.values()) == 3 * run.ended
    assert stats["exported"] == len(first.spans()) + len(second.spans())
    assert counted(second) == run.syncs
    said = [line for line in capsys.readouterr().err.splitlines() if "spans are being lost" in line]
    assert len(said) == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_that_says_later_is_left_alone_until_then_and_nothing_is_lost(receiver, monkeypatch, capsys, protocol):
    """Within one export, by the exporter itself."""
    collector = receiver("later:2", protocol)
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    run = Run(monkeypatch, collector.endpoint, protocol, OTEL_EXPORTER_OTLP_TIMEOUT="10")
    assert run.metrics is None
    run.steps(1)
    until(lambda: len(collector.spans()) == 3)
    run.outbox.close()
    first, second = collector.requests()
    assert (first["mode"], second["mode"]) == ("later", "ok")
    assert second["at"] - first["at"] >= (1.9 if protocol == "grpc" or READS_RETRY_AFTER else 0.7)
    assert run.outbox.stats() == {"exported": 3, "failed": 0, "dropped": 0}
    assert capsys.readouterr().err == ""


def test_the_end_does_not_wait_for_one_that_wants_to_be_left_alone_for_long(receiver, monkeypatch):
    collector = receiver("later:200")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    run = Run(monkeypatch, collector.endpoint, "http")
    run.steps(1)
    until(lambda: collector.requests())
    run.outbox.close(1.0)
    stats = run.outbox.stats()
    assert sum(stats.values()) == 3
    if not MAY_TRY_AS_IT_SHUTS_DOWN:
        assert stats["exported"] == 0
        assert len(collector.requests()) == 1


def test_one_that_hangs_costs_a_bounded_queue(receiver, monkeypatch):
    """However many spans there are: the oldest are dropped, and each is counted."""
    collector = receiver("hang")
    everything = SpanBudget(first=10**9)
    run = Run(monkeypatch, collector.endpoint, "http", everything, OTEL_EXPORTER_OTLP_TIMEOUT="10")
    run.steps(3000)
    assert 9000 - run.outbox.stats()["dropped"] <= 2048 + 512  # the queue, and the batch that is being sent
    run.outbox.close(0.2)
    run.metrics.close(0.2)
    stats = run.outbox.stats()
    assert (stats["exported"], sum(stats.values())) == (0, 9000)
