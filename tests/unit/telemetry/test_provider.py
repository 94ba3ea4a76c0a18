"""Which provider the environment asks for."""

from __future__ import annotations

import json
import os
import socket
import sys

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from sink_records import step, sync

from syncagent.errors import ConfigError
from syncagent.telemetry import outbox
from syncagent.telemetry.attributes import TEXT_MAX
from syncagent.telemetry.provider import build_resource, build_spans
from syncagent.telemetry.spans import SpanSink
from tests.processes import ROOT


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    for variable in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setattr(sys, "argv", ["/app/train.py", "--lr", "1"])
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def build(tmp_path):
    built = []

    def build(resource=None, journal=tmp_path / "j.jsonl"):
        made, where = build_spans(build_resource(resource or {}), journal)
        built.append(made)
        return made, where

    yield build
    for made in filter(None, built):
        made[1].close()


def run(provider, outbox):
    sink = SpanSink(provider)
    sink.events([sync(1)])
    sink.step(step())
    sink.close()
    outbox.close()


def test_without_an_endpoint_spans_go_to_the_journal(build, tmp_path):
    (provider, outbox), where = build({"syncagent.rank": 3, "syncagent.world_size": 8})
    assert where == f"journal {tmp_path / 'j.jsonl'}"
    assert list(tmp_path.iterdir()) == []
    run(provider, outbox)
    assert outbox.stats() == {"exported": 2, "failed": 0, "dropped": 0}
    (line,) = (tmp_path / "j.jsonl").read_text().splitlines()
    (resource,) = json.loads(line)["resourceSpans"]
    assert len(resource["scopeSpans"][0]["spans"]) == 2


def test_the_resource_says_whose_spans_they_are(build):
    (provider, _), _ = build({"syncagent.rank": 3, "syncagent.world_size": 8})
    assert dict(provider.resource.attributes) | {
        "service.name": "train",
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
        "syncagent.rank": 3,
        "syncagent.world_size": 8,
    } == dict(provider.resource.attributes)


def test_the_environment_has_the_last_word_on_the_resource(build, monkeypatch):
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "host.name=node7,team=vision")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "resnet")
    (provider, _), _ = build({"service.name": "given"})
    attributes = provider.resource.attributes
    assert (attributes["service.name"], attributes["host.name"], attributes["team"]) == ("resnet", "node7", "vision")


DETECTOR = """
from opentelemetry.sdk.resources import Resource, ResourceDetector

class Detector(ResourceDetector):
    def detect(self):
        return Resource({"host.name": "node7", "service.name": "found", "host.rack": 3})
"""
DETECT = """
from syncagent.telemetry.provider import build_resource
found = build_resource({"syncagent.rank": 3}).attributes
print(*(found[name] for name in ("service.name", "host.name", "host.rack", "syncagent.rank")))
"""


@pytest.mark.parametrize(("service", "expected"), [("", "found"), ("said", "said")])
def test_a_resource_detector_knows_better_than_the_agent(python, tmp_path, service, expected):
    about = tmp_path / "rack-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: rack\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[opentelemetry_resource_detector]\nrack = rack:Detector\n")
    (tmp_path / "rack.py").write_text(DETECTOR)
    own = {"OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "rack", "OTEL_SERVICE_NAME": service}
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = python("-c", DETECT, PYTHONPATH=path, **own)
    assert done.stdout == f"{expected} node7 3 3\n"


def test_a_resource_that_lacks_a_name_has_the_scripts(build, monkeypatch):
    """An empty name is none; nor is the SDK's ``unknown_service``."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=,host.name=")
    attributes = build()[0][0].resource.attributes
    assert (attributes["service.name"], attributes["host.name"]) == ("train", socket.gethostname())


def test_a_resource_is_made_fit_to_be_sent(build, monkeypatch):
    """A NUL, a file name that is no UTF-8 and a text of any length would have every request refused."""
    monkeypatch.setattr(sys, "argv", ["/app/\udcff.py"])
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", f"team=a%00b,note={'x' * 100_000}")
    attributes = build()[0][0].resource.attributes
    assert (attributes["service.name"], attributes["team"]) == ("\\udcff", "a\\x00b")
    assert len(attributes["note"]) == TEXT_MAX


@pytest.mark.parametrize(
    ("argv", "orig_argv", "expected"),
    [
        (["/app/fit.py"], [], "fit"),
        (["-c"], [], "python"),
        ([], [], "python"),
        (["-m", "x"], ["python", "-m", "pkg.train", "x"], "pkg.train"),
    ],
)
def test_the_service_is_named_after_the_script(build, monkeypatch, argv, orig_argv, expected):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    assert build()[0][0].resource.attributes["service.name"] == expected


@pytest.mark.parametrize(
    ("variable", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none"), (None, None)]
)
def test_spans_can_be_off(build, monkeypatch, tmp_path, variable, value):
    if variable:
        monkeypatch.setenv(variable, value)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:1")
    made, where = build(journal=tmp_path / "j.jsonl" if variable else None)
    assert made is None
    assert where.startswith("nowhere: ")
    assert (variable or "no OTLP endpoint") in where


def test_an_endpoint_takes_the_journals_place(build, monkeypatch, tmp_path):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:1")
    (provider, outbox), where = build()
    assert where == "OTLP http/protobuf to http://localhost:1/v1/traces"
    assert isinstance(outbox.exporter, OTLPSpanExporter)
    assert isinstance(provider, TracerProvider)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "x"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "x"),
    ],
)
def test_a_malformed_variable_is_a_config_error(monkeypatch, tmp_path, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=variable):
        build_spans(build_resource({}), tmp_path / "j.jsonl")


def test_what_the_exporter_itself_does_not_like_is_its_own_error(monkeypatch, tmp_path):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:1")
    monkeypatch.setenv("OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER", "nobody")
    with pytest.raises(RuntimeError, match="nobody"):
        build_spans(build_resource({}), tmp_path / "j.jsonl")


def test_queue_and_batch_sizes_are_the_sdks(build, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "250")
    asked_for, real = {}, outbox.Outbox

    def noted(*words, **options):
        asked_for.update(options)
        return real(*words, **options)

    monkeypatch.setattr(outbox, "Outbox", noted)
    build()
    assert (asked_for["max_queue"], asked_for["max_batch"], asked_for["interval_s"]) == (10, 512, 0.25)


def test_a_command_line_that_a_detector_found_has_no_secrets(monkeypatch):
    """The SDK's detector of the process gives it as a list, as a text, or not at all, by its version."""
    detected = Resource(
        {
            "process.command_args": ("train.py", "--api-key", "s3cr3t"),
            "process.command_line": "python train.py --api-key=s3cr3t --lr 1",
            "process.pid": 7,
            "service.name": "a key=b",
        }
    )
    monkeypatch.setattr(Resource, "create", lambda: detected)
    found = dict(build_resource({}).attributes)
    assert found.pop("host.name") == socket.gethostname()
    assert found == {
        "process.command_args": ("train.py", "--api-key", "[redacted]"),
        "process.command_line": "python train.py --api-key=[redacted] --lr 1",
        "process.pid": 7,
        "service.name": "a key=b",
    }
