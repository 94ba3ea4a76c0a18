"""The journal says in JSON what the OTLP exporter says in protobuf, and survives what files suffer."""

from __future__ import annotations

import base64
import errno
import json
import math
import multiprocessing
import os
import re
from pathlib import Path

import pytest
from google.protobuf import json_format
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from syncagent.delivery.folder import file_path
from syncagent.support import log, storage
from syncagent.telemetry.journal import JournalExporter, encode


@pytest.fixture(autouse=True)
def unsaid(monkeypatch):
    monkeypatch.setattr(log, "_said", set())
    log.get_logger.cache_clear()


@pytest.fixture
def spans():
    """Spans with everything that the agent's can have."""
    exporter = InMemorySpanExporter()
    resource = Resource({"service.name": "train", "process.pid": 7}, "https://example.org/schema")
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("syncagent", "1")
    state = trace.TraceState([("vendor", "1")])
    remote = trace.SpanContext(2**127 + 1, 5, is_remote=True, trace_flags=trace.TraceFlags(1), trace_state=state)
    root = tracer.start_span(
        "train.step",
        trace.set_span_in_context(trace.NonRecordingSpan(remote), Context()),
        # Without a trace state: the protobuf encoder forgets that of links.
        links=[trace.Link(trace.SpanContext(3, 4, is_remote=False), {"why": "test"})],
        start_time=2**60,
        attributes={"i": 2**53 + 1, "f": 0.1, "b": False, "s": 'ü"\n', "list": ["1x2", "scalar"], "none": 0},
    )
    child = tracer.start_span("aten::nonzero", trace.set_span_in_context(root, Context()), start_time=2**60 + 1)
    child.end(2**60 + 3)
    tracer.start_span("lonely", Context(), start_time=1).end(2)
    root.end(2**60 + 4)
    return exporter.get_finished_spans()


def parse(line: str | bytes) -> ExportTraceServiceRequest:
    """OTLP's JSON differs from protobuf's in one thing: ids are hexadecimal, not base64."""

    def to_base64(match):
        return f'{match[1]}"{base64.b64encode(bytes.fromhex(match[2])).decode()}"'

    text = line.decode() if isinstance(line, bytes) else line
    text = re.sub(r'("(?:traceId|spanId|parentSpanId)":\s*)"([0-9a-f]*)"', to_base64, text)
    return json_format.Parse(text, ExportTraceServiceRequest())


def test_it_says_what_protobuf_says(spans):
    assert parse(json.dumps(encode(spans))) == encode_spans(spans)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.inf, {"doubleValue": "Infinity"}),
        (-math.inf, {"doubleValue": "-Infinity"}),
        (math.nan, {"doubleValue": "NaN"}),
        ([1, 2], {"arrayValue": {"values": [{"intValue": "1"}, {"intValue": "2"}]}}),
        (2**63 - 1, {"intValue": "9223372036854775807"}),
        (True, {"boolValue": True}),
    ],
)
def test_values(value, expected):
    provider, out = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(out))
    with provider.get_tracer("test").start_as_current_span("with it", attributes={"name": value}):
        pass
    [span] = encode(out.get_finished_spans())["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert span["attributes"] == [{"key": "name", "value": expected}]


def test_a_line_a_batch(spans, tmp_path):
    exporter = JournalExporter(tmp_path / "deep" / "er" / "j.jsonl")
    assert exporter.path is None
    for _ in range(3):
        assert exporter.export(spans) is SpanExportResult.SUCCESS
    lines = exporter.path.read_bytes().splitlines()  # not closed: each batch is on its way to the disk
    assert [parse(line) for line in lines] == [encode_spans(spans)] * 3
    exporter.shutdown()
    assert exporter.export(spans) is SpanExportResult.FAILURE


def test_nothing_is_created_before_the_first_span(tmp_path, monkeypatch, spans):
    monkeypatch.chdir(tmp_path)
    exporter = JournalExporter(file_path("journal"))
    exporter.export([])
    assert list(tmp_path.iterdir()) == []
    exporter.export(spans)
    assert (tmp_path / ".syncagent" / ".gitignore").read_text() == "*\n"
    assert re.fullmatch(rf"journal-\d{{8}}-\d{{6}}-{os.getpid()}\.jsonl", exporter.path.name)
    exporter.shutdown()


def test_the_setting_names_a_file_or_a_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "5")
    assert file_path("journal", "x.jsonl") == tmp_path / "x.jsonl"
    assert file_path("journal", "{rank}-{pid}.jsonl") == tmp_path / f"5-{os.getpid()}.jsonl"
    assert file_path("journal", str(tmp_path)).parent == tmp_path
    assert file_path("journal", "new/").parent == tmp_path / "new"


