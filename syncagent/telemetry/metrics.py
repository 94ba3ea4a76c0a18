"""Adds up syncs and steps as OpenTelemetry metrics: exact counts of every sync, in a bounded number of series.

The sums are kept here and not in the SDK's instruments, which take 20 to 30 µs per measurement: with them the agent's
thread delivers 45,000 syncs a second, without them 97,000 (``tests/benchmarks/telemetry.py``).
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter, defaultdict, deque
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry.context import Context
from opentelemetry.metrics import Observation, get_meter_provider
from opentelemetry.trace import NonRecordingSpan, set_span_in_context

from syncagent._version import __version__
from syncagent.delivery.sink import Sink
from syncagent.events import Phase, Weight
from syncagent.support.pace import yield_gil
from syncagent.support.threads import isolate_opentelemetry
from syncagent.telemetry import semconv
from syncagent.telemetry.attributes import AttributeSanitizer, location
from syncagent.telemetry.series import Series, SeriesTable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.metrics import CallbackOptions, Histogram, MeterProvider
    from opentelemetry.sdk.metrics.export import Metric, MetricsData
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.trace import SpanContext

    from syncagent.delivery.sink import Source
    from syncagent.events import CollectiveRecord, StepRecord, SyncEvent
    from syncagent.telemetry.series import Attributes
    from syncagent.telemetry.spans import SpanSink

STALL_BOUNDS_S = tuple(float(f"{base}e{power}") for power in range(-6, 1) for base in (1, 2.5, 5))
STEP_BOUNDS_S = tuple(float(f"{base}e{power}") for power in range(-3, 2) for base in (1, 2.5, 5))

_ATTRIBUTES = (semconv.OP, semconv.KIND, semconv.PHASE, semconv.VIOLATION, semconv.ALLOWED)

_RECORDS_MAX = 100
"""How many measurements a program's own histogram gets at most for one record that stands for many syncs."""
_PART = 25
"""Points of a metric in one request: the exporter encodes them without a pause for other threads, some 0.07 ms each."""
_SLICE_NS = 1_000_000_000
_SLICES = 10


class Instrument(NamedTuple):
    """What a metric is called and says."""

    name: str
    unit: str
    description: str
    kind: str = "counter"
    """Or ``gauge``, or ``histogram``."""


class Number(NamedTuple):
    """A point of a counter or a gauge; one of a histogram is a :class:`Series`."""

    attributes: Attributes
    value: float
    began_ns: int


_STALL = Instrument(semconv.STALL_DURATION, "s", "How long the host waited in one sync", "histogram")
_SYNCS = Instrument(semconv.SYNCS, "{sync}", "Host syncs")
_STEP = Instrument(semconv.STEP_DURATION, "s", "Training steps, without the first: it holds the start", "histogram")
_COLLECTIVES = Instrument(
    semconv.STEP_COLLECTIVE_WAIT, "s", "How long the GPU stood still for collectives in a step", "histogram"
)
_RATIO = Instrument(semconv.STEP_STALL_RATIO, "1", "Share of the newest steps' time that was waited", "gauge")
_DROPPED = Instrument(semconv.EVENTS_DROPPED, "{sync}", "Syncs that were seen, and dropped since they came too fast")
_FOLDED = Instrument(semconv.SERIES_FOLDED, "{series}", "Series beyond the limit, whose syncs are in one series")
_SPANS_DROPPED = Instrument(semconv.SPANS_DROPPED, "{span}", "Spans that did not arrive")
_WITHHELD = Instrument(semconv.SPANS_WITHHELD, "{sync}", "Syncs that have no span, so as to send tens a second")
_CUT = Instrument(semconv.ATTRIBUTES_CUT, "{attribute}", "Attribute values that were too long and have been cut")


