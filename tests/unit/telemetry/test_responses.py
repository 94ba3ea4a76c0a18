"""How long a collector is left alone, and what it did not take."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from syncagent.telemetry.responses import CollectorResponses


def heard(status, value=None):
    responses, response = CollectorResponses(), requests.Response()
    response.status_code = status
    if value is not None:
        response.headers["Retry-After"] = value
    responses.session().hooks["response"][0](response)
    return responses


@pytest.mark.parametrize("status", [429, 503])
def test_it_is_left_alone_for_as_long_as_it_asks(status):
    """In seconds, or until a date."""
    assert heard(status, "20").retry_after_s() == pytest.approx(20, abs=1)
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=40), usegmt=True)
    assert heard(status, date).retry_after_s() == pytest.approx(40, abs=2)


def test_it_cannot_ask_for_more_than_five_minutes():
    assert heard(503, "86400").retry_after_s() == pytest.approx(300, abs=1)
    assert heard(503, "Fri, 31 Dec 9999 23:59:59 GMT").retry_after_s() == pytest.approx(300, abs=1)


@pytest.mark.parametrize("value", [None, "soon", "-5", "1e9", "9" * 500, "", "\u00b2"])
def test_what_is_no_time_asks_for_nothing(value):
    assert heard(503, value).retry_after_s() == 0


def test_only_answers_that_mean_later_count_and_a_good_one_ends_it():
    assert heard(400, "20").retry_after_s() == 0
    responses = heard(503, "20")
    good = requests.Response()
    good.status_code = 200
    responses.session().hooks["response"][0](good)
    assert responses.retry_after_s() == 0


def test_what_was_rejected_is_reported_once():
    response = requests.Response()
    response.status_code = 200
    partial = ExportTracePartialSuccess(rejected_spans=3, error_message="too old")
    response._content = ExportTraceServiceResponse(partial_success=partial).SerializeToString()
    responses = CollectorResponses()
    responses.session().hooks["response"][0](response)
    assert responses.take_rejected() == (3, "too old")
    assert responses.take_rejected() == (0, "")


@pytest.mark.parametrize("body", [b"", b"<html>a proxy says hello</html>"])
def test_other_answers_refuse_nothing(body):
    response = requests.Response()
    response.status_code = 200
    response._content = body
    responses = CollectorResponses()
    responses.session().hooks["response"][0](response)
    assert responses.take_rejected() == (0, "")


def test_a_certificate_for_the_collector_is_not_replaced_by_one_for_everything(monkeypatch):
    """The exporter sets OTEL_EXPORTER_OTLP_CERTIFICATE on the session; requests alone would go by the environment."""
    session = CollectorResponses().session()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "everything.pem")

    def trusted():
        return session.merge_environment_settings("https://collector:4318", {}, None, None, None)["verify"]

    assert trusted() == "everything.pem"
    session.verify = "collector.pem"
    assert trusted() == "collector.pem"
    session.verify = False
    assert trusted() is False
