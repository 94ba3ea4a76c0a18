"""Log lines of violations, and what leads from them to their spans."""

from __future__ import annotations

import re
import sys

import pytest
from opentelemetry import _logs
from opentelemetry.context import Context
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, DEFAULT_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context
from sink_records import MS, T0, step, sync

from syncagent.telemetry.spans import SpanSink
from syncagent.telemetry.violations import ViolationLog


def violate(sampler=DEFAULT_ON, count=1, **fields):
    """Some syncs against the policy; the spans that were made of them."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans = SpanSink(provider)
    log = ViolationLog(spans)
    events = [sync(n, violation=True, **fields) for n in range(count)]
    for sink in (spans, log):
        sink.events(events)
    spans.step(step(0, 1000))
    return [span for span in exporter.get_finished_spans() if span.name == "aten::nonzero"]


def test_a_line_names_its_span(capsys):
    """Each line that is written: the 10th and 100th sync; of the first the warning tells."""
    spans = violate(count=150)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    for line, span in zip(lines, (spans[9], spans[99]), strict=True):
        assert f"trace_id={span.context.trace_id:032x} span_id={span.context.span_id:016x}" in line


def test_where_a_program_reads_the_log_the_first_has_a_line_as_well(monkeypatch, capsys):
    """It does not see the warning."""
    monkeypatch.setattr("syncagent.telemetry.violations.is_for_programs", lambda: True)
    violate(count=20)
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_line_names_no_span_that_is_not_sent(capsys):
    assert violate(ALWAYS_OFF, count=10) == []
    assert "trace_id" not in capsys.readouterr().err


@pytest.fixture
def program_logs(monkeypatch):
    exporter = InMemoryLogRecordExporter()
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    monkeypatch.setattr(_logs, "get_logger_provider", lambda: provider)
    return exporter


def test_a_program_with_a_logger_provider_has_a_record_of_it(program_logs):
    """In the sync's span, with its end as time."""
    [span] = violate(count=1)
    [data] = program_logs.get_finished_logs()
    record = data.log_record
    assert (record.trace_id, record.span_id) == (span.context.trace_id, span.context.span_id)
    assert (record.body, record.severity_text, record.timestamp) == (
        "host sync against the policy",
        "WARN",
        T0 + MS,
    )
    assert record.attributes["code.line.number"] == 12
    assert record.attributes["syncagent.op"] == "aten::nonzero"
    assert record.attributes["syncagent.count"] == 1
    assert data.instrumentation_scope.name == "syncagent"


def test_without_a_span_of_ours_it_is_in_the_programs_own(program_logs):
    user = NonRecordingSpan(SpanContext(7, 8, is_remote=False, trace_flags=TraceFlags(1)))
    violate(ALWAYS_OFF, user_context=set_span_in_context(user, Context()))
    [data] = program_logs.get_finished_logs()
    assert (data.log_record.trace_id, data.log_record.span_id) == (7, 8)


def test_without_a_logger_provider_there_is_no_record(monkeypatch, capsys):
    """And nothing of the logs' API is imported for it."""
    monkeypatch.delitem(sys.modules, "opentelemetry._logs")
    violate(count=10)
    assert "opentelemetry._logs" not in sys.modules
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_logger_provider_that_fails_costs_one_line(monkeypatch, capsys):
    monkeypatch.setattr(_logs, "get_logger_provider", lambda: object())
    violate(count=20)
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "OpenTelemetry logs" in line]) == 1
    assert len([line for line in lines if re.search("host sync against", line)]) == 1
