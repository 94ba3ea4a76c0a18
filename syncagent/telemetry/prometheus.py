"""Serves the agent's own sums to Prometheus, without a Collector in between."""

from __future__ import annotations

import os
import re
import threading
from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from syncagent.delivery.sink import Sink
from syncagent.errors import ConfigError
from syncagent.support.log import get_logger
from syncagent.support.pace import keep_pace, yield_gil
from syncagent.telemetry import otel_env, semconv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from opentelemetry.sdk.metrics.export import HistogramDataPoint, Metric, MetricsData
    from opentelemetry.sdk.resources import Resource
    from prometheus_client.core import Metric as Family

    from syncagent.events import StepRecord, SyncEvent
    from syncagent.telemetry.web import Server

    _Collect = Callable[[Resource], Sequence[MetricsData]]

COPIED = (semconv.SERVICE_NAME, semconv.HOST_NAME, semconv.PROCESS_PID, semconv.RANK)
"""What of the resource is a label of every series, as ``transform/labels`` of ``otel/collector/config.yaml`` has it."""


def build_endpoint(resource: Resource, collect: _Collect, local_rank: int | None) -> ScrapeEndpoint | None:
    """Return an endpoint if ``OTEL_METRICS_EXPORTER`` is ``prometheus``.

    A malformed variable raises ConfigError, as does the lack of prometheus-client.
    """
    environ = os.environ
    if otel_env.is_disabled(environ) or otel_env.exporter(environ, otel_env.METRICS) != otel_env.PROMETHEUS:
        return None
    otel_env.check(environ, otel_env.METRICS)
    address = Address(environ, local_rank)
    if address.port > 65535:
        raise ConfigError(f"{address} is not allowed; the port of the last rank may be 65535 at most.")
    try:
        import prometheus_client.core  # noqa: F401 - here, and not while a step runs
    except ImportError:
        raise ConfigError(
            "OTEL_METRICS_EXPORTER='prometheus' needs the package prometheus-client, which is not installed "
            "(pip install 'syncagent[prometheus]')."
        ) from None
    return ScrapeEndpoint(collect, resource, address)


class ScrapeEndpoint(Sink):
    """Serves what ``collect`` returns at ``http://host:port/metrics``, from the first sync or step on.

    It is a sink only to know when that is: a launcher such as torchrun imports torch and never trains, and would take
    the port of its first rank.  Nothing is sent: Prometheus does not see what is counted after the last scrape of a
    run.  A forked child closes the port at once.
    """

    name = "prometheus"

    def __init__(self, collect: _Collect, resource: Resource, address: Address) -> None:
        self._collect = collect
        self._resource = resource
        self._address = address
        self._lock = threading.Lock()
        self._is_opened = False
        self._server: Server | None = None

    def events(self, batch: Sequence[SyncEvent]) -> None:
        if batch:
            self._open()

    def step(self, record: StepRecord) -> None:  # noqa: ARG002 - a sink's signature
        self._open()

    def begin_close(self) -> None:
        """There is no last export to begin."""

    def close(self, timeout_s: float = 0.0) -> None:  # noqa: ARG002 - a sender's signature; it takes half a second
        """Close the port."""
        with self._lock:
            self._is_opened = True
            server, self._server = self._server, None
        if server is not None:
            server.close()

    def collect(self) -> Iterator[Family]:
        """Answer a scrape; on the server's thread."""
        keep_pace()
        for family in families(self._collect(self._resource), self._resource):
            family.samples = _Paced(family.samples)
            yield family

    def _open(self) -> None:
        with self._lock:
            if self._is_opened:
                return
            self._is_opened = True
            from prometheus_client import CollectorRegistry, make_wsgi_app

            from syncagent.telemetry.web import Server

            registry = CollectorRegistry(auto_describe=False)
            registry.register(self)
            try:
                self._server = Server(
                    self._address.host, self._address.port, make_wsgi_app(registry), "syncagent-prometheus"
                )
            except (OSError, OverflowError) as error:
                get_logger().error(f"{self._address} cannot be opened: {error}. {_REMEDY}")
                return
        get_logger().info(f"metrics can be scraped at http://{self._address.shown}/metrics")


class _Paced(list[Any]):
    """Samples that are written with pauses for other threads: those of 200 series take 0.2 s."""

    def __iter__(self) -> Iterator[Any]:
        for sample in super().__iter__():
            yield_gil()
            yield sample


_REMEDY = "Metrics cannot be scraped from this process; training goes on."


