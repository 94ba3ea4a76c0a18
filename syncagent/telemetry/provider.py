"""Builds what scripts send through, as the ``OTEL_*`` variables ask; programs bring their own providers."""

from __future__ import annotations

import importlib
import os
import socket
import sys
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
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.sdk.metrics.export import MetricsData
    from opentelemetry.sdk.resources import Resource

    from syncagent.telemetry.journal import JournalExporter
    from syncagent.telemetry.metric_sender import MetricSender
    from syncagent.telemetry.outbox import AgentTracerProvider, Exporter, Outbox

__all__ = ["build_logs", "build_metric_sender", "build_provider", "build_resource"]

JOURNAL_DELAY_S = 1.0
"""How much of a run may be missing from the journal when the process is killed."""


def build_resource(run_resource: Mapping[str, str | int]) -> Resource:
    """Return a resource of what is known of the process and ``run_resource`` (``syncagent.rank`` and the like).

    The resource detectors that OTEL_EXPERIMENTAL_RESOURCE_DETECTORS names take precedence, as do
    OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME.  A malformed variable raises ConfigError.
    """
    otel_env.check_resource(os.environ)
    try:
        from opentelemetry.sdk.resources import Resource

        own: dict[str, Any] = {
            semconv.SERVICE_NAME: _script_name(),
            semconv.HOST_NAME: socket.gethostname(),
            semconv.PROCESS_PID: os.getpid(),
            **run_resource,
        }
        found = Resource.create()
        attributes = {key: value for key, value in found.attributes.items() if value != ""}
        if str(attributes.get(semconv.SERVICE_NAME)).startswith("unknown_service"):  # the SDK's name for none
            del attributes[semconv.SERVICE_NAME]
        attributes = _without_secrets(attributes)
        if named := os.environ.get("OTEL_SERVICE_NAME"):  # some SDKs run the detectors in no fixed order
            attributes[semconv.SERVICE_NAME] = named
        return Resource(AttributeSanitizer().clean({**own, **attributes}), found.schema_url)
    except Exception as error:
        raise ConfigError(f"OpenTelemetry cannot be set up as its OTEL_* variables ask: {error}") from error


