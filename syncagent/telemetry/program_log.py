"""Violations as OpenTelemetry log records: to the program's own logger provider, or to the one the agent has built."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from syncagent._version import __version__
from syncagent.support.log import log_once
from syncagent.telemetry import semconv
from syncagent.telemetry.attributes import AttributeSanitizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.trace import SpanContext
    from opentelemetry.util.types import AttributeValue

    from syncagent.events import SyncEvent

__all__ = ["MESSAGE", "emit"]

MESSAGE = "host sync against the policy"


def emit(event: SyncEvent, span: SpanContext | None, counted: Mapping[str, AttributeValue], built: Any = None) -> None:
    """Emit a record in the sync's span, or else in the user's own; nothing without a provider."""
    try:
        provider = built if built is not None else _of_program()
        if provider is None:
            return
        provider.get_logger(semconv.INSTRUMENTATION, __version__).emit(_record(event, span, counted))
    except Exception as error:
        log_once("program-log", "violations are not in the OpenTelemetry logs", error=repr(error))


def _of_program() -> Any:
    api = sys.modules.get("opentelemetry._logs")
    if api is None:
        return None
    provider = api.get_logger_provider()
    # What the API has until one is set.
    return None if type(provider).__name__ in {"ProxyLoggerProvider", "NoOpLoggerProvider"} else provider


def _record(event: SyncEvent, span: SpanContext | None, counted: Mapping[str, AttributeValue]) -> object:
    from opentelemetry._logs import LogRecord, SeverityNumber
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, set_span_in_context

    if span is not None:
        context = set_span_in_context(NonRecordingSpan(span), Context())
    else:
        context = event.user_context if isinstance(event.user_context, Context) else Context()
    site = event.site
    return LogRecord(
        timestamp=event.start_ns + max(event.stall_ns, 0),
        context=context,
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
                semconv.CODE_FILE_PATH: None if site is None else site.file,
                semconv.CODE_LINE_NUMBER: None if site is None else site.line or None,
                semconv.CODE_FUNCTION_NAME: None if site is None else site.function,
                **counted,
            }
        ),
    )
