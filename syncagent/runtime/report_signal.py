"""``report_signal``: the report so far is written when a signal arrives, and the job goes on.

The handler only counts; the agent's own thread makes the report.  While the main thread runs C code no handler is
called, so the thread that waits for SIGTERM passes on what it hears of: see :mod:`syncagent.runtime.signals`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

from syncagent.runtime import signals
from syncagent.settings.schema import Settings
from syncagent.support.arrivals import Arrivals
from syncagent.support.log import get_logger, log_once

_GRACE_S = 0.25
"""How long the main thread may take to call the handler before the signal counts as arrived without it."""


class ReportSignal:
    """Calls ``write`` on the agent's thread, once for all arrivals since the last time."""

    def __init__(self, settings: Settings, write: Callable[[], None]) -> None:
        self._name = settings.report_signal
        self._report = settings.report
        self._write = write
        self._pid = os.getpid()
        self._arrivals: Arrivals | None = None
        self._heard_s: float | None = None
        """Since when a signal waits for its handler to be called."""
        self._handler_is_late = False
        self._was_replaced = False
        self.notes: list[str] = []

    def start(self) -> None:
        """Begin to wait for the signal; where that cannot be done, the log says what the signal does instead."""
        if self._name is None:
            return
        number = getattr(signal, self._name)
        if threading.current_thread() is not threading.main_thread():
            note = f"report_signal {self._name} has no effect: the agent did not start on the main thread"
            self.notes.append(note)
            log_once(note, f"{note}{_consequence(number)}")
            return
        _load_format(self._report)
        self._arrivals = Arrivals(number)
        self._arrivals.start()
        signals.listen_for(number, self._heard)

    def stop(self) -> None:
        """Put back the handler that was there before.

        In a forked child ours stays and does nothing: whoever sends the signal to all processes of a job wants none of
        them ended.
        """
        if self._arrivals is None:
            return
        signals.stop_listening_for(self._arrivals.number)
        if os.getpid() == self._pid and threading.current_thread() is threading.main_thread():
            self._arrivals.stop()

    def poll(self) -> None:
        """Write the report if the signal has arrived."""
        if self._arrivals is None:
            return
        is_asked = self._arrivals.take() > 0
        if is_asked and self._handler_is_late:
            self._handler_is_late = is_asked = False  # the report was written when the signal was heard
        if self._heard_s is not None and time.monotonic() - self._heard_s >= _GRACE_S:
            if self._arrivals.last_s < self._heard_s - _GRACE_S:
                self._handler_is_late = is_asked = True
            self._heard_s = None
        if is_asked:
            self._write()
        self._look_for_another_handler(self._arrivals)

    def _heard(self) -> None:
        if self._arrivals is not None and self._arrivals.is_counting() and self._heard_s is None:
            self._heard_s = time.monotonic()

    def _look_for_another_handler(self, arrivals: Arrivals) -> None:
        was_replaced, self._was_replaced = self._was_replaced, not arrivals.is_counting()
        if self._was_replaced and not was_replaced:
            get_logger().warning(
                f"report_signal {self._name}: the program has set a handler of its own since, which decides what the "
                f"signal does{_consequence(arrivals.number)}"
            )


def _load_format(path: str | None) -> None:
    """Load what writes the report now: later it could change the random numbers that the program draws meanwhile."""
    from syncagent.report import files, formats

    formats.load("text" if path is None else files.destination(path)[1])


def _consequence(number: int) -> str:
    """What follows where the signal has its default action, as the end of a sentence."""
    is_default = signal.getsignal(number) == signal.SIG_DFL
    return "; as it is, the signal ends the process" if is_default and number != _HARMLESS else ""


_HARMLESS = getattr(signal, "SIGWINCH", None)
"""Its default action is to do nothing."""