def test_it_is_private_to_its_owner_or_as_asked_for(tmp_path, spans):
    for mode in (0o600, 0o640):
        exporter = JournalExporter(tmp_path / f"{mode}.jsonl", mode=mode)
        exporter.export(spans)
        exporter.shutdown()
        assert exporter.path.stat().st_mode & 0o777 == mode


def test_a_folder_of_its_own_that_anybody_may_write_to_is_not_used(tmp_path, monkeypatch, spans, capsys):
    """Names of journals can be guessed, so anyone who may write there can prepare one."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".syncagent").mkdir()
    (tmp_path / ".syncagent").chmod(0o777)
    exporter = JournalExporter(file_path("journal"))
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert exporter.path.parent.name.startswith("syncagent-")
    assert "anyone may write to it" in capsys.readouterr().err
    (tmp_path / ".syncagent").rmdir()
    before = os.umask(0)
    try:
        for _ in range(2):  # the one that it makes itself is good enough for the next run
            exporter = JournalExporter(file_path("journal"))
            exporter.export(spans)
            exporter.shutdown()
            assert exporter.path.parent == tmp_path / ".syncagent"
    finally:
        os.umask(before)


@pytest.mark.parametrize("there", ["link", "fifo"])
def test_what_is_no_file_in_its_place_is_left_alone(tmp_path, monkeypatch, spans, capsys, there):
    """It goes elsewhere, and the log says so."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    wanted = tmp_path / "j.jsonl"
    (tmp_path / "precious").write_text("precious")
    os.mkfifo(wanted) if there == "fifo" else wanted.symlink_to(tmp_path / "precious")
    exporter = JournalExporter(wanted)
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert (tmp_path / "precious").read_text() == "precious"
    assert exporter.path.parent.parent == tmp_path
    assert "the journal is elsewhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({"RANK": "../../x"}, "0"),
        ({"RANK": "1/../../x", "SLURM_PROCID": "7"}, "7"),
        ({"OMPI_COMM_WORLD_RANK": "3"}, "3"),
        ({}, "0"),
    ],
)
def test_the_rank_in_its_name_is_the_launchers_number_and_nothing_else(monkeypatch, tmp_path, variables, rank):
    """Whatever launcher; a rank that is none leads out of no folder."""
    for name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert file_path("journal", f"{tmp_path}/j-{{rank}}.jsonl") == tmp_path / f"j-{rank}.jsonl"


def spans_in(folder):
    return sum(len(scope.spans) for file in folder.iterdir() for line in file.read_bytes().splitlines()
               for resource in parse(line).resource_spans for scope in resource.scope_spans)  # fmt: skip


def _write(path, spans, start, sizes):
    exporter = JournalExporter(path, max_bytes=20_000)
    start.wait(60)
    for _ in range(60):
        assert exporter.export(spans) is SpanExportResult.SUCCESS
    exporter.shutdown()
    sizes.put(exporter.overwritten)


@pytest.mark.parametrize("locks", [True, False])
def test_of_several_writers_with_one_name_every_span_is_kept_or_counted(tmp_path, spans, monkeypatch, locks):
    """Each has a file of its own, also while they rotate, and where the file system knows no locks."""
    if not locks:
        monkeypatch.setattr(storage, "fcntl", None)
    fork = multiprocessing.get_context("fork")
    start, sizes = fork.Event(), fork.Queue()
    path = tmp_path / "j.jsonl"
    writers = [fork.Process(target=_write, args=(path, spans, start, sizes)) for _ in range(4)]
    for writer in writers:
        writer.start()
    start.set()
    overwritten = [sizes.get(timeout=60) for _ in writers]
    for writer in writers:
        writer.join(60)
    assert all(overwritten)
    assert spans_in(tmp_path) + sum(overwritten) == 4 * 60 * len(spans)


