"""Changes the policy of a running job, by a file that is read each second or by a signal."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

from syncagent.settings.schema import PolicyName, Settings, parse
from syncagent.support import forks, reading
from syncagent.support.arrivals import Arrivals
from syncagent.support.log import log_once

_EVERY_S = 1.0
_LONGEST = 1024
_SHOWN = 64


class Remote:
    """Calls ``change(policy, by)`` when the file's text changes or the signal arrives."""

    def __init__(
        self, settings: Settings, mode: Callable[[], PolicyName], change: Callable[[PolicyName, str], None]
    ) -> None:
        self._file = settings.policy_file
        self._signal = settings.policy_signal
        self._mode = mode
        self._change = change
        self._text = ""
        self._due_s = 0.0
        self._arrivals = None if self._signal is None else Arrivals(getattr(signal, self._signal))
        self.notes: list[str] = []

    def start(self) -> None:
        self.poll()
        if self._arrivals is None:
            return
        if threading.current_thread() is not threading.main_thread():
            self.notes.append(f"policy_signal {self._signal} has no effect: the agent did not start on the main thread")
            return
        self._arrivals.start()
        forks.reset_in_children(self._arrivals.number, self.stop)

    def stop(self) -> None:
        """Restore the signal's handler, unless it has been replaced since."""
        if self._arrivals is not None and threading.current_thread() is threading.main_thread():
            self._arrivals.stop()  # on another thread the handler stays, but has no effect any more

    def poll(self) -> None:
        """Act on signals that have arrived, and read the file if the last time was a second ago; it need not exist."""
        for _ in range(0 if self._arrivals is None else self._arrivals.take()):
            self._change("warn" if self._mode() == "observe" else "observe", f"the signal {self._signal}")
        if self._file is None or time.monotonic() < self._due_s:
            return
        self._due_s = time.monotonic() + _EVERY_S
        try:
            text = reading.read(self._file, _LONGEST).decode("utf-8", "replace").strip().lower()
        except FileNotFoundError:
            return  # not written yet
        except (OSError, ValueError) as error:
            log_once(
                f"policy-file-{error}", f"the policy file {self._file!r} cannot be read, and the policy stays: "
                f"{reading.reason(error) if isinstance(error, OSError) else error}",
            )  # fmt: skip
            return
        if text and text != self._text:
            self._text = text
            if text in {"observe", "warn", "raise"}:
                self._change(parse("policy", text), f"the file {self._file}")
            else:
                log_once(
                    f"policy-file-{text}", f"syncagent: the policy in {self._file} is {text[:_SHOWN]!r}, "
                    "but it must be one of observe, warn, raise; it stays as it is",
                )  # fmt: skip
