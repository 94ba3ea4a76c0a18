"""Adds up syncs and steps as OpenTelemetry metrics: exact counts of every sync, in a bounded number of series.

The SDK's own instruments take 20 to 30 µs per measurement.  So the series are kept here, in plain dictionaries, and
single syncs go to an instrument only where there is no other way.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections import Counter, deque
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, set_span_in_context

from syncagent._version import __version__
from syncagent.delivery.sink import Sink
from syncagent.events import Phase
from syncagent.support.pace import yield_gil
from syncagent.support.threads import isolate_opentelemetry
from syncagent.telemetry import semconv
from syncagent.telemetry.attributes import AttributeSanitizer, location
from syncagent.telemetry.series import Series, SeriesTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from opentelemetry.metrics import CallbackOptions, Histogram, MeterProvider, Observation
    from opentelemetry.sdk.metrics.export import Metric, MetricsData, NumberDataPoint
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.trace import SpanContext

    from syncagent.delivery.sink import Source
    from syncagent.events import StepRecord, SyncEvent
    from syncagent.telemetry.series import Attributes
    from syncagent.telemetry.spans import SpanSink

STALL_BOUNDS_S = tuple(float(f"{base}e{power}") for power in range(-6, 1) for base in (1, 2.5, 5))
STEP_BOUNDS_S = tuple(float(f"{base}e{power}") for power in range(-3, 2) for base in (1, 2.5, 5))

_RECORDS_MAX = 100
"""How many measurements a program's own histogram gets at most for one record that stands for many syncs."""
_PART = 25
"""Series in one request: the exporter encodes them, some 0.07 ms each, without a pause for other threads."""
_SLICE_NS = 1_000_000_000
_SLICES = 10

_STALL = (semconv.STALL_DURATION, "s", "How long the host waited in one sync")
_SYNCS = (semconv.SYNCS, "{sync}", "Host syncs")
_STEP = (semconv.STEP_DURATION, "s", "Training steps, without the first, which holds the program's start")
_RATIO = (semconv.STEP_STALL_RATIO, "1", "Share of the newest steps' time for which the training thread waited")
_DROPPED = (semconv.EVENTS_DROPPED, "{sync}", "Syncs that were seen, and dropped since they came too fast")
_FOLDED = (semconv.SERIES_FOLDED, "{series}", "Series beyond the limit, whose syncs are in one series")
_SPANS_DROPPED = (semconv.SPANS_DROPPED, "{span}", "Spans that did not arrive")
_SPANS_WITHHELD = (semconv.SPANS_WITHHELD, "{sync}", "Syncs that have no span, so as to send tens a second")
_CUT = (semconv.ATTRIBUTES_CUT, "{attribute}", "Attribute values that were longer than allowed and have been cut")


class _Snapshot(NamedTuple):
    """Everything that was counted, as of one moment."""

    time_ns: int
    series: list[Series]
    steps: Series
    ratio: float | None
    counters: dict[tuple[str, str, str], list[tuple[Attributes, int]]]
    """Each counter's values by attributes."""


