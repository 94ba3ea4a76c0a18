"""A job of more than a thousand processes at one Collector: what it counts from their spans goes on counting."""

from __future__ import annotations

import secrets
import time
import urllib.request

import pytest
from counting import CountingCollector
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

import services  # isort: skip

PROCESSES, ROUNDS = 1_100, 3


@pytest.fixture
def collector(tmp_path):
    try:
        one = CountingCollector(tmp_path / "collector")
    except services.NotHereError as why:
        pytest.skip(str(why))
    with one:
        yield one


def a_span_of_each():
    """A request with one span of a sync of every process."""
    request, now_ns = ExportTraceServiceRequest(), time.time_ns()
    for rank in range(PROCESSES):
        named = {"service.name": "large", "syncagent.rank": rank, "process.pid": 1000 + rank}
        of_resource = request.resource_spans.add()
        of_resource.resource.attributes.extend(pairs(named))
        span = of_resource.scope_spans.add().spans.add(name="aten::nonzero")
        span.trace_id, span.span_id = secrets.token_bytes(16), secrets.token_bytes(8)
        span.start_time_unix_nano, span.end_time_unix_nano = now_ns, now_ns + 1_500_000
        span.attributes.extend(pairs({"syncagent.op": "aten::nonzero", "syncagent.rank": rank}))
    return request.SerializeToString()


def pairs(attributes):
    kinds = {str: "string_value", int: "int_value"}
    return [KeyValue(key=key, value=AnyValue(**{kinds[type(value)]: value})) for key, value in attributes.items()]


def test_every_process_keeps_its_count(collector, until):
    headers = {"Content-Type": "application/x-protobuf"}
    for _ in range(ROUNDS):
        request = urllib.request.Request(f"{collector.endpoint}/v1/traces", a_span_of_each(), headers)
        urllib.request.urlopen(request, timeout=30).close()
    expected = {(str(rank),): ROUNDS for rank in range(PROCESSES)}
    until(lambda: collector.counted("syncagent_spans_calls_total", "syncagent_rank") == expected)
