"""A bounded queue of finished spans (or log records), and the thread that sends them and counts what became of each.

The SDK's BatchSpanProcessor does not say what it dropped, and its shutdown waits up to 30 s for a Collector that hangs;
at exit no other thread can be started to cut that short.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, set_value
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from syncagent.support import forks
from syncagent.support.pace import keep_pace
from syncagent.support.threads import AgentThread, isolate_opentelemetry, own_randomness
from syncagent.telemetry.journal import JournalExporter
from syncagent.telemetry.responses import explain_error
from syncagent.telemetry.step_ids import PresetIdGenerator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from enum import Enum
    from pathlib import Path

    from opentelemetry.sdk.resources import Resource

    from syncagent.telemetry.responses import CollectorResponses

CLOSE_TIMEOUT_S = 5.0
"""How long the end of the run may wait for spans to be sent."""

GRACE_S = 2.0
"""How long it may wait once something has gone wrong: time for one retry."""

_LOGGERS = ("opentelemetry.exporter", "urllib3", "requests", "grpc")
"""Loggers of the exporters.  Silenced on the sending thread only: the program may have exporters of its own."""


class Exporter(Protocol):
    """What is needed here of the SDK's exporters of spans, log records and metrics."""

    def export(self, batch: Any, /) -> Enum: ...
    def shutdown(self) -> None: ...


class Trouble:
    """Since when exports have been failing, and the one report of it.

    ``changed`` guards it, and is notified of errors, for those who wait for the sending to end.
    """

    def __init__(self, changed: threading.Condition, on_trouble: Callable[[str], object]) -> None:
        self._changed = changed
        self._on_trouble = on_trouble
        self._is_reported = False
        self.since: float | None = None
        """``time.monotonic()`` of the first error; ``None`` while exports succeed."""
        self._first_error: str | None = None

    def note_error(self, message: str) -> None:
        """Keep an error of the exporter's; it may retry and succeed, so nothing is reported yet."""
        with self._changed:
            self._first_error = self._first_error or message
            self.since = self.since or time.monotonic()
            self._changed.notify_all()

    def clear(self) -> None:
        self.since = self._first_error = None

    def wait_for(self, is_over: Callable[[], bool], began: float, timeout_s: float) -> None:
        """Wait, holding ``changed``: to the timeout, or to the end of the grace period after the first error."""
        while not is_over():
            grace = timeout_s if self.since is None else max(self.since - began, 0.0) + GRACE_S
            left = began + min(timeout_s, grace) - time.monotonic()
            if left <= 0:
                break
            self._changed.wait(left)

    def report(self, reason: str) -> None:
        """Report that something is lost, once; the exporter's first error explains it best."""
        with self._changed:
            if self._is_reported:
                return
            self._is_reported = True
            reason = self._first_error or reason
        self._on_trouble(explain_error(reason))


