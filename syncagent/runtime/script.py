"""Both ends of a script's run: the sinks it starts with, and what its user is shown when it is over."""

from __future__ import annotations

import os
import random
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from syncagent.attribution import ranks
from syncagent.capture import writer as capture
from syncagent.delivery.progress import Progress
from syncagent.errors import ConfigError
from syncagent.support import stderr
from syncagent.support.log import get_logger, log_once
from syncagent.support.threads import AgentThread
from syncagent.telemetry.violations import ViolationLog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.sdk.resources import Resource

    from syncagent.delivery.sink import Sink
    from syncagent.report.model import Report
    from syncagent.runtime.handle import Agent
    from syncagent.settings.schema import Settings
    from syncagent.telemetry.metric_sender import MetricSender
    from syncagent.telemetry.outbox import AgentTracerProvider, Outbox
    from syncagent.telemetry.prometheus import ScrapeEndpoint

__all__ = ["Session", "Shown", "begin", "send", "show", "user_sinks"]


class Session(NamedTuple):
    """What a script's run sends its records to."""

    sinks: tuple[Sink, ...]
    provider: AgentTracerProvider | None
    spans_to: str
    metrics: MetricSender | ScrapeEndpoint | None = None
    logs: Outbox | None = None
    providers: Mapping[str, Any] | None = None
    """Those of the program's that were named; they, or else its global ones, send all, and outlive this.  ``None``
    where it sends by itself."""

    def flush(self) -> None:
        """Have the program's own providers send what they hold, where the process is about to be killed; bounded."""
        if self.providers is None:
            return
        threads = [
            AgentThread(target=flush, args=(round(_FLUSH_S * 1e3),), name="syncagent-flush")
            for flush in _flushes(self.providers)
        ]
        ending = time.monotonic() + _FLUSH_S
        for thread in threads:  # at the same time: one that hangs takes nothing from the others
            thread.start()
        for thread in threads:
            thread.join(max(ending - time.monotonic(), 0.0))


_FLUSH_S = 5.0
_NOWHERE = "nowhere: OpenTelemetry could not be set up"


def _flushes(named: Mapping[str, Any]) -> list[Callable[[int], object]]:
    from opentelemetry import metrics, trace

    logs = sys.modules.get("opentelemetry._logs")
    providers: tuple[Any, ...] = (
        named.get("tracer_provider") or trace.get_tracer_provider(),
        named.get("meter_provider") or metrics.get_meter_provider(),
        logs and logs.get_logger_provider(),
    )
    return [provider.force_flush for provider in providers if hasattr(provider, "force_flush")]


def begin(settings: Settings, providers: Mapping[str, Any] | None = None) -> Session:
    """Build the sinks of a script's run; without an OpenTelemetry that works, the run is watched all the same.

    With ``providers``, all is sent through those of the program: the ones named there, or else its global ones.
    """
    try:
        session = _with_own(settings) if providers is None else _with_providers(settings, providers)
    except Exception as error:
        log_once("spans", "nothing is sent; the run is watched all the same", error=repr(error))
        session = Session((Progress(),), None, _NOWHERE)
    if providers is not None:  # has a capture where one was asked for
        return session
    return session._replace(sinks=(*session.sinks, *_captures(settings, by_default=True)))


def _with_providers(settings: Settings, providers: Mapping[str, Any]) -> Session:
    sinks = user_sinks(settings, **providers)
    return Session(sinks, None, "the program's own tracer provider", providers=providers)


def user_sinks(settings: Settings, tracer_provider: Any = None, meter_provider: Any = None) -> tuple[Sink, ...]:
    """Library users bring their own providers; without one, spans or metrics would go nowhere and are not made."""
    sinks: list[Sink] = []
    if "opentelemetry.trace" in sys.modules:
        sinks.append(_span_sink(settings, tracer_provider))
    if "opentelemetry.metrics" in sys.modules:
        from syncagent.telemetry import metrics

        sink = metrics.of_program(meter_provider)
        if sink is not None:
            sinks.append(sink)
    return (*sinks, *_captures(settings, by_default=False))


