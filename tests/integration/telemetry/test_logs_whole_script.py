"""A script whose syncs are against the policy: its log records at a real receiver, beside their spans."""

from __future__ import annotations

import json

import pytest

SCRIPT = """\
import torch

x = torch.ones(8, device="cuda")
for _ in range(12):
    x[0].item()
"""


@pytest.fixture
def train(forked, tmp_path):
    def run(endpoint, **variables):
        (tmp_path / "train.py").write_text(SCRIPT)
        own = {
            "SYNCAGENT": "1",
            "SYNCAGENT_SIMULATE": "1",
            "SYNCAGENT_POLICY": "warn",
            "SYNCAGENT_WARMUP_STEPS": "0",
            "SYNCAGENT_SUMMARY": "0",
            "SYNCAGENT_LOG_FORMAT": "json",
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_SERVICE_NAME": "toy",
            "OMP_NUM_THREADS": "1",
        }
        done = forked("train.py", **own | variables)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
        return [line for line in lines if line["message"] == "host sync against the policy"], lines

    return run


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_each_line_of_the_log_is_a_record_in_its_span(receiver, train, protocol):
    collector = receiver("ok", protocol.partition("/")[0])
    told, _ = train(collector.endpoint, OTEL_LOGS_EXPORTER="otlp", OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
    records = collector.log_records()
    spans = {(span["trace"], span["id"]): span for span in collector.spans()}
    of_item = [record for record in records if record["attributes"]["code.line.number"] == 5]
    assert [record["attributes"]["syncagent.count"] for record in of_item] == [1, 10]
    assert [(r["trace"], r["span"]) for r in records] == [(line["trace_id"], line["span_id"]) for line in told]
    for record in records:
        span = spans[record["trace"], record["span"]]
        assert span["name"] == record["attributes"]["syncagent.op"]
        assert span["attributes"]["syncagent.violation"] is True
        assert (record["body"], record["severity"]) == ("host sync against the policy", "WARN")
        assert record["resource"]["service.name"] == "toy"


def test_without_being_asked_for_no_record_is_sent(receiver, train):
    """An endpoint may be one that takes no logs; the lines on stderr name their spans all the same."""
    collector = receiver()
    told, _ = train(collector.endpoint)
    assert collector.log_records() == []
    spans = {(span["trace"], span["id"]) for span in collector.spans()}
    assert told
    assert {(line["trace_id"], line["span_id"]) for line in told} <= spans


def test_a_malformed_exporter_of_logs_costs_the_records_alone(receiver, train):
    collector = receiver()
    told, lines = train(collector.endpoint, OTEL_LOGS_EXPORTER="syslog")
    assert told
    (said,) = [line["message"] for line in lines if line["level"] == "error"]
    assert said.startswith("OTEL_LOGS_EXPORTER='syslog' is not allowed; allowed: otlp")
    assert said.endswith("No log records are sent; the run is still watched.")
    assert collector.spans()
