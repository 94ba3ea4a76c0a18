"""Checks the ``OTEL_*`` variables that matter here, with errors that a person can act on.

The SDK reads most of them itself, each in its own way: a malformed value may raise at import, be a warning in a
log that no one reads, or silently become a default.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from syncagent.errors import ConfigError
from syncagent.support import reading, redaction

HTTP: Final = "http/protobuf"
GRPC: Final = "grpc"

TRACES: Final = "TRACES"
METRICS: Final = "METRICS"
LOGS: Final = "LOGS"

_BATCHES = {
    signal: (f"{begins}_SCHEDULE_DELAY", f"{begins}_MAX_QUEUE_SIZE", f"{begins}_MAX_EXPORT_BATCH_SIZE")
    for signal, begins in ((TRACES, "OTEL_BSP"), (LOGS, "OTEL_BLRP"))
}

_EXPORTERS = {"otlp": None, "otlp_proto_http": HTTP, "otlp_proto_grpc": GRPC, "none": None}
"""Values of ``OTEL_TRACES_EXPORTER`` and ``OTEL_METRICS_EXPORTER``, with the protocol that each one fixes."""

PROMETHEUS: Final = "prometheus"
"""A value that only ``OTEL_METRICS_EXPORTER`` has: nothing is sent, Prometheus scrapes the process."""


class _Values(NamedTuple):
    """The values that a variable may have."""

    allowed: str
    """For people to read."""
    is_valid: Callable[[str], object]
    is_secret: bool = False
    """Whether a value must not be shown."""


def _one_of(*words: str) -> _Values:
    return _Values(", ".join(words), lambda value: value.lower() in words)


def _number(low: float, high: float, allowed: str) -> _Values:
    def is_valid(value: str) -> bool:
        try:
            return low <= float(value) <= high
        except ValueError:
            return False

    return _Values(allowed, is_valid)


_HEADER_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # https://www.rfc-editor.org/rfc/rfc9110#name-tokens


def _are_headers(value: str) -> bool:
    """Return whether each item is a header that can be sent: the SDK drops the others and logs their values."""
    items = [item.strip() for item in value.split(",") if item.strip()]
    found = [re.fullmatch(rf"{_HEADER_NAME}\s*=([ -~]*)", item) for item in items]
    return all(item is not None and not re.search(r"[\x00-\x1f\x7f]", unquote(item[1])) for item in found)


def _is_pem(value: str) -> bool:
    try:
        return b"-----BEGIN " in reading.read(value, reading.MIB)
    except (OSError, ValueError):
        return False


def _are_detectors(value: str) -> bool:
    from importlib.metadata import entry_points

    known = {"otel", "*"} | {point.name for point in entry_points(group="opentelemetry_resource_detector")}
    return all(name.strip() in known for name in value.split(",") if name.strip())


def _is_pairs(value: str) -> bool:
    """Return whether it is ``key=value,key=value``; empty items are allowed."""
    return all(re.fullmatch(r"[^=,]*[^=,\s][^=,]*=.*", item) for item in value.split(",") if item.strip())


_BOOLEAN = _one_of("true", "false")._replace(allowed="true or false")
_FROM_0 = _Values("a whole number from 0", re.compile(r"\d+").fullmatch)
_FROM_1 = _Values("a whole number from 1", re.compile(r"\d*[1-9]\d*").fullmatch)
_PEM = _Values("the path of a PEM file", _is_pem)

_RESOURCE = {
    "OTEL_SDK_DISABLED": _BOOLEAN,
    "OTEL_RESOURCE_ATTRIBUTES": _Values("key=value,key=value", _is_pairs),
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": _Values("names of installed resource detectors", _are_detectors),
}
_SPANS = {
    "OTEL_TRACES_EXPORTER": _one_of(*_EXPORTERS),
    "OTEL_TRACES_SAMPLER": _one_of(
        "always_on",
        "always_off",
        "traceidratio",
        "parentbased_always_on",
        "parentbased_always_off",
        "parentbased_traceidratio",
    ),
    "OTEL_ATTRIBUTE_COUNT_LIMIT": _FROM_0,
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": _FROM_0,
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": _FROM_0,
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": _FROM_0,
    "OTEL_SPAN_EVENT_COUNT_LIMIT": _FROM_0,
    "OTEL_SPAN_LINK_COUNT_LIMIT": _FROM_0,
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": _FROM_0,
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": _FROM_0,
}
_RATIO = {"OTEL_TRACES_SAMPLER_ARG": _number(0.0, 1.0, "a number from 0 to 1")}
_METRICS = {
    "OTEL_METRICS_EXPORTER": _one_of(*_EXPORTERS, PROMETHEUS),
    "OTEL_METRIC_EXPORT_INTERVAL": _FROM_1,
    "OTEL_METRICS_EXEMPLAR_FILTER": _one_of("always_on", "always_off", "trace_based"),
}
_SCRAPED = {
    "OTEL_EXPORTER_PROMETHEUS_HOST": _Values(
        "a host name or an address, without a port",
        re.compile(r"[\w.-]+|[0-9a-fA-F:]*:[0-9a-fA-F:.]*:[0-9a-fA-F:.]*").fullmatch,
    ),
    "OTEL_EXPORTER_PROMETHEUS_PORT": _Values(
        "a port from 1 to 65535", lambda value: _FROM_1.is_valid(value) and int(value) <= 65535
    ),
}
_VARIABLES = {TRACES: _SPANS, METRICS: _METRICS, LOGS: {"OTEL_LOGS_EXPORTER": _one_of(*_EXPORTERS)}}
_OTLP = {
    "TIMEOUT": _number(math.ulp(0.0), 1e9, "a number of seconds above 0"),
    "COMPRESSION": _one_of("none", "gzip", "deflate"),
    "HEADERS": _Values("key=value,key=value, URL encoded", _are_headers, is_secret=True),
    "INSECURE": _BOOLEAN,
    "CERTIFICATE": _PEM,
    "CLIENT_KEY": _PEM,
    "CLIENT_CERTIFICATE": _PEM,
}
"""Settings of an OTLP exporter."""


def otlp(setting: str, signal: str = TRACES) -> tuple[str, str]:
    """Return both names of an OTLP exporter's setting, the one that takes precedence first."""
    return f"OTEL_EXPORTER_OTLP_{signal}_{setting}", f"OTEL_EXPORTER_OTLP_{setting}"


