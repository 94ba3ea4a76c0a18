"""The small records in which a training thread leaves what it saw, until the agent's thread collects them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from syncagent.attribution.callsite import NOWHERE, Point, Where
from syncagent.attribution.threads import WatchedThread
from syncagent.events import Phase, SyncKind

OpKey = tuple[int, int, int, bool]
"""Identities of an op overload and of the user's code, offset in it, and whether it ran in the backward pass."""


class OpSum:
    """Calls of one op at one line, and their time on the host."""

    __slots__ = ("count", "host_ns", "op", "point", "where")

    def __init__(self, op: Any, point: Point | None) -> None:
        self.op = op
        self.point = point
        self.where = Where(point, None)
        self.count = self.host_ns = 0


class SyncContext(NamedTuple):
    """What is known of a sync before it waits; mostly the same one for all syncs of a line.

    ``shapes`` are still ``torch.Size``.
    """

    op: str
    api: Any
    where: Where
    phase: Phase
    device: int
    stream: int
    sensor: str
    shapes: tuple[Sequence[int], ...]
    allowed: str | None
    ranges: tuple[str, ...]
    module: str | None
    forward: Where | None
    stack: tuple[Point, ...]


SETTING_UP = SyncContext("", None, NOWHERE, Phase.OTHER, 0, 0, "", (), "torch sets itself up", (), None, None, ())
"""Stands for a wait while torch compiles, tunes or captures, which no change of the program would remove."""


class Observation(NamedTuple):
    """A sync as the training thread leaves it; times are ``perf_counter_ns``.

    ``user_context`` is OpenTelemetry's, with the user's span in it; ``regions`` are numbers of regions around it.
    """

    context: SyncContext
    kind: SyncKind
    step: int
    start_ns: int
    stall_ns: int
    user_context: Any
    violation: bool
    conditional: bool = False
    regions: tuple[int, ...] = ()


class Tally:
    """Syncs of one line that are summed instead of being kept one by one.

    Only the training thread writes the sums; ``delivered_count`` and ``delivered_ns`` are the draining thread's.
    """

    __slots__ = ("count", "delivered_count", "delivered_ns", "last", "max_ns", "seen", "stall_ns", "step")

    def __init__(self) -> None:
        self.seen = 0
        """Syncs of this line that were kept one by one."""
        self.step = -1
        """The step in which further syncs are only summed: once a hundred were kept, and the first of that step."""
        self.count = self.stall_ns = self.max_ns = 0
        self.delivered_count = self.delivered_ns = 0
        self.last: Observation | None = None


class ThreadState(WatchedThread):
    """What sensors and recorder keep of a thread.  Only that thread writes it, but for the draining of ``buffer``."""

    __slots__ = (
        "awaited", "buffer", "context", "contexts", "copies_armed", "dropped", "kind", "named", "named_now", "node",
        "op", "ops", "outer", "own_ns", "passes", "set_up", "slot", "slot_number", "stall_ns", "start_ns", "sums",
        "tallies", "user_context", "waited_ns",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        # What was recorded and not yet delivered.
        self.buffer: deque[Observation] = deque()
        self.dropped = 0
        """Syncs that were lost because ``buffer`` and ``sums`` were full."""
        self.ops: dict[OpKey, OpSum] = {}
        self.sums: dict[tuple[Any, ...], Tally] = {}
        """Syncs that came while ``buffer`` was full."""
        self.tallies: dict[tuple[Any, ...], Tally] = {}
        """Syncs of allowed lines, by op, kind, calling line (identity of the code, offset), whether gradients are on,
        and open scopes.  Once the regions around a line or its phase have changed, the old ones are added to the key of
        the old sums."""
        self.contexts: dict[tuple[Any, ...], SyncContext] = {}
        """Descriptions that the next sync of a line is likely to share."""
        self.slot: memoryview | None = None
        """What the driver sensor counts of this thread's waits, where it is live: see :mod:`syncagent.recording.waits`.
        """
        self.slot_number = -1
        self.waited_ns = 0
        """Time of the waits that no sensor named, when the last op under a mode returned."""
        # The outermost hooked op that is running, and what is known of its wait so far.
        self.op: str | None = None
        self.outer: Any = None
        """Rule, arguments and ``node`` of that op, where the arguments alone do not prove that it waits."""
        self.node: int | None = None
        """The number that the op's autograd node will get, if that is made within the call; ``None`` if before it."""
        self.awaited: Any = None
        """That number and the description of the op, until the call has come back."""
        self.kind: SyncKind | None = None
        """Why the first inner op had to wait."""
        self.named: Any = None
        """The same as the outermost op names it."""
        self.start_ns = 0
        self.stall_ns = 0
        self.context: SyncContext | None = None
        self.user_context: Any = None
        # What the agent itself has done here.
        self.own_ns = 0
        """Time spent recording."""
        self.passes = 0
        """Calls that the agent's kernels passed on."""
        self.set_up = 0
        """Waits of torch.compile and of graph capture, which are not syncs of the program."""
        self.copies_armed = False
        """Whether copies are watched on this thread, in this step."""
        self.named_now = False
        """Where steps are sampled: whether this thread's ops are watched now, so that what they wait for has a name."""

    def undelivered(self) -> int:
        """Return how many syncs have not been delivered, those included that were dropped since the last delivery."""
        tallies = (*self.tallies.values(), *self.sums.values())
        return len(self.buffer) + self.dropped + sum(tally.count - tally.delivered_count for tally in tallies)

    def add_sums(self, ended: ThreadState) -> None:
        add_up(self.ops, ended.ops)
        self.own_ns += ended.own_ns
        self.passes += ended.passes
        self.set_up += ended.set_up


def add_up(total: dict[OpKey, OpSum], sums: dict[OpKey, OpSum]) -> None:
    """Add the op counts of a thread, which may still be counting, to ``total``."""
    for key, entry in list(sums.items()):
        into = total.get(key)
        if into is None:
            into = total[key] = OpSum(entry.op, entry.point)
        into.count += entry.count
        into.host_ns += entry.host_ns
