"""How long the GPU's compute stream stood still for collectives, by steps: what ranks wait for each other.

A *join* is the place at which the stream waits for a collective to end.  How long it waited is known only when the
GPU has got there, which may be steps later on the host; but joins are passed in the order in which they were queued.

A wait counts where it has delayed something: the host, which has waited for the GPU afterwards, or the GPU's next
step, whose work is queued already.  Where the GPU has passed all joins by the time that the host queues the next one,
the host sets the pace, and what the GPU had waited for the others, it would have waited for its own host.

The same holds for a host that is some steps ahead of its GPU and no faster than the other ranks.  Without its waits the
GPU would have caught up with it once, and from then on have waited for it.  So where it is known how far the GPU is
behind, that is the most that the waits since the host's last one can have delayed.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

_MOST = 200_000
"""How many joins are kept until the steps that they belong to have been delivered."""


class _Join(NamedTuple):
    moment_ns: int
    waited_ns: int
    caught_up: bool
    host_waited: bool
    behind_ns: int | None


class StepWait(NamedTuple):
    """All joins of a step; ``start_ns`` is the step's (``perf_counter_ns``)."""

    step: int
    start_ns: int
    waited_ns: int
    """What of it has delayed something."""
    joins: int


class CollectiveWaits:
    """Adds up the joins of each step.

    ``add`` may be called by any thread, in the order of the joins; the rest is called by whoever delivers.
    """

    def __init__(self) -> None:
        self._joins: deque[_Join] = deque(maxlen=_MOST)
        self._steps: deque[tuple[int, int, int]] = deque(maxlen=_MOST)
        # Of the oldest step that is not whole:
        self._waited_ns = 0
        """What has delayed something for certain."""
        self._open_ns = 0
        """Of the waits since the host's last one, also in earlier steps: what has if the next join finds the GPU so far
        behind the host."""
        self._earlier_ns = 0
        """What of that was counted for earlier steps."""
        self._count = 0

    def add(
        self, *, moment_ns: int, waited_ns: int, caught_up: bool = False, host_waited: bool = False,
        behind_ns: int | None = None,
    ) -> None:  # fmt: skip
        """Note a join: when the host has queued it (``perf_counter_ns``), and how long the stream stood still there.

        ``caught_up``: by then the stream had passed the join before; ``host_waited``: the host has waited for the GPU
        since it queued that one; ``behind_ns``: how much later than the host the stream got there, if that is known.
        """
        self._joins.append(_Join(moment_ns, waited_ns, caught_up, host_waited, behind_ns))

    def step_ended(self, step: int, start_ns: int, end_ns: int) -> None:
        """Note a step, in their order; nothing is kept before the first join."""
        if self._joins or self._steps:
            self._steps.append((step, start_ns, end_ns))

    def take(self) -> list[StepWait]:
        """Return the steps that are whole now: all of their joins have been passed, since one after them has.

        Of a step without joins nothing is known.
        """
        whole = []
        while self._joins and self._steps:
            step, start_ns, end_ns = self._steps[0]
            join = self._joins[0]
            self._settle(join)
            if join.moment_ns >= end_ns:
                self._steps.popleft()
                if self._count:
                    waited_ns = self._waited_ns + self._open_ns - self._earlier_ns
                    whole.append(StepWait(step, start_ns, waited_ns, self._count))
                self._waited_ns = self._count = 0
                self._earlier_ns = self._open_ns
                continue
            self._joins.popleft()
            if join.moment_ns >= start_ns:  # else it was queued between two steps, as in an evaluation
                self._open_ns += join.waited_ns
                self._count += 1
        return whole

    def _settle(self, join: _Join) -> None:
        """Decide by the next join about what is open."""
        if join.host_waited:
            self._waited_ns += self._open_ns - self._earlier_ns
            self._open_ns = self._earlier_ns = 0
        elif join.caught_up:
            self._open_ns = self._earlier_ns = 0
        elif join.behind_ns is not None:
            self._open_ns = min(self._open_ns, join.behind_ns)
            self._earlier_ns = min(self._earlier_ns, self._open_ns)