def _captures(settings: Settings, *, by_default: bool) -> tuple[Sink, ...]:
    try:
        built = capture.build(settings.capture, settings.file_mode, by_default=by_default)
    except Exception as error:
        log_once("capture", "there is no capture; the run is watched all the same", error=repr(error))
        return ()
    return () if built is None else (built,)


def _with_own(settings: Settings) -> Session:
    """Spans, metrics and logs stand and fall by themselves; what is wrong with several of them is said once."""
    refused: dict[str, list[str]] = {}
    resource = _unless_refused("spans, metrics or log records", _resource, refused)
    sinks: list[Sink] = []
    metrics = logs = built = None
    if resource is not None:
        built = _unless_refused("spans", lambda: _provider(settings, resource), refused)
        if built is not None:
            sinks.append(_span_sink(settings, built[0]))
        counted = _unless_refused("metrics", lambda: _with_metrics(resource, built and built[0]), refused)
        if counted is not None:
            counts, metrics = counted
            sinks += counts
        logs = _unless_refused("log records", lambda: _logs(resource), refused)
    for why, signals in refused.items():
        what = " or ".join(filter(None, (", ".join(signals[:-1]), signals[-1])))
        get_logger().error(f"{why.rstrip('.')}. No {what} are sent; the run is watched all the same.")
    log = ViolationLog(logs[0]) if logs is not None else ViolationLog()
    provider, spans_to = built or (None, _NOWHERE)
    return Session((*sinks, log, Progress()), provider, spans_to, metrics, logs and logs[1])


_T = TypeVar("_T")


def _unless_refused(signal: str, build: Callable[[], _T], refused: dict[str, list[str]]) -> _T | None:
    try:
        return build()
    except ConfigError as error:
        refused.setdefault(str(error), []).append(signal)
    except Exception as error:
        log_once(signal, f"no {signal} are sent; the run is watched all the same", error=repr(error))
    return None


def _resource() -> Resource:
    from syncagent.telemetry import semconv
    from syncagent.telemetry.provider import build_resource

    rank = ranks.read()
    attributes = {
        semconv.RANK: rank.rank,
        semconv.LOCAL_RANK: rank.local_rank,
        semconv.WORLD_SIZE: rank.world_size,
        semconv.JOB_ID: ranks.job().id,
    }
    return build_resource({key: value for key, value in attributes.items() if value is not None})


def _provider(settings: Settings, resource: Resource) -> tuple[AgentTracerProvider, str]:
    from syncagent.delivery.folder import is_off
    from syncagent.telemetry.journal import journal_path
    from syncagent.telemetry.provider import build_provider

    return build_provider(
        resource, None if is_off(settings.journal) else journal_path(settings.journal), settings.file_mode
    )


def _span_sink(settings: Settings, provider: Any) -> Sink:
    from syncagent.telemetry.spans import SpanSink
    from syncagent.telemetry.step_ids import whose

    return SpanSink(provider, min_stall_ms=settings.min_stall_ms, policy=settings.policy, whose=whose)


def _logs(resource: Resource) -> tuple[Any, Outbox] | None:
    from syncagent.telemetry.provider import build_logs

    return build_logs(resource)


def _with_metrics(
    resource: Resource, spans: AgentTracerProvider | None
) -> tuple[tuple[Sink, ...], MetricSender | ScrapeEndpoint | None]:
    from syncagent.telemetry import otel_env
    from syncagent.telemetry.metrics import MetricSink
    from syncagent.telemetry.prometheus import build_endpoint
    from syncagent.telemetry.provider import build_metric_sender

    sink = MetricSink(exemplars=otel_env.has_exemplars(os.environ))
    if spans is not None:
        sink.spans_lost = spans.lost
    endpoint = build_endpoint(resource, sink.data, ranks.read().local_rank)
    if endpoint is not None:
        return (sink, endpoint), endpoint
    sender = build_metric_sender(resource, sink.data)
    return ((sink,), sender) if sender is not None else ((), None)


class Shown(NamedTuple):
    """What the user has of the report before the last spans are sent."""

    report: Report
    saved: str | None
    """Where it was saved."""
    has_table: bool


