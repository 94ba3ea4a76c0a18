"""The threads that send: each has an exporter of the SDK's, counts what becomes of what it sends, and ends in time.

The SDK's batch processors were tried instead (1.39 and 1.45).  Their shutdown waits 30 s for a Collector that hangs,
and while the interpreter ends no thread can be started to cut that short; they do not say what they dropped.  In every
forked child they start a thread: a SIGTERM that the child has blocked, to wait for it later, kills it then, and Python
3.12 warns of the child's own forks.  Where gevent has taken the place of threads, theirs end with a traceback.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, set_value
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from syncagent.support.pace import keep_pace, yield_gil
from syncagent.support.threads import AgentThread, isolate_opentelemetry, own_randomness
from syncagent.telemetry.responses import explain_error, rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk.metrics.export import MetricsData

    MakeExporter = Callable[[Callable[..., None]], Any]

CLOSE_TIMEOUT_S = 5.0
"""How long the end of the run may wait for what is left to be sent."""
GRACE_S = 2.0
"""How long it may wait once something has gone wrong: time for one retry."""
PATIENCE_S = 15.0
"""How long exports of metrics may fail before it is reported: nothing is lost by then, and spans mostly report it."""

_LOGGERS = ("opentelemetry.exporter", "urllib3", "requests", "grpc")
"""Loggers of the exporters.  Silenced on the sending threads only: the program may have exporters of its own."""


class Sender:
    """A thread that sends every ``interval_s``, and once more at the end, through what ``make_exporter`` makes.

    ``make_exporter`` is given what is to see the responses.  ``on_trouble`` is called at most once, with a reason.  In
    a forked child nothing happens: what is to be sent is the parent's, and an agent of the child's has its own.
    """

    def __init__(self, make_exporter: MakeExporter, *, on_trouble: Callable[[str], object], interval_s: float) -> None:
        self._on_trouble = on_trouble
        self._interval_s = interval_s
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._closing_since: float | None = None
        self._failing_since: float | None = None
        self._first_error: str | None = None
        self._is_closed = self._is_over = self._is_reported = False
        self._rejected = (0, "")
        self.exporter = make_exporter(self._see)
        isolate_opentelemetry()  # its modules are loaded now
        self._thread = AgentThread(target=self._run, name=f"syncagent-{type(self).__name__.lower()}")
        self._thread.start()

    def begin_close(self) -> None:
        """Have what is left sent, without waiting for it."""
        if os.getpid() != self._pid:
            return
        with self._changed:
            self._closing_since = self._closing_since or time.monotonic()
            self._changed.notify_all()

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Send what is left, but return within that time, or sooner if exports have been failing."""
        if self._is_closed or os.getpid() != self._pid:
            return
        self._is_closed = True
        self.begin_close()
        ending = time.monotonic() + timeout_s
        with self._changed:
            while not self._is_over and (left_s := self._latest(ending) - time.monotonic()) > 0:
                self._changed.wait(left_s)
            is_late, self._is_over = not self._is_over, True
            self._give_up()
        if is_late or self._failing_since is not None:
            self._report(f"no answer within {timeout_s:g} s")
        if not is_late:
            self._thread.join(GRACE_S)  # it only has to shut the exporter down

    def _latest(self, ending: float) -> float:
        failing = self._failing_since
        return ending if failing is None else min(ending, max(failing, self._closing_since or 0.0) + GRACE_S)

    def _run(self) -> None:
        # Keeps the program's own instrumentation of requests or gRPC from making spans of our requests.
        attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        keep_pace()
        _on_this_thread.sender = self
        for name, logger in list(logging.root.manager.loggerDict.items()):
            if isinstance(logger, logging.Logger) and name.startswith(_LOGGERS) and _intercept not in logger.filters:
                # Ahead of the SDK's, which drops one of two that are alike: to it those of spans and of metrics are.
                logger.filters.insert(0, _intercept)
        with own_randomness():
            try:
                is_last = False
                while not is_last:
                    with self._changed:
                        self._changed.wait_for(self._is_due, self._interval_s)
                        is_last = self._closing_since is not None
                    self._send()
            except Exception as error:
                with suppress(Exception):
                    self._report(_described(error))
            with self._changed:
                self._is_over = True
                self._changed.notify_all()
            with suppress(Exception):  # nothing is lost by it
                self.exporter.shutdown()

    shutdown = close  # what a provider calls

    def _give_up(self) -> None:
        """Account for what has not been sent by now."""

    def _is_due(self) -> bool:
        return self._closing_since is not None

    def _send(self) -> None:
        """Export what there is: what, only a subclass knows."""
        raise NotImplementedError

    def _export(self, batch: Any) -> int | None:
        """Export, and return how many of it the Collector has rejected; ``None`` where the export failed."""
        yield_gil()
        self._rejected = (0, "")
        try:
            failure = "" if self.exporter.export(batch).name == "SUCCESS" else "the exporter reported a failure"
        except Exception as error:
            failure = _described(error)
        if failure:
            self._note_error(failure)
            return None
        with self._changed:
            self._failing_since = self._first_error = None
        count, why = self._rejected
        if count:
            self._report(f"it rejected some: {why}")
        return count

    def _see(self, response: Any, *_: Any, **__: Any) -> None:
        self._rejected = rejected(response)

    def _note_error(self, message: str) -> None:
        """Keep an error; the exporter may retry and succeed, so nothing is reported yet."""
        with self._changed:
            self._first_error = self._first_error or message
            self._failing_since = self._failing_since or time.monotonic()
            self._changed.notify_all()

    def _report(self, reason: str = "") -> None:
        """Report that something is lost, once; the exporter's first error explains it best."""
        with self._changed:
            is_known, self._is_reported = self._is_reported, True
        if not is_known:
            self._on_trouble(explain_error(self._first_error or reason))


