"""Checks the ``OTEL_*`` variables that matter here, with errors that a person can act on.

The SDK reads most of them itself, each in its own way: a malformed value may raise at import, be a warning in a
log that no one reads, or silently become a default.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from syncagent.errors import ConfigError
from syncagent.support import reading, redaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = [
    "check",
    "check_logs",
    "check_metrics",
    "check_resource",
    "endpoint",
    "exporter",
    "has_exemplars",
    "is_disabled",
    "otlp",
    "positive_int",
    "protocol",
]

HTTP: Final = "http/protobuf"
GRPC: Final = "grpc"

TRACES: Final = "TRACES"
METRICS: Final = "METRICS"
LOGS: Final = "LOGS"

SPAN_BATCHES: Final = "OTEL_BSP"
LOG_BATCHES: Final = "OTEL_BLRP"
"""Prefixes of the variables for queues and batches."""

_EXPORTERS = {"otlp": None, "otlp_proto_http": HTTP, "otlp_proto_grpc": GRPC, "none": None}
"""Values of ``OTEL_TRACES_EXPORTER`` and ``OTEL_METRICS_EXPORTER``, with the protocol that each one fixes."""

PROMETHEUS: Final = "prometheus"
"""A value that only ``OTEL_METRICS_EXPORTER`` has: nothing is sent, Prometheus scrapes the process."""

_SAMPLERS = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)


def _is_number(low: float, high: float) -> Callable[[str], bool]:
    def is_valid(value: str) -> bool:
        try:
            return low <= float(value) <= high
        except ValueError:
            return False

    return is_valid


def _is_one_of(*allowed: str) -> Callable[[str], bool]:
    return lambda value: value.lower() in allowed


def _is_int(low: int) -> Callable[[str], bool]:
    return lambda value: re.fullmatch(r"\d+", value) is not None and int(value) >= low


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


@dataclass(frozen=True, slots=True)
class _Rule:
    variables: tuple[str, ...]
    allowed: str
    is_valid: Callable[[str], bool]
    is_secret: bool = False
    """Whether the value must not be shown."""


_RESOURCE = (
    _Rule(("OTEL_SDK_DISABLED",), "true or false", _is_one_of("true", "false")),
    _Rule(("OTEL_RESOURCE_ATTRIBUTES",), "key=value,key=value", _is_pairs),
    _Rule(("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS",), "names of installed resource detectors", _are_detectors),
)
_SPANS = (
    _Rule(("OTEL_TRACES_EXPORTER",), ", ".join(_EXPORTERS), _is_one_of(*_EXPORTERS)),
    _Rule(("OTEL_TRACES_SAMPLER",), ", ".join(_SAMPLERS), _is_one_of(*_SAMPLERS)),
    _Rule(
        (
            "OTEL_ATTRIBUTE_COUNT_LIMIT",
            "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
            "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
            "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
            "OTEL_SPAN_EVENT_COUNT_LIMIT",
            "OTEL_SPAN_LINK_COUNT_LIMIT",
            "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
            "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
        ),
        "a whole number from 0",
        _is_int(0),
    ),
)


def otlp(setting: str, signal: str = TRACES) -> tuple[str, str]:
    """Return both names of an OTLP exporter's setting, the one that takes precedence first."""
    return f"OTEL_EXPORTER_OTLP_{signal}_{setting}", f"OTEL_EXPORTER_OTLP_{setting}"


