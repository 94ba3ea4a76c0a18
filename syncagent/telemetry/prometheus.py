"""Serves the agent's own sums to Prometheus, without a Collector in between."""

from __future__ import annotations

import os
import re
import threading
from typing import TYPE_CHECKING, Any

from syncagent.delivery.sink import Sink
from syncagent.errors import ConfigError
from syncagent.support.log import get_logger
from syncagent.support.pace import keep_pace, yield_gil
from syncagent.telemetry import otel_env, semconv
from syncagent.telemetry.series import Series

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from opentelemetry.sdk.resources import Resource
    from prometheus_client.core import Metric as Family
    from prometheus_client.core import Sample

    from syncagent.events import StepRecord, SyncEvent
    from syncagent.telemetry.metrics import Instrument, Number
    from syncagent.telemetry.web import Server

    _Snapshot = Mapping[Instrument, Sequence[Number] | Sequence[Series]]

COPIED = (semconv.SERVICE_NAME, semconv.HOST_NAME, semconv.PROCESS_PID, semconv.RANK)
"""What of the resource is a label of every series, as ``transform/labels`` of ``otel/collector/config.yaml`` has it."""
HOST = "OTEL_EXPORTER_PROMETHEUS_HOST"
PORT = "OTEL_EXPORTER_PROMETHEUS_PORT"


def build_endpoint(
    resource: Resource, collect: Callable[[], _Snapshot], local_rank: int | None
) -> ScrapeEndpoint | None:
    """Return an endpoint if ``OTEL_METRICS_EXPORTER`` is ``prometheus``.

    The port is ``OTEL_EXPORTER_PROMETHEUS_PORT`` plus the local rank: 9464 to 9471 for the eight ranks of a host.  A
    malformed variable raises ConfigError, as does the lack of prometheus-client.
    """
    environ = os.environ
    if otel_env.is_disabled(environ) or otel_env.exporter(environ, otel_env.METRICS) != otel_env.PROMETHEUS:
        return None
    otel_env.check(environ, otel_env.METRICS)
    first = int(environ.get(PORT, "").strip() or 9464)
    port = first + (local_rank or 0)
    if port > 65535:
        raise ConfigError(
            f"{PORT}={first} is not allowed: for local rank {local_rank} it may be {65535 - port + first} at most."
        )
    try:
        import prometheus_client.core  # noqa: F401 - here, and not while a step runs
    except ImportError:
        raise ConfigError(
            "OTEL_METRICS_EXPORTER='prometheus' needs the package prometheus-client, which is not installed "
            "(pip install 'syncagent[prometheus]')."
        ) from None
    return ScrapeEndpoint(collect, resource, environ.get(HOST, "").strip() or "localhost", port)


class ScrapeEndpoint(Sink):
    """Serves what ``collect`` returns at ``http://host:port/metrics``, from the first sync or step on.

    It is a sink only to know when that is: a launcher such as torchrun imports torch and never trains, and would take
    the port of its first rank.  Nothing is sent: Prometheus does not see what is counted after the last scrape of a
    run.  A forked child closes the port at once.
    """

    name = "prometheus"

    def __init__(self, collect: Callable[[], _Snapshot], resource: Resource, host: str, port: int) -> None:
        self._collect = collect
        self._resource = resource
        self._host = host
        self._port = port
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"
        self._lock = threading.RLock()  # a signal handler that ends the run may come while the port is opened
        self._is_opened = False
        self._server: Server | None = None

    def events(self, batch: Sequence[SyncEvent]) -> None:
        if batch:
            self._open()

    def step(self, record: StepRecord) -> None:  # noqa: ARG002 - a sink's signature
        self._open()

    def begin_close(self) -> None:
        """There is no last export to begin."""

    def close(self, timeout_s: float = 0.0) -> None:  # noqa: ARG002 - a sender's signature; it takes a moment
        """Close the port."""
        with self._lock:
            self._is_opened = True
            server, self._server = self._server, None
        if server is not None:
            server.close()

    def collect(self) -> Iterator[Family]:
        """Answer a scrape; on the server's thread."""
        keep_pace()
        return families(self._collect(), self._resource)

    def _open(self) -> None:
        with self._lock:
            if self._is_opened:
                return
            self._is_opened = True
            from prometheus_client import CollectorRegistry, MetricsHandler

            from syncagent.telemetry.web import Request, Server

            registry = CollectorRegistry(auto_describe=False)
            registry.register(self)
            page = type("Page", (Request, MetricsHandler), {"registry": registry})
            # A name with two addresses would be listened on at one of them only, and which one differs by machine.
            host = "127.0.0.1" if self._host == "localhost" else self._host
            try:
                self._server = Server(host, self._port, page, "syncagent-prometheus")
            except (OSError, OverflowError) as error:
                get_logger().error(
                    f"{HOST}={self._host!r}, {PORT}={self._port} cannot be opened: {error}. "
                    "Metrics cannot be scraped from this process; training goes on."
                )
                return
        get_logger().info(f"metrics can be scraped at {self.url}")


# --- names ----------------------------------------------------------------------------------------------------------


def families(found: _Snapshot, resource: Resource) -> Iterator[Family]:
    """Return metrics as Prometheus names them, by the rules that the Collector's exporter follows.

    Dots become underscores, a unit is written out at the end (``s`` as ``seconds``; one in braces is left out), a
    counter ends in ``_total``, and a gauge of unit 1 in ``_ratio``.  The resource is ``target_info``.  It is done here
    since opentelemetry-exporter-prometheus has no exemplars.
    Source: https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/
    """
    from prometheus_client import core

    yield core.InfoMetricFamily("target", "The process", _labels(resource.attributes))
    about = _labels({name: value for name, value in resource.attributes.items() if name in COPIED})
    made: dict[str, Any] = {
        "counter": core.CounterMetricFamily,
        "gauge": core.GaugeMetricFamily,
        "histogram": core.HistogramMetricFamily,
    }
    for instrument, points in found.items():
        if points:
            name = _underscored(instrument.name) + ("_seconds" if instrument.unit == "s" else "")
            if instrument.kind == "gauge" and instrument.unit == "1" and not name.endswith("ratio"):
                name += "_ratio"
            family = made[instrument.kind](name, instrument.description)
            family.samples = _samples(family, points, about)  # made as they are written
            yield family


def _samples(family: Family, points: Sequence[Number] | Sequence[Series], about: Mapping[str, str]) -> Iterator[Sample]:
    """Yield samples with pauses for other threads: those of 200 series take 0.2 s."""
    from prometheus_client.core import Exemplar, Sample

    for point in points:
        labels = {**about, **_labels(point.attributes)}
        if not isinstance(point, Series):
            yield Sample(f"{family.name}_total" if family.type == "counter" else family.name, labels, point.value)
            yield_gil()
            continue
        count = 0
        for number, bound in enumerate((*point.bounds, float("inf"))):
            exemplar = None
            if number in point.examples:
                value, time_ns, span = point.examples[number]
                ids = {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}
                exemplar = Exemplar(ids, value, time_ns / 1e9)
            count += point.buckets[number]
            le = {"le": "+Inf" if number == len(point.bounds) else repr(bound)}
            yield Sample(f"{family.name}_bucket", labels | le, count, None, exemplar)
            yield_gil()
        yield Sample(f"{family.name}_count", labels, point.count)
        yield Sample(f"{family.name}_sum", labels, point.total_s)


def _labels(attributes: Mapping[str, object]) -> dict[str, str]:
    return {_underscored(name): _text(value) for name, value in attributes.items()}


def _underscored(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)


def _text(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    # A script's name that is not UTF-8 would make every scrape fail.
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
