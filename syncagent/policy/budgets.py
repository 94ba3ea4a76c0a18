"""Budgets: how many syncs, or how much stall, a step may have before the policy acts.

This is the alternative to judging each sync by itself.  Allowed syncs do not count.
"""

from __future__ import annotations

import itertools
from collections import deque
from threading import get_ident
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from syncagent.events import Phase
    from syncagent.settings.schema import Settings

TOTAL = "total"


class Budgets:
    """Counts syncs and stall per step, over all threads that are judged."""

    def __init__(self, settings: Settings) -> None:
        self._syncs = dict(settings.max_syncs_per_step)
        self._stall_ms = dict(settings.max_stall_ms_per_step)
        self._share = settings.max_stall_share
        self.has_window = self._share is not None
        """Whether :meth:`step_ended` has to be called."""
        self._window: deque[tuple[int, int]] = deque(maxlen=settings.stall_share_window)
        self._spent: dict[int, dict[str, _Spent]] = {}
        """By step and by phase (or total)."""
        self._over_share: float | None = None

    @property
    def set(self) -> bool:
        """Whether any budget is set: then syncs are not judged one by one."""
        return bool(self._syncs or self._stall_ms or self._share is not None)

    def before(self, phase: Phase, step: int) -> str | None:
        """Return which budget one more sync would exceed, as far as that is known before it waits."""
        spent = self._spent.get(step)
        for where, most in self._counts(phase):
            number = (spent[where].syncs if spent is not None and where in spent else 0) + 1
            if number > most:
                return _too_many(where, most, number)
        return None

    def after(self, phase: Phase, step: int, stall_ns: int) -> str | None:
        """Count a sync, and return which budget it has exceeded, if any."""
        spent = self._spent.get(step)
        if spent is None:
            spent = self._begin(step)
        places = (phase.value, TOTAL)
        for where in places:
            if where not in spent:
                spent.setdefault(where, _Spent())
        numbers = {where: spent[where].add(stall_ns) for where in places}
        for where, most in self._counts(phase):
            if numbers[where] > most:
                return _too_many(where, most, numbers[where])
        for where in places:
            most_ms = self._stall_ms.get(where)
            if most_ms is not None and (stalled_ns := spent[where].stalled_ns) > most_ms * 1e6:
                return (
                    f"max_stall_ms_per_step allows {most_ms:g} ms{_of(where)}, "
                    f"and this step has stalled {stalled_ns / 1e6:.3g} ms"
                )
        share = self._over_share
        if share is not None:
            self._over_share = None
            return (
                f"max_stall_share allows {self._share:.1%}, and the last {len(self._window)} steps stalled {share:.1%}"
            )
        return None

    def step_ended(self, step: int, lasted_ns: int) -> None:
        """Close a step, which lasted ``lasted_ns``: the window of ``max_stall_share`` moves on."""
        if self._share is None:
            return
        spent = self._spent.get(step, {}).get(TOTAL)
        self._window.append((lasted_ns, spent.stalled_ns if spent is not None else 0))
        window = tuple(self._window)
        if len(window) == self._window.maxlen:
            whole = sum(lasted for lasted, _ in window)
            share = sum(stalled for _, stalled in window) / whole if whole > 0 else 0.0
            self._over_share = share if share > self._share else None

    def _begin(self, step: int) -> dict[str, _Spent]:
        """Begin a step; the previous one stays, since other threads may still be in it."""
        spent = self._spent.setdefault(step, {})
        for old in [known for known in tuple(self._spent) if abs(known - step) > 1]:
            self._spent.pop(old, None)
        return spent

    def _counts(self, phase: Phase) -> list[tuple[str, int]]:
        return [(where, self._syncs[where]) for where in (phase.value, TOTAL) if where in self._syncs]


class _Spent:
    """How many syncs there were and how long they stalled, counted by any number of threads without a lock.

    Each thread adds to a sum of its own; the numbers that syncs get come from one counter.
    """

    __slots__ = ("_by_thread", "_numbers")

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._by_thread: dict[int, tuple[int, int]] = {}

    def add(self, stall_ns: int) -> int:
        """Count one more and return its number."""
        ident = get_ident()
        syncs, stalled_ns = self._by_thread.get(ident, (0, 0))
        self._by_thread[ident] = (syncs + 1, stalled_ns + stall_ns)
        return next(self._numbers)

    @property
    def syncs(self) -> int:
        return sum(syncs for syncs, _ in tuple(self._by_thread.values()))

    @property
    def stalled_ns(self) -> int:
        return sum(stalled_ns for _, stalled_ns in tuple(self._by_thread.values()))


def _too_many(where: str, most: int, count: int) -> str:
    return f"max_syncs_per_step allows {most}{_of(where)}, and this is number {count}"


def _of(where: str) -> str:
    return "" if where == TOTAL else f" in phase {where}"