class MetricSink(Sink):
    """Counts each sync once, whether it has a span or not.

    A series is one op, kind, phase and line, allowed or not, against the policy or not.  ``max_series`` have theirs
    (:mod:`syncagent.telemetry.series` says which); the syncs of all others are in one whose op is ``other``, and how
    many series those are is ``syncagent.series.folded``.

    - A record that stands for many syncs (``repeats``) counts as that many, each as long as their mean: counts and
      sums are exact, the histogram's buckets show the mean.
    - What was seen in sampled steps alone is scaled up, as in the report; where the driver's waits are known, that is
      the count of syncs alone, and the histogram has each wait that was measured.
    - ``syncagent.step.stall_ratio`` covers the newest ten seconds of steps (ten steps, where each takes longer).  It is
      computed as the report's share is: from the thread that waited longest, and the backward pass.
    - ``syncagent.step.collective_wait`` has the steps of which that is known; the rank that waits least is the one
      that the others wait for.
    - Neither of the step's metrics has the first step, nor has the report: it includes the program's start.

    With a ``meter_provider``, its instruments read the same sums, except for the two histograms: the SDK has none that
    can be read, so they are recorded as syncs and steps come.  A record that stands for many syncs is recorded a
    hundred times at most.  There, and only there, counts fall short; ``syncagent.syncs`` counts all.
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
        self._scale: Callable[[SyncEvent], Weight] = lambda _event: Weight()
        self._sanitizer = AttributeSanitizer()
        self.spans = spans
        """Knows which syncs have a span; each bucket of the histograms has its newest as an exemplar."""
        self.spans_lost: Callable[[], Mapping[str, int]] = dict
        """Says how many spans did not arrive, by reason."""
        # Counts of earlier watches, by reason.  Zeros are included: an alert needs a series to look at.
        self._before = Counter({(_DROPPED, "buffer full"): 0, (_CUT, ""): 0})
        self._max_series = max_series  # limits the number of threads, too
        # Between the draining thread and whoever exports; no training thread ever takes it.  A signal handler that ends
        # the run may have interrupted the very thread that holds it.
        self._lock = threading.RLock()
        self._began_ns = time.time_ns()
        self._table = SeriesTable(STALL_BOUNDS_S, max_series, self._began_ns)
        self._steps = Series({}, STEP_BOUNDS_S, self._began_ns)
        self._collectives = Series({}, STEP_BOUNDS_S, self._began_ns)
        self._has_begun = False
        self._waited_ns: dict[str | None, float] = {}
        """In the step that runs: by thread, and in the backward pass."""
        self._slices: deque[list[float]] = deque(maxlen=_SLICES)
        self._histograms: dict[Instrument, Histogram] = {}
        if meter_provider is not None:
            self._register(meter_provider)

    # --- a sink's part

    def connect(self, source: Source) -> None:
        self._lost, self._scale = source.lost, source.scale

    def events(self, batch: Sequence[SyncEvent]) -> None:
        for event in batch:
            weight = self._scale(event)
            syncs = event.repeats if weight.syncs == 1.0 else round(event.repeats * weight.syncs)
            count = syncs if weight.stall == weight.syncs else event.repeats
            if not event.repeats:  # time of syncs that are counted elsewhere: a wait, or a share of many
                count = 0 if event.estimated else 1
            total_s = max(event.stall_ns, 0) * weight.stall / 1e9
            longest_s = None if event.longest_ns is None else event.longest_ns / 1e9
            span = None if self.spans is None else self.spans.span_of(event)
            example = (event.start_ns + max(event.stall_ns, 0), span) if span and self._has_exemplars else None
            waiter = None if event.phase is Phase.BACKWARD else event.thread
            with self._lock:
                series = self._of(event, max(syncs, 1))
                series.add(total_s, count, longest_s, example, syncs=syncs)
                if waiter is None or waiter in self._waited_ns or len(self._waited_ns) < self._max_series:
                    self._waited_ns[waiter] = self._waited_ns.get(waiter, 0.0) + total_s * 1e9
            if self._histograms and count:
                context = context_of(span, event.user_context)
                self._record(_STALL, total_s / count, series.attributes, context, min(count, _RECORDS_MAX))

    def step(self, record: StepRecord) -> None:
        duration_ns = max(record.end_ns - record.start_ns, 0)
        span = None if self.spans is None else self.spans.span_of(record)
        with self._lock:
            stall_ns = self._waited_ns.pop(None, 0.0) + max(self._waited_ns.values(), default=0.0)
            self._waited_ns.clear()
            is_first, self._has_begun = not self._has_begun, True
            if is_first:
                return
            self._steps.add(duration_ns / 1e9, 1, span=(record.end_ns, span) if span and self._has_exemplars else None)
            if not self._slices or self._slices[-1][0] >= _SLICE_NS:
                self._slices.append([0.0, 0.0])
            self._slices[-1][0] += duration_ns
            self._slices[-1][1] += stall_ns
        if self._histograms:
            self._record(_STEP, duration_ns / 1e9, {}, context_of(span, record.user_context))

    def collectives(self, record: CollectiveRecord) -> None:
        with self._lock:
            self._collectives.add(record.waited_ns / 1e9, 1)
        if self._histograms:
            self._record(_COLLECTIVES, record.waited_ns / 1e9, {}, Context())

    def close(self) -> None:
        """Keep what was counted: it can still be exported, and the program's next watch adds to it."""
        with self._lock:
            self._before = self._counts()
            self._lost, self.spans, self._sanitizer = {}, None, AttributeSanitizer()
            self._has_begun = False
            self._waited_ns.clear()

    # --- what is exported

    def snapshot(self) -> dict[Instrument, list[Number] | list[Series]]:
        """Return everything since the start, each metric's points; nothing if nothing happened."""
        with self._lock:
            counts = self._counts()
            series, steps, folded = self._table.taken(), self._steps.taken(), self._table.folded
            collectives = self._collectives.taken()
            step_ns, stall_ns = map(sum, zip(*self._slices, strict=True)) if self._slices else (0.0, 0.0)
        if not (series or steps.count or any(n for (about, _), n in counts.items() if about is _DROPPED)):
            return {}
        counts[_FOLDED, ""] = folded
        counts.update({(_SPANS_DROPPED, reason): count for reason, count in self.spans_lost().items()})
        numbers: dict[Instrument, list[Number]] = {
            _SYNCS: [Number(one.attributes, one.syncs, one.began_ns) for one in series],
            _RATIO: [Number({}, min(stall_ns / step_ns, 1.0), self._began_ns)] if step_ns else [],
        }
        for (about, reason), count in counts.items():
            attributes: Attributes = {semconv.REASON: reason} if reason else {}
            numbers.setdefault(about, []).append(Number(attributes, count, self._began_ns))
        of_steps = {_STEP: steps, _COLLECTIVES: collectives}
        return {**numbers, _STALL: series, **{about: [one] for about, one in of_steps.items() if one.count}}

    def data(self, resource: Resource) -> list[MetricsData]:
        """Return the snapshot as the SDK's records, cumulative, in parts."""
        from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        found, now_ns, parts = self.snapshot(), time.time_ns(), defaultdict[int, "list[Metric]"](list)
        for about, points in found.items():
            for first in range(0, len(points), _PART):
                parts[first].append(_metric(about, points[first : first + _PART], now_ns))
        scope = InstrumentationScope(semconv.INSTRUMENTATION, __version__)
        return [
            MetricsData([ResourceMetrics(resource, [ScopeMetrics(scope, part, "")], "")]) for part in parts.values()
        ]

    # --- a program's own meter provider

    def _register(self, provider: MeterProvider) -> None:
        meter = provider.get_meter(semconv.INSTRUMENTATION, __version__)
        observable = {"counter": meter.create_observable_counter, "gauge": meter.create_observable_gauge}
        for about in (_SYNCS, _RATIO, _DROPPED, _FOLDED, _CUT, _WITHHELD):
            observable[about.kind](about.name, [partial(self._observe, about)], about.unit, about.description)
        for about, bounds in ((_STALL, STALL_BOUNDS_S), (_STEP, STEP_BOUNDS_S), (_COLLECTIVES, STEP_BOUNDS_S)):
            self._histograms[about] = meter.create_histogram(
                *about[:3], explicit_bucket_boundaries_advisory=list(bounds)
            )

    def _observe(self, about: Instrument, _options: CallbackOptions) -> list[Observation]:
        points: list[Any] = self.snapshot().get(about, [])
        return [Observation(point.value, point.attributes) for point in points]

    def _record(
        self, about: Instrument, value_s: float, attributes: Attributes, context: Context, times: int = 1
    ) -> None:
        """Record without the lock: the SDK has its own, and calls back under them."""
        for _ in range(times):
            self._histograms[about].record(value_s, attributes, context)
            yield_gil()

    # --- the parts

    def _of(self, event: SyncEvent, count: int) -> Series:
        site = event.site
        line = None if site is None else (site.file, site.line, site.function)
        is_allowed = event.allowed is not None

        def describe() -> Attributes:
            values = (event.op, event.kind.value, event.phase.value, event.violation, is_allowed)
            return self._sanitizer.clean({**dict(zip(_ATTRIBUTES, values, strict=True)), **location(site)})

        return self._table.of((event.op, event.kind, event.phase, line, event.violation, is_allowed), count, describe)

    def _counts(self) -> Counter[tuple[Instrument, str]]:
        """Return what was left out on the way, of all watches, by reason."""
        counts = self._before.copy()
        counts.update({(_DROPPED, reason): count for reason, count in self._lost.items()})
        counts[_CUT, ""] += self._sanitizer.cut
        if self.spans is not None:
            counts[_CUT, ""] += self.spans.sanitizer.cut
            counts.update({(_WITHHELD, reason): count for reason, count in self.spans.without_span().items()})
        return counts


