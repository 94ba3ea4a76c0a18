"""Spans of the span sink: who is whose child, when, and with what attributes."""

from __future__ import annotations

import gc
from collections import Counter

import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    DEFAULT_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from sink_records import MS, T0, step, sync

from syncagent._version import __version__
from syncagent.events import CallSite, Phase, SyncEvent, SyncKind
from syncagent.telemetry import attributes as attribute_limits
from syncagent.telemetry import spans
from syncagent.telemetry.span_budget import SpanBudget
from syncagent.telemetry.spans import SpanSink
from syncagent.telemetry.step_ids import ProcessIdentity, StepIds


class Spans:
    """A provider and what it exported."""

    def __init__(self, sampler=DEFAULT_ON):
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def all(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def user(self, name: str = "epoch", at: float = 0.0, parent: trace.Span | None = None) -> trace.Span:
        context = Context() if parent is None else trace.set_span_in_context(parent, Context())
        return self.provider.get_tracer("user").start_span(name, context, start_time=T0 + round(at * MS))


@pytest.fixture
def out():
    return Spans()


@pytest.fixture
def sink(out):
    return SpanSink(out.provider)


def is_child(child: ReadableSpan, parent: ReadableSpan) -> bool:
    """Parentage, one trace, and times that contain each other."""
    return (
        child.parent is not None
        and child.parent.span_id == parent.context.span_id
        and child.context.trace_id == parent.context.trace_id
        and parent.start_time <= child.start_time <= child.end_time <= parent.end_time
    )


def test_a_step_is_a_root_with_a_child_for_each_sync(out, sink):
    sink.events([sync(2, 3), sync(6, 1, op="aten::item")])
    assert out.all() == ()
    sink.step(step(0, 10))

    root = out.one("train.step")
    assert root.parent is None
    assert (root.start_time, root.end_time) == (T0, T0 + 10 * MS)
    first, second = out.one("aten::nonzero"), out.one("aten::item")
    assert is_child(first, root)
    assert is_child(second, root)
    assert (first.start_time, first.end_time) == (T0 + 2 * MS, T0 + 5 * MS)


def test_each_step_is_a_trace_of_its_own(out, sink):
    for number in range(3):
        sink.events([sync(number * 10 + 1, step=number)])
        sink.step(step(number * 10, number * 10 + 10, number))
    roots = out.named("train.step")
    assert [root.attributes["syncagent.step"] for root in roots] == [0, 1, 2]
    assert len({root.context.trace_id for root in roots}) == 3
    assert all(is_child(*pair) for pair in zip(out.named("aten::nonzero"), roots, strict=True))


def test_a_step_without_syncs_has_a_span(out, sink):
    sink.step(step(0, 10))
    assert out.one("train.step").attributes["syncagent.step.syncs"] == 0


def test_the_step_stretches_to_hold_its_syncs(out, sink):
    sink.events([sync(-1, 2), sync(9, 5)])
    sink.step(step(0, 10))
    root = out.one("train.step")
    assert (root.start_time, root.end_time) == (T0 - MS, T0 + 14 * MS)


def test_attributes_of_a_sync(out):
    sink = SpanSink(out.provider, policy="warn")
    sink.events(
        [
            sync(
                0,
                2.5,
                rank=3,
                stream=7,
                allowed="logging",
                ranges=("epoch", "loss"),
                module="layers.3.attn",
                shapes=((4, 5), ()),
                phase=Phase.BACKWARD,
                forward_site=CallSite("/app/model.py", 40, "forward", "return x[mask]"),
                library_site=CallSite("/lib/optim.py", 9, "step"),
                stack=(CallSite("/app/train.py", 12, "loss", "f(x)"), CallSite("/app/train.py", 90, "<module>")),
            )
        ]
    )
    sink.step(step(rank=3))
    span = out.one("aten::nonzero")
    assert dict(span.attributes) == {
        "code.file.path": "/app/train.py",
        "code.line.number": 12,
        "code.function.name": "loss",
        "code.stacktrace": '  File "/app/train.py", line 90, in <module>\n'
        '  File "/app/train.py", line 12, in loss\n    f(x)',
        "syncagent.source": "mask = torch.nonzero(labels)",
        "syncagent.op": "aten::nonzero",
        "syncagent.api": "torch.nonzero",
        "syncagent.kind": "dynamic_shape",
        "syncagent.phase": "backward",
        "syncagent.step": 0,
        "syncagent.device": "cuda:0",
        "syncagent.stream": 7,
        "syncagent.stall_ms": 2.5,
        "syncagent.rank": 3,
        "syncagent.allowed": "logging",
        "syncagent.policy": "warn",
        "syncagent.sensor": "kernels",
        "thread.name": "MainThread",
        "syncagent.shapes": ("4x5", "scalar"),
        "syncagent.ranges": ("epoch", "loss"),
        "syncagent.module": "layers.3.attn",
        "syncagent.forward.file.path": "/app/model.py",
        "syncagent.forward.line.number": 40,
        "syncagent.forward.function.name": "forward",
        "syncagent.library.file.path": "/lib/optim.py",
        "syncagent.library.line.number": 9,
        "syncagent.library.function.name": "step",
    }
    assert (span.instrumentation_scope.name, span.instrumentation_scope.version) == ("syncagent", __version__)
    assert dict(out.one("train.step").attributes) == {
        "syncagent.step": 0,
        "syncagent.rank": 3,
        "syncagent.policy": "warn",
        "syncagent.step.syncs": 1,
        "syncagent.step.stall_ms": 2.5,
    }


def test_what_is_not_known_is_left_out(out, sink):
    sink.events([sync(api=None, site=None, kind=SyncKind.OTHER), sync(2, site=CallSite("<string>", 0, "<module>"))])
    sink.step(step())
    nowhere, no_line = out.named("aten::nonzero")
    assert set(nowhere.attributes) == {
        *("syncagent.op", "syncagent.kind", "syncagent.phase", "syncagent.step", "syncagent.device"),
        *("syncagent.stream", "syncagent.stall_ms", "syncagent.policy", "syncagent.sensor", "thread.name"),
    }
    assert no_line.attributes["code.file.path"] == "<string>"
    assert "code.line.number" not in no_line.attributes
    assert "syncagent.source" not in no_line.attributes


def test_text_that_cannot_be_encoded_or_is_huge_is_made_to_fit(out, sink):
    sink.events([sync(site=CallSite("/data/\udcff.py", 1, "f", "x" * 1_000_000))])
    sink.step(step())
    attributes = out.one("aten::nonzero").attributes
    assert attributes["code.file.path"] == "/data/\\udcff.py"
    assert len(attributes["syncagent.source"]) == attribute_limits.TEXT_MAX


def test_short_stalls_get_no_span_but_are_counted(out):
    sink = SpanSink(out.provider, min_stall_ms=1.0)
    sink.events([sync(1, 0.9), sync(3, 1.0)])
    sink.step(step())
    assert out.one("aten::nonzero").start_time == T0 + 3 * MS
    assert out.one("train.step").attributes["syncagent.step.syncs"] == 2
    assert out.one("train.step").attributes["syncagent.step.stall_ms"] == pytest.approx(1.9)


class TestEarly:
    def test_too_many_held_events_go_out_before_the_step_ends(self, out):
        sink = SpanSink(out.provider, budget=SpanBudget(first=10_000))
        for number in range(spans.HELD_MAX + 3):
            sink.events([sync(number)])
        assert len(out.named("aten::nonzero")) == spans.HELD_MAX
        assert out.named("train.step") == []
        sink.step(step(-5, 10_000))

        root = out.one("train.step")
        assert (root.start_time, root.end_time) == (T0, T0 + 10_000 * MS)
        assert len(out.named("aten::nonzero")) == spans.HELD_MAX + 3
        assert all(is_child(child, root) for child in out.named("aten::nonzero"))

    def test_flush_pushes_them_out(self, out, sink):
        sink.events([sync(1)])
        sink.flush()
        assert len(out.named("aten::nonzero")) == 1
        sink.flush()
        assert len(out.all()) == 1

    def test_close_ends_the_step_with_its_last_sync(self, out, sink):
        sink.events([sync(1, 2), sync(0.5, 1)])
        sink.close()
        root = out.one("train.step")
        assert (root.start_time, root.end_time) == (T0 + MS // 2, T0 + 3 * MS)
        assert all(is_child(child, root) for child in out.named("aten::nonzero"))

    def test_a_sync_from_before_the_early_start_has_a_link_and_no_parent(self, out, sink):
        sink.events([sync(5)])
        sink.flush()
        sink.events([sync(3, op="aten::item")])
        sink.step(step(0, 10))
        stray, root = out.one("aten::item"), out.one("train.step")
        assert stray.parent is None
        assert stray.links[0].context == root.context

    def test_steps_whose_record_never_comes_are_bounded(self, out, sink):
        count = spans.OPEN_MAX + 5
        for number in range(count):
            sink.events([sync(number, step=number)])
        assert len(out.named("train.step")) == 5
        sink.close()
        assert len(out.named("train.step")) == count

    def test_a_record_that_comes_after_all_is_not_a_second_step(self, out, sink):
        for number in range(spans.OPEN_MAX + 1):
            sink.events([sync(number * 10, 5, step=number)])
        sink.step(step(0, 10))
        assert len(out.named("train.step")) == 1


class TestLate:
    def test_a_late_sync_joins_the_ended_step(self, out, sink):
        sink.step(step(0, 10))
        sink.events([sync(4, 2)])
        assert is_child(out.one("aten::nonzero"), out.one("train.step"))

    def test_a_step_number_may_be_used_again(self, out, sink):
        for epoch in range(2):
            sink.events([sync(epoch * 100 + 1)])
            sink.step(step(epoch * 100, epoch * 100 + 10))
        first, second = out.named("train.step")
        assert first.context.trace_id != second.context.trace_id
        assert is_child(out.named("aten::nonzero")[1], second)


class TestUserSpans:
    def test_the_users_span_is_the_steps_parent(self, out, sink):
        user = out.user()
        sink.events([sync(1, user_span=user)])
        sink.step(step(0, 10, user_span=user))
        user.end(T0 + 20 * MS)
        root = out.one("train.step")
        assert is_child(root, out.one("epoch"))
        assert is_child(out.one("aten::nonzero"), root)

    def test_the_step_does_not_begin_before_its_parent(self, out, sink):
        user = out.user(at=2)
        sink.events([sync(1, 0.5, op="aten::item"), sync(3, user_span=user)])
        sink.step(step(0, 10, user_span=user))
        user.end(T0 + 20 * MS)
        root, stray = out.one("train.step"), out.one("aten::item")
        assert root.start_time == T0 + 2 * MS
        assert is_child(root, out.one("epoch"))
        assert is_child(out.one("aten::nonzero"), root)
        assert stray.parent is None
        assert stray.links[0].context == root.context

    def test_a_sync_under_another_span_is_that_spans_child(self, out, sink):
        user = out.user()
        inner = out.user("loss", 1, parent=user)
        sink.events([sync(2, user_span=inner)])
        inner.end(T0 + 5 * MS)
        sink.step(step(0, 10, user_span=user))
        assert is_child(out.one("aten::nonzero"), out.one("loss"))

    def test_a_sync_under_a_span_that_the_step_does_not_know(self, out, sink):
        user = out.user("loss", 1)
        sink.events([sync(2, user_span=user)])
        user.end(T0 + 5 * MS)
        sink.step(step(0, 10))
        assert out.one("train.step").parent is None
        assert is_child(out.one("aten::nonzero"), out.one("loss"))

    def test_early_the_first_syncs_span_is_the_parent(self, out, sink):
        user, other = out.user(), out.user("other")
        sink.events([sync(1, user_span=user), sync(2, user_span=other)])
        sink.flush()
        sink.step(step(0, 10, user_span=other))
        assert out.one("train.step").parent.span_id == user.get_span_context().span_id
        first, second = out.named("aten::nonzero")
        assert is_child(first, out.one("train.step"))
        assert second.parent.span_id == other.get_span_context().span_id

    def test_a_span_from_another_process_is_a_parent_too(self, out, sink):
        remote = trace.NonRecordingSpan(trace.SpanContext(7, 8, is_remote=True, trace_flags=trace.TraceFlags(1)))
        sink.step(step(0, 10, user_span=remote))
        assert out.one("train.step").context.trace_id == 7
        assert out.one("train.step").start_time == T0

    @pytest.mark.parametrize("span", [trace.INVALID_SPAN, "no span at all"])
    def test_what_is_no_span_is_no_parent(self, out, sink, span):
        sink.events([sync(1, user_span=span)])
        sink.step(step(0, 10, user_span=span))
        assert is_child(out.one("aten::nonzero"), out.one("train.step"))

    def test_what_is_active_on_the_draining_thread_has_no_say(self, out, sink):
        with out.provider.get_tracer("agent").start_as_current_span("unrelated"):
            sink.events([sync(1)])
            sink.step(step())
        assert out.one("train.step").parent is None


class TestContext:
    def test_the_users_baggage_is_in_the_context_of_our_spans(self, out, sink):
        """A processor that copies baggage to attributes finds it, on the step and on its syncs."""
        heard = {}

        class Listener(SpanProcessor):
            def on_start(self, span, parent_context=None):
                heard[span.name] = (baggage.get_all(parent_context), span.parent)

        out.provider.add_span_processor(Listener())
        user = out.user()
        context = baggage.set_baggage("experiment", "42", trace.set_span_in_context(user, Context()))
        sink.events([sync(1, user_span=user, user_context=context)])
        sink.step(step(0, 10, user_span=user, user_context=context))
        assert {name: dict(found) for name, (found, _) in heard.items() if name != "epoch"} == {
            "train.step": {"experiment": "42"},
            "aten::nonzero": {"experiment": "42"},
        }
        assert heard["train.step"][1] == user.get_span_context()
        assert is_child(out.one("aten::nonzero"), out.one("train.step"))

    def test_baggage_without_a_span_makes_no_parent(self, out, sink):
        context = baggage.set_baggage("experiment", "42", Context())
        sink.events([sync(1, user_context=context)])
        sink.step(step(0, 10, user_context=context))
        assert out.one("train.step").parent is None
        assert is_child(out.one("aten::nonzero"), out.one("train.step"))

    def test_the_users_links_stay(self, out, sink):
        """Our spans neither take them over nor take them away."""
        other = out.user("before")
        user = out.provider.get_tracer("user").start_span(
            "epoch", Context(), links=[trace.Link(other.get_span_context())], start_time=T0
        )
        sink.events([sync(1, user_span=user)])
        sink.step(step(0, 10, user_span=user))
        user.end()
        assert [link.context for link in out.one("epoch").links] == [other.get_span_context()]
        assert out.one("train.step").links == out.one("aten::nonzero").links == ()


def of_rank(out, rank, key="job", first=100):
    attributes = {"syncagent.local_rank": rank, "host.name": f"node{rank}", "syncagent.job.id": "exp7"}
    return SpanSink(out.provider, identity=lambda: ProcessIdentity(attributes, key), budget=SpanBudget(first))


class TestRanks:
    def test_a_step_is_one_trace_in_all_ranks(self, out):
        """Each has a train.step of its own in it, with who it is."""
        for rank in range(3):
            sink = of_rank(out, rank)
            for number in range(2):
                sink.events([sync(1 + 10 * number, step=number, rank=rank)])
                sink.step(step(10 * number, 10 * number + 10, number, rank=rank))
        roots = out.named("train.step")
        assert len({root.context.trace_id for root in roots}) == 2
        assert len({root.context.span_id for root in roots}) == 6
        assert all(root.parent is None for root in roots)
        first = [root for root in roots if root.attributes["syncagent.step"] == 0]
        assert [root.attributes["syncagent.rank"] for root in first] == [0, 1, 2]
        assert [root.attributes["host.name"] for root in first] == ["node0", "node1", "node2"]
        for child, root in zip(out.named("aten::nonzero"), roots, strict=True):
            assert is_child(child, root)
            assert child.attributes["syncagent.job.id"] == "exp7"
            assert child.attributes["syncagent.local_rank"] == root.attributes["syncagent.rank"]

    def test_clocks_that_differ_between_hosts_change_neither_traces_nor_durations(self, out):
        """Ids come from the step alone; each rank's times are its own host's, here an hour apart."""
        hour = 3_600_000
        for rank, ahead in enumerate((0, hour)):
            sink = of_rank(out, rank)
            sink.events([sync(ahead + 2, 3, rank=rank)])
            sink.step(step(ahead, ahead + 10, rank=rank))
        one, other = out.named("train.step")
        assert one.context.trace_id == other.context.trace_id
        assert [root.end_time - root.start_time for root in (one, other)] == [10 * MS, 10 * MS]
        assert other.start_time - one.start_time == hour * MS
        assert all(is_child(*pair) for pair in zip(out.named("aten::nonzero"), (one, other), strict=True))

    def test_all_ranks_sample_the_same_steps(self):
        """A step is in or out whole, and how many go by the ratio."""
        steps = []
        for rank in range(2):
            out = Spans(TraceIdRatioBased(0.25))
            sink = of_rank(out, rank, first=1000)
            for number in range(400):
                sink.events([sync(10 * number + at, step=number) for at in range(1, 4)])
                sink.step(step(10 * number, 10 * number + 10, number))
            roots = {root.attributes["syncagent.step"] for root in out.named("train.step")}
            syncs = [span.attributes["syncagent.step"] for span in out.named("aten::nonzero")]
            assert set(syncs) <= roots
            assert all(syncs.count(number) == 3 for number in roots)
            assert len(syncs) + sum(sink.without_span().values()) == 1200
            steps.append(roots)
        assert steps[0] == steps[1]
        assert 60 < len(steps[0]) < 140

    @pytest.mark.parametrize("flags", [0, 1])
    def test_syncs_of_threads_that_do_not_know_the_users_span_go_with_the_others(self, flags):
        """The backward pass, where torch does not hand its threads the caller's context."""
        out = Spans(ParentBased(TraceIdRatioBased(1.0 - flags)))
        user = trace.NonRecordingSpan(trace.SpanContext(7, 8, is_remote=False, trace_flags=trace.TraceFlags(flags)))
        sink = of_rank(out, 0)
        batch = [sync(1, user_span=user), sync(3, op="aten::item", phase=Phase.BACKWARD)]
        sink.events(batch)
        known = [sink.span_of(event) for event in batch]
        sink.step(step(0, 10, user_span=user))
        assert len(out.all()) == 3 * flags
        assert [context and context.trace_id for context in known] == ([7, 7] if flags else [None, None])
        assert all(span.context.trace_id == 7 for span in out.all())
        assert sink.without_span()["not sampled"] == 2 - 2 * flags

    def test_steps_that_are_not_sampled_use_nothing_up(self):
        """Of one step in a hundred, the first hundred syncs of a line still have a span."""
        out = Spans(TraceIdRatioBased(0.01))
        sink = of_rank(out, 0)
        for number in range(5000):
            sink.events([sync(10 * number + 1, step=number)])
            sink.step(step(10 * number, 10 * number + 10, number))
        assert len(out.named("aten::nonzero")) == len(out.named("train.step")) > 25
        assert sink.budget.withheld == 0

    def test_a_provider_that_is_set_later_gets_the_jobs_ids_too(self, monkeypatch):
        out, sink = Spans(), SpanSink(identity=lambda: ProcessIdentity({}, "job"))
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: out.provider)
        sink.step(step())
        assert out.one("train.step").context.trace_id == StepIds(lambda: ProcessIdentity({}, "job")).trace_id(0)

    def test_a_tracer_that_is_not_the_sdks_is_left_as_it_is(self, out):
        """It may be one that the program has, too; steps have random ids then, and metrics name no span."""
        of_program = out.provider.get_tracer("program")

        class Tracer:
            id_generator = generator = of_program.id_generator
            start_span = staticmethod(of_program.start_span)

        class Provider(trace.TracerProvider):
            def get_tracer(self, *_, **__):
                return Tracer

        sink, event = SpanSink(Provider(), identity=lambda: ProcessIdentity({}, "job")), sync(1)
        sink.events([event])
        assert sink.span_of(event) is None
        sink.step(step())
        assert Tracer.id_generator is Tracer.generator
        assert is_child(out.one("aten::nonzero"), out.one("train.step"))

    def test_the_programs_own_tracers_keep_their_ids(self, out):
        generator = out.provider.id_generator
        of_rank(out, 0)
        assert out.provider.id_generator is generator
        assert out.provider.get_tracer("syncagent").id_generator is generator


class TestSpanOf:
    def test_a_spans_ids_are_known_before_it_is_built(self, out, sink):
        """So that metrics and log lines of the same batch can name it."""
        batch = [sync(1), sync(3, op="aten::item")]
        sink.events(batch)
        known = [sink.span_of(event) for event in batch]
        record = step(0, 10)
        sink.step(record)
        assert [span.context.span_id for span in (out.one("aten::nonzero"), out.one("aten::item"))] == [
            context.span_id for context in known
        ]
        assert {context.trace_id for context in known} == {out.one("train.step").context.trace_id}
        assert sink.span_of(record).span_id == out.one("train.step").context.span_id
        assert sink.span_of(batch[0]) is None

    def test_under_a_users_span_it_is_in_the_users_trace(self, out, sink):
        user = out.user()
        event = sync(1, user_span=user)
        sink.events([event])
        known = sink.span_of(event)
        sink.step(step(0, 10, user_span=user))
        assert (known.trace_id, known.span_id) == (
            user.get_span_context().trace_id,
            out.one("aten::nonzero").context.span_id,
        )

    def test_one_without_a_span_has_none(self):
        sink = SpanSink(Spans(ALWAYS_OFF).provider)
        event = sync(1)
        sink.events([event])
        assert sink.span_of(event) is None
        rationed = SpanSink(Spans().provider, budget=SpanBudget(first=0))
        events = [sync(1, 5), sync(7, 4)]
        rationed.events(events)
        assert [rationed.span_of(event) is None for event in events] == [False, True]


class TestSampling:
    def test_the_sampler_decides(self):
        out = Spans(ALWAYS_OFF)
        sink = SpanSink(out.provider)
        sink.events([sync(1)])
        sink.step(step())
        sink.close()
        assert out.all() == ()
        assert sink.without_span() == {"rationed": 0, "not sampled": 1, "short": 0}

    def test_a_sampler_that_cannot_describe_itself_decides_all_the_same(self):
        """Nothing is asked of it but whether it wants a span."""

        class Silent(Sampler):
            def should_sample(self, *_args, **_kwargs):
                return SamplingResult(Decision.RECORD_AND_SAMPLE)

            def get_description(self):
                raise NotImplementedError

        out = Spans(ParentBased(Silent()))
        sink = SpanSink(out.provider)
        sink.events([sync(1)])
        sink.step(step())
        assert [span.name for span in out.all()] == ["aten::nonzero", "train.step"]

    def test_a_sampler_that_keeps_count_is_asked_once_a_span(self):
        """The user's own sampler, which lets a given number through."""
        asked = []

        class Counting(Sampler):
            def should_sample(self, parent_context, trace_id, name, *args, **kwargs):
                asked.append(name)
                return SamplingResult(Decision.RECORD_AND_SAMPLE)

            def get_description(self):
                return "counting"

        sink = SpanSink(Spans(Counting()).provider)
        sink.events([sync(1)])
        sink.step(step())
        assert asked == ["train.step", "aten::nonzero"]

    def test_an_unsampled_parent_is_respected(self, out, sink):
        unsampled = trace.NonRecordingSpan(trace.SpanContext(7, 8, is_remote=False))
        sink.events([sync(1, user_span=unsampled), sync(2)])
        sink.step(step(0, 10, user_span=unsampled))
        assert out.all() == ()

    def test_without_a_provider_nothing_happens(self):
        sink = SpanSink()
        sink.events([sync(1)])
        sink.step(step())
        sink.close()


def kept():
    """How many of its own objects the sink has, and how many syncs there are, by class."""
    gc.collect()
    kinds = (type(found) for found in gc.get_objects())
    return Counter(kind.__name__ for kind in kinds if kind.__module__ == spans.__name__ or kind is SyncEvent)


def test_nothing_is_kept_of_steps_that_are_done_but_the_last_few(out, sink):
    before = kept()
    for number in range(100):
        sink.events([sync(number * 10 + 1, step=number)])
        sink.step(step(number * 10, number * 10 + 10, number))
    assert 0 < (kept() - before).total() <= spans.STEPS_MAX


def test_a_program_may_be_watched_any_number_of_times(out):
    """The SDK may hand one tracer to all of them, whose generator of ids is replaced."""
    for _ in range(1_100):
        last = SpanSink(out.provider)
    last.events([sync()])
    last.step(step())
    assert len(out.all()) == 2