class Address:
    """Where to listen: the address that the standard variables give, with a port of its own for each rank of a host.

    The port is ``OTEL_EXPORTER_PROMETHEUS_PORT`` plus the local rank: 9464 to 9471 for eight ranks.
    """

    def __init__(self, environ: Mapping[str, str], local_rank: int | None) -> None:
        self._local_rank = local_rank or 0
        self._said_host = environ.get(HOST, "").strip() or "localhost"
        self.port = int(environ.get(PORT, "").strip() or 9464) + self._local_rank
        # A name with two addresses would be listened on at one of them only, and which one differs by machine.
        self.host = "127.0.0.1" if self._said_host == "localhost" else self._said_host
        self.shown = f"[{self._said_host}]:{self.port}" if ":" in self._said_host else f"{self._said_host}:{self.port}"

    def __str__(self) -> str:
        own = f" (local rank {self._local_rank} of {PORT}={self.port - self._local_rank})" if self._local_rank else ""
        return f"{HOST}={self._said_host!r}, {PORT}={self.port}{own}"


HOST = "OTEL_EXPORTER_PROMETHEUS_HOST"
PORT = "OTEL_EXPORTER_PROMETHEUS_PORT"


# --- names ----------------------------------------------------------------------------------------------------------


def families(parts: Iterable[MetricsData], resource: Resource) -> list[Family]:
    """Return the SDK's records as Prometheus names them, by the rules that the Collector's exporter follows.

    Dots become underscores, a unit is written out at the end (``s`` as ``seconds``; one in braces is left out), a
    counter ends in ``_total``, and a gauge of unit 1 in ``_ratio``.  The resource is ``target_info``.
    Source: https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/
    """
    from prometheus_client.core import InfoMetricFamily

    about = {name: value for name, value in resource.attributes.items() if name in COPIED}
    found: dict[str, list[Metric]] = {}
    for part in parts:
        for of_resource in part.resource_metrics:
            for of_scope in of_resource.scope_metrics:
                for metric in of_scope.metrics:
                    found.setdefault(metric.name, []).append(metric)
    info = {_underscored(name): _text(value) for name, value in resource.attributes.items()}
    return [InfoMetricFamily("target", "The process", info), *(_family(each, about) for each in found.values())]


def _family(metrics: Sequence[Metric], about: Mapping[str, object]) -> Family:
    from opentelemetry.sdk.metrics.export import Histogram, Sum
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    first, description = metrics[0], metrics[0].description or ""
    points: list[Any] = [point for metric in metrics for point in metric.data.data_points]
    names = list(dict.fromkeys([*about, *(name for point in points for name in point.attributes or ())]))
    labels = [_underscored(name) for name in names]
    name = _underscored(first.name)
    if first.unit == "s":
        name += "_seconds"

    def values(point: Any) -> list[str]:
        own = {**about, **(point.attributes or {})}
        return [_text(own[name]) if name in own else "" for name in names]  # to Prometheus an empty label is no label

    family: Any
    if isinstance(first.data, Histogram):
        family = HistogramMetricFamily(name, description, labels=labels)
    elif isinstance(first.data, Sum):
        family = CounterMetricFamily(name, description, labels=labels)
    else:
        ratio = "_ratio" if first.unit == "1" and not name.endswith("ratio") else ""
        family = GaugeMetricFamily(name + ratio, description, labels=labels)
    for point in points:
        what = (_buckets(point), point.sum) if isinstance(first.data, Histogram) else (point.value,)
        family.add_metric(values(point), *what)
        yield_gil()
    return family  # type: ignore[no-any-return]  # prometheus_client is untyped


def _buckets(point: HistogramDataPoint) -> list[Any]:
    """Return cumulative counts, each with the newest exemplar of its bucket."""
    from prometheus_client.samples import Exemplar

    bounds = [*point.explicit_bounds, float("inf")]
    newest: dict[int, tuple[Exemplar]] = {}
    for one in sorted(point.exemplars, key=lambda exemplar: exemplar.time_unix_nano):
        if one.trace_id and one.span_id:
            where = {"trace_id": f"{one.trace_id:032x}", "span_id": f"{one.span_id:016x}"}
            newest[bisect_left(bounds, one.value)] = (Exemplar(where, one.value, one.time_unix_nano / 1e9),)
    shown = [*map(repr, map(float, point.explicit_bounds)), "+Inf"]
    counts = accumulate(point.bucket_counts)
    return [(bound, count, *newest.get(n, ())) for n, (bound, count) in enumerate(zip(shown, counts, strict=True))]


def _underscored(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)


def _text(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    # A script's name that is not UTF-8 would make every scrape fail.
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