class Outbox(SpanProcessor):
    """Queues spans as they end and has them exported in batches on a thread of its own.

    ``make_exporter`` is called here, and again in a forked child that ends spans of its own.  ``on_trouble`` is called
    at most once, with a reason.  When the queue is full the oldest span is dropped.  While the Collector has asked
    for a pause (``responses``) nothing is sent, and what it refused with that is sent again afterwards.
    """

    def __init__(
        self,
        make_exporter: Callable[[], Exporter],
        *,
        on_trouble: Callable[[str], object],
        responses: CollectorResponses,
        max_queue: int = 2048,
        max_batch: int = 32,
        delay_s: float = 5.0,
    ) -> None:
        self._responses = responses
        self._make_exporter = make_exporter
        self._max_queue = max_queue
        self._max_batch = min(max_batch, max_queue)
        self._delay_s = delay_s
        self._on_trouble = on_trouble
        self._reset()
        self._start()
        forks.call_in_children(self._reset)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[Any] = deque()
        self._due = 0.0
        self._sending = 0
        self._exported = self._failed = self._dropped = 0
        self._is_closing = self._is_abandoned = False
        self._flushing = 0
        self._trouble = Trouble(self._changed, self._on_trouble)
        self._thread: threading.Thread | None = None

    def _start(self) -> None:
        # The exporter's loggers exist once its modules are imported.
        self.exporter = self._make_exporter()
        """The latest that was made."""
        isolate_opentelemetry()
        self._thread = AgentThread(target=self._work, args=(self.exporter,), name="syncagent-spans")
        self._thread.start()

    def on_end(self, span: ReadableSpan) -> None:
        if span.context and span.context.trace_flags.sampled:
            self.put(span)

    def put(self, span: Any) -> None:
        with self._changed:
            if self._is_closing:
                self._dropped += 1
                return
            if len(self._queue) >= self._max_queue:
                self._queue.popleft()
                self._dropped += 1
            self._queue.append(span)
            waiting = len(self._queue)
            if waiting == 1:
                self._due = time.monotonic() + self._delay_s
            if waiting == 1 or waiting >= self._max_batch:
                self._changed.notify_all()
        if self._thread is None:  # a forked child
            try:
                self._start()
            except Exception as error:
                self._trouble.report(f"no thread to send them: {error}")

    on_emit = put  # what a provider of log records calls

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Have everything sent now; return whether that was done in time."""
        with self._changed:
            self._flushing += 1
            self._changed.notify_all()
            is_done = self._changed.wait_for(lambda: not self._queue and not self._sending, timeout_millis / 1e3)
            self._flushing -= 1
            return is_done

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Send what is left, but return within that time, or sooner if exports have been failing."""
        with self._changed:
            if self._is_closing:
                return
            self._is_closing = True
            self._changed.notify_all()
            self._trouble.wait_for(
                lambda: self._thread is None or not (self._queue or self._sending), time.monotonic(), timeout_s
            )
            lost = len(self._queue) + self._sending
            self._is_abandoned = True
            self._failed += self._sending
            self._dropped += len(self._queue)
            self._sending = 0
            self._queue.clear()
            self._changed.notify_all()
        if lost:
            self._trouble.report(f"no answer within {timeout_s:g} s")
        elif self._thread is not None:
            self._thread.join(GRACE_S)  # it only has to shut the exporter down

    shutdown = close  # what a provider calls

    def stats(self) -> dict[str, int]:
        """Return how many spans were delivered, how many could not be, and how many were dropped unsent."""
        with self._changed:
            return {"exported": self._exported, "failed": self._failed, "dropped": self._dropped}

    def _work(self, exporter: Exporter) -> None:
        with sending(self._trouble):
            try:
                while batch := self._next_batch():
                    self._send(exporter, batch)
                exporter.shutdown()
            except Exception as error:
                self._trouble.report(describe(error))

    def _next_batch(self) -> list[Any]:
        """Wait until a batch is due and return it; return none at the end."""
        with self._changed:
            while True:
                if self._is_abandoned or (self._is_closing and not self._queue):
                    return []
                wait_s = self._due - time.monotonic() if self._queue else None
                is_due = self._is_closing or self._flushing or len(self._queue) >= self._max_batch
                pause_s = self._responses.retry_after_s()
                if wait_s is not None and pause_s > 0:
                    wait_s = max(pause_s, 0.0 if is_due else wait_s)
                elif wait_s is not None and (is_due or wait_s <= 0):
                    self._sending = min(len(self._queue), self._max_batch)
                    batch = [self._queue.popleft() for _ in range(self._sending)]
                    self._due = time.monotonic() + self._delay_s
                    return batch
                self._changed.wait(wait_s)

    def _send(self, exporter: Exporter, batch: list[Any]) -> None:
        failure = failure_of(lambda: exporter.export(batch).name == "SUCCESS")
        with self._changed:
            if self._is_abandoned:
                return  # counted when it was given up
            self._sending = 0
            if failure is None:
                refused, why = self._responses.take_rejected()
                refused = min(refused, len(batch))
                self._exported += len(batch) - refused
                self._failed += refused
                self._trouble.clear()
                failure = f"it rejected some: {why}" if refused else None
            else:
                self._trouble.since = self._trouble.since or time.monotonic()
                if self._take_back(batch):
                    failure = None
            self._changed.notify_all()
        if failure is not None:
            self._trouble.report(failure)

    def _take_back(self, batch: list[Any]) -> bool:
        """Queue again what the Collector wants later; return whether there was room for all of it."""
        room = self._max_queue - len(self._queue) if self._responses.retry_after_s() else 0
        kept = batch[-room:] if room > 0 else []
        self._queue.extendleft(reversed(kept))
        self._failed += len(batch) - len(kept)
        return len(kept) == len(batch)


class AgentTracerProvider(TracerProvider):
    """The SDK's provider with one Outbox, or with none.  Whoever built it calls ``close``; no exit handler does."""

    def __init__(self, resource: Resource, outbox: Outbox | None) -> None:
        ids: Any = PresetIdGenerator()
        sampler = ALWAYS_OFF if outbox is None else None
        super().__init__(sampler=sampler, resource=resource, shutdown_on_exit=False, id_generator=ids)
        self._outbox = outbox
        if outbox is not None:
            self.add_span_processor(outbox)

    @property
    def journal(self) -> Path | None:
        """The journal's file, once something has been written to it."""
        journal = self._journal_exporter()
        return None if journal is None else journal.path

    def overwritten(self) -> int:
        """Return how many spans of the journal have been overwritten since it was full."""
        journal = self._journal_exporter()
        return 0 if journal is None else journal.overwritten

    def _journal_exporter(self) -> JournalExporter | None:
        exporter = self._outbox and self._outbox.exporter
        return exporter if isinstance(exporter, JournalExporter) else None

    def stats(self) -> dict[str, int]:
        return {"exported": 0, "failed": 0, "dropped": 0} if self._outbox is None else self._outbox.stats()

    def lost(self) -> dict[str, int]:
        """Return how many spans did not arrive, by reason; empty where none are sent."""
        if self._outbox is None:
            return {}
        stats = self._outbox.stats()
        return {"not delivered": stats["failed"], "queue full": stats["dropped"]}

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Send what is left within that time, and stop."""
        if self._outbox is not None:
            self._outbox.close(timeout_s)

    shutdown = close


@contextmanager
def sending(trouble: Trouble) -> Iterator[None]:
    """Mark this thread as one that sends for the agent.

    What exporters log on it meanwhile is noted as errors, and kept out of the program's log.
    """
    # Keeps the program's own instrumentation of requests or gRPC from making spans of our requests.
    attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
    keep_pace()
    thread = threading.get_ident()

    def intercept(record: logging.LogRecord) -> bool:
        if record.thread == thread and record.levelno >= logging.WARNING:
            trouble.note_error(record.getMessage())
        return record.thread != thread

    known = list(logging.root.manager.loggerDict.items())
    loggers = [each for name, each in known if isinstance(each, logging.Logger) and name.startswith(_LOGGERS)]
    for logger in loggers:
        # Ahead of the SDK's, which drops one of two that are alike: to it those of spans and of metrics are.
        logger.filters.insert(0, intercept)
    try:
        with own_randomness():
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(intercept)


def failure_of(export: Callable[[], bool]) -> str | None:
    """Return why an export has failed; ``None`` where it has not."""
    try:
        return None if export() else "the exporter reported a failure"
    except Exception as error:
        return describe(error)


def describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
