"""Checks the ``OTEL_*`` variables that, malformed, would raise at import, send elsewhere or lose what they are about.

The SDK reads them itself.  What it passes over with a warning and without harm is not checked here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from urllib.parse import urlsplit

from syncagent.errors import ConfigError
from syncagent.support import reading, redaction

HTTP, GRPC = "http/protobuf", "grpc"
RESOURCE, TRACES, METRICS, LOGS = "RESOURCE", "TRACES", "METRICS", "LOGS"
PROMETHEUS = "prometheus"
"""A value that only ``OTEL_METRICS_EXPORTER`` has: nothing is sent, Prometheus scrapes the process."""

_FIXED = {"otlp_proto_http": HTTP, "otlp_proto_grpc": GRPC}
"""Values of ``OTEL_TRACES_EXPORTER`` and its like that fix the protocol."""

_BOOLEAN = "true or false", "(?i:true|false)"
_FROM_0 = "a whole number from 0", r"\d+"
_FROM_1 = "a whole number from 1", r"0*[1-9]\d*"
_PEM = "the path of a PEM file"
_DETECTORS = "names of installed resource detectors"
_RATIO, _SECONDS = "a number from 0 to 1", "a number of seconds above 0"


def _words(words: str) -> tuple[str, str]:
    return words, f"(?i:{words.replace(', ', '|')})"


def _pairs(item: str) -> tuple[str, str]:
    return "key=value,key=value", rf"(?:{item}|\s*)(?:,(?:{item}|\s*))*"


_EXPORTERS = "otlp, otlp_proto_http, otlp_proto_grpc, none"
_SAMPLERS = "always_on, always_off, traceidratio"
# A name is a token of https://www.rfc-editor.org/rfc/rfc9110#name-tokens, a value is printable, also once decoded.  The
# SDK drops the others and logs their values.
_HEADER = r"\s*[!#$%&'*+.^_`|~0-9A-Za-z-]+\s*=(?:(?!%[01][0-9a-fA-F]|%7[fF])[ -+\--~])*"
_PORT = r"(?!0+$)0*([1-5]?\d{1,4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5])"
_HOST = r"[\w.-]+|(?=.*:.*:)[\da-fA-F:.]+"
_RULES = (
    # whose, variables, what is allowed
    (RESOURCE, "SDK_DISABLED", *_BOOLEAN),
    (RESOURCE, "EXPERIMENTAL_RESOURCE_DETECTORS", _DETECTORS, ".*"),
    (RESOURCE, "RESOURCE_ATTRIBUTES", *_pairs(r"\s*[^=,\s][^=,]*=[^,]*")),
    (TRACES, "TRACES_EXPORTER", *_words(_EXPORTERS)),
    (TRACES, "TRACES_SAMPLER", *_words(f"{_SAMPLERS}, parentbased_{_SAMPLERS.replace(', ', ', parentbased_')}")),
    ("ratio", "TRACES_SAMPLER_ARG", _RATIO, ".*"),
    (TRACES, "BSP_(SCHEDULE_DELAY|MAX_.*)", *_FROM_1),
    ("limits", "(?!LOGRECORD_).*_(COUNT|LENGTH)_LIMIT", *_FROM_0),
    (METRICS, "METRICS_EXPORTER", *_words(f"{_EXPORTERS}, {PROMETHEUS}")),
    ("METRICS by otlp", "METRIC_EXPORT_INTERVAL", *_FROM_1),
    (PROMETHEUS, "EXPORTER_PROMETHEUS_PORT", "a port from 1 to 65535", _PORT),
    (PROMETHEUS, "EXPORTER_PROMETHEUS_HOST", "a host name or an address, without a port", _HOST),
    (LOGS, "LOGS_EXPORTER", *_words(_EXPORTERS)),
    ("LOGS by otlp", "BLRP_(SCHEDULE_DELAY|MAX_.*)", *_FROM_1),
    ("LOGS by otlp", "LOGRECORD_.*_(COUNT|LENGTH)_LIMIT", *_FROM_0),
    ("otlp", "PROTOCOL", *_words(f"{HTTP}, {GRPC}")),
    ("otlp", "TIMEOUT", _SECONDS, ".*"),
    ("otlp", "COMPRESSION", *_words("none, gzip, deflate")),
    ("otlp", "HEADERS", "key=value,key=value, URL encoded", _pairs(_HEADER)[1]),
    ("otlp", "INSECURE", *_BOOLEAN),
    ("otlp", "(CERTIFICATE|CLIENT_KEY|CLIENT_CERTIFICATE)", _PEM, ".*"),
)


def check(environ: Mapping[str, str], signal: str = TRACES) -> None:
    """Check the variables of a signal, or those that all have in common (``RESOURCE``).

    Raises ConfigError with the variable, its value and what is allowed.
    """
    _obey(environ, signal, "OTEL_")
    is_otlp = signal != RESOURCE and exporter(environ, signal) == "otlp"
    if signal == TRACES or is_otlp:  # the SDK reads them when the modules of spans are imported
        _obey(environ, "limits", "OTEL_")
    if signal == TRACES and environ.get("OTEL_TRACES_SAMPLER", "").strip().lower().endswith("traceidratio"):
        _obey(environ, "ratio", "OTEL_")
    if exporter(environ, signal) == PROMETHEUS:
        _obey(environ, PROMETHEUS, "OTEL_")
    elif is_otlp:
        _obey(environ, f"{signal} by otlp", "OTEL_")
        _obey(_in_force(environ, signal), "otlp", f"OTEL_EXPORTER_OTLP_({signal}_)?")
        if protocol(environ, signal) == GRPC and find_spec("opentelemetry.exporter.otlp.proto.grpc") is None:
            raise ConfigError(
                f"grpc, which OTEL_{signal}_EXPORTER or OTEL_EXPORTER_OTLP_PROTOCOL asks for, needs the package "
                "opentelemetry-exporter-otlp-proto-grpc, which is not installed (pip install 'syncagent[grpc]'); "
                f"allowed without it: {HTTP}"
            )
        endpoint(environ, signal)


def _in_force(environ: Mapping[str, str], signal: str) -> dict[str, str]:
    """Return the variables of OTLP exporters that no other of the signal's own overrides."""
    own, common = f"OTEL_EXPORTER_OTLP_{signal}_", "OTEL_EXPORTER_OTLP_"
    overridden = {name.replace(own, common) for name, value in environ.items() if name.startswith(own) and value}
    if environ.get(f"OTEL_{signal}_EXPORTER", "").strip().lower() in _FIXED:
        overridden |= {f"{common}PROTOCOL", f"{own}PROTOCOL"}
    return {name: value for name, value in environ.items() if name not in overridden}


