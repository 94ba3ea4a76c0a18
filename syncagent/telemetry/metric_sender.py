"""The thread that exports metrics periodically, and once at the end within a bounded time."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from syncagent.support.pace import yield_gil
from syncagent.support.threads import AgentThread, isolate_opentelemetry
from syncagent.telemetry.outbox import CLOSE_TIMEOUT_S, GRACE_S, Trouble, describe, failure_of, sending

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk.metrics.export import MetricsData

    from syncagent.telemetry.outbox import Exporter
    from syncagent.telemetry.responses import CollectorResponses

PATIENCE_S = 15.0
"""How long exports may fail before it is reported: nothing is lost by then, and spans usually have reported it."""


class MetricSender:
    """Exports what ``collect`` returns every ``interval_s``.

    Each export has everything since the start, so a failed one loses nothing: the next makes up for it.  While the
    Collector has asked for a pause (``responses``) none is made.  ``on_trouble`` is called at most once, with a reason:
    when exports have failed for a while, or when the last one did.  In a forked child it does nothing: what was counted
    is the parent's.
    """

    def __init__(
        self,
        exporter: Exporter,
        collect: Callable[[], Sequence[MetricsData]],
        *,
        on_trouble: Callable[[str], object],
        responses: CollectorResponses,
        interval_s: float = 60.0,
    ) -> None:
        self._responses = responses
        self._exporter = exporter
        isolate_opentelemetry()
        self._collect = collect
        self._interval_s = interval_s
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._is_done = False
        self._closing_since: float | None = None
        self._trouble = Trouble(self._changed, on_trouble)
        self._thread = AgentThread(target=self._work, name="syncagent-metrics")
        self._thread.start()

    def begin_close(self) -> None:
        """Have the last export made, without waiting for it."""
        if os.getpid() == self._pid:
            with self._changed:
                self._closing_since = self._closing_since or time.monotonic()
                self._changed.notify_all()

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Wait for the last export, for that long at most, or less if exports have been failing.

        The time since ``begin_close`` counts: spans may have waited for the same Collector meanwhile.
        """
        if os.getpid() != self._pid:
            return
        self.begin_close()
        began = self._closing_since or time.monotonic()
        timeout_s += time.monotonic() - began
        with self._changed:
            self._trouble.wait_for(lambda: self._is_done, began, timeout_s)
            in_time, failed = self._is_done, self._trouble.since is not None
        if failed or not in_time:
            self._trouble.report("no answer in time")
        if in_time:
            self._thread.join(GRACE_S)  # it only has to shut the exporter down

    def _work(self) -> None:
        with sending(self._trouble):
            try:
                is_last = False
                while not is_last:
                    with self._changed:
                        is_last = self._changed.wait_for(lambda: self._closing_since is not None, self._interval_s)
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
                    self._trouble.note_error(describe(error))

    def _send(self) -> None:
        failure = failure_of(lambda: all(map(self._export, self._collect())))
        now = time.monotonic()
        with self._changed:
            if failure is None:
                self._trouble.clear()
                return
            self._trouble.note_error(failure)
            since = self._trouble.since or now
            is_time = now - since >= PATIENCE_S and self._closing_since is None
        if is_time:
            self._trouble.report(failure)

    def _export(self, part: MetricsData) -> bool:
        yield_gil()
        is_sent = self._exporter.export(part).name == "SUCCESS"
        refused, why = self._responses.take_rejected()
        if refused:
            self._trouble.report(f"it rejected some: {why}")
        return is_sent
