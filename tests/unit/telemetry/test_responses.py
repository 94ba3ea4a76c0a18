"""What a collector did not take although it says that all is well."""

from __future__ import annotations

import pytest
import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from syncagent.telemetry.responses import rejected, session


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


def test_a_certificate_for_the_collector_is_not_replaced_by_one_for_everything(monkeypatch):
    """The exporter sets OTEL_EXPORTER_OTLP_CERTIFICATE on the session; requests alone would go by the environment."""
    made = session(lambda *_, **__: None)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "everything.pem")

    def trusted():
        return made.merge_environment_settings("https://collector:4318", {}, None, None, None)["verify"]

    assert trusted() == "everything.pem"
    made.verify = "collector.pem"
    assert trusted() == "collector.pem"
    made.verify = False
    assert trusted() is False
