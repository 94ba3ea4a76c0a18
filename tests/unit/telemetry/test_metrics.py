"""What is counted, and in how many series: as the agent sends it, and through a meter provider of the program's own."""

from __future__ import annotations

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, DEFAULT_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context
from sink_records import source, step, sync

from syncagent.events import CallSite, CollectiveRecord, Phase, Weight
from syncagent.telemetry import metrics
from syncagent.telemetry.metrics import STALL_BOUNDS_S, STEP_BOUNDS_S, MetricSink
from syncagent.telemetry.span_budget import SpanBudget
from syncagent.telemetry.spans import SpanSink
from syncagent.telemetry.step_ids import ProcessIdentity


def read(parts):
    """Points by name, from all parts; an instrument has one unit."""
    found = {}
    for part in parts:
        for of_resource in part.resource_metrics:
            for of_scope in of_resource.scope_metrics:
                assert of_scope.scope.name == "syncagent"
                for metric in of_scope.metrics:
                    found.setdefault((metric.name, metric.unit), []).extend(metric.data.data_points)
    return found


class Sent:
    """What the agent itself sends."""

    def __init__(self, **options):
        self.sink = MetricSink(**options)

    def points(self):
        return read(self.sink.data(Resource({})))


class Asked:
    """What a program's own reader gets."""

    def __init__(self, **options):
        self._reader = InMemoryMetricReader()
        self.sink = MetricSink(MeterProvider([self._reader], shutdown_on_exit=False), **options)

    def points(self):
        data = self._reader.get_metrics_data()
        return read([] if data is None else [data])


@pytest.fixture(params=[Sent, Asked])
def counted(request):
    return request.param


SYNCS, STALLS = ("syncagent.syncs", "{sync}"), ("syncagent.stall.duration", "s")
STEPS, RATIO = ("syncagent.step.duration", "s"), ("syncagent.step.stall_ratio", "1")
WAITS = ("syncagent.step.collective_wait", "s")
DROPPED, FOLDED = ("syncagent.events.dropped", "{sync}"), ("syncagent.series.folded", "{series}")

WITHHELD, LOST = ("syncagent.spans.withheld", "{sync}"), ("syncagent.spans.dropped", "{span}")
CUT = ("syncagent.attributes.cut", "{attribute}")


def at(line):
    return CallSite("/app/train.py", line, "loss", "")


def test_a_series_says_which_op_where_and_whether_it_may(counted):
    all_of = counted()
    all_of.sink.events([sync(), sync(violation=True), sync(allowed="logging"), sync(stall=2)])
    points = all_of.points()[SYNCS]
    common = {
        "syncagent.op": "aten::nonzero",
        "syncagent.kind": "dynamic_shape",
        "syncagent.phase": "forward",
        "code.file.path": "/app/train.py",
        "code.line.number": 12,
        "code.function.name": "loss",
    }
    assert [(dict(point.attributes), point.value) for point in points] == [
        (common | {"syncagent.violation": False, "syncagent.allowed": False}, 2),
        (common | {"syncagent.violation": True, "syncagent.allowed": False}, 1),
        (common | {"syncagent.violation": False, "syncagent.allowed": True}, 1),
    ]


def test_the_wait_for_collectives_is_a_histogram_of_steps(counted):
    all_of = counted()
    all_of.sink.step(step())
    all_of.sink.step(step(number=1))
    assert WAITS not in all_of.points()
    for waited_ns in (2_000_000, 30_000_000):
        all_of.sink.collectives(CollectiveRecord(1, 0, waited_ns))
    (point,) = all_of.points()[WAITS]
    assert (point.count, point.sum, point.min, point.max) == (2, pytest.approx(0.032), 0.002, 0.03)
    assert tuple(point.explicit_bounds) == STEP_BOUNDS_S


def test_stalls_are_in_seconds(counted):
    all_of = counted()
    all_of.sink.events([sync(stall=2), sync(stall=4), sync(stall=30)])
    (point,) = all_of.points()[STALLS]
    assert (point.count, point.sum, point.min, point.max) == (3, pytest.approx(0.036), 0.002, 0.03)
    assert tuple(point.explicit_bounds) == STALL_BOUNDS_S
    filled = {STALL_BOUNDS_S[n]: count for n, count in enumerate(point.bucket_counts) if count}
    assert filled == {0.0025: 1, 0.005: 1, 0.05: 1}