class MetricSink(Sink):
    """Counts each sync once, whether it has a span or not.

    A series is one op, kind, phase and line, allowed or not, against the policy or not.  ``max_series`` have theirs
    (:mod:`syncagent.telemetry.series` says which); the syncs of all others are in one whose op is ``other``, and how
    many series those are is ``syncagent.series.folded``.

    - A record that stands for many syncs (``repeats``) counts as that many, each as long as their mean: counts and
      sums are exact, the histogram's buckets show the mean.
    - Copies that were sampled are scaled up, as in the report.
    - ``syncagent.step.stall_ratio`` covers the newest ten seconds of steps (ten steps, where each takes longer).  It is
      computed as the report's share is: from the thread that waited longest, and the backward pass.
    - Neither of the step's metrics has the first step, nor has the report: it includes the program's start.

    With a ``meter_provider``, instruments made from it are fed: counters when it asks for them, the two histograms as
    records come.  A record that stands for many syncs is given to the histogram a hundred times at most.  There, and
    only there, counts fall short; ``syncagent.syncs`` counts all.
    """

    name = "metrics"

    def __init__(
        self,
        meter_provider: MeterProvider | None = None,
        *,
        spans: SpanSink | None = None,
        max_series: int = 200,
        exemplars: bool = True,
    ) -> None:
        """``exemplars`` concerns the agent's own histograms; those of a meter provider follow its filter."""
        self._has_exemplars = exemplars
        self._lost: Mapping[str, int] = {}
        self._scale: Callable[[SyncEvent], float] | None = None
        self.sanitizer = AttributeSanitizer()
        self.spans = spans
        """Knows which syncs have a span; each bucket of the histograms has its newest as an exemplar."""
        self.spans_lost: Callable[[], Mapping[str, int]] = dict
        """Says how many spans did not arrive, by reason."""
        self._lost_before: Mapping[str, int] = {}
        self._withheld_before: Mapping[str, int] = {}
        self._cut_before = 0
        self._max_series = max_series  # limits the number of threads, too
        # Between the draining thread and whoever exports; no training thread ever takes it.  A signal handler that ends
        # the run may have interrupted the very thread that holds it.
        self._lock = threading.RLock()
        self._began_ns = time.time_ns()
        self._table = SeriesTable(STALL_BOUNDS_S, max_series, self._began_ns)
        self._steps = Series({}, STEP_BOUNDS_S, self._began_ns)
        self._has_begun = False
        self._thread_ns: dict[str, float] = {}
        self._backward_ns = 0.0
        self._slices: deque[list[float]] = deque(maxlen=_SLICES)
        self._stall_histogram: Histogram | None = None
        self._step_histogram: Histogram | None = None
        if meter_provider is not None:
            self._instruments(meter_provider)

    # --- a sink's part

    def connect(self, source: Source) -> None:
        self._lost, self._scale = source.lost, source.scale

    def events(self, batch: Sequence[SyncEvent]) -> None:
        for event in batch:
            count = event.repeats
            total_s = max(event.stall_ns, 0) / 1e9
            if self._scale is not None and (weight := self._scale(event)) != 1.0:
                count, total_s = round(count * weight), total_s * weight
            if count < 1:
                continue
            longest_s = None if event.longest_ns is None else event.longest_ns / 1e9
            span = None if self.spans is None else self.spans.span_of(event)
            example = (
                None if span is None or not self._has_exemplars else (event.start_ns + max(event.stall_ns, 0), span)
            )
            with self._lock:
                series = self._of(event, count)
                series.add(total_s, count, longest_s, example)
                if event.phase is Phase.BACKWARD:
                    self._backward_ns += total_s * 1e9
                elif event.thread in self._thread_ns or len(self._thread_ns) < self._max_series:
                    self._thread_ns[event.thread] = self._thread_ns.get(event.thread, 0.0) + total_s * 1e9
            if self._stall_histogram is not None:  # without the lock: the SDK has its own, and calls back under them
                context = context_of(span, event.user_context)
                for _ in range(min(count, _RECORDS_MAX)):
                    self._stall_histogram.record(total_s / count, series.attributes, context)
                    yield_gil()

    def step(self, record: StepRecord) -> None:
        duration_ns = max(record.end_ns - record.start_ns, 0)
        span = None if self.spans is None else self.spans.span_of(record)
        with self._lock:
            stall_ns = max(self._thread_ns.values(), default=0.0) + self._backward_ns
            self._thread_ns.clear()
            self._backward_ns = 0.0
            is_first, self._has_begun = not self._has_begun, True
            if is_first:
                return
            example = None if span is None or not self._has_exemplars else (record.end_ns, span)
            self._steps.add(duration_ns / 1e9, 1, span=example)
            if not self._slices or self._slices[-1][0] >= _SLICE_NS:
                self._slices.append([0.0, 0.0])
            self._slices[-1][0] += duration_ns
            self._slices[-1][1] += stall_ns
        if self._step_histogram is not None:
            self._step_histogram.record(duration_ns / 1e9, context=context_of(span, record.user_context))

    def close(self) -> None:
        """Keep what was counted: it can still be exported, and the program's next watch adds to it."""
        with self._lock:
            self._lost_before, self._lost = self._dropped(), {}
            self._withheld_before, self._cut_before = self._withheld(), self._cut() - self.sanitizer.cut
            self.spans = None
            self._has_begun = False
            self._thread_ns.clear()
            self._backward_ns = 0.0

    # --- what is exported

    def data(self, resource: Resource) -> list[MetricsData]:
        """Return everything since the start as the SDK's records, cumulative, in parts; none if nothing happened."""
        from opentelemetry.sdk.metrics import export as sdk
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        now = self._snapshot()
        if not (now.series or now.steps.count or any(count for _, count in now.counters[_DROPPED])):
            return []
        rest = [
            _sum(about, [sdk.NumberDataPoint(labels, self._began_ns, now.time_ns, value) for labels, value in values])
            for about, values in now.counters.items()
            if values and about is not _SYNCS
        ]
        if now.steps.count:
            rest.append(_histogram(_STEP, [now.steps], now.time_ns))
        if now.ratio is not None:
            name, unit, description = _RATIO
            points = [sdk.NumberDataPoint({}, self._began_ns, now.time_ns, now.ratio)]
            rest.append(sdk.Metric(name, description, unit, sdk.Gauge(points)))
        parts: list[list[Metric]] = [] if now.series else [[]]
        for first in range(0, len(now.series), _PART):
            series = now.series[first : first + _PART]
            counts = [sdk.NumberDataPoint(one.attributes, one.began_ns, now.time_ns, one.count) for one in series]
            parts.append([_sum(_SYNCS, counts), _histogram(_STALL, series, now.time_ns)])
        parts[0] += rest
        scope = InstrumentationScope(semconv.INSTRUMENTATION, __version__)
        return [
            sdk.MetricsData([sdk.ResourceMetrics(resource, [sdk.ScopeMetrics(scope, part, "")], "")]) for part in parts
        ]

    def _instruments(self, provider: MeterProvider) -> None:
        from opentelemetry.metrics import Observation

        meter = provider.get_meter(semconv.INSTRUMENTATION, __version__)

        def ratio(_options: CallbackOptions) -> list[Observation]:
            now = self._snapshot().ratio
            return [] if now is None else [Observation(now)]

        def counted(about: tuple[str, str, str], _options: CallbackOptions) -> list[Observation]:
            return [Observation(value, labels) for labels, value in self._snapshot().counters[about]]

        meter.create_observable_gauge(_RATIO[0], [ratio], _RATIO[1], _RATIO[2])
        for about in (_SYNCS, _DROPPED, _FOLDED, _CUT, _SPANS_WITHHELD):
            meter.create_observable_counter(about[0], [partial(counted, about)], about[1], about[2])
        self._stall_histogram = meter.create_histogram(*_STALL, explicit_bucket_boundaries_advisory=STALL_BOUNDS_S)
        self._step_histogram = meter.create_histogram(*_STEP, explicit_bucket_boundaries_advisory=STEP_BOUNDS_S)

    # --- the parts

    def _of(self, event: SyncEvent, count: int) -> Series:
        site = event.site
        line = None if site is None else (site.file, site.line, site.function)
        key = (event.op, event.kind, event.phase, line, event.violation, event.allowed is not None)

        def describe() -> Attributes:
            return self.sanitizer.clean(
                {
                    semconv.OP: event.op,
                    semconv.KIND: event.kind.value,
                    semconv.PHASE: event.phase.value,
                    semconv.VIOLATION: event.violation,
                    semconv.ALLOWED: event.allowed is not None,
                    **location(site),
                }
            )

        return self._table.of(key, count, describe)

    def _dropped(self) -> dict[str, int]:
        return dict(Counter(self._lost_before) + Counter(self._lost))

    def _withheld(self) -> Counter[str]:
        withheld = Counter(self._withheld_before)
        withheld.update({} if self.spans is None else self.spans.without_span())
        return withheld

    def _cut(self) -> int:
        return self._cut_before + self.sanitizer.cut + (0 if self.spans is None else self.spans.sanitizer.cut)

    def _snapshot(self) -> _Snapshot:
        with self._lock:
            step_ns, stall_ns = map(sum, zip(*self._slices, strict=True)) if self._slices else (0.0, 0.0)
            series = self._table.taken()
            counters: dict[tuple[str, str, str], list[tuple[Attributes, int]]] = {
                _SYNCS: [(one.attributes, one.count) for one in series],
                _DROPPED: _by({"buffer full": 0} | self._dropped()),
                _FOLDED: [({}, self._table.folded)],
                _CUT: [({}, self._cut())],
                _SPANS_WITHHELD: _by(self._withheld()),
                _SPANS_DROPPED: _by(self.spans_lost()),
            }
            ratio = min(stall_ns / step_ns, 1.0) if step_ns else None
            return _Snapshot(time.time_ns(), series, self._steps.taken(), ratio, counters)


