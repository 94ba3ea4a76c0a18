"""The thread that exports metrics periodically, and once at the end within a bounded time."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Protocol

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, set_value
from opentelemetry.sdk.metrics.export import MetricExportResult

from syncagent.support.pace import keep_pace, yield_gil
from syncagent.support.randomness import isolate_opentelemetry, mark_agent_thread
from syncagent.support.threads import AgentThread
from syncagent.telemetry.outbox import CLOSE_TIMEOUT_S, GRACE_S, Trouble, _describe, _LogInterceptor
from syncagent.telemetry.responses import CollectorResponses

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk.metrics.export import MetricsData

__all__ = ["MetricSender", "Sends"]

PATIENCE_S = 15.0
"""How long exports may fail before it is reported: nothing is lost by then, and spans usually have reported it."""


class Sends(Protocol):
    """What a MetricSender needs of the SDK's MetricExporter."""

    def export(self, metrics_data: MetricsData, /) -> MetricExportResult: ...
    def shutdown(self) -> None: ...


class MetricSender:
    """Exports what ``collect`` returns every ``interval_s``.

    Each export has everything since the start, so a failed one loses nothing: the next makes up for it.  While the
    Collector has asked for a pause (``responses``) none is made.  ``on_trouble`` is called at most once, with a reason:
    when exports have failed for a while, or when the last one did.  In a forked child it does nothing: what was counted
    is the parent's.
    """

    def __init__(
        self,
        exporter: Sends,
        collect: Callable[[], Sequence[MetricsData]],
        *,
        interval_s: float = 60.0,
        on_trouble: Callable[[str], None] = lambda _reason: None,
        responses: CollectorResponses | None = None,
    ) -> None:
        self._responses = responses if responses is not None else CollectorResponses()
        self._exporter = exporter
        isolate_opentelemetry()
        self._collect = collect
        self._interval_s = interval_s
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._is_closing = self._is_done = False
        self._closing_since = 0.0
        self._trouble = Trouble(self._changed, on_trouble)
        self._thread = AgentThread(target=self._work, name="syncagent-metrics")
        self._thread.start()

    def begin_close(self) -> None:
        """Have the last export made, without waiting for it."""
        if os.getpid() == self._pid:
            with self._changed:
                if not self._is_closing:
                    self._closing_since = time.monotonic()
                self._is_closing = True
                self._changed.notify_all()

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Wait for the last export, for that long at most, or less if exports have been failing.

        The time since ``begin_close`` counts: spans may have waited for the same Collector meanwhile.
        """
        if os.getpid() != self._pid:
            return
        self.begin_close()
        began = self._closing_since
        timeout_s += time.monotonic() - began
        with self._changed:
            while not self._is_done:
                left = self._trouble.remaining_s(began, timeout_s)
                if left <= 0:
                    break
                self._changed.wait(left)
            in_time, failed = self._is_done, self._trouble.since is not None
        if failed or not in_time:
            self._trouble.report("no answer in time")
        if in_time:
            self._thread.join(GRACE_S)  # it only has to shut the exporter down

    def _work(self) -> None:
        # Keeps the program's own instrumentation of requests or gRPC from making spans of our requests.
        attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        mark_agent_thread()
        interceptor = _LogInterceptor(self._trouble.note_error)
        interceptor.attach()
        keep_pace()
        try:
            is_last = False
            while not is_last:
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closing, self._interval_s)
                    is_last = self._is_closing
                pause_s = self._responses.retry_after_s()
                if is_last and 0 < pause_s < CLOSE_TIMEOUT_S:
                    time.sleep(pause_s)
                if not self._responses.retry_after_s():
                    self._send()
        finally:
            with self._changed:
                self._is_done = True
                self._changed.notify_all()
            try:
                self._exporter.shutdown()
            except Exception as error:
                self._trouble.note_error(_describe(error))
            interceptor.detach()

    def _send(self) -> None:
        reason = "the exporter reported a failure"
        try:
            is_sent = all(map(self._export, self._collect()))
        except Exception as error:
            is_sent, reason = False, _describe(error)
        now = time.monotonic()
        with self._changed:
            if is_sent:
                self._trouble.clear()
                return
            self._trouble.note_error(reason)
            since = self._trouble.since or now
            is_time = now - since >= PATIENCE_S and not self._is_closing
        if is_time:
            self._trouble.report(reason)

    def _export(self, part: MetricsData) -> bool:
        yield_gil()
        is_sent = self._exporter.export(part) is MetricExportResult.SUCCESS
        refused, why = self._responses.take_rejected()
        if refused:
            self._trouble.report(f"it rejected some: {why}")
        return is_sent
