"""Builds what scripts send through, as the ``OTEL_*`` variables ask; programs bring their own providers."""

from __future__ import annotations

import importlib
import os
import socket
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from syncagent.errors import ConfigError
from syncagent.support import redaction
from syncagent.support.log import get_logger, log_once
from syncagent.support.storage import DEFAULT_MODE
from syncagent.telemetry import otel_env, semconv
from syncagent.telemetry.attributes import AttributeSanitizer
from syncagent.telemetry.responses import CollectorResponses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from opentelemetry.sdk.metrics.export import MetricsData
    from opentelemetry.sdk.resources import Resource

    from syncagent.telemetry.journal import JournalExporter
    from syncagent.telemetry.metric_sender import MetricSender
    from syncagent.telemetry.outbox import AgentTracerProvider, Outbox

JOURNAL_DELAY_S = 1.0
"""How much of a run may be missing from the journal when the process is killed."""


@contextmanager
def _config_errors(what: str) -> Iterator[None]:
    """Make a ConfigError of whatever the SDK raises."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{what} variables ask: {error}") from error


@_config_errors("OpenTelemetry cannot be set up as its OTEL_*")
def build_resource(run_resource: Mapping[str, str | int]) -> Resource:
    """Return a resource of what is known of the process and ``run_resource`` (such as ``syncagent.rank``).

    The resource detectors that OTEL_EXPERIMENTAL_RESOURCE_DETECTORS names take precedence, as do
    OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME.  A malformed variable raises ConfigError.
    """
    otel_env.check_resource(os.environ)
    from opentelemetry.sdk.resources import Resource

    own: dict[str, Any] = {
        semconv.SERVICE_NAME: _script_name(),
        semconv.HOST_NAME: socket.gethostname(),
        semconv.PROCESS_PID: os.getpid(),
        **run_resource,
    }
    found = Resource.create()
    attributes = {key: _redacted(key, value) for key, value in found.attributes.items() if value != ""}
    if str(attributes.get(semconv.SERVICE_NAME)).startswith("unknown_service"):  # the SDK's name for none
        del attributes[semconv.SERVICE_NAME]
    if named := os.environ.get("OTEL_SERVICE_NAME"):  # some SDKs run the detectors in no fixed order
        attributes[semconv.SERVICE_NAME] = named
    return Resource(AttributeSanitizer().clean({**own, **attributes}), found.schema_url)


def _redacted(name: str, value: Any) -> Any:
    """Return an attribute without the secrets of a command line, which a resource detector may have put there."""
    if not name.startswith("process.command") and name != "process.executable.path":
        return value
    if isinstance(value, (list, tuple)):
        return redaction.argv([str(word) for word in value])
    return " ".join(redaction.argv(str(value).split(" ")))


@_config_errors("OpenTelemetry cannot be set up as its OTEL_*")
def build_provider(
    resource: Resource, journal: Path | None, journal_mode: int = DEFAULT_MODE
) -> tuple[AgentTracerProvider, str]:
    """Return a provider that sends spans where the ``OTEL_*`` variables say, else to the journal; and where that is.

    A malformed variable raises ConfigError.
    """
    otel_env.check(os.environ)
    # Checked first, imported now: the SDK reads some variables at import.
    from syncagent.telemetry.outbox import AgentTracerProvider, Outbox

    chosen = otel_env.exporter(os.environ)
    if otel_env.is_disabled(os.environ):
        return AgentTracerProvider(resource, None), "nowhere: OTEL_SDK_DISABLED is set"
    if chosen == "none":
        return AgentTracerProvider(resource, None), "nowhere: OTEL_TRACES_EXPORTER is none"
    if chosen == "otlp":
        outbox, target = _otlp_outbox(otel_env.TRACES, 5.0)
        return AgentTracerProvider(resource, outbox), f"OTLP {otel_env.protocol(os.environ)} to {target}"
    if journal is None:
        return AgentTracerProvider(resource, None), "nowhere: no OTLP endpoint and no journal"
    outbox = Outbox(
        partial(_journal, journal, journal_mode, os.getpid()),
        on_trouble=lambda reason: log_once("journal", "the journal lacks spans", reason=reason),
        responses=CollectorResponses(),
        **otel_env.batches(os.environ, otel_env.TRACES, JOURNAL_DELAY_S),
    )
    return AgentTracerProvider(resource, outbox), f"journal {journal}"


_TEMPORALITY = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"


@_config_errors("OpenTelemetry metrics cannot be set up as the OTEL_*")
def build_metric_sender(
    resource: Resource, collect: Callable[[Resource], Sequence[MetricsData]]
) -> MetricSender | None:
    """Return a sender of metrics if the ``OTEL_*`` variables name an endpoint; there is no journal of metrics.

    A malformed variable raises ConfigError.
    """
    environ = os.environ
    if otel_env.is_disabled(environ) or otel_env.exporter(environ, otel_env.METRICS) != "otlp":
        return None
    otel_env.check(environ, otel_env.METRICS)
    target = otel_env.endpoint(environ, otel_env.METRICS)
    if environ.get(_TEMPORALITY, "").strip().lower() not in {"", "cumulative"}:
        log_once("temporality", f"{_TEMPORALITY} is ignored: metrics are sent cumulative, so that none is lost")
    from syncagent.telemetry.metric_sender import MetricSender

    responses = CollectorResponses()
    return MetricSender(
        _exporter(otel_env.METRICS, responses),
        lambda: collect(resource),
        interval_s=otel_env.positive_int(environ, "OTEL_METRIC_EXPORT_INTERVAL", 60_000) / 1e3,
        on_trouble=partial(_warn_once, otel_env.METRICS, target),
        responses=responses,
    )


_SIGNALS = {
    otel_env.TRACES: ("trace_exporter", "OTLPSpanExporter", "spans are being lost"),
    otel_env.METRICS: ("metric_exporter", "OTLPMetricExporter", "metrics do not arrive"),
    otel_env.LOGS: ("_log_exporter", "OTLPLogExporter", "log records are being lost"),
}
"""The SDK's OTLP exporter of each signal, its module and its class, and what it means where it fails."""


