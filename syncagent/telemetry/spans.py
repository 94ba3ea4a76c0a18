"""Builds OpenTelemetry spans from finished records: a trace per training step, a span per sync."""

from __future__ import annotations

import secrets
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context

from syncagent._version import __version__
from syncagent.delivery.sink import Sink
from syncagent.support.pace import yield_gil
from syncagent.telemetry import semconv
from syncagent.telemetry.attributes import AttributeSanitizer, location
from syncagent.telemetry.span_budget import SpanBudget
from syncagent.telemetry.step_ids import PresetIdGenerator, StepIds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.util.types import AttributeValue

    from syncagent.events import StepRecord, SyncEvent
    from syncagent.telemetry.step_ids import ProcessIdentity

HELD_MAX = 512
"""How many events may wait for the end of their step; beyond that their spans are built before it."""

OPEN_MAX = 16
"""How many steps may be without their record; older ones are ended."""

STEPS_MAX = OPEN_MAX + 8
"""How many steps are known, for syncs that come late."""

NAME_MAX = 256
"""Longest name of a span, in characters."""

_SDK = "opentelemetry.sdk."
_SAMPLED = trace.TraceFlags(trace.TraceFlags.SAMPLED)


class SpanSink(Sink):
    """Sends one trace per training step: ``train.step`` and, inside it, a span for each sync, with the records' times.

    A step's spans are built when its record comes, or earlier if too many events are held, and on ``flush``.

    - The ranks of a job have the same trace for a step, each with a ``train.step`` of its own: see
      :mod:`syncagent.telemetry.step_ids`.
    - The user's own active span becomes the parent of ``train.step``, which then starts no earlier than its parent.
      The rest of the user's context, baggage say, is in the context of the agent's spans.
    - A sync that ran under another of the user's spans than the step did is that span's child.
    - A sync that began before ``train.step`` could (before the user's span was opened, say) has no parent, and a link
      to the step: times of children always lie within those of their parents.
    - A sync of a step that has already ended still becomes its child; it may end after it.
    - The provider's sampler is asked once per step, before any work is done for its syncs.
    - In a long run not every sync has a span, nor every step: see :mod:`syncagent.telemetry.span_budget`.

    The provider belongs to the caller: it is neither flushed nor shut down here.  Without one, the global provider is
    used, also if it is set later.
    """

    name = "spans"

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        *,
        min_stall_ms: float = 0.0,
        policy: str = "observe",
        identity: Callable[[], ProcessIdentity] | None = None,
        budget: SpanBudget | None = None,
    ) -> None:
        """``identity`` says, asked again every second, what is on every span and what trace ids are made from."""
        self._provider = tracer_provider
        self._preset_ids: PresetIdGenerator | None = None
        self._sampler: Any = None
        self._tracer = self._own_tracer()
        self._ids = StepIds(identity)
        self._min_stall_ns = min_stall_ms * 1e6
        self._policy = policy
        self.budget = budget if budget is not None else SpanBudget()
        self.budget.draw = self._ids.trace_id
        self._without = {"not sampled": 0, "short": 0}
        self.sanitizer = AttributeSanitizer()
        self._steps: dict[int, _Step] = {}
        self._contexts: dict[int, trace.SpanContext] = {}

    def events(self, batch: Sequence[SyncEvent]) -> None:
        self._contexts.clear()
        for event in batch:
            step = self._step(event.step, event.start_ns)
            step.syncs += event.repeats
            step.stall_ns += event.stall_ns
            if event.stall_ns < self._min_stall_ns:
                self._without["short"] += event.repeats
            elif not self._is_sampled(step, event):
                self._without["not sampled"] += event.repeats
            elif self.budget.allows(event):
                step.held.append((event, self._preset_id(step, event)))
                if step.is_ended or len(step.held) >= HELD_MAX:
                    self._emit(step)

    def step(self, record: StepRecord) -> None:
        self._contexts.clear()
        self._end_step(record)
        self._ids.ended(record.step)

    def policy_changed(self, policy: str) -> None:
        self._policy = policy

    def span_of(self, record: SyncEvent | StepRecord) -> trace.SpanContext | None:
        """Return the span that a record has or will get; known only for those of the latest call."""
        return self._contexts.get(id(record))

    def without_span(self) -> dict[str, int]:
        """Return how many syncs have no span, by reason; together with the spans these are all syncs."""
        return {"rationed": self.budget.withheld, **self._without}

    def flush(self) -> None:
        for step in self._steps.values():
            self._emit(step)

    def close(self) -> None:
        for step in self._steps.values():
            self._finish(step)
        self._contexts.clear()

    # --- which spans

    def _own_tracer(self) -> trace.Tracer:
        """Return a tracer of the agent's own, whose ids can be set beforehand; a proxy while there is no provider."""
        provider = self._provider if self._provider is not None else trace.get_tracer_provider()
        if not isinstance(provider, trace.ProxyTracerProvider):
            self._provider = provider
        tracer = provider.get_tracer(semconv.INSTRUMENTATION, __version__)
        own = getattr(tracer, "id_generator", None)
        if own is not None and type(tracer).__module__.startswith(_SDK):  # others may hand out one tracer to all
            # From 1.45 on the SDK gives every watch the same tracer.
            self._preset_ids = own if isinstance(own, PresetIdGenerator) else PresetIdGenerator(own)
            tracer.id_generator = self._preset_ids  # type: ignore[attr-defined]  # the SDK's tracer has it
            sampler = getattr(tracer, "sampler", None)
            # The SDK's keep no state.  Any other is only asked by the tracer, once per span.
            self._sampler = sampler if type(sampler).__module__.startswith(_SDK) else None
        return tracer

    def _step(self, number: int, start_ns: int) -> _Step:
        """Return the step of a record; users who count steps by hand may use a number again."""
        step = self._steps.get(number)
        if step is None or (step.is_ended and start_ns >= step.end_ns):
            if self._provider is None:
                self._tracer = self._own_tracer()
            self._steps.pop(number, None)
            step = self._steps[number] = _Step(number, self._ids.trace_id(number))
            for older in list(self._steps.values())[:-OPEN_MAX]:
                self._finish(older)
            if len(self._steps) > STEPS_MAX:
                del self._steps[next(iter(self._steps))]
        return step

    def _is_sampled(self, step: _Step, record: SyncEvent | StepRecord) -> bool:
        if step.sampled is not None and step.user is None and record.user_span is None:
            return step.sampled[1]
        parent = step.user_for(record)
        if self._sampler is None:
            return True
        of_parent = None if parent is None else parent.get_span_context()
        if step.sampled is None or step.sampled[0] != of_parent:
            trace_id = step.trace_id if of_parent is None else of_parent.trace_id
            decision = self._sampler.should_sample(_context(parent, None), trace_id, semconv.STEP_SPAN).decision
            step.sampled = of_parent, decision.is_recording()
        return step.sampled[1]

    def _preset_id(self, step: _Step, event: SyncEvent) -> int:
        """Choose the id of a span that is built later, so that metrics and logs can name it now; 0 if none can be."""
        if self._preset_ids is None:
            return 0
        span_id = secrets.randbits(64) or 1
        parent = _user_span(event) or step.root or step.user
        trace_id = step.trace_id if parent is None else parent.get_span_context().trace_id
        if parent is None or parent.get_span_context().trace_flags.sampled:
            self._contexts[id(event)] = trace.SpanContext(trace_id, span_id, is_remote=False, trace_flags=_SAMPLED)
        return span_id

    # --- building them

    def _end_step(self, record: StepRecord) -> None:
        step = self._step(record.step, record.start_ns)
        if step.is_ended:
            return  # without waiting for this record
        has_spans = bool(step.held) or step.root is not None
        is_sampled = has_spans or self._is_sampled(step, record)
        is_picked = is_sampled and self.budget.allows_step(record)
        if not (is_picked or has_spans):
            self.budget.withheld_steps += is_sampled
            del self._steps[step.number]
            return
        self._emit(step, record)
        if step.root is not None and step.root.get_span_context().trace_flags.sampled:
            self._contexts[id(record)] = step.root.get_span_context()
        self._finish(step)

    def _emit(self, step: _Step, record: StepRecord | None = None) -> None:
        """Build the spans of the syncs that are held, and the step's own if it has none yet."""
        if step.root is None and (step.held or record is not None):
            self._open(step, record)
        for event, span_id in step.held:
            self._emit_sync(step, event, span_id)
            yield_gil()
        step.held.clear()
        if record is not None:
            step.end_ns = max(step.end_ns, record.end_ns)

    def _open(self, step: _Step, record: StepRecord | None) -> None:
        about = record if record is not None else step.held[0][0]
        step.parent = _user_span(about)
        starts = [about.start_ns, *(event.start_ns for event, _ in step.held if not step.is_foreign(event))]
        parent_start = getattr(step.parent, "start_time", None)
        step.start_ns = max(min(starts), parent_start if isinstance(parent_start, int) else 0)
        step.end_ns = step.start_ns
        attributes = {semconv.STEP: step.number, semconv.RANK: about.rank, semconv.POLICY: self._policy}
        if step.parent is None and self._preset_ids is not None:
            self._preset_ids.trace_id = step.trace_id
        step.root = self._tracer.start_span(
            semconv.STEP_SPAN,
            context=_context(step.parent, about.user_context),
            attributes=self.sanitizer.clean({**attributes, **self._ids.identity().attributes}),
            start_time=step.start_ns,
        )

    def _emit_sync(self, step: _Step, event: SyncEvent, span_id: int) -> None:
        end_ns = event.start_ns + max(event.stall_ns, 0)
        links = []
        assert step.root is not None
        root_context = step.root.get_span_context()
        if step.is_foreign(event):
            parent = _user_span(event)
        elif event.start_ns < step.start_ns and root_context.trace_flags.sampled:
            parent = None
            links = [trace.Link(root_context)]
        else:
            parent = step.root
            step.end_ns = max(step.end_ns, end_ns)
        if self._preset_ids is not None:
            self._preset_ids.span_id = span_id
            self._preset_ids.trace_id = step.trace_id if parent is None else 0
        span = self._tracer.start_span(
            self.sanitizer.clean_text(event.op, NAME_MAX),
            context=_context(parent, event.user_context),
            attributes=self._attributes(event),
            links=links,
            start_time=event.start_ns,
        )
        span.end(end_ns)

    def _finish(self, step: _Step) -> None:
        if step.is_ended:
            return
        self._emit(step)
        step.is_ended = True
        if step.root is not None:  # else each of its syncs was too short for a span, and no record came
            step.root.set_attribute(semconv.STEP_SYNCS, step.syncs)
            step.root.set_attribute(semconv.STEP_STALL_MS, step.stall_ns / 1e6)
            step.root.end(step.end_ns)

    def _attributes(self, event: SyncEvent) -> dict[str, AttributeValue]:
        sanitizer = self.sanitizer
        stack = [(one.file, one.line, one.function, one.source or "") for one in reversed(event.stack)]
        attributes: dict[str, AttributeValue | None] = {
            semconv.CODE_STACKTRACE: "".join(traceback.format_list(stack)).rstrip("\n") if stack else None,
            semconv.SOURCE: None if event.site is None else event.site.source,
            semconv.OP: event.op,
            semconv.API: event.api,
            semconv.KIND: event.kind.value,
            semconv.PHASE: event.phase.value,
            semconv.STEP: event.step,
            semconv.DEVICE: event.device,
            semconv.STREAM: event.stream,
            semconv.STALL_MS: event.stall_ns / 1e6,
            semconv.RANK: event.rank,
            semconv.ALLOWED: event.allowed,
            semconv.VIOLATION: event.violation or None,
            semconv.POLICY: event.policy or self._policy,
            semconv.SENSOR: event.sensor,
            semconv.THREAD_NAME: event.thread,
            semconv.SHAPES: sanitizer.clean_texts(map(_shape, event.shapes)),
            semconv.RANGES: sanitizer.clean_texts(event.ranges),
            semconv.MODULE: event.module,
            **location(event.site),
            **location(event.forward_site, semconv.FORWARD),
            **location(event.library_site, semconv.LIBRARY),
            **self._ids.identity().attributes,
        }
        return sanitizer.clean(attributes)