_on_this_thread = threading.local()


def _intercept(record: logging.LogRecord) -> bool:
    """Filter a logger of the exporters: what is said on a sending thread is noted there, and not logged."""
    sender = getattr(_on_this_thread, "sender", None)
    if sender is not None and record.levelno >= logging.WARNING:
        sender._note_error(record.getMessage())
    return sender is None


class Outbox(Sender, SpanProcessor):
    """Sends spans, or log records, from a bounded queue; when that is full the oldest is dropped."""

    def __init__(
        self, make_exporter: MakeExporter, *, max_queue: int = 2048, max_batch: int = 512, **options: Any
    ) -> None:
        self._max_queue = max_queue
        self._max_batch = min(max_batch, max_queue)
        self._queue: deque[Any] = deque()
        self._sending = self._exported = self._failed = self._dropped = 0
        super().__init__(make_exporter, **options)

    def on_end(self, span: ReadableSpan) -> None:
        if span.context and span.context.trace_flags.sampled:
            self.on_emit(span)

    def on_emit(self, record: Any) -> None:
        """Queue it; this is what a provider of log records calls."""
        if os.getpid() != self._pid:
            return
        with self._changed:
            if self._closing_since is not None:
                self._dropped += 1
                return
            if len(self._queue) >= self._max_queue:
                self._queue.popleft()
                self._dropped += 1
            self._queue.append(record)
            if len(self._queue) == self._max_batch:
                self._changed.notify_all()

    def _give_up(self) -> None:
        self._failed, self._dropped = self._failed + self._sending, self._dropped + len(self._queue)
        self._sending = 0
        self._queue.clear()

    def stats(self) -> dict[str, int]:
        """Return how many spans were delivered, how many could not be, and how many were dropped unsent."""
        with self._changed:
            return {"exported": self._exported, "failed": self._failed, "dropped": self._dropped}

    def lost(self) -> dict[str, int]:
        """Return how many spans did not arrive, by reason."""
        stats = self.stats()
        return {"not delivered": stats["failed"], "queue full": stats["dropped"]}

    def _is_due(self) -> bool:
        return super()._is_due() or len(self._queue) >= self._max_batch

    def _send(self) -> None:
        for _ in range(0, len(self._queue), self._max_batch):  # what comes meanwhile makes a batch of its own
            with self._changed:
                self._sending = min(len(self._queue), self._max_batch)
                batch = [self._queue.popleft() for _ in range(self._sending)]
            rejected = self._export(batch) if batch else 0
            with self._changed:
                if self._is_over:
                    return  # counted when it was given up
                failed = len(batch) if rejected is None else min(rejected, len(batch))
                self._failed, self._exported = self._failed + failed, self._exported + len(batch) - failed
                self._sending = 0
            if rejected is None:
                self._report()


class MetricSender(Sender):
    """Exports what ``collect`` returns: all since the start, so that a failed export loses nothing.

    Trouble is that exports have failed for a while, or that the last one did.
    """

    def __init__(
        self, make_exporter: MakeExporter, collect: Callable[[], Sequence[MetricsData]], **options: Any
    ) -> None:
        self._collect = collect
        super().__init__(make_exporter, **options)

    def _send(self) -> None:
        since = self._failing_since
        if all(self._export(part) is not None for part in self._collect()):
            return
        with self._changed:
            self._failing_since = since or self._failing_since  # one part that got through has not ended the trouble
            is_time = time.monotonic() - (self._failing_since or 0.0) >= PATIENCE_S
        if is_time:
            self._report()


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
