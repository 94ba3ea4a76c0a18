"""docs/semantic_conventions.md says what is sent today: each name, where it is, its type and its unit."""

from __future__ import annotations

import inspect
import pkgutil
import re
from importlib import import_module
from pathlib import Path

import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import export
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv.schemas import Schemas
from sink_records import source, step, sync

from syncagent.events import CallSite, CollectiveRecord
from syncagent.integrations.resource import RankDetector
from syncagent.telemetry import semconv
from syncagent.telemetry.metrics import STALL_BOUNDS_S, MetricSink
from syncagent.telemetry.spans import SpanSink
from syncagent.telemetry.step_ids import process_identity
from syncagent.telemetry.violations import ViolationLog

PAGE = (Path(__file__).parents[3] / "docs" / "semantic_conventions.md").read_text("utf-8")
RANK = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "train"}
TYPES = {str: "string", int: "int", float: "double", bool: "boolean", tuple: "string[]"}


def table(heading):
    """The rows of the table under a heading."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def names_in(cell):
    return re.findall(r"`([^`]+)`", cell)


def sent_names():
    values = [value for name, value in vars(semconv).items() if name.isupper()]
    names = {name for value in values for name in ((value,) if isinstance(value, str) else value)}
    return names - {semconv.INSTRUMENTATION}


SENT = {name for name in sent_names() if name.startswith("syncagent.")}


def test_each_name_has_its_row_and_no_row_has_another():
    rows = [names_in(row[0]) for heading in ("Spans", "Attributes", "Metrics") for row in table(heading)]
    listed = [name for row in rows for name in row]
    assert set(listed) == SENT | {semconv.STEP_SPAN}
    assert len(listed) == len(set(listed))


def known(package):
    """The names in a package of ``opentelemetry.semconv``."""
    folder = import_module(f"opentelemetry.semconv.{package}")
    modules = [import_module(f"{folder.__name__}.{found.name}") for found in pkgutil.iter_modules(folder.__path__)]
    return {value for module in modules for name, value in vars(module).items() if name.isupper()}


class TestOpenTelemetrysOwn:
    ROWS = table("Used as they are")

    def test_all_that_are_sent_are_listed(self):
        listed = {name for row in self.ROWS for name in names_in(row[0])}
        assert sent_names() - SENT - {semconv.STEP_SPAN} <= listed

    def test_they_exist(self):
        existing = known("_incubating.attributes") | known("_incubating.metrics")
        assert {name for row in self.ROWS for name in names_in(row[0])} <= existing
        assert {"k8s.job.uid", "k8s.job.name"} <= existing

    @pytest.mark.skipif(not hasattr(Schemas, "V1_44_0"), reason="the page is about 1.44")
    def test_they_are_as_stable_as_the_page_says(self):
        stable = known("attributes")
        for names, stability, _ in self.ROWS:
            assert [name in stable for name in names_in(names)] == [stability == "stable"] * len(names_in(names)), names


@pytest.fixture
def signals(monkeypatch):
    """What is sent of a sync and a step about which everything is known, by the letters of the page."""
    for name, value in RANK.items():
        monkeypatch.setenv(name, value)
    spans, logs = InMemorySpanExporter(), InMemoryLogRecordExporter()
    tracers, loggers = TracerProvider(shutdown_on_exit=False), LoggerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    loggers.add_log_record_processor(SimpleLogRecordProcessor(logs))
    line = CallSite("/app/model.py", 7, "Net.forward", "x = y")
    event = sync(
        rank=3, violation=True, policy="warn", shapes=((2, 3),), ranges=("epoch",), module="net", forward_site=line,
        library_site=line, stack=(line,), allowed="logging",
    )  # fmt: skip
    span_sink = SpanSink(tracers, identity=lambda: process_identity("H100"))
    metric_sink = MetricSink(spans=span_sink)
    metric_sink.spans_lost = lambda: {"refused": 1}
    for sink in (span_sink, metric_sink, ViolationLog(span_sink, loggers)):
        sink.connect(source(lost={"buffer full": 2}))
        sink.events([event])
        for number in range(2):
            sink.step(step(0, 10, number, rank=3))
        sink.collectives(CollectiveRecord(1, 0, 2_000_000, 3))
    span_sink.close()
    sync_span, step_span = sorted(spans.get_finished_spans()[:2], key=lambda span: span.name)
    metrics = [
        metric
        for part in metric_sink.data(Resource({}))
        for of_resource in part.resource_metrics
        for of_scope in of_resource.scope_metrics
        for metric in of_scope.metrics
    ]
    (record,) = logs.get_finished_logs()
    assert step_span.name == semconv.STEP_SPAN
    assert record.log_record.event_name == semconv.VIOLATION
    points = [dict(point.attributes) for metric in metrics for point in metric.data.data_points]
    attributes = {
        "S": dict(sync_span.attributes),
        "T": dict(step_span.attributes),
        "M": {name: value for point in points for name, value in point.items()},
        "L": dict(record.log_record.attributes),
        "R": dict(RankDetector().detect().attributes),
    }
    return attributes, {metric.name: metric for metric in metrics}


def test_attributes_are_where_the_page_has_them_and_of_its_types(signals):
    attributes, _ = signals
    of_code = [semconv.CODE, semconv.FORWARD, semconv.LIBRARY]
    types = {name: kind for names in of_code for name, kind in zip(names, ("string", "int", "string"), strict=True)}
    written = {letter: {} for letter in attributes}
    for names, _, kind, _, where, _ in table("Attributes"):
        for name in names_in(names):
            for letter in where.split():
                of_letter = kind.partition(", on M ")[2 if letter == "M" else 0] or kind
                written[letter][name] = types[name] if kind == "as in `code.*`" else of_letter
    found = {
        letter: {name: TYPES[type(value)] for name, value in values.items() if name in SENT}
        for letter, values in attributes.items()
    }
    assert written == found


def test_instruments_and_units_are_those_of_the_page(signals):
    _, metrics = signals
    instruments = {export.Histogram: "histogram", export.Sum: "counter", export.Gauge: "gauge"}
    written = {names_in(row[0])[0]: (row[2], row[3].strip("`")) for row in table("Metrics") if names_in(row[0])}
    assert written == {name: (instruments[type(one.data)], one.unit) for name, one in metrics.items()}


def test_numbers_are_those_of_the_code():
    series = inspect.signature(MetricSink).parameters["max_series"].default
    assert f"{series} series per process" in PAGE
    assert (STALL_BOUNDS_S[0], STALL_BOUNDS_S[-1]) == (1e-6, 5.0)
    assert "buckets from 1 µs to 5 s" in PAGE