_of_programs: weakref.WeakKeyDictionary[MeterProvider, MetricSink] = weakref.WeakKeyDictionary()


def of_program(provider: MeterProvider | None = None, spans: SpanSink | None = None) -> MetricSink | None:
    """Return the sink for a meter provider of the program's, or else for its global one, if it has set that.

    It is the same for every watch: an instrument can be registered once, and counts must not start again.
    """
    api = sys.modules.get("opentelemetry.metrics")
    if api is None:
        return None
    found: MeterProvider = provider if provider is not None else api.get_meter_provider()
    if type(found).__name__ in {"_ProxyMeterProvider", "NoOpMeterProvider"}:  # what the API has until one is set
        return None
    sink = _of_programs.get(found)
    if sink is None:
        isolate_opentelemetry()
        sink = _of_programs[found] = MetricSink(found)
    sink.spans = spans
    return sink


def _by(dropped: Mapping[str, int]) -> list[tuple[Attributes, int]]:
    """Zeros are included: an alert needs a series to look at."""
    return [({semconv.REASON: reason}, count) for reason, count in dropped.items()]


def context_of(span: SpanContext | None, user: object | None) -> Context:
    """Return what the SDK takes the span from: ours, or else the user's that was active at the time."""
    if span is not None:
        return set_span_in_context(NonRecordingSpan(span), Context())
    return user if isinstance(user, Context) else Context()


