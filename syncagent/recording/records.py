"""The small records in which a training thread leaves what it saw, and what is kept of each thread."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from syncagent.attribution.backward import ForwardSites
from syncagent.attribution.callsite import NOWHERE, Where
from syncagent.events import Phase, SyncKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncagent.attribution.callsite import Point

__all__ = ["SETTING_UP", "About", "Observation", "OpKey", "OpSum", "Tally", "ThreadState"]

OpKey = tuple[int, int, int, bool]
"""Identities of an op overload and of the user's code, offset in it, and whether it ran in the backward pass."""


TallyKey = tuple[Any, ...]
"""An op and kind, the line that called it (identity of the code, offset), and the scopes that were open; at the end of
those whose sums are complete, the regions that covered them."""


class OpSum:
    """Calls of one op at one line, and their time on the host."""

    __slots__ = ("count", "host_ns", "op", "point", "where")

    def __init__(self, op: Any, point: Point | None) -> None:
        self.op = op
        self.point = point
        self.where = Where(point, None)
        self.count = self.host_ns = 0


class About(NamedTuple):
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


SETTING_UP = About("", None, NOWHERE, Phase.OTHER, 0, 0, "", (), "torch sets itself up", (), None, None, ())
"""torch compiles, tunes or captures: nobody's line could do without such a wait."""


class Observation(NamedTuple):
    """A sync as the training thread leaves it; times are ``perf_counter_ns``.

    ``context`` is OpenTelemetry's, with the user's span in it; ``regions`` are the numbers of those that cover it.
    """

    about: About
    kind: SyncKind
    step: int
    start_ns: int
    stall_ns: int
    context: Any
    violation: bool
    conditional: bool = False
    regions: tuple[int, ...] = ()


class Tally:
    """Further syncs of an allowed line, which are summed instead of being kept one by one.

    Only the training thread writes the sums; ``told_count`` and ``told_ns`` are the draining thread's.
    """

    __slots__ = ("count", "last", "max_ns", "seen", "stall_ns", "step", "told_count", "told_ns")

    def __init__(self) -> None:
        self.seen = 0
        """Syncs of this line that were kept whole."""
        self.step = -1
        """The step in which the next ones are only added up: after the first hundred, and the first of that step."""
        self.count = self.stall_ns = self.max_ns = 0
        self.told_count = self.told_ns = 0
        self.last: Observation | None = None


class ThreadState:
    """What the agent keeps of one thread.  Only that thread writes it, but for the draining of ``buffer``."""

    __slots__ = (
        "about", "abouts", "api", "api_point", "buffer", "context", "copies_armed", "dropped", "ended", "forwards",
        "ident", "kind", "last_sequence", "name", "named", "native_id", "node_point", "op", "open_ranges", "ops",
        "outer", "own_ns", "owner", "passes", "sequence", "set_up", "stall_ns", "start_ns", "sums", "tallies", "task",
        "trains", "where",
    )  # fmt: skip

    def __init__(self) -> None:
        self.ident = threading.get_ident()
        self.native_id = threading.get_native_id()
        self.name = f"thread-{self.native_id}"
        self.buffer: deque[Observation] = deque()
        self.copies_armed = False
        """Whether copies are watched on this thread, in this step."""
        self.dropped = 0
        self.ended = False
        self.forwards = ForwardSites()
        self.last_sequence = 0
        self.task = self.sequence = -1
        """The backward pass and the node in it that ran last on this thread, and the forward line of that node."""
        self.node_point: Point | None = None
        self.owner: tuple[int, ThreadState | None] = (-1, None)
        """The backward pass that was asked about last, and the thread that called it."""
        # The outermost hooked op that is running on this thread, and what is known of its wait so far.
        self.op: str | None = None
        self.outer: Any = None
        """Its rule and arguments, where the arguments do not prove that it waits."""
        self.kind: SyncKind | None = None
        self.named: Any = None
        self.start_ns = 0
        self.stall_ns = 0
        self.about: About | None = None
        self.abouts: dict[tuple[Any, ...], About] = {}
        """Those that a line's next sync is likely to share."""
        self.context: Any = None
        self.where: Where | None = None
        self.api: Any = None
        self.api_point: Any = None
        """The user's line that made this call, under ``detail="ops"``; looked up at its first op."""
        self.open_ranges: list[Any] = []
        """The ``record_function`` objects, outermost first."""
        self.ops: dict[OpKey, OpSum] = {}
        self.tallies: dict[TallyKey, Tally] = {}
        self.sums: dict[Any, Tally] = {}
        self.set_up = 0
        """Waits of torch.compile's own work and of graph capture, which are no syncs of the program's."""
        self.trains = self.ident == threading.main_thread().ident
        # The agent's own cost on this thread: time spent recording, and calls that kernels passed on.
        self.own_ns = 0
        self.passes = 0

    def has_news(self) -> bool:
        """Whether something waits here to be drained."""
        tallies = (*self.tallies.values(), *self.sums.values())
        return bool(self.buffer) or any(tally.count != tally.told_count for tally in tallies)
