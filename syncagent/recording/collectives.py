"""How long the GPU's compute stream has stood still for collectives, by the moment at which it was made to wait."""

from __future__ import annotations

from collections import deque

_MOST = 65_536


class CollectiveWaits:
    """The waits of this rank, the newest of them."""

    def __init__(self) -> None:
        self.waits: deque[tuple[int, int]] = deque(maxlen=_MOST)
        """``moment_ns`` and ``waited_ns`` of each."""

    def add(self, *, moment_ns: int, waited_ns: int) -> None:
        """Add one: ``moment_ns`` is on the clock of ``time.perf_counter_ns``, ``waited_ns`` was measured on the GPU."""
        self.waits.append((moment_ns, waited_ns))