def _sum(about: tuple[str, str, str], points: Sequence[NumberDataPoint]) -> Metric:
    from opentelemetry.sdk.metrics.export import AggregationTemporality, Metric, Sum

    name, unit, description = about
    return Metric(name, description, unit, Sum(points, AggregationTemporality.CUMULATIVE, is_monotonic=True))


def _histogram(about: tuple[str, str, str], series: Iterable[Series], now_ns: int) -> Metric:
    from opentelemetry.sdk.metrics import Exemplar
    from opentelemetry.sdk.metrics.export import AggregationTemporality, Histogram, HistogramDataPoint, Metric

    name, unit, description = about
    points = []
    for one in series:
        examples = [Exemplar({}, value, ns, span.span_id, span.trace_id) for value, ns, span in one.examples.values()]
        points.append(
            HistogramDataPoint(
                attributes=one.attributes,
                start_time_unix_nano=one.began_ns,
                time_unix_nano=now_ns,
                count=one.count,
                sum=one.total_s,
                bucket_counts=one.buckets,
                explicit_bounds=one.bounds,
                min=one.min_s,
                max=one.max_s,
                exemplars=examples,
            )
        )
        yield_gil()
    return Metric(name, description, unit, Histogram(points, AggregationTemporality.CUMULATIVE))
