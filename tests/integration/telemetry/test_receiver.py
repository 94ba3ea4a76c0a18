"""Spans on their way to a real OTLP/HTTP receiver, which may not be well."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_spans_arrive_whole(receiver, job, compression):
    collector = receiver()
    result = job(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
        OTEL_EXPORTER_OTLP_COMPRESSION=compression,
        OTEL_SERVICE_NAME="resnet",
        OTEL_RESOURCE_ATTRIBUTES="team=vision",
    )
    assert result.code == 7
    assert result.stderr == ""
    assert result.account == {
        "where": f"OTLP http/protobuf to {collector.endpoint}/v1/traces",
        "journal": None,
        "threads": ["MainThread"],
        "exported": 9,
        "failed": 0,
        "dropped": 0,
    }

    spans = collector.spans()
    roots = {span["trace"]: span for span in spans if span["name"] == "train.step"}
    assert [root["attributes"]["syncagent.step"] for root in roots.values()] == [0, 1, 2]
    assert {root["parent"] for root in roots.values()} == {""}
    children = [span for span in spans if span["name"] != "train.step"]
    assert len(children) == 6
    for child in children:
        root = roots[child["trace"]]
        assert child["parent"] == root["id"]
        assert root["start"] <= child["start"] < child["end"] <= root["end"]
        assert child["end"] - child["start"] == 2_000_000
        assert child["attributes"]["syncagent.step"] == root["attributes"]["syncagent.step"]
    assert children[0]["name"] == "aten::nonzero"
    assert children[0]["scope"] == "syncagent"
    assert children[0]["attributes"] == {
        "code.file.path": "/app/train.py",
        "code.line.number": 12,
        "code.function.name": "loss",
        "syncagent.source": "mask = labels > 0",
        "syncagent.op": "aten::nonzero",
        "syncagent.kind": "dynamic_shape",
        "syncagent.phase": "forward",
        "syncagent.step": 0,
        "syncagent.device": "cuda:0",
        "syncagent.stream": 0,
        "syncagent.stall_ms": 2.0,
        "syncagent.rank": 1,
        "syncagent.policy": "warn",
        "syncagent.sensor": "kernels",
        "thread.name": "MainThread",
    }
    resource = children[0]["resource"]
    assert (resource["service.name"], resource["team"]) == ("resnet", "vision")
    assert (resource["syncagent.rank"], resource["syncagent.world_size"]) == (1, 2)
    assert {"host.name", "process.pid", "telemetry.sdk.version"} <= resource.keys()


def test_an_unsampled_step_sends_nothing(receiver, job):
    collector = receiver()
    result = job(OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_TRACES_SAMPLER="always_off")
    assert result.code == 7
    assert (result.account["exported"], result.account["failed"], result.account["dropped"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("mode", "reason"), [("refuse", "refused"), ("500", "Internal Server Error"), ("hang", "no answer within 1 s")]
)
def test_a_collector_that_is_not_well_costs_spans_and_one_line(receiver, job, mode, reason):
    collector = receiver(mode)
    result = job(close_timeout=1.0, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)
    assert result.code == 7
    assert result.account["threads"] == ["MainThread"]
    assert result.account["exported"] == 0
    assert result.account["failed"] + result.account["dropped"] == 9
    (line,) = result.messages
    assert "spans are being lost" in line
    assert f"to={collector.endpoint}/v1/traces" in line
    assert reason in line


def test_a_full_queue_is_counted(receiver, job):
    collector = receiver("hang")
    result = job(
        steps=10,
        close_timeout=0.2,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
        OTEL_BSP_MAX_QUEUE_SIZE="4",
    )
    assert result.code == 7
    assert result.account["exported"] == 0
    assert 0 < result.account["failed"] <= 4
    assert result.account["failed"] + result.account["dropped"] == 30
    assert len(result.messages) == 1


def test_a_collector_that_recovers_gets_the_spans(receiver, job):
    collector = receiver("flaky")
    result = job(OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)
    assert result.account["exported"] == 9
    assert len(collector.spans()) == 9
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318", "a URL such as http://localhost:4318"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "a number of seconds above 0"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "lots", "a whole number from 0"),
    ],
)
def test_a_malformed_variable_is_one_sentence(job, variable, value, allowed):
    result = job(**({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"} | {variable: value}))
    assert result.code == 7
    (line,) = result.messages
    assert variable in line
    assert value in line
    assert allowed in line