def check(environ: Mapping[str, str], signal: str = TRACES) -> None:
    """Check the variables of a signal; raises ConfigError with the variable, its value and what is allowed."""
    _obey(_VARIABLES[signal], environ)
    target = exporter(environ, signal)
    if signal == TRACES or (signal == LOGS and target == "otlp"):  # a journal has batches, too
        _, queue, batch = _BATCHES[signal]
        _obey(dict.fromkeys(_BATCHES[signal], _FROM_1), environ)
        if environ.get(batch) and positive_int(environ, batch, 512) > positive_int(environ, queue, 2048):
            raise ConfigError(f"{batch}={environ[batch]!r} is not allowed; it may not exceed {queue}")
    if signal == TRACES and environ.get("OTEL_TRACES_SAMPLER", "").strip().lower().endswith("traceidratio"):
        _obey(_RATIO, environ)
    if target == "otlp":
        protocol(environ, signal)
        endpoint(environ, signal)
        _obey({name: values for setting, values in _OTLP.items() for name in otlp(setting, signal)}, environ)
    elif target == PROMETHEUS:
        _obey(_SCRAPED, environ)


def check_resource(environ: Mapping[str, str]) -> None:
    """Check the variables that spans, metrics and logs have in common; raises ConfigError."""
    _obey(_RESOURCE, environ)


def is_disabled(environ: Mapping[str, str]) -> bool:
    return environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def has_exemplars(environ: Mapping[str, str]) -> bool:
    """Return whether histograms carry exemplars; the agent's are of sampled spans in any case."""
    return environ.get("OTEL_METRICS_EXEMPLAR_FILTER", "").strip().lower() != "always_off"


