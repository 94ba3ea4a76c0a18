"""Budgets: so many syncs, or so much stall, are fine in a step; what goes beyond is judged, and no single sync before.

The alternative to judging each sync by itself.  Allowed syncs do not count.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from syncagent.config import Settings
    from syncagent.event import Phase

__all__ = ["Budgets"]

TOTAL = "total"


class Budgets:
    """Counts what a step has spent, over all threads that are judged."""

    def __init__(self, settings: Settings) -> None:
        self._syncs = dict(settings.max_syncs_per_step)
        self._stall_ms = dict(settings.max_stall_ms_per_step)
        self._share = settings.max_stall_share
        self.has_window = self._share is not None
        """Whether a step's end means anything here."""
        self._window: deque[tuple[int, int]] = deque(maxlen=settings.stall_share_window)
        self._step = -1
        self._counted: dict[str, int] = {}
        self._stalled_ns: dict[str, int] = {}
        self._over_share: float | None = None

    @property
    def set(self) -> bool:
        """Whether any budget is set: then syncs are not judged one by one."""
        return bool(self._syncs or self._stall_ms or self._share is not None)

    def before(self, phase: Phase, step: int) -> str | None:
        """Say which budget one more sync would break, as far as that is known before it waits."""
        if step != self._step:
            return next((_too_many(where, most, 1) for where, most in self._counts(phase) if most < 1), None)
        for where, most in self._counts(phase):
            if self._counted.get(where, 0) >= most:
                return _too_many(where, most, self._counted.get(where, 0) + 1)
        return None

    def after(self, phase: Phase, step: int, stall_ns: int) -> str | None:
        """Count a sync, and say which budget it has broken."""
        if step != self._step:
            self._step = step
            self._counted.clear()
            self._stalled_ns.clear()
        for where in (phase.value, TOTAL):
            self._counted[where] = self._counted.get(where, 0) + 1
            self._stalled_ns[where] = self._stalled_ns.get(where, 0) + stall_ns
        for where, most in self._counts(phase):
            if self._counted[where] > most:
                return _too_many(where, most, self._counted[where])
        for where in (phase.value, TOTAL):
            most_ms = self._stall_ms.get(where)
            if most_ms is not None and self._stalled_ns[where] > most_ms * 1e6:
                return (
                    f"max_stall_ms_per_step allows {most_ms:g} ms{_of(where)}, "
                    f"and this step has stalled {self._stalled_ns[where] / 1e6:.3g} ms"
                )
        if self._over_share is not None:
            share, self._over_share = self._over_share, None
            return (
                f"max_stall_share allows {self._share:.1%}, and the last {len(self._window)} steps stalled {share:.1%}"
            )
        return None

    def step_ended(self, step: int, lasted_ns: int) -> None:
        """Close a step; the window of ``max_stall_share`` moves on."""
        if self._share is None:
            return
        stalled = self._stalled_ns.get(TOTAL, 0) if step == self._step else 0
        self._window.append((lasted_ns, stalled))
        if len(self._window) == self._window.maxlen:
            whole = sum(lasted for lasted, _ in self._window)
            share = sum(stalled for _, stalled in self._window) / whole if whole > 0 else 0.0
            self._over_share = share if share > self._share else None

    def _counts(self, phase: Phase) -> list[tuple[str, int]]:
        return [(where, self._syncs[where]) for where in (phase.value, TOTAL) if where in self._syncs]


def _too_many(where: str, most: int, count: int) -> str:
    return f"max_syncs_per_step allows {most}{_of(where)}, and this is number {count}"


def _of(where: str) -> str:
    return "" if where == TOTAL else f" in phase {where}"
