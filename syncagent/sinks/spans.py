"""Builds OpenTelemetry spans out of finished records: one trace a training step, one span a sync."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context

from syncagent._version import __version__
from syncagent.pace import breathe
from syncagent.sinks import semconv
from syncagent.sinks.ration import Ration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.util.types import AttributeValue

    from syncagent.event import CallSite, StepRecord, SyncEvent

__all__ = ["SpanSink"]

HELD_MAX = 512
"""Events held back for their step's end, over all steps; more than that and they go out before it."""

OPEN_MAX = 16
"""Steps begun whose record has not come; the oldest is ended when there are more."""

ENDED_MAX = 8
"""Ended steps that are remembered for syncs that arrive late."""

TEXT_MAX = 16_384
"""Characters of one attribute's text."""

_CODE = (semconv.CODE_FILE_PATH, semconv.CODE_LINE_NUMBER, semconv.CODE_FUNCTION_NAME)
_FORWARD = (semconv.FORWARD_FILE_PATH, semconv.FORWARD_LINE_NUMBER, semconv.FORWARD_FUNCTION_NAME)
_LIBRARY = (semconv.LIBRARY_FILE_PATH, semconv.LIBRARY_LINE_NUMBER, semconv.LIBRARY_FUNCTION_NAME)


class SpanSink:
    """One trace a training step: ``train.step`` and, inside it, a span for each sync, with the records' own times.

    A step's spans are built when its record comes.  They are built earlier, the record's end still to come, when too
    many events are held, when a later step's events arrive first, and on ``flush``.

    - The user's own active span becomes the parent of ``train.step``, which then starts no earlier than its parent.
    - A sync that ran under another span of the user's than the step did is that span's child.
    - A sync that began before ``train.step`` could (before the user's span was opened, say) gets a trace of its own
      that links to the step: times of children always lie within those of their parents.
    - A sync of a step that has already ended still becomes its child; it may outlive it.
    - In a long run not every sync has a span, nor every step: see :mod:`syncagent.sinks.ration`.

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
        ration: Ration | None = None,
        version: str = __version__,
    ) -> None:
        provider = tracer_provider if tracer_provider is not None else trace.get_tracer_provider()
        self._tracer = provider.get_tracer(semconv.INSTRUMENTATION, version)
        self._min_stall_ns = min_stall_ms * 1e6
        self.policy = policy
        """The policy in force, which each span carries."""
        self.ration = ration if ration is not None else Ration()
        self._steps: dict[int, _Step] = {}
        self._ended: dict[int, _Step] = {}
        self._held = 0

    def events(self, batch: Sequence[SyncEvent]) -> None:
        newest = max((event.step for event in batch), default=0)
        for step in [step for step in self._steps.values() if step.number < newest]:
            self._emit(step)
        for event in batch:
            step, late = self._step_of(event)
            step.syncs += event.repeats
            step.stall_ns += event.stall_ns
            if event.stall_ns < self._min_stall_ns or not self.ration.wants(event):
                continue
            if late:
                if step.root is not None:
                    self._emit_sync(step, step.root, event)
                continue
            step.held.append(event)
            self._held += 1
            if self._held >= HELD_MAX:
                self.flush()

    def step(self, record: StepRecord) -> None:
        step = self._steps.pop(record.step, None)
        if step is None:
            ended = self._ended.get(record.step)
            if ended is not None and record.start_ns < ended.end_ns:
                return  # it was ended for want of this record
            step = _Step(record.step)
        wanted = self.ration.wants_step(record)
        if wanted or step.held or step.root is not None:
            self._emit(step, record)
            self._finish(step)
        else:
            self.ration.withheld_steps += 1

    def flush(self) -> None:
        for step in self._steps.values():
            self._emit(step)

    def close(self) -> None:
        self.flush()
        while self._steps:
            self._finish_oldest()

    def _step_of(self, event: SyncEvent) -> tuple[_Step, bool]:
        """The event's step, and whether it has ended.  Users who count steps by hand may use a number again."""
        step = self._steps.get(event.step)
        if step is not None:
            return step, False
        ended = self._ended.get(event.step)
        if ended is not None and event.start_ns < ended.end_ns:
            return ended, True
        if len(self._steps) >= OPEN_MAX:
            self._finish_oldest()
        step = self._steps[event.step] = _Step(event.step)
        return step, False

    def _emit(self, step: _Step, record: StepRecord | None = None) -> None:
        """Build the spans of what is held, and the step's own if it has none yet."""
        root = step.root
        if root is None:
            if record is None and not step.held:
                return
            root = self._open(step, record)
        for event in step.held:
            self._emit_sync(step, root, event)
            breathe()
        self._held -= len(step.held)
        step.held = []
        if record is not None:
            step.end_ns = max(step.end_ns, record.end_ns)

    def _open(self, step: _Step, record: StepRecord | None) -> trace.Span:
        step.parent = _user_span(record if record is not None else step.held[0])
        starts = [event.start_ns for event in step.held if not step.is_foreign(event)]
        if record is not None:
            starts.append(record.start_ns)
        step.start_ns = min(starts)
        parent_start = getattr(step.parent, "start_time", None)
        if isinstance(parent_start, int):
            step.start_ns = max(step.start_ns, parent_start)
        step.end_ns = step.start_ns
        attributes = {
            semconv.STEP: step.number,
            semconv.RANK: record.rank if record is not None else step.held[0].rank,
            semconv.POLICY: self.policy,
        }
        step.root = self._tracer.start_span(
            semconv.STEP_SPAN,
            context=_context(step.parent),
            attributes=_present(attributes),
            start_time=step.start_ns,
        )
        return step.root

    def _emit_sync(self, step: _Step, root: trace.Span, event: SyncEvent) -> None:
        end_ns = event.start_ns + max(event.stall_ns, 0)
        links = []
        root_context = root.get_span_context()
        if step.is_foreign(event):
            context = _context(_user_span(event))
        elif event.start_ns < step.start_ns and root_context.trace_flags.sampled:
            context = Context()
            links = [trace.Link(root_context)]
        else:
            context = _context(root)
            step.end_ns = max(step.end_ns, end_ns)
        span = self._tracer.start_span(
            event.op,
            context=context,
            attributes=self._attributes(event),
            links=links,
            start_time=event.start_ns,
        )
        span.end(end_ns)

    def _finish_oldest(self) -> None:
        step = self._steps.pop(next(iter(self._steps)))
        self._emit(step)
        self._finish(step)

    def _finish(self, step: _Step) -> None:
        if step.root is None:
            return  # every sync of it was too short for a span, and no record came
        step.root.set_attribute(semconv.STEP_SYNCS, step.syncs)
        step.root.set_attribute(semconv.STEP_STALL_MS, step.stall_ns / 1e6)
        step.root.end(step.end_ns)
        self._ended.pop(step.number, None)
        self._ended[step.number] = step
        if len(self._ended) > ENDED_MAX:
            del self._ended[next(iter(self._ended))]

    def _attributes(self, event: SyncEvent) -> dict[str, AttributeValue]:
        attributes: dict[str, AttributeValue | None] = {
            semconv.CODE_STACKTRACE: _stacktrace(event.stack),
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
            semconv.POLICY: self.policy,
            semconv.SENSOR: event.sensor,
            semconv.THREAD_NAME: event.thread,
            semconv.SHAPES: [_shape(shape) for shape in event.shapes] or None,
            semconv.RANGES: [_text(label) for label in event.ranges] or None,
            semconv.MODULE: event.module,
        }
        for site, names in (
            (event.site, _CODE),
            (event.forward_site, _FORWARD),
            (event.library_site, _LIBRARY),
        ):
            if site is not None:
                attributes.update(zip(names, (site.file, site.line or None, site.function), strict=True))
        return _present(attributes)


