"""Log lines of syncs against the policy: the first at each line of the program, then at counts that grow tenfold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from syncagent.support.log import get_logger
from syncagent.telemetry import program_log, semconv

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.trace import SpanContext

    from syncagent.events import CallSite, StepRecord, SyncEvent
    from syncagent.telemetry.spans import SpanSink

__all__ = ["ViolationLog"]

_SITES = 1_000


class ViolationLog:
    """Tells of the 1st, 10th, 100th, 1,000th ... forbidden sync of each op at each line."""

    name = "log"

    def __init__(self, logger_provider: Any = None) -> None:
        """``logger_provider`` gets a log record of each line; without one, the program's own does, if it has one."""
        self._logger_provider = logger_provider
        self.spans: SpanSink | None = None
        """Knows which syncs have a span: their lines carry its ids."""
        self._seen: dict[tuple[str, CallSite | None], tuple[int, int]] = {}

    def events(self, batch: Sequence[SyncEvent]) -> None:
        for event in batch:
            if event.violation:
                self._add(event)

    def step(self, record: StepRecord) -> None:
        """Steps are not told of."""

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing is open."""

    def _add(self, event: SyncEvent) -> None:
        key = (event.op, event.site)
        if key not in self._seen and len(self._seen) >= _SITES:
            key = ("other", None)
        before, stall_ns = self._seen.get(key, (0, 0))
        count, stall_ns = before + event.repeats, stall_ns + event.stall_ns
        self._seen[key] = (count, stall_ns)
        if len(str(count)) > len(str(before)) or not before:
            where = str(key[1]) if key[1] is not None else "many lines"
            stall_ms = round(stall_ns / 1e6, 3)
            span = None if self.spans is None else self.spans.span_of(event)
            get_logger().warning(
                program_log.MESSAGE,
                op=key[0],
                where=where,
                step=event.step,
                count=count,
                stall_ms=stall_ms,
                **_ids(span),
            )
            program_log.emit(event, span, {semconv.COUNT: count, semconv.STALL_MS: stall_ms}, self._logger_provider)


def _ids(span: SpanContext | None) -> dict[str, str]:
    """By the names that OpenTelemetry's specification gives them in logs of other formats."""
    return {} if span is None else {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}