def test_a_second_writer_takes_another_name_and_says_so(tmp_path, spans, capsys):
    one, two = JournalExporter(tmp_path / "j.jsonl"), JournalExporter(tmp_path / "j.jsonl")
    for exporter in (one, two):
        assert exporter.export(spans) is SpanExportResult.SUCCESS
    assert (one.path.name, two.path.name) == ("j.jsonl", "j-2.jsonl")
    [line] = capsys.readouterr().err.splitlines()
    assert "j-2.jsonl" in line
    one.shutdown()
    later = JournalExporter(tmp_path / "j.jsonl")
    later.export(spans)
    assert later.path.name == "j.jsonl"
    assert len(later.path.read_bytes().splitlines()) == 2
    for exporter in (two, later):
        exporter.shutdown()


def test_a_line_that_a_killed_process_left_is_ended_first(tmp_path, spans):
    (tmp_path / "j.jsonl").write_bytes(b'{"resourceSpans": [')
    exporter = JournalExporter(tmp_path / "j.jsonl")
    exporter.export(spans)
    exporter.shutdown()
    assert parse((tmp_path / "j.jsonl").read_bytes().splitlines()[1]) == encode_spans(spans)


def test_where_it_cannot_be_written_it_goes_to_the_temporary_directory(tmp_path, monkeypatch, spans, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "file").write_text("")
    wanted = tmp_path / "file" / "j.jsonl"
    exporter = JournalExporter(wanted)
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    assert exporter.path.parent.parent == tmp_path
    assert len(exporter.path.read_text().splitlines()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(exporter.path) in line
    assert str(wanted) in line
    exporter.shutdown()


def test_a_full_file_makes_room_for_a_new_one(tmp_path, spans, capsys):
    """What goes with it is counted, and said once."""
    path = tmp_path / "j.jsonl"
    size = len(json.dumps(encode(spans), separators=(",", ":"))) + 1
    exporter = JournalExporter(path, max_bytes=2 * size)
    for _ in range(7):
        assert exporter.export(spans) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["j.1.jsonl", "j.jsonl"]
    assert len(path.read_text().splitlines()) == 1
    assert len((tmp_path / "j.1.jsonl").read_text().splitlines()) == 2
    assert exporter.overwritten == 4 * len(spans)
    (line,) = capsys.readouterr().err.splitlines()
    assert "loses its oldest spans" in line


def test_what_an_earlier_run_has_left_is_counted_too(tmp_path, spans):
    size = len(json.dumps(encode(spans), separators=(",", ":"))) + 1
    overwritten = 0
    for _ in range(3):
        exporter = JournalExporter(tmp_path / "j.jsonl", max_bytes=2 * size)
        for _ in range(3):
            assert exporter.export(spans) is SpanExportResult.SUCCESS
        exporter.shutdown()
        overwritten += exporter.overwritten
    assert spans_in(tmp_path) + overwritten == 9 * len(spans)


def test_a_full_disk_costs_the_batch_and_one_message(tmp_path, monkeypatch, spans, capsys):
    real_write, is_full = os.write, True
    exporter = JournalExporter(tmp_path / "j.jsonl")

    def torn(file, data):
        if is_full:
            real_write(file, bytes(data[:100]))
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(file, data)

    monkeypatch.setattr(os, "write", torn)
    assert exporter.export(spans) is SpanExportResult.FAILURE
    assert exporter.export(spans) is SpanExportResult.FAILURE
    is_full = False
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    monkeypatch.undo()
    exporter.shutdown()
    assert parse((tmp_path / "j.jsonl").read_bytes().splitlines()[-1]) == encode_spans(spans)
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line


def test_a_directory_that_is_gone_does_no_harm(monkeypatch):
    monkeypatch.setattr(os, "getcwd", lambda: (_ for _ in ()).throw(FileNotFoundError()))
    assert file_path("journal", "j.jsonl") == Path("j.jsonl")