def _exporter(signal: str, responses: CollectorResponses) -> Any:
    """Make the exporter of a signal; over HTTP its answers are read, unless the program brings its own sessions."""
    is_grpc = otel_env.protocol(os.environ, signal) == otel_env.GRPC
    module, name, _ = _SIGNALS[signal]
    package = f"opentelemetry.exporter.otlp.proto.{'grpc' if is_grpc else 'http'}"
    own = (
        "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER",
        f"OTEL_PYTHON_EXPORTER_OTLP_HTTP_{signal}_CREDENTIAL_PROVIDER",
    )
    options = {} if is_grpc or any(map(os.environ.get, own)) else {"session": responses.session()}
    return getattr(importlib.import_module(f"{package}.{module}"), name)(**options)


@_config_errors("OpenTelemetry logs cannot be set up as the OTEL_*")
def build_logs(resource: Resource) -> tuple[Any, Outbox] | None:
    """Return a logger provider and what it sends through, if OTEL_LOGS_EXPORTER asks for it.

    An endpoint alone is not enough: it may be one that takes no logs.

    A malformed variable raises ConfigError.
    """
    environ = os.environ
    if otel_env.is_disabled(environ) or not environ.get("OTEL_LOGS_EXPORTER", "").strip():
        return None
    otel_env.check(environ, otel_env.LOGS)
    if otel_env.exporter(environ, otel_env.LOGS) != "otlp":
        return None
    from opentelemetry.sdk._logs import LoggerProvider

    outbox, _ = _otlp_outbox(otel_env.LOGS, 1.0)
    provider = LoggerProvider(resource, shutdown_on_exit=False)
    provider.add_log_record_processor(outbox)  # type: ignore[arg-type]  # no base class
    return provider, outbox


def _journal(path: Path, mode: int, parent_pid: int) -> JournalExporter:
    """Make a journal's exporter; one made in a forked child has a file of its own."""
    from syncagent.telemetry.journal import JournalExporter

    if os.getpid() != parent_pid:
        path = path.with_name(f"{path.stem}-child{os.getpid()}{path.suffix}")
    return JournalExporter(path, mode=mode)


def _otlp_outbox(signal: str, delay_s: float) -> tuple[Outbox, str]:
    """Return what sends a signal by OTLP, and where to, for people to read."""
    from syncagent.telemetry.outbox import Outbox

    target, responses = otel_env.endpoint(os.environ, signal), CollectorResponses()
    outbox = Outbox(
        partial(_exporter, signal, responses),
        on_trouble=partial(_warn_once, signal, target),
        responses=responses,
        **otel_env.batches(os.environ, signal, delay_s),
    )
    return outbox, target


_in_trouble: set[str] = set()
"""Hosts for which it has been reported that spans are being lost."""


def _warn_once(signal: str, target: str, reason: str) -> None:
    """Say that a signal is in trouble; nothing where the same collector's trouble with spans has been reported."""
    host = urlsplit(target if "://" in target else f"//{target}").hostname or ""
    if signal == otel_env.TRACES:
        _in_trouble.add(host)
    elif host in _in_trouble:
        return
    get_logger().warning(f"{_SIGNALS[signal][2]}; training goes on, reported once", to=target, reason=reason)


def _script_name() -> str:
    """Return ``train`` for ``python train.py``, ``pkg.train`` for ``python -m pkg.train``, even before they begin."""
    arguments = getattr(sys, "argv", None) or [""]
    first: str = arguments[0]
    if first == "-m":
        after = sys.orig_argv[sys.orig_argv.index("-m") + 1 :] if "-m" in sys.orig_argv else []
        return after[0] if after else "python"
    return Path(first).stem if first not in {"", "-", "-c"} else "python"
