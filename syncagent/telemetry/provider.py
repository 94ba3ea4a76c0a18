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

from syncagent.support import redaction
from syncagent.support.log import get_logger, log_once
from syncagent.support.storage import DEFAULT_MODE
from syncagent.telemetry import otel_env, semconv
from syncagent.telemetry.attributes import AttributeSanitizer
from syncagent.telemetry.journal import JournalExporter
from syncagent.telemetry.otel_env import LOGS, METRICS, TRACES
from syncagent.telemetry.responses import session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk.metrics.export import MetricsData
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    from syncagent.telemetry.outbox import MetricSender, Outbox


def build_resource(run_resource: Mapping[str, str | int]) -> Resource:
    """Return a resource of what is known of the process and ``run_resource`` (such as ``syncagent.rank``).

    The resource detectors that OTEL_EXPERIMENTAL_RESOURCE_DETECTORS names take precedence, as do
    OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME.  A malformed variable raises ConfigError, here and below.
    """
    otel_env.check(os.environ, otel_env.RESOURCE)
    from opentelemetry.sdk.resources import Resource

    own = {
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


def _script_name() -> str:
    """Return ``train`` for ``python train.py``, ``pkg.train`` for ``python -m pkg.train``, even before they begin."""
    first: str = (getattr(sys, "argv", None) or [""])[0]
    if first == "-m":
        after = sys.orig_argv[sys.orig_argv.index("-m") + 1 :] if "-m" in sys.orig_argv else []
        return after[0] if after else "python"
    return Path(first).stem if first not in {"", "-", "-c"} else "python"


def build_spans(
    resource: Resource, journal: Path | None, journal_mode: int = DEFAULT_MODE
) -> tuple[tuple[TracerProvider, Outbox] | None, str]:
    """Return a provider and what it sends through, and where: as the ``OTEL_*`` variables say, else to the journal."""
    if otel_env.is_disabled(os.environ):
        return None, "nowhere: OTEL_SDK_DISABLED is set"
    if otel_env.exporter(os.environ) == "none":
        return None, "nowhere: OTEL_TRACES_EXPORTER is none"
    target = _target(TRACES)
    if target is None and journal is None:
        return None, "nowhere: no OTLP endpoint and no journal"
    from opentelemetry.sdk.trace import TracerProvider

    from syncagent.telemetry.outbox import Outbox

    if target is not None:
        outbox = Outbox(**_otlp(TRACES, target), **_batches("OTEL_BSP", 5_000))
        where = f"OTLP {otel_env.protocol(os.environ)} to {target}"
    else:
        assert journal is not None
        outbox = Outbox(
            lambda _: JournalExporter(journal, mode=journal_mode),
            on_trouble=lambda reason: log_once("journal", "the journal lacks spans", reason=reason),
            **_batches("OTEL_BSP", 1_000),  # this much may be missing from it when the process is killed
        )
        where = f"journal {journal}"
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(outbox)
    return (provider, outbox), where


def build_metrics(resource: Resource, collect: Callable[[Resource], Sequence[MetricsData]]) -> MetricSender | None:
    """Return what sends metrics if the ``OTEL_*`` variables name an endpoint; there is no journal of them."""
    target = _target(METRICS)
    if target is None:
        return None
    temporality = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
    if os.environ.get(temporality, "").strip().lower() not in {"", "cumulative"}:
        log_once("temporality", f"{temporality} is ignored: metrics are sent cumulative, so that none is lost")
    from syncagent.telemetry.outbox import MetricSender

    interval_s = otel_env.positive_int(os.environ, "OTEL_METRIC_EXPORT_INTERVAL", 60_000) / 1e3
    return MetricSender(**_otlp(METRICS, target), collect=lambda: collect(resource), interval_s=interval_s)


def build_logs(resource: Resource) -> tuple[LoggerProvider, Outbox] | None:
    """Return a logger provider and what it sends through, if OTEL_LOGS_EXPORTER asks for it.

    An endpoint alone is not enough: it may be one that takes no logs.
    """
    target = _target(LOGS) if os.environ.get("OTEL_LOGS_EXPORTER", "").strip() else None
    if target is None:
        return None
    from opentelemetry.sdk._logs import LoggerProvider

    from syncagent.telemetry.outbox import Outbox

    outbox = Outbox(**_otlp(LOGS, target), **_batches("OTEL_BLRP", 1_000))
    provider = LoggerProvider(resource, shutdown_on_exit=False)
    provider.add_log_record_processor(outbox)  # type: ignore[arg-type]  # no base class
    return provider, outbox


def _target(signal: str) -> str | None:
    """Return where the variables have a signal sent by OTLP, if they do; raises ConfigError."""
    if otel_env.is_disabled(os.environ):
        return None
    otel_env.check(os.environ, signal)
    return otel_env.endpoint(os.environ, signal) if otel_env.exporter(os.environ, signal) == "otlp" else None


def _batches(variables: str, delay_ms: int) -> dict[str, Any]:
    read = partial(otel_env.positive_int, os.environ)
    return {
        "interval_s": read(f"{variables}_SCHEDULE_DELAY", delay_ms) / 1e3,
        "max_queue": read(f"{variables}_MAX_QUEUE_SIZE", 2048),
        "max_batch": read(f"{variables}_MAX_EXPORT_BATCH_SIZE", 512),
    }


_SIGNALS = {
    TRACES: ("trace_exporter", "OTLPSpanExporter", "spans are being lost"),
    METRICS: ("metric_exporter", "OTLPMetricExporter", "metrics do not arrive"),
    LOGS: ("_log_exporter", "OTLPLogExporter", "log records are being lost"),
}
"""The SDK's OTLP exporter of each signal, its module and its class, and what it means where it fails."""
_in_trouble: set[str] = set()
"""Hosts of collectors that spans are known not to reach: no other signal is reported of these."""


def _otlp(signal: str, target: str) -> dict[str, Any]:
    """Return how a Sender sends a signal by the SDK's OTLP exporter, and reports trouble with that."""
    is_grpc = otel_env.protocol(os.environ, signal) == otel_env.GRPC
    module, name, loss = _SIGNALS[signal]
    credentials = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_{}CREDENTIAL_PROVIDER"
    has_session = any(os.environ.get(credentials.format(which)) for which in ("", f"{signal}_"))

    def exporter(see: Callable[..., None]) -> Any:
        package = f"opentelemetry.exporter.otlp.proto.{'grpc' if is_grpc else 'http'}"
        make = getattr(importlib.import_module(f"{package}.{module}"), name)
        if is_grpc or has_session:  # there is nothing to see, or the program brings its own sessions
            return make()
        return make(session=session(see))

    def warn(reason: str) -> None:
        host = urlsplit(target if "://" in target else f"//{target}").hostname or ""
        if signal == TRACES or host not in _in_trouble:
            get_logger().warning(f"{loss}; training goes on, reported once", to=target, reason=reason)
        if signal == TRACES:
            _in_trouble.add(host)

    return {"make_exporter": exporter, "on_trouble": warn}