@dataclass(slots=True)
class _Step:
    """A step some of whose spans are still to be built, or may still come."""

    number: int
    trace_id: int
    sampled: tuple[trace.SpanContext | None, bool] | None = None
    """The sampler's newest decision, and the user's span that would be the parent."""
    user: trace.Span | None = None
    """The first of the user's spans that came with a record of this step."""
    held: list[tuple[SyncEvent, int]] = field(default_factory=list)
    """Syncs whose spans are still to be built, and the ids chosen for them."""
    syncs: int = 0
    stall_ns: int = 0
    root: trace.Span | None = None
    parent: trace.Span | None = None
    start_ns: int = 0
    end_ns: int = 0
    is_ended: bool = False

    def user_for(self, record: SyncEvent | StepRecord) -> trace.Span | None:
        """Return the user's span that a record belongs to; autograd's threads have none, and take the step's."""
        own = _user_span(record)
        self.user = self.user or own
        return own or self.user

    def is_foreign(self, event: SyncEvent) -> bool:
        """Return whether the sync ran under a user's span that is not the step's parent."""
        own, parent = _user_span(event), self.parent and self.parent.get_span_context()
        return own is not None and own.get_span_context() != parent


def _user_span(record: SyncEvent | StepRecord) -> trace.Span | None:
    span = record.user_span
    return span if isinstance(span, trace.Span) and span.get_span_context().is_valid else None


def _context(parent: trace.Span | None, user: object | None) -> Context:
    """Return the user's context (baggage, say) with that parent; the draining thread's own plays no part."""
    base = user if isinstance(user, Context) else Context()
    return trace.set_span_in_context(trace.INVALID_SPAN if parent is None else parent, base)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
