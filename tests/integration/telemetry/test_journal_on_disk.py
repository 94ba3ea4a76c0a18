"""The journal of processes that end, and of one that is killed."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

JOB = Path(__file__).with_name("job.py")


def spans(line):
    """A line's spans, read as OTLP JSON: protobuf's own but for ids, which are hexadecimal and not base64."""

    def to_base64(match):
        return f'{match[1]}"{base64.b64encode(bytes.fromhex(match[2])).decode()}"'

    text = re.sub(r'("(?:traceId|spanId|parentSpanId)":)"([0-9a-f]*)"', to_base64, line)
    request = json_format.Parse(text, ExportTraceServiceRequest())
    return [
        span
        for of_resource in request.resource_spans
        for of_scope in of_resource.scope_spans
        for span in of_scope.spans
    ]


def test_without_an_endpoint_there_is_a_journal(job, tmp_path):
    result = job()
    assert (result.code, result.stderr) == (7, "")
    journal = Path(result.account["journal"])
    assert journal.parent == tmp_path / ".syncagent"
    assert (journal.parent / ".gitignore").read_text() == "*\n"
    read = [span for line in journal.read_text().splitlines() for span in spans(line)]
    assert sorted(span.name for span in read) == sorted(
        ["train.step", "aten::nonzero", "aten::_local_scalar_dense"] * 3
    )
    assert len({span.trace_id for span in read}) == 3


def test_a_killed_process_leaves_a_readable_journal(environ, tmp_path):
    command = [sys.executable, str(JOB), "5", "1", "hold"]
    with subprocess.Popen(command, env=environ, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        journal = Path(json.loads(process.stdout.readline())["journal"])
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    *whole, last = journal.read_text().split("\n")
    assert last == "" or whole
    read = [span for line in whole for span in spans(line)]
    assert [span.name for span in read].count("aten::nonzero") == 5