def _without_secrets(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Redact the command line, which a resource detector may have put there as a whole."""
    found = dict(attributes)
    for name, value in attributes.items():
        if name.startswith("process.command") or name == "process.executable.path":
            is_list = isinstance(value, (list, tuple))
            words = redaction.argv([str(word) for word in value] if is_list else str(value).split(" "))
            found[name] = words if is_list else " ".join(words)
    return found


def build_provider(
    resource: Resource, journal: Path | None, journal_mode: int = DEFAULT_MODE
) -> tuple[AgentTracerProvider, str]:
    """Return a provider that sends spans where the ``OTEL_*`` variables say, else to the journal; and where that is.

    A malformed variable raises ConfigError.
    """
    otel_env.check(os.environ)
    try:
        # Checked first, imported now: the SDK reads some variables at import.
        from syncagent.telemetry.outbox import AgentTracerProvider

        if otel_env.is_disabled(os.environ):
            return AgentTracerProvider(resource, None), "nowhere: OTEL_SDK_DISABLED is set"
        chosen = otel_env.exporter(os.environ)
        if chosen == "none":
            return _silent(resource), "nowhere: OTEL_TRACES_EXPORTER is none"
        if chosen == "otlp":
            target = otel_env.endpoint(os.environ)
            responses = CollectorResponses()
            make = partial(_exporter, otel_env.TRACES, responses)
            outbox = _outbox(make, 5.0, partial(_warn_once, otel_env.TRACES, target), responses)
            return AgentTracerProvider(resource, outbox), f"OTLP {otel_env.protocol(os.environ)} to {target}"
        if journal is None:
            return _silent(resource), "nowhere: no OTLP endpoint and no journal"
        exporters = _Journals(journal, journal_mode)
        provider = AgentTracerProvider(resource, _outbox(exporters, JOURNAL_DELAY_S, _warn_of_gaps))
        provider._journal = exporters.path
        provider.overwritten = exporters.overwritten
    except Exception as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"OpenTelemetry cannot be set up as its OTEL_* variables ask: {error}") from error
    return provider, f"journal {journal}"


_TEMPORALITY = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"


def build_metric_sender(
    resource: Resource, collect: Callable[[Resource], Sequence[MetricsData]]
) -> MetricSender | None:
    """Return a sender of metrics if the ``OTEL_*`` variables name an endpoint; there is no journal of metrics.

    A malformed variable raises ConfigError.
    """
    environ = os.environ
    if otel_env.is_disabled(environ) or otel_env.exporter(environ, otel_env.METRICS) != "otlp":
        return None
    otel_env.check_metrics(environ)
    target = otel_env.endpoint(environ, otel_env.METRICS)
    if environ.get(_TEMPORALITY, "").strip().lower() not in {"", "cumulative"}:
        log_once("temporality", f"{_TEMPORALITY} is ignored: metrics are sent cumulative, so that none is lost")
    try:
        from syncagent.telemetry.metric_sender import MetricSender

        responses = CollectorResponses()
        return MetricSender(
            _exporter(otel_env.METRICS, responses),
            lambda: collect(resource),
            interval_s=otel_env.positive_int(environ, "OTEL_METRIC_EXPORT_INTERVAL", 60_000) / 1e3,
            on_trouble=partial(_warn_once, otel_env.METRICS, target),
            responses=responses,
        )
    except Exception as error:
        raise ConfigError(f"OpenTelemetry metrics cannot be set up as the OTEL_* variables ask: {error}") from error


_EXPORTERS = {
    otel_env.TRACES: ("trace_exporter", "OTLPSpanExporter"),
    otel_env.METRICS: ("metric_exporter", "OTLPMetricExporter"),
    otel_env.LOGS: ("_log_exporter", "OTLPLogExporter"),
}
"""The SDK's OTLP exporter of each signal: its module and its class."""


def _exporter(signal: str, responses: CollectorResponses) -> Any:
    """Make the exporter of a signal; over HTTP its answers are read, unless the program brings its own sessions."""
    is_grpc = otel_env.protocol(os.environ, signal) == otel_env.GRPC
    module, name = _EXPORTERS[signal]
    package = f"opentelemetry.exporter.otlp.proto.{'grpc' if is_grpc else 'http'}"
    own = (
        "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER",
        f"OTEL_PYTHON_EXPORTER_OTLP_HTTP_{signal}_CREDENTIAL_PROVIDER",
    )
    options = {} if is_grpc or any(map(os.environ.get, own)) else {"session": responses.session()}
    return getattr(importlib.import_module(f"{package}.{module}"), name)(**options)


def build_logs(resource: Resource) -> tuple[Any, Outbox] | None:
    """Return a logger provider and what it sends through, if OTEL_LOGS_EXPORTER asks for it.

    An endpoint alone is not enough: it may be one that takes no logs.

    A malformed variable raises ConfigError.
    """
    environ = os.environ
    if otel_env.is_disabled(environ) or not environ.get("OTEL_LOGS_EXPORTER", "").strip():
        return None
    otel_env.check_logs(environ)
    if otel_env.exporter(environ, otel_env.LOGS) != "otlp":
        return None
    target, responses = otel_env.endpoint(environ, otel_env.LOGS), CollectorResponses()
    try:
        from opentelemetry.sdk._logs import LoggerProvider

        make = partial(_exporter, otel_env.LOGS, responses)
        trouble = partial(_warn_once, otel_env.LOGS, target)
        outbox = _outbox(make, 1.0, trouble, responses, otel_env.LOG_BATCHES)
        provider = LoggerProvider(resource, shutdown_on_exit=False)
        provider.add_log_record_processor(_LogProcessor(outbox))  # type: ignore[arg-type]  # no base class
    except Exception as error:
        raise ConfigError(f"OpenTelemetry logs cannot be set up as the OTEL_* variables ask: {error}") from error
    return provider, outbox


class _LogProcessor:
    """A LogRecordProcessor; ``emit`` is what the SDK before 1.35 calls."""

    def __init__(self, outbox: Outbox) -> None:
        self.on_emit = self.emit = outbox.put
        self.force_flush = outbox.force_flush
        self.shutdown = outbox.close


class _Journals:
    """Makes journal exporters; one made in a forked child has a file of its own."""

    def __init__(self, path: Path, mode: int) -> None:
        self._path = path
        self._mode = mode
        self._pid = os.getpid()
        self._latest: JournalExporter | None = None

    def __call__(self) -> JournalExporter:
        from syncagent.telemetry.journal import JournalExporter

        path = self._path
        if os.getpid() != self._pid:
            path = path.with_name(f"{path.stem}-child{os.getpid()}{path.suffix}")
        self._latest = JournalExporter(path, mode=self._mode)
        return self._latest

    def overwritten(self) -> int:
        return 0 if self._latest is None else self._latest.overwritten

    def path(self) -> Path | None:
        return None if self._latest is None else self._latest.path


def _outbox(
    make_exporter: Callable[[], Exporter],
    delay_s: float,
    on_trouble: Callable[[str], None] = lambda _reason: None,
    responses: CollectorResponses | None = None,
    batches: str = otel_env.SPAN_BATCHES,
) -> Outbox:
    from syncagent.telemetry.outbox import Outbox

    return Outbox(
        make_exporter,
        max_queue=otel_env.positive_int(os.environ, f"{batches}_MAX_QUEUE_SIZE", 2048),
        max_batch=otel_env.positive_int(os.environ, f"{batches}_MAX_EXPORT_BATCH_SIZE", 512),
        delay_s=otel_env.positive_int(os.environ, f"{batches}_SCHEDULE_DELAY", round(delay_s * 1e3)) / 1e3,
        on_trouble=on_trouble,
        responses=responses,
    )


def _silent(resource: Resource) -> AgentTracerProvider:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    from syncagent.telemetry.outbox import AgentTracerProvider

    return AgentTracerProvider(resource, None, ALWAYS_OFF)


_in_trouble: set[str] = set()
"""Hosts for which it has been reported that spans are being lost."""


_LOST = {
    otel_env.TRACES: "spans are being lost",
    otel_env.METRICS: "metrics do not arrive",
    otel_env.LOGS: "log records are being lost",
}


def _warn_once(signal: str, target: str, reason: str) -> None:
    """Say that a signal is in trouble; nothing where the same collector's trouble with spans has been reported."""
    host = urlsplit(target if "://" in target else f"//{target}").hostname or ""
    if signal == otel_env.TRACES:
        _in_trouble.add(host)
    elif host in _in_trouble:
        return
    get_logger().warning(f"{_LOST[signal]}; training goes on, and this is reported once", to=target, reason=reason)


def _warn_of_gaps(reason: str) -> None:
    log_once("journal", "the journal lacks spans", reason=reason)


def _script_name() -> str:
    """Return ``train`` for ``python train.py``, ``pkg.train`` for ``python -m pkg.train``, even before they begin."""
    arguments = getattr(sys, "argv", None) or [""]
    first: str = arguments[0]
    if first == "-m":
        after = sys.orig_argv[sys.orig_argv.index("-m") + 1 :] if "-m" in sys.orig_argv else []
        return after[0] if after else "python"
    return Path(first).stem if first not in {"", "-", "-c"} else "python"
