"""Both ends of a script's run: the sinks it starts with, and what its user is shown when it is over."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from syncagent.attribution import ranks
from syncagent.errors import ConfigError
from syncagent.log import get_logger, log_once
from syncagent.sinks.progress import Progress

if TYPE_CHECKING:
    from syncagent.agent import Agent
    from syncagent.config import Settings
    from syncagent.report.model import Report
    from syncagent.sinks import Sink
    from syncagent.sinks.metric_sender import MetricSender
    from syncagent.sinks.outbox import AgentTracerProvider
    from syncagent.sinks.prometheus import ScrapeEndpoint

__all__ = ["Session", "begin", "end"]


class Session(NamedTuple):
    """What a script's run sends its records to."""

    sinks: tuple[Sink, ...]
    provider: AgentTracerProvider | None
    spans_to: str
    metrics: MetricSender | ScrapeEndpoint | None = None


def begin(settings: Settings) -> Session:
    """Build the sinks of a script's run; without an OpenTelemetry that works, the run is watched all the same."""
    try:
        return _with_spans(settings)
    except ConfigError as error:
        get_logger().error(f"{error} No spans are sent; the run is watched all the same.")
    except Exception as error:
        log_once("spans", "no spans are sent; the run is watched all the same", error=repr(error))
    return Session((Progress(),), None, "nowhere: OpenTelemetry could not be set up")


def _with_spans(settings: Settings) -> Session:
    from syncagent.sinks import semconv
    from syncagent.sinks.journal import journal_path
    from syncagent.sinks.provider import build_provider
    from syncagent.sinks.spans import SpanSink

    rank = ranks.read()
    resource = {semconv.RANK: rank.rank, semconv.WORLD_SIZE: rank.world_size}
    off = (settings.journal or "").lower() in {"off", "0", "none"}
    provider, spans_to = build_provider(
        {key: value for key, value in resource.items() if value is not None},
        None if off else journal_path(settings.journal),
    )
    spans = SpanSink(provider, min_stall_ms=settings.min_stall_ms, policy=settings.policy)
    counts, metrics = _with_metrics(provider)
    return Session((spans, *counts, Progress()), provider, spans_to, metrics)


def _with_metrics(provider: AgentTracerProvider) -> tuple[tuple[Sink, ...], MetricSender | ScrapeEndpoint | None]:
    try:
        from syncagent.sinks.metrics import MetricSink
        from syncagent.sinks.prometheus import build_endpoint
        from syncagent.sinks.provider import build_metric_sender

        sink = MetricSink()
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
    if agent.settings.summary is False or report.run.rank not in (None, 0):
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
    _send_the_last(session.provider, session.metrics)
    stats = session.provider.stats()
    if session.provider.journal is not None:
        spans_to = f"journal {session.provider.journal}"
    lost = stats["failed"] + stats["dropped"]
    spans_to += f" ({stats['exported']:,} sent" + (f", {lost:,} lost)" if lost else ")")
    withheld = sum(sink.ration.withheld for sink in session.sinks if hasattr(sink, "ration"))
    if withheld:
        spans_to += f"; {withheld:,} syncs have no span of their own, so as to send tens a second"
    return spans_to, f"{lost:,} spans were lost on the way to {session.spans_to}" if lost else ""


def _send_the_last(provider: AgentTracerProvider, metrics: MetricSender | ScrapeEndpoint | None) -> None:
    """Spans and metrics at the same time: neither waits for the other, and both together no longer than spans alone."""
    if metrics is None:
        provider.close()
        return
    from syncagent.sinks.outbox import CLOSE_TIMEOUT_S

    began = time.monotonic()
    metrics.begin_close()
    try:
        provider.close()
    finally:
        metrics.close(max(began + CLOSE_TIMEOUT_S - time.monotonic(), 0.1))
