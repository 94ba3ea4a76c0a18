"""The one place that builds sinks: which ones a run has, in which order, and what each is given of the others."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from syncagent.attribution import ranks
from syncagent.delivery.folder import file_path, is_off
from syncagent.delivery.sink import Sink
from syncagent.errors import ConfigError
from syncagent.support.log import get_logger, log_once
from syncagent.support.threads import AgentThread
from syncagent.telemetry.violations import ViolationLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from opentelemetry.sdk.resources import Resource

    from syncagent.capture.writer import Capture
    from syncagent.events import CollectiveRecord, StepRecord, SyncEvent
    from syncagent.report.summary import Summary
    from syncagent.settings.schema import Settings
    from syncagent.telemetry.outbox import MetricSender, Outbox
    from syncagent.telemetry.prometheus import ScrapeEndpoint
    from syncagent.telemetry.spans import SpanSink

T = TypeVar("T")

_FLUSH_S = 5.0


@dataclass
class Outputs:
    """The sinks of a run, and what sends for them.

    A script has providers of the agent's own, set up as the ``OTEL_*`` variables ask.  A program brings its own, which
    send by themselves and outlive the run: ``providers`` has those that it named, under ``tracer_provider`` and
    ``meter_provider``; its global ones stand in for the others.
    """

    settings: Settings
    providers: Mapping[str, Any] | None = None
    """The program's; ``None`` for a script."""
    sinks: tuple[Sink, ...] = ()
    spans_to: str = "nowhere: OpenTelemetry could not be set up"
    """Where spans go, for people to read."""
    resource: Resource | None = None
    spans: SpanSink | None = None
    outbox: Outbox | None = None
    """Sends the spans of a script, if any are sent."""
    metrics: MetricSender | ScrapeEndpoint | None = None
    logs: Outbox | None = None
    capture: Capture | None = None
    refused: dict[str, list[str]] = field(default_factory=dict)
    """The signals that a malformed variable keeps from being sent, by the sentence that says what is wrong with it."""

    @property
    def is_script(self) -> bool:
        return self.providers is None

    def attempt(self, part: str, build: Callable[[], T]) -> T | None:
        """Build a part; where that fails it is left out and logged, and the run is still watched."""
        try:
            return build()
        except ConfigError as error:
            self.refused.setdefault(str(error), []).append(part)
        except Exception as error:
            log_once(part, f"{part} could not be set up; the run is still watched", error=repr(error))
        return None

    def close(self) -> None:
        """Send what is left: all signals at the same time, and all together no longer than spans alone."""
        senders = [each for each in (self.metrics, self.logs, self.outbox) if each is not None]
        if not senders:
            return
        from syncagent.telemetry.outbox import CLOSE_TIMEOUT_S

        ending = time.monotonic() + CLOSE_TIMEOUT_S
        with ExitStack() as all_of_them:  # whatever becomes of the others; spans are waited for first
            for each in senders:
                each.begin_close()
                all_of_them.callback(lambda sender: sender.close(max(ending - time.monotonic(), 0.1)), each)

    def flush_program(self) -> None:
        """Have the program's own providers send what they hold, where the process is about to be killed; bounded."""
        if self.providers is None:
            return
        from opentelemetry import metrics, trace

        logs = sys.modules.get("opentelemetry._logs")
        providers: tuple[Any, ...] = (
            self.providers.get("tracer_provider") or trace.get_tracer_provider(),
            self.providers.get("meter_provider") or metrics.get_meter_provider(),
            logs and logs.get_logger_provider(),
        )
        threads = [
            AgentThread(target=provider.force_flush, args=(round(_FLUSH_S * 1e3),), name="syncagent-flush")
            for provider in providers
            if hasattr(provider, "force_flush")
        ]
        ending = time.monotonic() + _FLUSH_S
        for thread in threads:  # at the same time: one that hangs takes nothing from the others
            thread.start()
        for thread in threads:
            thread.join(max(ending - time.monotonic(), 0.0))


def build(settings: Settings, providers: Mapping[str, Any] | None = None) -> Outputs:
    """Build what a run sends its records to: with ``providers``, which may be none, through those of the program."""
    outputs = Outputs(settings, providers)
    if providers is None:
        outputs.resource = outputs.attempt("spans, metrics or log records", _resource)
    else:
        outputs.spans_to = "the program's own tracer provider"
    for part, sinks_for in SINKS.items():
        outputs.sinks += tuple(outputs.attempt(part, partial(sinks_for, outputs)) or ())
    for why, signals in outputs.refused.items():
        what = " or ".join(filter(None, (", ".join(signals[:-1]), signals[-1])))
        get_logger().error(f"{why.rstrip('.')}. No {what} are sent; the run is still watched.")
    return outputs


