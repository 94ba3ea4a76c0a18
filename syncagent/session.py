"""Both ends of a script's run: the sinks it starts with, and what its user is shown when it is over."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from syncagent.attribution import ranks
from syncagent.errors import ConfigError
from syncagent.log import get_logger, log_once
from syncagent.sinks.log import ViolationLog
from syncagent.sinks.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from syncagent.agent import Agent
    from syncagent.config import Settings
    from syncagent.report.model import Report
    from syncagent.sinks import Sink
    from syncagent.sinks.metric_sender import MetricSender
    from syncagent.sinks.outbox import AgentTracerProvider, Outbox
    from syncagent.sinks.prometheus import ScrapeEndpoint

__all__ = ["Session", "begin", "end", "user_sinks"]


class Session(NamedTuple):
    """What a script's run sends its records to."""

    sinks: tuple[Sink, ...]
    provider: AgentTracerProvider | None
    spans_to: str
    metrics: MetricSender | ScrapeEndpoint | None = None
    logs: Outbox | None = None
    is_own: bool = True
    """Whether it sends by itself; else the program's own providers do, which outlive it."""

    def flush(self) -> None:
        """Have the program's own providers send what they hold, where the process is about to be killed; bounded."""
        if not self.is_own:
            thread = threading.Thread(target=_flush_program, name="syncagent-flush", daemon=True)
            thread.start()
            thread.join(_FLUSH_S)


_FLUSH_S = 5.0


def _flush_program() -> None:
    from opentelemetry import metrics, trace

    for provider in (trace.get_tracer_provider(), metrics.get_meter_provider()):
        flush = getattr(provider, "force_flush", None)
        if flush is not None:
            flush(round(_FLUSH_S * 1e3))


def begin(settings: Settings, providers: Mapping[str, Any] | None = None) -> Session:
    """Build the sinks of a script's run; without an OpenTelemetry that works, the run is watched all the same.

    With ``providers``, all is sent through those of the program: the ones named there, or else its global ones.
    """
    try:
        if providers is not None:
            return _with_providers(settings, providers)
        return _with_spans(settings)
    except ConfigError as error:
        get_logger().error(f"{error} No spans are sent; the run is watched all the same.")
    except Exception as error:
        log_once("spans", "no spans are sent; the run is watched all the same", error=repr(error))
    return Session((Progress(),), None, "nowhere: OpenTelemetry could not be set up")


def _with_providers(settings: Settings, providers: Mapping[str, Any]) -> Session:
    sinks = user_sinks(settings, **providers)
    return Session(sinks, None, "the program's own tracer provider", is_own=False)


def user_sinks(settings: Settings, tracer_provider: Any = None, meter_provider: Any = None) -> tuple[Sink, ...]:
    """Library users bring their own providers; without one, spans or metrics would go nowhere and are not made."""
    sinks: list[Sink] = []
    if "opentelemetry.trace" in sys.modules:
        from syncagent.sinks.spans import SpanSink
        from syncagent.sinks.step_ids import whose

        spans = SpanSink(tracer_provider, min_stall_ms=settings.min_stall_ms, policy=settings.policy, whose=whose)
        sinks.append(spans)
    if "opentelemetry.metrics" in sys.modules:
        from syncagent.sinks import metrics

        sink = metrics.of_program(meter_provider)
        if sink is not None:
            sinks.append(sink)
    return tuple(sinks)


def _with_spans(settings: Settings) -> Session:
    from syncagent.sinks import semconv
    from syncagent.sinks.journal import journal_path
    from syncagent.sinks.provider import build_provider
    from syncagent.sinks.spans import SpanSink
    from syncagent.sinks.step_ids import whose

    rank = ranks.read()
    resource = {
        semconv.RANK: rank.rank,
        semconv.LOCAL_RANK: rank.local_rank,
        semconv.WORLD_SIZE: rank.world_size,
        semconv.JOB_ID: ranks.job().id,
    }
    off = (settings.journal or "").lower() in {"off", "0", "none"}
    provider, spans_to = build_provider(
        {key: value for key, value in resource.items() if value is not None},
        None if off else journal_path(settings.journal),
    )
    spans = SpanSink(provider, min_stall_ms=settings.min_stall_ms, policy=settings.policy, whose=whose)
    counts, metrics = _with_metrics(provider)
    log, logs = _with_logs(provider)
    return Session((spans, *counts, log, Progress()), provider, spans_to, metrics, logs)