def test_a_record_that_stands_for_many_counts_as_many(counted):
    all_of = counted()
    all_of.sink.events([sync(stall=1), sync(stall=80, repeats=40, longest_ns=9_000_000)])
    points = all_of.points()
    assert points[SYNCS][0].value == 41
    (point,) = points[STALLS]
    assert (point.count, point.sum) == (41, pytest.approx(0.081))
    assert max(point.bucket_counts) == 40


def test_any_number_of_repeats_is_counted_at_once():
    sent, asked = Sent(), Asked()
    for all_of in (sent, asked):
        all_of.sink.events([sync(stall=5_000, repeats=1_000_000, longest_ns=9_000_000)])
        assert all_of.points()[SYNCS][0].value == 1_000_000
    (point,) = sent.points()[STALLS]
    assert (point.count, point.sum, point.max) == (1_000_000, 5.0, 0.009)
    (point,) = asked.points()[STALLS]  # an SDK's histogram takes one at a time
    assert (point.count, point.sum) == (100, pytest.approx(100 * 5e-6))


def test_what_was_sampled_is_scaled_up(counted):
    all_of = counted()
    all_of.sink.connect(source(scale=lambda event: Weight(16.0, 16.0) if event.op == "aten::copy_" else Weight()))
    all_of.sink.events([sync(op="aten::copy_"), sync(op="aten::copy_", repeats=2), sync()])
    points = all_of.points()
    assert [point.value for point in points[SYNCS]] == [48, 1]
    assert [point.count for point in points[STALLS]] == [48, 1]


def test_series_beyond_the_limit_are_one(counted):
    all_of = counted(max_series=3)
    all_of.sink.events([sync(site=at(line)) for line in range(1, 8)])
    all_of.sink.events([sync(site=at(7), repeats=5), sync(site=at(1))])
    points = all_of.points()
    lines = [(point.attributes.get("code.line.number"), point.value) for point in points[SYNCS]]
    assert lines == [(1, 2), (2, 1), (3, 1), (None, 9)]
    assert dict(points[SYNCS][-1].attributes) == {"syncagent.op": "other"}
    assert [point.value for point in points[FOLDED]] == [4]
    assert len(points[STALLS]) == 4


def test_many_series_are_sent_in_parts():
    sink = MetricSink()
    sink.events([sync(site=at(line)) for line in range(1, 300)])
    parts = sink.data(Resource({}))
    assert len(parts) == 9
    points = read(parts)
    assert (len(points[SYNCS]), sum(point.value for point in points[SYNCS])) == (201, 299)
    assert [len(points[name]) for name in (DROPPED, FOLDED)] == [1, 1]


def test_steps_are_timed_but_for_the_first(counted):
    all_of = counted()
    all_of.sink.step(step(0, 60_000))
    assert STEPS not in all_of.points()
    all_of.sink.events([sync(stall=3, step=1)])
    all_of.sink.step(step(0, 10, 1))
    all_of.sink.step(step(10, 30, 2))
    points = all_of.points()
    (durations,) = points[STEPS]
    assert (durations.count, durations.sum) == (2, pytest.approx(0.03))
    assert [point.value for point in points[RATIO]] == [pytest.approx(0.1)]


def test_the_ratio_is_of_the_thread_that_waited_longest_and_the_backward_pass(counted):
    all_of = counted()
    all_of.sink.step(step(0, 10))
    events = [sync(stall=2), sync(stall=1, thread="loader"), sync(stall=3, thread="autograd", phase=Phase.BACKWARD)]
    all_of.sink.events(events)
    all_of.sink.step(step(10, 20, 1))
    assert all_of.points()[RATIO][0].value == pytest.approx(0.5)


def test_the_ratio_forgets_and_never_exceeds_one(counted):
    all_of = counted()
    all_of.sink.step(step(0, 10))
    all_of.sink.events([sync(stall=9_000)])
    all_of.sink.step(step(0, 2_000, 1))
    assert all_of.points()[RATIO][0].value == 1.0
    for number in range(2, 12):
        all_of.sink.step(step(0, 2_000, number))
    assert all_of.points()[RATIO][0].value == 0.0


def test_what_was_dropped_is_counted_by_reason(counted):
    all_of = counted()
    lost = {}
    all_of.sink.connect(source(lost))
    all_of.sink.events([sync()])
    assert [(dict(point.attributes), point.value) for point in all_of.points()[DROPPED]] == [
        ({"syncagent.reason": "buffer full"}, 0)
    ]
    lost["buffer full"] = 7
    assert all_of.points()[DROPPED][0].value == 7
    all_of.sink.close()
    all_of.sink.connect(source({"buffer full": 2}))  # the program watches once more
    assert all_of.points()[DROPPED][0].value == 9


