"""A job's spans in a real Phoenix, read back through its API: what was sent is there, each attribute with its value."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import urllib.parse
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from places import TRAIN
from recording import Recording

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def train(environ, tmp_path_factory):
    """Ten steps, into a Phoenix project of that name."""

    def run(project, **variables):
        folder = tmp_path_factory.mktemp("train")
        for file in ("stop", "leave"):
            (folder / file).touch()
        own = {
            "RANK": "1",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "SYNCAGENT_DETAIL": "ops",
            "SYNCAGENT_STACKS": "1",
            "OTEL_SERVICE_NAME": "toy",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_RESOURCE_ATTRIBUTES": f"openinference.project.name={project}",
        }
        done = subprocess.run(
            [sys.executable, str(TRAIN), str(folder)],
            env=environ | own | variables, cwd=folder, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "lost" not in done.stderr
        return done.stderr

    return run


def stored(phoenix, project):
    """All spans of a project, page by page; none before its first."""
    found, cursor = [], ""
    while True:
        query = urllib.parse.urlencode({"limit": 100, **({"cursor": cursor} if cursor else {})})
        try:
            page = phoenix.get(f"/v1/projects/{project}/spans?{query}")
        except OSError:
            return []
        found += page["data"]
        cursor = page["next_cursor"]
        if not cursor:
            return found


@pytest.fixture(scope="module")
def both(phoenix, train, until):
    """What was sent and what Phoenix has, by the span's id."""
    between = Recording(phoenix.url)
    train("over-http", OTEL_EXPORTER_OTLP_ENDPOINT=between.url)
    between.close()
    sent = {span["id"]: span for span in between.spans}
    until(lambda: len(stored(phoenix, "over-http")) >= len(sent))
    return sent, {span["context"]["span_id"]: span for span in stored(phoenix, "over-http")}


def test_every_span_arrived(both, line_of):
    sent, kept = both
    assert kept.keys() == sent.keys()
    masks = [span for span in kept.values() if span["attributes"].get("code.line.number") == int(line_of("MASK"))]
    assert len(masks) == 10
    assert len([span for span in kept.values() if span["name"] == "train.step"]) >= 10


def test_every_attribute_has_the_value_that_was_sent(both):
    sent, kept = both
    for number, span in sent.items():
        assert kept[number]["attributes"] == span["attributes"]
    names = {name for span in sent.values() for name in span["attributes"]}
    assert names >= {
        "code.file.path",
        "code.line.number",
        "code.function.name",
        "code.stacktrace",
        "syncagent.op",
        "syncagent.api",
        "syncagent.kind",
        "syncagent.phase",
        "syncagent.step",
        "syncagent.device",
        "syncagent.stall_ms",
        "syncagent.rank",
        "syncagent.allowed",
        "syncagent.policy",
        "syncagent.source",
        "syncagent.shapes",
        "syncagent.forward.line.number",
        "syncagent.step.syncs",
        "syncagent.step.stall_ms",
    }


def test_names_parents_traces_and_times_are_those_that_were_sent(both):
    """Phoenix keeps microseconds."""
    sent, kept = both
    for number, span in sent.items():
        there = kept[number]
        assert (there["name"], there["context"]["trace_id"], there["parent_id"]) == (
            span["name"],
            span["trace"],
            span["parent"],
        )
        for which in ("start", "end"):
            time = EPOCH + timedelta(microseconds=span[f"{which}_ns"] // 1000)
            assert abs(datetime.fromisoformat(there[f"{which}_time"]) - time) <= timedelta(microseconds=1)


def test_over_grpc(phoenix, train, until):
    if importlib.util.find_spec("opentelemetry.exporter.otlp.proto.grpc") is None:
        pytest.skip("the exporter for gRPC is not installed: pip install 'syncagent[grpc]'")
    train("over-grpc", OTEL_EXPORTER_OTLP_ENDPOINT=phoenix.grpc, OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    found = until(lambda: stored(phoenix, "over-grpc"))
    assert {"train.step", "aten::index", "aten::_local_scalar_dense"} <= {span["name"] for span in found}


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}
"""127.0.0.1 as the kernel writes it, for IPv4 and within IPv6."""


def test_phoenix_listens_on_loopback_alone(phoenix):
    files = [file for file in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if file.exists()]
    if not files:
        pytest.skip("there is no /proc/net here")
    rows = [line.split() for file in files for line in file.read_text().splitlines()[1:]]
    for url in (phoenix.url, phoenix.grpc):
        port = f"{urllib.parse.urlsplit(url).port:04X}"
        listening = {row[1].split(":")[0] for row in rows if row[3] == "0A" and row[1].split(":")[1] == port}
        assert listening
        assert listening <= LOOPBACK
