"""Reports syncs against the policy: an OpenTelemetry log record at the 1st, 10th, 100th ... of a line, and a log line.

Where people read the log it leaves out the first: the warning or the error says that.

Records go to the logger provider that the agent has built, or else to the program's own.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from syncagent._version import __version__
from syncagent.delivery.sink import Sink
from syncagent.support.log import get_logger, is_for_programs, log_once
from syncagent.telemetry import semconv
from syncagent.telemetry.attributes import AttributeSanitizer, location

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.trace import SpanContext

    from syncagent.events import CallSite, SyncEvent
    from syncagent.telemetry.spans import SpanSink

MESSAGE = "host sync against the policy"
_SITES = 1_000


class ViolationLog(Sink):
    """Reports the 1st, 10th, 100th, 1,000th ... forbidden sync of each op at each line."""

    name = "log"

    def __init__(self, spans: SpanSink | None = None, logger_provider: Any = None) -> None:
        """``spans`` knows which syncs have a span, whose ids are then in the line and on the record.

        Without ``logger_provider`` the program's own gets the records, if it has set one.
        """
        self._spans = spans
        self._logger_provider = logger_provider
        self._seen: dict[tuple[str, CallSite | None], tuple[int, int]] = {}

    def events(self, batch: Sequence[SyncEvent]) -> None:
        for event in batch:
            if event.violation:
                self._add(event)

    def _add(self, event: SyncEvent) -> None:
        key = (event.op, event.site)
        if key not in self._seen and len(self._seen) >= _SITES:
            key = ("other", None)
        before, stall_ns = self._seen.get(key, (0, 0))
        count, stall_ns = before + event.repeats, stall_ns + event.stall_ns
        self._seen[key] = (count, stall_ns)
        if len(str(count)) > len(str(before)) or not before:
            self._report(event, key, count, round(stall_ns / 1e6, 3))

    def _report(self, event: SyncEvent, key: tuple[str, CallSite | None], count: int, stall_ms: float) -> None:
        op, site = key
        span = None if self._spans is None else self._spans.span_of(event)
        # https://opentelemetry.io/docs/specs/otel/compatibility/logging_trace_context/
        ids = {} if span is None else {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}
        if count > 1 or is_for_programs():  # the warning or the error has told people of the first
            get_logger().warning(
                MESSAGE,
                op=op,
                where=str(site) if site is not None else "many lines",
                step=event.step,
                count=count,
                stall_ms=stall_ms,
                **ids,
            )
        try:
            provider = self._logger_provider if self._logger_provider is not None else _provider_of_program()
            if provider is not None:
                logger = provider.get_logger(semconv.INSTRUMENTATION, __version__)
                logger.emit(_record(event, span, count, stall_ms))
        except Exception as error:
            log_once("program-log", "violations are not in the OpenTelemetry logs", error=repr(error))


def _provider_of_program() -> Any:
    api = sys.modules.get("opentelemetry._logs")
    provider = api and api.get_logger_provider()
    # What the API has until one is set.
    return None if type(provider).__name__ in {"ProxyLoggerProvider", "NoOpLoggerProvider"} else provider


def _record(event: SyncEvent, span: SpanContext | None, count: int, stall_ms: float) -> object:
    from opentelemetry._logs import LogRecord, SeverityNumber

    from syncagent.telemetry.metrics import context_of

    return LogRecord(
        timestamp=event.start_ns + max(event.stall_ns, 0),
        context=context_of(span, event.user_context),
        severity_number=SeverityNumber.WARN,
        severity_text="WARN",
        body=MESSAGE,
        event_name=semconv.VIOLATION,
        attributes=AttributeSanitizer().clean(
            {
                semconv.OP: event.op,
                semconv.KIND: event.kind.value,
                semconv.PHASE: event.phase.value,
                semconv.STEP: event.step,
                semconv.RANK: event.rank,
                **location(event.site),
                semconv.COUNT: count,
                semconv.STALL_MS: stall_ms,
            }
        ),
    )
