"""Malformed OTEL_* variables: one sentence that names the variable, the value and what is allowed."""

from __future__ import annotations

import pytest

from syncagent.errors import ConfigError
from syncagent.telemetry import otel_env

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}
BAD = [
    ("OTEL_SDK_DISABLED", "1"),
    ("OTEL_TRACES_EXPORTER", "zipkin"),
    ("OTEL_TRACES_SAMPLER", "sometimes"),
    ("OTEL_RESOURCE_ATTRIBUTES", "team"),
    ("OTEL_RESOURCE_ATTRIBUTES", "=vision"),
    ("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS", "otel,crystal-ball"),
    ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
    ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "-1"),
    ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many"),
]
BAD_OTLP = [
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:port"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://collector"),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector/v1/traces"),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "carrier pigeon"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "ten"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
    ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "nan"),
    ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip"),
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such/file.pem"),
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", __file__),
    ("OTEL_EXPORTER_OTLP_INSECURE", "maybe"),
]


def check(environ):
    otel_env.check(environ, otel_env.RESOURCE)
    otel_env.check(environ)


@pytest.mark.parametrize(("variable", "value"), BAD)
def test_a_malformed_value_is_named(variable, value):
    with pytest.raises(ConfigError) as caught:
        check({variable: value})
    message = str(caught.value)
    assert message.startswith(f"{variable}={value!r}")
    assert "allowed" in message
    assert "\n" not in message


@pytest.mark.parametrize(("variable", "value"), BAD_OTLP)
def test_a_malformed_value_of_the_exporter_is_named(variable, value):
    with pytest.raises(ConfigError, match="allowed") as caught:
        otel_env.check(ENDPOINT | {variable: value})
    assert str(caught.value).startswith(f"{variable}={value!r}")


@pytest.mark.parametrize("value", ["soon", "0"])
def test_batches_of_log_records_have_variables_of_their_own(value):
    otel_env.check(ENDPOINT | {"OTEL_BSP_SCHEDULE_DELAY": value}, otel_env.LOGS)
    with pytest.raises(ConfigError, match=f"^OTEL_BLRP_SCHEDULE_DELAY='{value}' is not allowed"):
        otel_env.check(ENDPOINT | {"OTEL_BLRP_SCHEDULE_DELAY": value}, otel_env.LOGS)


def test_the_exporters_variables_do_not_matter_without_it():
    otel_env.check({"OTEL_EXPORTER_OTLP_TIMEOUT": "ten"})
    otel_env.check(ENDPOINT | {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_TIMEOUT": "ten"})


@pytest.mark.parametrize("value", ["1.5", "", "0"])
def test_the_samplers_argument(value):
    for sampler, is_used in (("traceidratio", True), ("always_on", False)):
        environ = {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": value}
        if is_used and value == "1.5":
            with pytest.raises(ConfigError, match="0 to 1"):
                otel_env.check(environ)
        else:
            otel_env.check(environ)


def test_headers_are_not_shown():
    with pytest.raises(ConfigError) as caught:
        otel_env.check(ENDPOINT | {"OTEL_EXPORTER_OTLP_HEADERS": "Bearer hunter2"})
    assert "hunter2" not in str(caught.value)
    otel_env.check(ENDPOINT | {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20hunter2=,x=y,"})


def test_a_password_in_the_endpoint_is_not_shown():
    for value in ("http://me:hunter2@host:4318", "me:hunter2@host:4318"):
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": value}
        try:
            shown = otel_env.endpoint(environ)
        except ConfigError as error:
            shown = str(error)
        assert "hunter2" not in shown
        assert "host:4318" in shown


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (ENDPOINT, "http://localhost:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://h/base/"}, "https://h/base/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h/in"} | ENDPOINT, "http://h/in"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "http://localhost:4318/v1/traces"),
    ],
)
def test_where_spans_go(environ, expected):
    assert otel_env.exporter(environ) == "otlp"
    assert otel_env.endpoint(environ) == expected


@pytest.mark.parametrize(
    "asked", [{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, {"OTEL_TRACES_EXPORTER": "otlp_proto_grpc"}]
)
def test_grpc_is_for_those_who_have_it(monkeypatch, asked):
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4317"} | asked
    monkeypatch.setattr(otel_env, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"syncagent\[grpc\].*http/protobuf"):
        otel_env.check(environ)
    monkeypatch.setattr(otel_env, "find_spec", lambda name: name)
    otel_env.check(environ)
    assert otel_env.endpoint(environ) == "localhost:4317"


def test_an_empty_value_is_as_good_as_none():
    variables = {variable for variable, _ in BAD + BAD_OTLP}
    otel_env.check(dict.fromkeys(variables, ""))
    assert otel_env.exporter(dict.fromkeys(variables, "")) is None


@pytest.mark.parametrize("value", ["token", "a b=1", "=1", "x=a%0Ab", "x=caf\u00e9", "ok=1,\u00e4=2"])
def test_headers_that_cannot_be_sent_are_reported_without_their_values(value):
    """They may be secrets; the SDK would leave them out, and show them."""
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_HEADERS=\\(not shown\\) is not allowed"):
        otel_env.check(ENDPOINT | {"OTEL_EXPORTER_OTLP_HEADERS": value})


@pytest.mark.parametrize(
    "value", ["", "authorization=Bearer%20abc,x-team=vision", "Authorization=Basic a2V5==", "a=, b=2,"]
)
def test_headers_that_can_be_sent_are_let_pass(value):
    otel_env.check(ENDPOINT | {"OTEL_EXPORTER_OTLP_HEADERS": value})


def test_a_value_of_any_length_is_reported_in_one_line():
    with pytest.raises(ConfigError) as caught:
        otel_env.check({"OTEL_TRACES_SAMPLER": "x" * 100_000})
    assert len(str(caught.value)) < 500


def test_installed_resource_detectors_are_known():
    """Ours among them."""
    otel_env.check({"OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "otel, process,syncagent"}, otel_env.RESOURCE)


@pytest.mark.parametrize(
    ("signal", "environ"),
    [
        ("TRACES", {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}),
        ("TRACES", {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json", "OTEL_TRACES_EXPORTER": "otlp_proto_http"}),
        ("TRACES", {"OTEL_EXPORTER_OTLP_TIMEOUT": "1e1"}),
        ("TRACES", {"OTEL_EXPORTER_OTLP_HEADERS": "a=100%1z"}),
        ("TRACES", {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "10e-2"}),
        ("LOGS", {"OTEL_LOGS_EXPORTER": "none", "OTEL_BLRP_SCHEDULE_DELAY": "soon"}),
        ("METRICS", {"OTEL_METRICS_EXPORTER": "none", "OTEL_METRIC_EXPORT_INTERVAL": "soon"}),
    ],
)
def test_what_another_variable_overrides_or_the_sdk_can_read_is_allowed(signal, environ):
    otel_env.check({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"} | environ, signal)


@pytest.mark.parametrize(
    ("signal", "environ"),
    [
        ("TRACES", {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "9e-0"}),
        ("METRICS", {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "many"}),
        ("LOGS", {"OTEL_LOGS_EXPORTER": "otlp", "OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT": "many"}),
        ("METRICS", {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_HOST": "http://u:pw@host:9464"}),
        ("METRICS", {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_HOST": "[::1]"}),
    ],
)
def test_what_the_sdk_would_fail_on_later_is_one_sentence(signal, environ):
    with pytest.raises(ConfigError, match=list(environ)[-1]) as caught:
        otel_env.check({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"} | environ, signal)
    assert "pw" not in str(caught.value)
