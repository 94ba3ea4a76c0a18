"""How old a wait has to be before its thread is looked at, so that looks stay within their part of ``overhead``.

A thread that still waits when the look is over has missed nothing.  One that has come back meanwhile had to wait for
the interpreter: what that costs is counted, and where it is too much, only longer waits are looked at.
"""

from __future__ import annotations

LEAST_NS = 100_000
MOST_NS = 10_000_000
GRACE_NS = 50_000_000
"""What looks may cost beyond their part, so that a short program has its lines."""
HANDOVER_NS = 50_000
"""What it costs a thread to get the interpreter back, beyond the look itself."""
OF_OTHERS = 10
"""Other threads that run Python code notice about one part in so many of a look at one that waits."""


class LookPace:
    """Keeps account of the looks."""

    def __init__(self, share: float) -> None:
        """``share`` is the part of the time that looks may cost."""
        self._share = share
        self._cost_ns = 0
        self.after_ns = LEAST_NS
        """The age from which waits are looked at."""

    def looked(self, took_ns: int, *, came_late: bool) -> None:
        """Take what a look has cost; ``came_late``: a thread had come back before it was over."""
        self._cost_ns += took_ns + HANDOVER_NS if came_late else took_ns // OF_OTHERS

    def changes(self, since_start_ns: int) -> bool:
        """Bring :attr:`after_ns` up to date; return whether it is another one now."""
        spent_ns, allowed_ns, before_ns = self._cost_ns - GRACE_NS, self._share * since_start_ns, self.after_ns
        if spent_ns > allowed_ns:
            self.after_ns = min(before_ns * 2, MOST_NS)
        elif 2 * spent_ns < allowed_ns:
            self.after_ns = max(before_ns // 2, LEAST_NS)
        return self.after_ns != before_ns
