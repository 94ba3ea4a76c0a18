"""What a collector did not take although it says that all is well."""

from __future__ import annotations

import pytest
import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from syncagent.telemetry.responses import rejected


def response(body, status=200):
    made = requests.Response()
    made.status_code, made._content = status, body
    return made


PARTLY = ExportTraceServiceResponse(
    partial_success=ExportTracePartialSuccess(rejected_spans=3, error_message="too old")
).SerializeToString()


def test_a_partial_success_says_how_many_were_rejected_and_why():
    assert rejected(response(PARTLY)) == (3, "too old")


@pytest.mark.parametrize(("body", "status"), [(b"", 200), (b"<html>a proxy says hello</html>", 200), (PARTLY, 500)])
def test_other_answers_reject_nothing(body, status):
    assert rejected(response(body, status)) == (0, "")