def _obey(environ: Mapping[str, str], whose: str, prefix: str) -> None:
    for _, pattern, allowed, values in (rule for rule in _RULES if rule[0] == whose):
        for variable in filter(re.compile(prefix + pattern).fullmatch, environ):
            value = environ[variable].strip()
            if value and not (_READ[allowed](value) if allowed in _READ else re.fullmatch(values, value)):
                shown = "(not shown)" if pattern == "HEADERS" else _shown(environ[variable])
                raise ConfigError(f"{variable}={shown} is not allowed; allowed: {allowed}")


def _is_pem(path: str) -> bool:
    try:
        return b"-----BEGIN " in reading.read(path, reading.MIB)
    except (OSError, ValueError):
        return False


def _are_detectors(names: str) -> bool:
    from importlib.metadata import entry_points  # costs milliseconds, and is seldom asked

    known = {"otel", "*"} | {point.name for point in entry_points(group="opentelemetry_resource_detector")}
    return all(name.strip() in known for name in names.split(",") if name.strip())


def _is_within(low: float, high: float, value: str) -> bool:
    try:
        return low <= float(value) <= high
    except ValueError:
        return False


_READ: dict[str, Callable[[str], bool]] = {
    _PEM: _is_pem,
    _DETECTORS: _are_detectors,
    _RATIO: partial(_is_within, 0.0, 1.0),
    _SECONDS: partial(_is_within, math.ulp(0.0), 1e9),
}
"""What no pattern can say of a value."""


def _shown(value: str) -> str:
    return repr(redaction.text(value)[:200])


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
    return "otlp" if named or _otlp(environ, signal, "ENDPOINT")[1] else None


def protocol(environ: Mapping[str, str], signal: str = TRACES) -> str:
    """Return the OTLP protocol, ``http/protobuf`` by default."""
    fixed = _FIXED.get(environ.get(f"OTEL_{signal}_EXPORTER", "").strip().lower())
    return fixed or _otlp(environ, signal, "PROTOCOL")[1].strip().lower() or HTTP


def endpoint(environ: Mapping[str, str], signal: str = TRACES) -> str:
    """Return where a signal goes, for people to read: with the path added to a base address, without secrets.

    Raises ConfigError for a malformed address.
    """
    is_grpc = protocol(environ, signal) == GRPC
    default = "http://localhost:4317" if is_grpc else "http://localhost:4318"
    variable, value = _otlp(environ, signal, "ENDPOINT")
    value = value or default
    try:
        url = urlsplit(value if "://" in value or not is_grpc else f"http://{value}")
        is_valid = url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
    except ValueError:  # a port that is no number, a bracket left open
        is_valid = False
    shown = redaction.url(value)
    if not is_valid or value != value.strip():
        allowed = f"a URL such as {default}" + (" or localhost:4317" if is_grpc else "")
        raise ConfigError(f"{variable}={_shown(shown)} is not allowed; allowed: {allowed}")
    if is_grpc or variable.endswith(f"{signal}_ENDPOINT"):
        return shown
    return shown.rstrip("/") + f"/v1/{signal.lower()}"


def positive_int(environ: Mapping[str, str], variable: str, default: int) -> int:
    """Return the value of a variable that has been checked."""
    return int(environ.get(variable, "").strip() or default)


def _otlp(environ: Mapping[str, str], signal: str, setting: str) -> tuple[str, str]:
    """Return the variable that has a setting of an OTLP exporter, the signal's own if there is one, and its value."""
    own, general = f"OTEL_EXPORTER_OTLP_{signal}_{setting}", f"OTEL_EXPORTER_OTLP_{setting}"
    return (own, environ[own]) if environ.get(own) else (general, environ.get(general, ""))
