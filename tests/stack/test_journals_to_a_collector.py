"""The journal, read back by a real Collector's ``otlp_json_file`` receiver: every span that was written, once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
from keeping import Kept, spans_of, start, whole_lines
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags
from places import TRAIN

from syncagent.telemetry.journal import JournalExporter
from syncagent.telemetry.provider import build_resource


class Reader:
    """A Collector that follows all journals in a folder."""

    def __init__(self, folder, keeps_in):
        self.folder = folder
        self._kept = Kept(keeps_in)
        follows = {
            "include": [str(folder / "**" / "*.jsonl")],
            "start_at": "beginning",
            "poll_interval": "100ms",
            "include_file_name": False,
        }
        self._service = start(keeps_in, receivers={"otlp_json_file": follows})
        self.stop = self._service.stop

    def has(self, wanted, until):
        """Wait for spans of a service and return whether they are these, in whatever order they came."""
        (service,) = {span["resource"]["service.name"] for span in wanted}
        until(lambda: len(self.of(service)) >= len(wanted))
        time.sleep(0.5)  # in which it might read something twice
        return in_order(self.of(service)) == in_order(wanted)

    def of(self, service):
        return [span for span in self._kept.spans() if span["resource"]["service.name"] == service]


def in_order(spans):
    return sorted(spans, key=lambda span: span["id"])


def written(*journals):
    return [span for journal in journals for line in whole_lines(journal) for span in spans_of(line)]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    one = Reader(tmp_path_factory.mktemp("journals"), tmp_path_factory.mktemp("collector"))
    yield one
    one.stop()


JOB = {
    "SYNCAGENT_DETAIL": "ops",
    "SYNCAGENT_STACKS": "1",
    "SYNCAGENT_POLICY": "warn",
    "OTEL_BSP_SCHEDULE_DELAY": "50",
    "RANK": "1",
    "WORLD_SIZE": "2",
}


@pytest.fixture
def train(forked, tmp_path):
    """Ten steps, with no endpoint."""

    def run(journal, service):
        for name in ("stop", "leave"):
            (tmp_path / name).touch()
        done = forked(TRAIN, tmp_path, **JOB, SYNCAGENT_JOURNAL=str(journal), OTEL_SERVICE_NAME=service)
        assert done.returncode == 0, done.stderr

    return run


def test_what_a_run_has_written_is_read_with_all_that_it_says(reader, train, until):
    """Ids, parents, times, every attribute of spans and resource."""
    journal = reader.folder / "whole.jsonl"
    train(journal, "whole")
    spans = written(journal)
    assert reader.has(spans, until)
    assert {"train.step", "aten::index", "aten::_local_scalar_dense"} <= {span["name"] for span in spans}
    assert len({span["trace"] for span in spans if span["name"] == "train.step"}) >= 10
    names = {name for span in spans for name in span["attributes"]}
    assert names >= {
        "code.stacktrace",
        "code.line.number",
        "syncagent.stall_ms",
        "syncagent.shapes",
        "syncagent.allowed",
    }


def test_a_killed_run_and_the_next_one_in_the_same_file(reader, train, environ, tmp_path, until):
    """``kill -9`` in mid-run leaves whole lines; where the last is cut all the same, that one alone is lost."""
    journal = reader.folder / "killed.jsonl"
    own = {"SYNCAGENT_JOURNAL": str(journal), "OTEL_SERVICE_NAME": "killed"}
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, str(TRAIN), str(tmp_path)]
        job = subprocess.Popen(command, env=environ | JOB | own, cwd=tmp_path, stdout=log, stderr=log)
    try:
        until(lambda: job.poll() is not None or len(written(journal)) > 100)
    finally:
        job.send_signal(signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    first = written(journal)
    assert journal.read_text().endswith("\n")
    assert reader.has(first, until)
    *_, last = journal.read_text().splitlines()
    with journal.open("a") as file:
        file.write(last[: len(last) // 2])  # as a full disk leaves it
    train(journal, "killed")
    both = written(journal)
    assert len(both) > len(first)
    assert reader.has(both, until)


def spans(count, **resource):
    """Spans with all that a span can have."""
    provider = TracerProvider(resource=build_resource(resource), shutdown_on_exit=False)
    tracer = provider.get_tracer("program", "1.2", "https://example.org/schema", {"of": "scope"})
    elsewhere = SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(1))
    attributes = {"b": True, "i": -(2**62), "f": 0.1, "s": "ümläut\u2028", "list": ["x", "y"], "nothing": []}
    for n in range(count):
        links = [Link(elsewhere, {"l": n})]
        with tracer.start_as_current_span("step", attributes=attributes | {"n": n}, links=links) as span:
            span.add_event("happened", {"why": "it did"})
            span.set_status(Status(StatusCode.ERROR, "failed"))
            child = tracer.start_span("sync")
            child.end()
        yield from (span, child)


def test_a_journal_that_is_rotated_while_it_is_read(reader, until, monkeypatch):
    """The full file under its new name is not read again, and the new one is not taken for it.

    The receiver knows files by their first thousand bytes, and here the resource alone, the same in both, is longer.
    """
    monkeypatch.setenv("OTEL_SERVICE_NAME", "rotated")
    journal, older = reader.folder / "rotated.jsonl", reader.folder / "rotated.1.jsonl"
    exporter = JournalExporter(journal, max_bytes=40_000)
    made = list(spans(100, **{f"attribute.{n}": "as long as the name of a node" for n in range(40)}))
    everything = {}
    for first in range(0, len(made), 10):
        exporter.export(made[first : first + 10])
        everything |= {span["id"]: span for span in written(older, journal)}
        assert reader.has(list(everything.values()), until)  # before the next file overwrites the oldest
    exporter.shutdown()
    assert exporter.overwritten > 0
    assert len(everything) == len(made)
    assert reader.has(list(everything.values()), until)