def exporter(environ: Mapping[str, str], signal: str = TRACES) -> str | None:
    """Return ``otlp``, ``none`` or ``prometheus`` if the environment asks for it, by name or by giving an endpoint."""
    named = environ.get(f"OTEL_{signal}_EXPORTER", "").strip().lower()
    if named in {"none", PROMETHEUS}:
        return named
    return "otlp" if named or _first(environ, otlp("ENDPOINT", signal)) else None


def protocol(environ: Mapping[str, str], signal: str = TRACES) -> str:
    """Return the OTLP protocol, ``http/protobuf`` by default; raises ConfigError."""
    variable = f"OTEL_{signal}_EXPORTER"
    value = environ.get(variable, "").strip().lower()
    chosen = _EXPORTERS.get(value)
    if chosen is None:
        variable, value = _first(environ, otlp("PROTOCOL", signal)) or ("", HTTP)
        chosen = value.strip().lower()
    if chosen not in {HTTP, GRPC}:
        raise ConfigError(f"{variable}={value!r} is not allowed; allowed: {HTTP}, {GRPC}")
    if chosen == GRPC and not _has_grpc():
        raise ConfigError(
            f"{variable}={value!r} needs the package opentelemetry-exporter-otlp-proto-grpc, which is not installed "
            f"(pip install 'syncagent[grpc]'); allowed without it: {HTTP}"
        )
    return chosen


def endpoint(environ: Mapping[str, str], signal: str = TRACES) -> str:
    """Return where a signal goes, for people to read: with the path added to a base address, without secrets.

    Raises ConfigError for a malformed address.
    """
    is_grpc = protocol(environ, signal) == GRPC
    default = "http://localhost:4317" if is_grpc else "http://localhost:4318"
    variable, value = _first(environ, otlp("ENDPOINT", signal)) or ("", default)
    allowed = "a URL such as http://localhost:4317 or localhost:4317" if is_grpc else f"a URL such as {default}"
    text = value if "://" in value or not is_grpc else f"http://{value}"
    try:
        url = urlsplit(text)
        is_valid = url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
    except ValueError:  # a port that is no number, a bracket left open
        is_valid = False
    if not is_valid or value != value.strip():
        raise ConfigError(f"{variable}={_shown(redaction.url(value))} is not allowed; allowed: {allowed}")
    shown = redaction.url(value)
    if is_grpc or variable.endswith(f"{signal}_ENDPOINT"):
        return shown
    return shown.rstrip("/") + f"/v1/{signal.lower()}"


def positive_int(environ: Mapping[str, str], variable: str, default: int) -> int:
    """Return the value of a variable that has been checked."""
    return int(environ.get(variable) or default)


def batches(environ: Mapping[str, str], signal: str, delay_s: float) -> dict[str, Any]:
    """Return the sizes of an Outbox's queue and batches, and after how long a batch is sent."""
    delay, queue, batch = _BATCHES[signal]
    return {
        "delay_s": positive_int(environ, delay, round(delay_s * 1e3)) / 1e3,
        "max_queue": positive_int(environ, queue, 2048),
        "max_batch": positive_int(environ, batch, 512),
    }


def _obey(rules: Mapping[str, _Values], environ: Mapping[str, str]) -> None:
    for variable, values in rules.items():
        value = environ.get(variable, "")
        if value.strip() and not values.is_valid(value.strip()):
            shown = "(not shown)" if values.is_secret else _shown(value)
            raise ConfigError(f"{variable}={shown} is not allowed; allowed: {values.allowed}")


def _shown(value: str) -> str:
    value = redaction.text(value)
    return repr(value if len(value) <= _LONGEST else f"{value[:_LONGEST]}...")


_LONGEST = 200


def _first(environ: Mapping[str, str], variables: Iterable[str]) -> tuple[str, str] | None:
    return next(((name, environ[name]) for name in variables if environ.get(name)), None)


def _has_grpc() -> bool:
    from importlib.util import find_spec

    return find_spec("opentelemetry.exporter.otlp.proto.grpc") is not None  # the packages around it are always there