@dataclass(slots=True)
class _Step:
    """A step whose spans are not all out yet."""

    number: int
    held: list[SyncEvent] = field(default_factory=list)
    syncs: int = 0
    stall_ns: int = 0
    root: trace.Span | None = None
    parent: trace.Span | None = None
    start_ns: int = 0
    end_ns: int = 0

    def is_foreign(self, event: SyncEvent) -> bool:
        """Whether the sync ran under a span of the user's that is not the step's parent."""
        own = _user_span(event)
        if own is None:
            return False
        return self.parent is None or own.get_span_context() != self.parent.get_span_context()


def _user_span(record: SyncEvent | StepRecord) -> trace.Span | None:
    span = record.user_span
    return span if isinstance(span, trace.Span) and span.get_span_context().is_valid else None


def _context(parent: trace.Span | None) -> Context:
    """A context with that parent and nothing else: what is active on the draining thread has no say."""
    return Context() if parent is None else trace.set_span_in_context(parent, Context())


def _present(attributes: Mapping[str, AttributeValue | None]) -> dict[str, AttributeValue]:
    return {
        name: _text(value) if isinstance(value, str) else value
        for name, value in attributes.items()
        if value is not None and value != ""
    }


def _text(value: str) -> str:
    """What every exporter can encode: bounded, and without the lone surrogates that odd file names bring."""
    if len(value) > TEXT_MAX:
        value = value[: TEXT_MAX - 1] + "…"
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode("utf-8")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _stacktrace(stack: tuple[CallSite, ...]) -> str | None:
    """The stack as Python prints it, the most recent call last."""
    if not stack:
        return None
    lines = []
    for site in reversed(stack):
        lines.append(f'  File "{site.file}", line {site.line}, in {site.function}')
        if site.source:
            lines.append(f"    {site.source}")
    return "\n".join(lines)