def all_sinks(summary: Summary, regions: Sink, others: Iterable[Sink]) -> tuple[Sink, ...]:
    """Return the sinks of an agent in their order.

    Its sums come first, then those of its regions, so that reports are right and on time whatever becomes of the rest.
    """
    return (_SummarySink(summary), regions, *others)


# --- one function a sink: a run loads the code of those that it has ---------------------------------------------------


class _SummarySink(Sink):
    """Adds up what reports are made of."""

    name = "summary"

    def __init__(self, summary: Summary) -> None:
        self._summary = summary

    def events(self, batch: Sequence[SyncEvent]) -> None:
        self._summary.events(batch)

    def step(self, record: StepRecord) -> None:
        self._summary.step(record)

    def collectives(self, record: CollectiveRecord) -> None:
        self._summary.collectives(record)


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


def _spans(outputs: Outputs) -> Iterable[Sink]:
    settings = outputs.settings
    if outputs.providers is not None:
        if "opentelemetry.trace" not in sys.modules:
            return ()  # the program has set up no provider, and they would go nowhere
        provider = outputs.providers.get("tracer_provider")
    elif outputs.resource is not None:
        from syncagent.telemetry.provider import build_spans

        journal = None if is_off(settings.journal) else file_path("journal", settings.journal)
        built, outputs.spans_to = build_spans(outputs.resource, journal, settings.file_mode)
        if built is None:
            return ()
        provider, outputs.outbox = built
    else:
        return ()
    from syncagent.telemetry.spans import SpanSink
    from syncagent.telemetry.step_ids import process_identity

    outputs.spans = SpanSink(
        provider,
        min_stall_ms=settings.min_stall_ms,
        policy=settings.policy,
        identity=partial(process_identity, settings.modelled_gpu),
    )
    return (outputs.spans,)


def _metrics(outputs: Outputs) -> Iterable[Sink]:
    if outputs.providers is not None:
        if "opentelemetry.metrics" not in sys.modules:
            return ()
        from syncagent.telemetry import metrics

        program_sink = metrics.of_program(outputs.providers.get("meter_provider"), outputs.spans)
        return () if program_sink is None else (program_sink,)
    if outputs.resource is None:
        return ()
    from syncagent.telemetry import otel_env
    from syncagent.telemetry.metrics import MetricSink
    from syncagent.telemetry.prometheus import build_endpoint
    from syncagent.telemetry.provider import build_metrics

    sink = MetricSink(spans=outputs.spans, exemplars=otel_env.has_exemplars(os.environ))
    if outputs.outbox is not None:
        sink.spans_lost = outputs.outbox.lost
    endpoint = build_endpoint(outputs.resource, sink.snapshot, ranks.read().local_rank)
    if endpoint is not None:
        outputs.metrics = endpoint
        return sink, endpoint
    outputs.metrics = build_metrics(outputs.resource, sink.data)
    return () if outputs.metrics is None else (sink,)


def _violations(outputs: Outputs) -> Iterable[Sink]:
    resource, provider = outputs.resource, None
    if resource is not None:
        from syncagent.telemetry.provider import build_logs

        provider, outputs.logs = outputs.attempt("log records", lambda: build_logs(resource)) or (None, None)
    return (ViolationLog(outputs.spans, provider),)


def _progress(outputs: Outputs) -> Iterable[Sink]:
    every_s = outputs.settings.progress
    if every_s:
        from syncagent.delivery.progress_lines import ProgressLines

        return (ProgressLines(every_s),)
    if every_s is not None or not outputs.is_script:
        return ()
    from syncagent.delivery.progress import Progress

    return (Progress(),)


def _capture(outputs: Outputs) -> Iterable[Sink]:
    """By default a script has one, and a program has none."""
    settings = outputs.settings
    if is_off(settings.capture) or (settings.capture is None and not outputs.is_script):
        return ()
    from syncagent.capture.writer import Capture

    outputs.capture = Capture(file_path("capture", settings.capture), mode=settings.file_mode)
    return (outputs.capture,)


SINKS: dict[str, Callable[[Outputs], Iterable[Sink]]] = {
    "spans": _spans,
    "metrics": _metrics,
    "violations": _violations,
    "progress": _progress,
    "capture": _capture,
}
"""What is sent or shown, and what builds the sinks for it; sinks are served in this order.

Spans come before metrics and violations, which ask the span sink for the span of the record at hand: it knows only
those of the latest batch that it was given.  The capture comes last, since a disk that hangs holds up those behind it.
"""