def _otlp_rules(signal: str) -> tuple[_Rule, ...]:
    files = (name for setting in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE") for name in otlp(setting, signal))
    return (
        _Rule(otlp("TIMEOUT", signal), "a number of seconds above 0", _is_number(math.ulp(0.0), 1e9)),
        _Rule(otlp("COMPRESSION", signal), "none, gzip, deflate", _is_one_of("none", "gzip", "deflate")),
        _Rule(otlp("HEADERS", signal), "key=value,key=value, URL encoded", _are_headers, is_secret=True),
        _Rule(otlp("INSECURE", signal), "true or false", _is_one_of("true", "false")),
        _Rule(tuple(files), "the path of a PEM file", _is_pem),
    )


_EXEMPLARS = ("always_on", "always_off", "trace_based")
_METRICS = (
    _Rule(("OTEL_METRICS_EXPORTER",), ", ".join((*_EXPORTERS, PROMETHEUS)), _is_one_of(*_EXPORTERS, PROMETHEUS)),
    _Rule(("OTEL_METRIC_EXPORT_INTERVAL",), "a whole number from 1", _is_int(1)),
    _Rule(("OTEL_METRICS_EXEMPLAR_FILTER",), ", ".join(_EXEMPLARS), _is_one_of(*_EXEMPLARS)),
)
_SCRAPED = (
    _Rule(
        ("OTEL_EXPORTER_PROMETHEUS_HOST",),
        "a host name or an address, without a port",
        lambda value: re.fullmatch(r"[\w.-]+|[0-9a-fA-F:]*:[0-9a-fA-F:.]*:[0-9a-fA-F:.]*", value) is not None,
    ),
    _Rule(
        ("OTEL_EXPORTER_PROMETHEUS_PORT",),
        "a port from 1 to 65535",
        lambda value: _is_int(1)(value) and int(value) <= 65535,
    ),
)
_RATIO = _Rule(("OTEL_TRACES_SAMPLER_ARG",), "a number from 0 to 1", _is_number(0.0, 1.0))


def check(environ: Mapping[str, str]) -> None:
    """Check the variables of spans; raises ConfigError with the variable, its value and what is allowed."""
    _obey(_SPANS, environ)
    _check_batches(SPAN_BATCHES, environ)
    if environ.get("OTEL_TRACES_SAMPLER", "").strip().lower().endswith("traceidratio"):
        _obey([_RATIO], environ)
    _check_otlp(TRACES, environ)


def check_resource(environ: Mapping[str, str]) -> None:
    """Check the variables that spans, metrics and logs have in common; raises ConfigError."""
    _obey(_RESOURCE, environ)


def check_metrics(environ: Mapping[str, str]) -> None:
    """Check the variables of metrics; raises ConfigError."""
    _obey(_METRICS, environ)
    _check_otlp(METRICS, environ)
    if exporter(environ, METRICS) == PROMETHEUS:
        _obey(_SCRAPED, environ)


def check_logs(environ: Mapping[str, str]) -> None:
    """Check the variables of logs; raises ConfigError."""
    _obey([_Rule(("OTEL_LOGS_EXPORTER",), ", ".join(_EXPORTERS), _is_one_of(*_EXPORTERS))], environ)
    if exporter(environ, LOGS) == "otlp":
        _check_batches(LOG_BATCHES, environ)
    _check_otlp(LOGS, environ)


def _check_otlp(signal: str, environ: Mapping[str, str]) -> None:
    if exporter(environ, signal) == "otlp":
        protocol(environ, signal)
        endpoint(environ, signal)
        _obey(_otlp_rules(signal), environ)


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


def _check_batches(begins: str, environ: Mapping[str, str]) -> None:
    queue, batch = f"{begins}_MAX_QUEUE_SIZE", f"{begins}_MAX_EXPORT_BATCH_SIZE"
    _obey([_Rule((f"{begins}_SCHEDULE_DELAY", queue, batch), "a whole number from 1", _is_int(1))], environ)
    if environ.get(batch) and positive_int(environ, batch, 512) > positive_int(environ, queue, 2048):
        raise ConfigError(f"{batch}={environ[batch]!r} is not allowed; it may not exceed {queue}")


def _obey(rules: Iterable[_Rule], environ: Mapping[str, str]) -> None:
    for rule in rules:
        for variable in rule.variables:
            value = environ.get(variable, "")
            if value.strip() and not rule.is_valid(value.strip()):
                shown = "(not shown)" if rule.is_secret else _shown(value)
                raise ConfigError(f"{variable}={shown} is not allowed; allowed: {rule.allowed}")


def _shown(value: str) -> str:
    value = redaction.text(value)
    return repr(value if len(value) <= _LONGEST else f"{value[:_LONGEST]}...")


_LONGEST = 200


def _first(environ: Mapping[str, str], variables: Iterable[str]) -> tuple[str, str] | None:
    return next(((name, environ[name]) for name in variables if environ.get(name)), None)


def _has_grpc() -> bool:
    from importlib.util import find_spec

    try:
        return find_spec("opentelemetry.exporter.otlp.proto.grpc") is not None
    except ImportError:
        return False
