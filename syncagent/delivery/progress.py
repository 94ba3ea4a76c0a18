"""Shows on a terminal, in one line, that a long run is being watched."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from syncagent.delivery.sink import Sink
from syncagent.events import StepRecord, SyncEvent
from syncagent.support import stderr

_FIRST_S = 60.0
_EVERY_S = 10.0


class Progress(Sink):
    """Rewrites one line every ten seconds once a run has lasted a minute; writes nothing unless stderr is a terminal.

    The cursor stays at the start of the line, so that whatever the program prints next covers it.
    """

    name = "progress"

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._due = self._began + _FIRST_S
        self._syncs = self._steps = self._stall_ns = 0
        self._shown = False

    def events(self, batch: Sequence[SyncEvent]) -> None:
        self._syncs += sum(event.repeats for event in batch)
        self._stall_ns += sum(event.stall_ns for event in batch)
        self._show()

    def step(self, record: StepRecord) -> None:  # noqa: ARG002 - it is only counted
        self._steps += 1
        self._show()

    def close(self) -> None:
        """Clear the line."""
        if self._shown:
            stderr.write("\x1b[2K\r")

    def _show(self) -> None:
        now = self._clock()
        if now < self._due or not stderr.is_terminal():
            return
        self._due = now + _EVERY_S
        self._shown = True
        elapsed_s = now - self._began
        share = self._stall_ns / 1e9 / elapsed_s
        stderr.write(
            f"\x1b[2K\x1b[2m[syncagent] {int(elapsed_s) // 60}:{int(elapsed_s) % 60:02} · {self._steps:,} steps · "
            f"{self._syncs:,} syncs · {min(share, 1.0):.1%} of the time in stalls\x1b[0m\r"
        )
