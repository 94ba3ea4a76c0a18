"""Metrics are exported now and then and at the end, which comes in time; and where the environment wants none."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time

import pytest
import requests
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceResponse,
)
from opentelemetry.sdk.metrics.export import MetricExportResult
from opentelemetry.sdk.resources import Resource

from syncagent.errors import ConfigError
from syncagent.telemetry import outbox, provider
from syncagent.telemetry.outbox import MetricSender
from syncagent.telemetry.provider import build_metrics, build_spans

DATA = object()


class Collector:
    """Does with each export what the test asks for."""

    def __init__(self, answer=lambda: MetricExportResult.SUCCESS):
        self.answer = answer
        self.exported = threading.Semaphore(0)
        self.count = 0
        self.is_shut = False

    def export(self, data):
        assert data is DATA
        self.count += 1
        self.exported.release()
        return self.answer()

    def shutdown(self):
        self.is_shut = True


def sender_to(collector, collect=lambda: [DATA], **options):
    told = []
    options = {"interval_s": 3600.0, **options}
    return MetricSender(lambda _: collector, collect, on_trouble=told.append, **options), told


def fail():
    return MetricExportResult.FAILURE


def test_the_last_export_is_at_the_end():
    collector = Collector()
    sender, told = sender_to(collector)
    sender.close()
    assert (collector.count, collector.is_shut, told) == (1, True, [])


def test_it_exports_at_intervals():
    collector = Collector()
    sender, _ = sender_to(collector, interval_s=0.01)
    assert all(collector.exported.acquire(timeout=30) for _ in range(3))
    sender.close()


def test_where_nothing_was_counted_nothing_is_exported():
    collector = Collector()
    sender, told = sender_to(collector, collect=list)
    sender.close()
    assert (collector.count, told) == (0, [])


def test_an_export_that_fails_is_made_up_for_by_the_next():
    answers = [fail(), fail()]
    collector = Collector(lambda: answers.pop() if answers else MetricExportResult.SUCCESS)
    sender, told = sender_to(collector, interval_s=0.01)
    assert all(collector.exported.acquire(timeout=30) for _ in range(4))
    sender.close()
    assert told == []


def test_failing_for_long_is_reported_once(monkeypatch):
    monkeypatch.setattr(outbox, "PATIENCE_S", 0.0)
    collector = Collector(fail)
    sender, told = sender_to(collector, interval_s=0.01)
    assert all(collector.exported.acquire(timeout=30) for _ in range(3))
    sender.close()
    assert told == ["the exporter reported a failure"]


@pytest.mark.parametrize("collect", [lambda: [DATA], lambda: 1 / 0])
def test_failing_at_the_end_is_reported(collect):
    sender, told = sender_to(Collector(fail), collect)
    sender.close()
    assert len(told) == 1


def test_a_collector_that_hangs_is_not_waited_for():
    release = threading.Event()
    collector = Collector(release.wait)
    sender, told = sender_to(collector)
    sender.begin_close()
    sender.close(0.2)  # comes back
    assert told == ["no answer within 0.2 s"]
    release.set()


def test_what_spans_have_waited_for_the_same_collector_is_not_waited_for_again(monkeypatch):
    complained, comes_back = threading.Event(), threading.Event()
    complains = logging.getLogger("opentelemetry.exporter.test_metrics")  # is listened to by the sender's thread

    def answer():
        complains.warning("connection refused")
        complained.set()
        return comes_back.wait(30) and MetricExportResult.FAILURE

    sender, told = sender_to(Collector(answer))
    sender.begin_close()
    assert complained.wait(30)
    passed_s = outbox.GRACE_S + 1
    with monkeypatch.context() as later:
        now, wait, waits, this = time.monotonic, threading.Condition.wait, [], threading.get_ident()

        def waited(condition, timeout=None):
            if threading.get_ident() == this:
                waits.append(timeout)
            return wait(condition, timeout)

        later.setattr(time, "monotonic", lambda: now() + passed_s)
        later.setattr(threading.Condition, "wait", waited)
        sender.close()
    comes_back.set()
    assert (waits, told) == ([], ["connection refused"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_sends_nothing():
    sender, _ = sender_to(Collector())
    pid = os.fork()
    if pid == 0:
        began = time.monotonic()
        sender.close()
        os._exit(0 if time.monotonic() - began < outbox.CLOSE_TIMEOUT_S else 1)
    assert os.waitpid(pid, 0)[1] == 0
    sender.close()


@pytest.fixture
def environ(monkeypatch):
    for variable in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(variable)
    return monkeypatch.setenv


BASE = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:1")


@pytest.mark.parametrize(
    "variables",
    [
        [],
        [("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://localhost:1/v1/traces")],
        [BASE, ("OTEL_METRICS_EXPORTER", "none")],
        [BASE, ("OTEL_SDK_DISABLED", "true")],
    ],
)
def test_without_an_endpoint_there_is_no_sender(environ, variables):
    for variable in variables:
        environ(*variable)
    assert build_metrics(Resource({}), lambda _resource: []) is None


@pytest.mark.parametrize("endpoint", [BASE, ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://localhost:1/m")])
def test_an_endpoint_and_an_interval_are_respected(environ, monkeypatch, endpoint):
    environ(*endpoint)
    environ("OTEL_METRIC_EXPORT_INTERVAL", "1500")
    monkeypatch.setattr(outbox, "MetricSender", lambda *_words, **options: options)
    assert build_metrics(Resource({}), lambda _resource: [])["interval_s"] == 1.5


@pytest.mark.parametrize(
    "variable",
    [
        ("OTEL_METRIC_EXPORT_INTERVAL", "soon"),
        ("OTEL_METRICS_EXPORTER", "statsd"),
        ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "localhost"),
    ],
)
def test_a_malformed_variable_is_a_config_error(environ, variable):
    environ(*BASE)
    environ(*variable)
    with pytest.raises(ConfigError, match=variable[0]):
        build_metrics(Resource({}), lambda _resource: [])


def test_where_spans_are_known_not_to_arrive_metrics_are_not_mentioned(environ, capsys, monkeypatch):
    environ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://one:4318")
    monkeypatch.setattr(provider, "_in_trouble", set())
    on_trouble = []
    for sends in ("MetricSender", "Outbox"):
        monkeypatch.setattr(outbox, sends, lambda *_words, **options: on_trouble.append(options["on_trouble"]))
    build_metrics(Resource({}), lambda _resource: [])
    build_spans(Resource({}), None)
    metrics, spans = on_trouble
    for fails, said in ((metrics, "metrics do not arrive"), (spans, "spans are being lost")):
        fails("refused")
        assert said in capsys.readouterr().err
    metrics("refused")
    assert capsys.readouterr().err == ""


def test_rejected_data_points_are_reported():
    response = requests.Response()
    response.status_code = 200
    partial = ExportMetricsPartialSuccess(rejected_data_points=3, error_message="too old")
    response._content = ExportMetricsServiceResponse(partial_success=partial).SerializeToString()
    told = []

    def make(see):
        return Collector(lambda: see(response) or MetricExportResult.SUCCESS)

    MetricSender(make, lambda: [DATA], on_trouble=told.append, interval_s=3600.0).close()
    assert told == ["it rejected some: too old"]


def test_a_part_that_is_refused_again_and_again_is_reported_though_others_get_through(monkeypatch):
    """Metrics go in parts; a proxy may refuse those that are large."""
    monkeypatch.setattr(outbox, "PATIENCE_S", 0.2)
    answers = itertools.cycle([MetricExportResult.SUCCESS, MetricExportResult.FAILURE])
    reported = threading.Event()
    sender = MetricSender(
        lambda _: Collector(lambda: next(answers)),
        lambda: [DATA, DATA],
        on_trouble=lambda _: reported.set(),
        interval_s=0.01,
    )
    assert reported.wait(20)
    sender.close()