_of_programs: weakref.WeakKeyDictionary[MeterProvider, MetricSink] = weakref.WeakKeyDictionary()


def of_program(provider: MeterProvider | None = None, spans: SpanSink | None = None) -> MetricSink | None:
    """Return the sink for a meter provider of the program's, or else for its global one, if it has set that.

    It is the same for every watch: an instrument can be registered once, and counts must not start again.
    """
    found = provider if provider is not None else get_meter_provider()
    if type(found).__name__ in {"_ProxyMeterProvider", "NoOpMeterProvider"}:  # what the API has until one is set
        return None
    sink = _of_programs.get(found)
    if sink is None:
        isolate_opentelemetry()
        sink = _of_programs[found] = MetricSink(found)
    sink.spans = spans
    return sink


def context_of(span: SpanContext | None, user: object | None) -> Context:
    """Return what the SDK takes the span from: ours, or else the user's that was active at the time."""
    if span is not None:
        return set_span_in_context(NonRecordingSpan(span), Context())
    return user if isinstance(user, Context) else Context()


def _metric(about: Instrument, points: Sequence[Number | Series], now_ns: int) -> Metric:
    from opentelemetry.sdk.metrics import Exemplar
    from opentelemetry.sdk.metrics import export as sdk

    found: list[Any] = []
    for one in points:
        if isinstance(one, Number):
            found.append(sdk.NumberDataPoint(one.attributes, one.began_ns, now_ns, one.value))
        else:
            examples = [Exemplar({}, value, ns, of.span_id, of.trace_id) for value, ns, of in one.examples.values()]
            sums = one.count, one.total_s, one.buckets, one.bounds, one.min_s if one.count else 0.0, one.max_s
            found.append(sdk.HistogramDataPoint(one.attributes, one.began_ns, now_ns, *sums, examples))
        yield_gil()
    cumulative = sdk.AggregationTemporality.CUMULATIVE
    data: Any = sdk.Sum(found, cumulative, is_monotonic=True)
    if about.kind != "counter":
        data = sdk.Gauge(found) if about.kind == "gauge" else sdk.Histogram(found, cumulative)
    return sdk.Metric(about.name, about.description, about.unit, data)