def show(agent: Agent, report: Report, session: Session, *, quiet: bool = False) -> Shown:
    """Save the report, then show the table: on rank 0, and only where CUDA was used.

    A ``quiet`` process says nothing where there is nothing to show: children did not ask to be watched.
    """
    saved = agent.save(report)
    wanted = agent.settings.summary
    if wanted is None:
        wanted = session.providers is None  # an instrumentation of a program that knows nothing of it prints nothing
    if not wanted or report.run.rank not in (None, 0):
        return Shown(report, saved, has_table=False)
    if report.run.device is None and not report.sites:
        if not quiet and not report.notes:  # a torch without CUDA has been told of at the start
            stderr.write(f"[syncagent] no host syncs: the script did not use CUDA{_of_others(agent, report)}\n")
        return Shown(report, saved, has_table=False)
    drawn = random.getstate()
    from syncagent.report.formats import text

    random.setstate(drawn)  # rich draws from the program's generator when it is loaded
    where = {"capture": _captured(session), "report": saved}
    try:
        text.emit(report, where={name: place for name, place in where.items() if place})
    except Exception as error:
        stderr.write(f"syncagent: the table could not be shown: {error!r}\n")
        return Shown(report, saved, has_table=False)
    return Shown(report, saved, has_table=True)


def _of_others(agent: Agent, report: Report) -> str:
    """Say where the processes that this one has started have saved what they saw."""
    if agent.settings.report is None:
        return ""
    from syncagent.report import files

    try:
        found = files.saved_by_others(report, agent.settings.report)
    except Exception:  # that the path is wrong has been said
        return ""
    return f" itself; other processes of this run saved {', '.join(map(str, found))}" if found else ""


def _captured(session: Session) -> str | None:
    paths = [sink.path for sink in session.sinks if isinstance(sink, capture.Capture)]
    return str(paths[0]) if paths and paths[0] is not None else None


def send(agent: Agent, shown: Shown, session: Session, *, is_interrupted: bool = False) -> None:
    """Send what is left, and say what became of it below the table; spans that are lost are noted in the report, too.

    This may take seconds, and comes last: a Ctrl-C cuts it short and loses nothing else.
    """
    try:
        if not is_interrupted:
            _send_the_last(session.provider, session.metrics, session.logs)
        spans_to, lost = _given_up(session) if is_interrupted else _whereabouts(session)
    except KeyboardInterrupt:
        spans_to, lost = _given_up(session)
    except Exception as error:
        log_once("spans", "what became of the last spans is not known", error=repr(error))
        spans_to, lost = session.spans_to, "what became of the last spans is not known"
    if lost and shown.saved is not None:
        agent.save(replace(shown.report, notes=(*shown.report.notes, lost)))
    if shown.has_table:
        from syncagent.report import wording

        note = f"note: {wording.clean(lost)}\n" if lost else ""
        stderr.write(f"spans: {wording.clean(spans_to)}\n{note}")


def _given_up(session: Session) -> tuple[str, str]:
    """The user has interrupted the sending: some of the spans may still arrive, but nobody waits for that."""
    if session.provider is None:
        return session.spans_to, ""
    sent = session.provider.stats()["exported"]
    where = f"journal {session.provider.journal}" if session.provider.journal is not None else session.spans_to
    return f"{where} ({sent:,} sent, the rest given up)", f"the sending of spans was interrupted: {sent:,} were sent"


def _whereabouts(session: Session) -> tuple[str, str]:
    """Return where the spans are, and what is to be said of those that are lost."""
    spans_to = session.spans_to
    if session.provider is None:
        return spans_to, ""
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
    provider: AgentTracerProvider | None, metrics: MetricSender | ScrapeEndpoint | None, logs: Outbox | None
) -> None:
    """All at the same time: none waits for the others, and all together no longer than spans alone."""
    if provider is None and metrics is None and logs is None:
        return
    from syncagent.telemetry.outbox import CLOSE_TIMEOUT_S

    began = time.monotonic()

    def left_s() -> float:
        return max(began + CLOSE_TIMEOUT_S - time.monotonic(), 0.1)

    if metrics is not None:
        metrics.begin_close()
    try:
        if provider is not None:
            provider.close()
        if logs is not None:
            logs.close(left_s())
    finally:
        if metrics is not None:
            metrics.close(left_s())