def _with_logs(provider: AgentTracerProvider) -> tuple[ViolationLog, Outbox | None]:
    try:
        from syncagent.sinks.provider import build_logs

        built = build_logs(provider.resource)
    except ConfigError as error:
        get_logger().error(f"{error} No log records are sent; the run is watched all the same.")
    except Exception as error:
        log_once("logs", "no log records are sent; the run is watched all the same", error=repr(error))
    else:
        return (ViolationLog(), None) if built is None else (ViolationLog(built[0]), built[1])
    return ViolationLog(), None


def _with_metrics(provider: AgentTracerProvider) -> tuple[tuple[Sink, ...], MetricSender | ScrapeEndpoint | None]:
    try:
        from syncagent.sinks.metrics import MetricSink
        from syncagent.sinks.prometheus import build_endpoint
        from syncagent.sinks.provider import build_metric_sender

        sink = MetricSink()
        sink.spans_lost = provider.lost
        endpoint = build_endpoint(provider.resource, sink.data, ranks.read().local_rank)
        if endpoint is not None:
            return (sink, endpoint), endpoint
        sender = build_metric_sender(provider.resource, sink.data)
    except ConfigError as error:
        get_logger().error(f"{error} No metrics are sent; the run is watched all the same.")
    except Exception as error:
        log_once("metrics", "no metrics are sent; the run is watched all the same", error=repr(error))
    else:
        return ((sink,), sender) if sender is not None else ((), None)
    return (), None


def end(agent: Agent, report: Report, session: Session, *, quiet: bool = False) -> None:
    """Send what is left, then show the table: on rank 0, and only where CUDA was used.

    A ``quiet`` process says nothing where there is nothing to show: children did not ask to be watched.
    """
    try:
        spans_to, lost = _close(session)
    except Exception as error:
        log_once("spans", "what became of the last spans is not known", error=repr(error))
        spans_to, lost = session.spans_to, "what became of the last spans is not known"
    if lost:
        report = replace(report, notes=(*report.notes, lost))
    saved = agent.save(report)
    wanted = agent.settings.summary
    if wanted is None:
        wanted = session.is_own  # an instrumentation of a program that knows nothing of it prints nothing
    if not wanted or report.run.rank not in (None, 0):
        return
    if report.run.device is None and not report.sites:
        if not quiet and not report.notes:  # a torch without CUDA has been told of at the start
            print("[syncagent] no host syncs: the script did not use CUDA", file=sys.stderr)
        return
    from syncagent.report import text

    text.emit(report, where={"spans": spans_to, **({"report": saved} if saved else {})})


def _close(session: Session) -> tuple[str, str]:
    """Send what is left; return where the spans are, and what is to be said of those that are lost."""
    spans_to = session.spans_to
    if session.provider is None:
        return spans_to, ""
    _send_the_last(session.provider, session.metrics, session.logs)
    stats = session.provider.stats()
    if session.provider.journal is not None:
        spans_to = f"journal {session.provider.journal}"
    lost = stats["failed"] + stats["dropped"]
    overwritten = session.provider.overwritten()
    spans_to += f" ({stats['exported']:,} sent" + (f", {lost:,} lost" if lost else "")
    spans_to += f", the oldest {overwritten:,} overwritten)" if overwritten else ")"
    for sink in session.sinks:
        if hasattr(sink, "without_span"):
            without = {why: count for why, count in sink.without_span().items() if count}
            if without:
                whys = ", ".join(f"{count:,} {why}" for why, count in without.items())
                spans_to += f"; {sum(without.values()):,} syncs have no span of their own ({whys})"
    return spans_to, f"{lost:,} spans were lost on the way to {session.spans_to}" if lost else ""


def _send_the_last(
    provider: AgentTracerProvider, metrics: MetricSender | ScrapeEndpoint | None, logs: Outbox | None
) -> None:
    """All at the same time: none waits for the others, and all together no longer than spans alone."""
    from syncagent.sinks.outbox import CLOSE_TIMEOUT_S

    began = time.monotonic()

    def left_s() -> float:
        return max(began + CLOSE_TIMEOUT_S - time.monotonic(), 0.1)

    if metrics is not None:
        metrics.begin_close()
    try:
        provider.close()
        if logs is not None:
            logs.close(left_s())
    finally:
        if metrics is not None:
            metrics.close(left_s())
