"""Work of a known length for the GPU: what a host sync waits for while the agent is tested."""

from __future__ import annotations

import statistics
from typing import Any

from syncagent.torchbridge.internals import keep_busy

__all__ = ["Delay"]

_CYCLES = 20_000_000
"""About 10 ms on a GPU of 2 GHz."""


class Delay:
    """Keeps the current stream busy for about ``ms`` milliseconds, again and again; nothing is queued when it is made.

    The simulated device knows the same kernel.
    """

    def __init__(self, ms: float) -> None:
        self.ms = ms
        for _ in range(3):  # the clock rises under load
            self._time(_CYCLES)
        per_ms = _CYCLES / statistics.median(self._time(_CYCLES) for _ in range(3))
        self._cycles = max(int(ms * per_ms), 1)

    def queue(self) -> tuple[Any, Any]:
        """Queue it and return the events around it, which measure its length: a GPU's clock is not constant."""
        return _queue(self._cycles)

    @staticmethod
    def _time(cycles: int) -> float:
        import torch

        begun, ended = _queue(cycles)
        torch.cuda.synchronize()
        return max(float(begun.elapsed_time(ended)), 1e-3)


def _queue(cycles: int) -> tuple[Any, Any]:
    import torch

    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    keep_busy(cycles)
    ended.record()
    return begun, ended