def test_where_nothing_happened_nothing_is_sent(counted):
    assert counted().points() == {}


def test_a_program_with_a_meter_provider_has_one_sink_for_all_its_watches(monkeypatch):
    assert metrics.of_program() is None
    provider = MeterProvider(shutdown_on_exit=False)
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: provider)
    sink = metrics.of_program()
    assert sink is metrics.of_program() is not None


class TestExemplars:
    """From a bucket of a histogram to the span of one of its values."""

    def sinks(self, counted, sampler=DEFAULT_ON):
        all_of, exporter = counted(), InMemorySpanExporter()
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        all_of.sink.spans = SpanSink(provider, budget=SpanBudget(first=2), identity=lambda: ProcessIdentity({}, "job"))
        return all_of, exporter

    def run(self, all_of, stalls):
        for number in range(2):
            events = [sync(at=10 * number + at, stall=stall, step=number) for at, stall in enumerate(stalls)]
            record = step(10 * number, 10 * number + 10, number)
            for sink in (all_of.sink.spans, all_of.sink):
                sink.events(events)
            for sink in (all_of.sink.spans, all_of.sink):
                sink.step(record)

    def test_each_leads_to_its_span(self, counted):
        all_of, exporter = self.sinks(counted)
        self.run(all_of, [0.02, 3])
        points = all_of.points()
        spans = {span.context.span_id: span for span in exporter.get_finished_spans()}
        exemplars = [exemplar for point in points[STALLS] for exemplar in point.exemplars]
        assert len(exemplars) == 2
        for exemplar in exemplars:
            span = spans[exemplar.span_id]
            assert span.name == "aten::nonzero"
            assert exemplar.trace_id == span.context.trace_id
            assert exemplar.value == pytest.approx((span.end_time - span.start_time) / 1e9)
        [of_step] = [exemplar for point in points[STEPS] for exemplar in point.exemplars]
        assert spans[of_step.span_id].name == "train.step"

    def test_none_leads_to_a_span_that_was_not_sampled(self, counted):
        all_of, _ = self.sinks(counted, ALWAYS_OFF)
        self.run(all_of, [1, 2, 3])
        points = all_of.points()
        assert [list(point.exemplars) for point in points[STALLS] + points[STEPS]] == [[], []]
        assert sum(point.value for point in points[SYNCS]) == 6

    def test_an_export_takes_them_with_it(self):
        """The next one has those since."""
        all_of, _ = self.sinks(Sent)
        self.run(all_of, [1])
        assert all_of.points()[STALLS][0].exemplars
        assert all_of.points()[STALLS][0].exemplars == []


def test_without_a_span_of_ours_the_programs_own_leads_from_its_histogram():
    """The one that was active at the time of the sync."""
    all_of = Asked()
    user = NonRecordingSpan(SpanContext(7, 8, is_remote=False, trace_flags=TraceFlags(1)))
    all_of.sink.events([sync(user_context=set_span_in_context(user, Context()))])
    [exemplar] = all_of.points()[STALLS][0].exemplars
    assert (exemplar.trace_id, exemplar.span_id) == (7, 8)


class TestWhatIsNotSent:
    """What was left out on the way is a metric, too."""

    def test_syncs_without_a_span_by_reason(self, counted):
        """Over all watches of a program."""
        all_of = counted()
        for _ in range(2):
            provider = TracerProvider(shutdown_on_exit=False)
            all_of.sink.spans = SpanSink(provider, budget=SpanBudget(first=1), min_stall_ms=1.0)
            events = [sync(0, 5), sync(1, 5), sync(2, 4), sync(3, 0.5)]
            for sink in (all_of.sink.spans, all_of.sink):
                sink.events(events)
            all_of.sink.close()
        withheld = {p.attributes["syncagent.reason"]: p.value for p in all_of.points()[WITHHELD]}
        assert withheld == {"rationed": 2, "not sampled": 0, "short": 2}

    def test_spans_that_did_not_arrive_by_reason(self):
        all_of = Sent()
        all_of.sink.spans_lost = lambda: {"queue full": 3, "not delivered": 0}
        all_of.sink.events([sync()])
        assert [(p.attributes["syncagent.reason"], p.value) for p in all_of.points()[LOST]] == [
            ("queue full", 3),
            ("not delivered", 0),
        ]

    def test_texts_that_were_cut(self, counted):
        """Once a series, and once a span."""
        all_of = counted()
        all_of.sink.events([sync(op="x" * 100_000)] * 5)
        [point] = all_of.points()[CUT]
        assert point.value == 1
