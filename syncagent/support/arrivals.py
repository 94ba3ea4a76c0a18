"""Counts how often a signal has arrived, and does nothing else to the program that it arrives in.

A handler that the program has set before is called as well; one that it sets later takes this one's place.  Where there
was none, the program is shown none, so that it sets its own if it would without the agent.
"""

from __future__ import annotations

import importlib
import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any

_raw: Any = importlib.import_module("_signal")
"""The C module: it shows and takes handlers as they are, while :mod:`signal` makes enum members of integers."""


class ShownAsNone(int):
    """A handler that looks like SIG_DFL or SIG_IGN to the program, since it is an integer of that value."""

    called: Callable[[int, FrameType | None], None]

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.called(number, frame)


class Arrivals:
    """The arrivals of one signal in one process."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._pid = os.getpid()
        self._arrived: deque[int] = deque()
        self.last_s = -math.inf
        """When the handler was last called, by ``time.monotonic``."""
        self._before: Any = None
        self._handler: Any = None

    def start(self) -> None:
        """Begin to count; only the main thread can."""
        self._before = before = _raw.getsignal(self.number)
        if isinstance(before, int):
            self._handler = ShownAsNone(before)
            self._handler.called = self._handle
        else:
            self._handler = self._handle
        _raw.signal(self.number, self._handler)
        if isinstance(before, int) and before == int(signal.SIG_IGN):  # no call of the program's may fail
            signal.siginterrupt(self.number, False)

    def stop(self) -> None:
        """Put back the handler that was there, unless the program has replaced this one; only the main thread can."""
        if self.is_counting():
            # One that was not set from Python cannot be put back.
            _raw.signal(self.number, int(signal.SIG_DFL) if self._before is None else self._before)
        self._handler = None

    def is_counting(self) -> bool:
        """Whether the handler is still in force."""
        return self._handler is not None and _raw.getsignal(self.number) is self._handler

    def take(self) -> int:
        """Return how many have arrived since the last call."""
        count = len(self._arrived)
        for _ in range(count):
            self._arrived.popleft()
        return count

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Anything may be interrupted here, and a forked child has inherited this handler.
        if os.getpid() == self._pid:
            self.last_s = time.monotonic()
            self._arrived.append(number)
        if callable(self._before):
            self._before(number, frame)
