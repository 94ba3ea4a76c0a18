"""The training thread's half of the agent: from "this call waited" to a small record in that thread's own buffer.

No lock, no formatting, no source lookup, no span happens here; :mod:`syncagent.pipeline` does the rest elsewhere.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from syncagent.attribution.autograd import OWNER, ForwardSites, backward_frame, owner_of_backward
from syncagent.attribution.callsite import MODULE_CALL, OPTIMIZER, CallSites, Point, Where
from syncagent.attribution.modules import ModulePaths
from syncagent.errors import HostSyncError, HostSyncWarning
from syncagent.event import Phase, SyncKind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from syncagent.config import Settings
    from syncagent.sensors.internals import Internals

__all__ = ["Observation", "Recorder", "ThreadState"]

_now = time.perf_counter_ns
_BUFFER = 65_536
_SHAPES = 4
_FAULTS = 20
_TASKS = "/proc/self/task" if os.path.isdir("/proc/self/task") else ""

OpKey = tuple[Any, tuple[int, int] | None, bool]
"""An op overload, the user's line (identity of the code, offset), and whether it ran in the backward pass."""


class OpSum:
    """Calls of one op at one line, and their time on the host."""

    __slots__ = ("count", "host_ns", "point")

    def __init__(self, point: Point | None) -> None:
        self.point = point
        self.count = self.host_ns = 0


class Observation(NamedTuple):
    """A sync as the training thread leaves it; times are ``perf_counter_ns``."""

    op: str
    api: Any
    kind: SyncKind
    start_ns: int
    stall_ns: int
    where: Where
    backward: bool
    step: int
    device: int
    stream: int
    sensor: str
    shapes: tuple[tuple[int, ...], ...]
    allowed: str | None
    ranges: tuple[str, ...]
    module: str | None
    forward: Where | None
    stack: tuple[Point, ...]
    user_span: object | None
    grad_enabled: bool


class ThreadState:
    """What the agent keeps of one thread.  Only that thread writes it, but for the draining of ``buffer``."""

    __slots__ = (
        "allowed", "api", "buffer", "dropped", "ended", "forwards", "ident", "kind", "last_sequence", "name",
        "native_id", "op", "ops", "own_ns", "passes", "range_ids", "ranges", "stall_ns", "start_ns",
    )  # fmt: skip

    def __init__(self) -> None:
        self.ident = threading.get_ident()
        self.native_id = threading.get_native_id()
        self.name = _thread_name(self.ident, self.native_id)
        self.buffer: deque[Observation] = deque()
        self.dropped = 0
        self.ended = False
        self.forwards = ForwardSites()
        self.last_sequence = 0
        # The outermost hooked op that is running on this thread, and what is known of its wait so far.
        self.op: str | None = None
        self.kind: SyncKind | None = None
        self.start_ns = 0
        self.stall_ns = 0
        self.allowed: str | None = None
        self.api: Any = None
        self.ranges: tuple[str, ...] = ()
        self.range_ids: tuple[int, ...] = ()
        self.ops: dict[OpKey, OpSum] = {}
        # The agent's own cost on this thread: time spent recording, and calls that kernels passed on.
        self.own_ns = 0
        self.passes = 0


class Recorder:
    """Turns waits into observations; one for an agent, shared by its sensors."""

    def __init__(self, settings: Settings, internals: Internals, current_step: Callable[[], int]) -> None:
        self.internals = internals
        self.sites = CallSites(settings.user_code)
        self.states: list[ThreadState] = []
        self.local = threading.local()
        self.gate: Callable[[str, SyncKind, FrameType | None, ThreadState], str | None] | None = None
        """The policy's word before a wait: a reason why it may pass, or ``None``; it raises where it forbids."""
        self.crossing_ns: tuple[Callable[[], float], Callable[[], float]] = (lambda: 0.0, lambda: 0.0)
        """Cost of one call through a kernel, and of one through both modes, beyond the agent's own code."""
        self.verdict: Callable[[str, SyncKind, Where | None, int, ThreadState], None] | None = None
        """The policy's word after a wait that nothing allows; it warns, or raises."""
        self.faults: list[str] = []
        self._states_lock = threading.RLock()  # between threads that are new, and the draining thread
        self._retired: dict[OpKey, OpSum] = {}
        self._retired_cost_ns = 0
        self._retired_passes = 0
        self._modules = ModulePaths() if settings.wraps_every_op else None
        self._stacks = settings.stacks
        self._step = current_step

    def thread_state(self) -> ThreadState:
        """Return this thread's state, made at its first use."""
        try:
            state: ThreadState = self.local.state
        except AttributeError:
            state = self.local.state = ThreadState()
            OWNER.set(state)
            for other in self.states:  # the number of a thread that has ended is given to the next
                other.ended = other.ended or other.ident == state.ident
            self.retire_threads(state)
        return state

    def retire_threads(self, *new: ThreadState) -> None:
        """Let go of threads that have ended and whose buffers are empty, keeping their sums; add ``new`` ones."""
        with self._states_lock:
            # The buffer is looked at last: a thread may leave a sync behind and end between the two looks.
            gone = [s for s in self.states if (s.ended or not _is_alive(s.native_id)) and not s.buffer]
            # The list is replaced, not changed, so that readers need no lock.
            self.states = [*(state for state in self.states if state not in gone), *new]
            for state in gone:
                _add_up(self._retired, state.ops)
                self._retired_cost_ns += state.own_ns
                self._retired_passes += state.passes

    def op_sums(self) -> dict[OpKey, OpSum]:
        """Return the op counts of all threads."""
        total: dict[OpKey, OpSum] = {}
        for sums in (self._retired, *(state.ops for state in self.states)):
            _add_up(total, sums)
        return total

    def forget_threads(self) -> None:
        """In a forked child: the threads, and what they saw, are the parent's."""
        self._states_lock = threading.RLock()  # another thread, which is gone now, may have held it
        self.states = []
        if hasattr(self.local, "state"):  # the sensors hold on to ``local`` itself
            del self.local.state

    def settle(
        self,
        state: ThreadState,
        op: str,
        kind: SyncKind,
        times: tuple[int, int, int],
        frame: FrameType | None,
        args: Sequence[Any],
        sensor: str,
        allowed: str | None = None,
    ) -> None:
        """Keep a sync as :meth:`record` does, then let the policy speak: what it raises comes out here."""
        where: Where | None = None
        try:
            where = self.record(state, op, kind, times, frame, args, sensor, allowed)
        except Exception as error:
            self.fault(f"recording {op}", error)
        if self.verdict is None or allowed is not None:
            return
        try:
            self.verdict(op, kind, where, times[1], state)
        except (HostSyncError, HostSyncWarning):
            raise
        except Exception as error:
            self.verdict = None
            self.fault("the policy, which is off now", error)

    def ask(self, op: str, kind: SyncKind, frame: FrameType | None, state: ThreadState) -> str | None:
        """Have the policy judge a sync before it waits; what it raises comes out here, and nothing else."""
        if self.gate is None:
            return None
        try:
            return self.gate(op, kind, frame, state)
        except HostSyncError:
            raise
        except Exception as error:
            self.gate = None
            self.fault("the policy, which is off now", error)
            return None

    def fault(self, part: str, error: Exception) -> None:
        """Keep a mistake of our own for the report; the program never sees it."""
        text = f"{part}: the agent failed with {type(error).__name__}: {error}"
        if text not in self.faults and len(self.faults) < _FAULTS:
            self.faults.append(text)

    def record(
        self,
        state: ThreadState,
        op: str,
        kind: SyncKind,
        times: tuple[int, int, int],
        frame: FrameType | None,
        args: Sequence[Any],
        sensor: str,
        allowed: str | None = None,
    ) -> Where | None:
        """Keep a sync and return where it was, for the verdict.

        ``times`` are its start, its stall and the moment the call returned (all ns).
        """
        start_ns, stall_ns, returned_ns = times
        if len(state.buffer) >= _BUFFER:
            state.dropped += 1
            return None
        internals = self.internals
        backward = internals.graph_task() != -1
        forward: Where | None = None
        module: str | None = None
        ranges = state.ranges
        where = self.locate(state, frame)
        if backward:
            owner, forward, module = self._forward_of(state)
            ranges = owner.ranges or ranges
        else:
            if self._modules is not None and where.marks & MODULE_CALL:
                module = self._modules.path(frame)
            if internals.grad_enabled() and _requires_grad(args):
                state.forwards.remember(internals.next_sequence() - 1, where, module)
        device = _device(args)
        if device < 0:
            device = internals.current_device()
        state.buffer.append(
            Observation(
                op, state.api, kind, start_ns, stall_ns, where, backward, self._step(), device,
                internals.raw_stream(device), sensor, _shapes(args), allowed, ranges, module, forward,
                self.sites.stack(frame) if self._stacks else (), user_span(), internals.grad_enabled(),
            )
        )  # fmt: skip
        state.own_ns += _now() - returned_ns
        return where

    def own_cost_ns(self, passes: int = 0) -> int:
        """Return what the agent took of the program's time: recording, and calls that passed through it.

        ``passes`` are calls that passed through and are counted elsewhere.
        """
        states = self.states
        recorded = self._retired_cost_ns + sum(state.own_ns for state in states)
        passes += self._retired_passes + sum(state.passes for state in states)
        wrapped = sum(entry.count for entry in self.op_sums().values())
        crossing = self.crossing_ns
        return recorded + int(passes * crossing[0]() + (wrapped * crossing[1]() if wrapped else 0))

    def locate(self, state: ThreadState, frame: FrameType | None) -> Where:
        """Find the user's line; on an autograd thread, where the user stands in ``backward()`` on another thread."""
        where = self.sites.capture(frame)
        if where.user is None and self.internals.graph_task() != -1:
            owner = owner_of_backward(state, self.internals, self.states)
            if owner is not None:
                outer = self.sites.capture(backward_frame(owner, self.internals))
                return Where(outer.user, where.library or outer.library, where.marks | outer.marks)
        return where

    def site_in_backward(self, state: ThreadState) -> Point | None:
        """Return the forward line of the node that is running, for ops that are only counted."""
        _, where, _ = self._forward_of(state)
        return where.user if where is not None else None

    def _forward_of(self, state: ThreadState) -> tuple[ThreadState, Where | None, str | None]:
        owner = owner_of_backward(state, self.internals, self.states) or state
        node = self.internals.autograd_node()
        if node is None:
            return owner, None, None
        sequence = node._sequence_nr()
        for candidate in (owner, state):
            found = candidate.forwards.find(sequence)
            if found is not None:
                return owner, found.where, found.module
        return owner, None, None


def phase_of(seen: Observation) -> Phase:
    """Tell the phase from what was running; shape-changing calls outside a module count while gradients are on."""
    if seen.backward:
        return Phase.BACKWARD
    if seen.where.marks & OPTIMIZER:
        return Phase.OPTIMIZER
    inside = bool(seen.where.marks & MODULE_CALL)
    computing = seen.grad_enabled and seen.kind in (SyncKind.DYNAMIC_SHAPE, SyncKind.CHECK)
    return Phase.FORWARD if inside or computing else Phase.OTHER


def _add_up(total: dict[OpKey, OpSum], sums: dict[OpKey, OpSum]) -> None:
    for key, entry in list(sums.items()):
        into = total.get(key)
        if into is None:
            into = total[key] = OpSum(entry.point)
        into.count += entry.count
        into.host_ns += entry.host_ns


def _is_alive(native_id: int) -> bool:
    """Does this thread still run?  The system knows autograd's threads too, which Python loses sight of when idle."""
    return not _TASKS or os.path.exists(f"{_TASKS}/{native_id}")


def _thread_name(ident: int, native_id: int) -> str:
    """Return Python's name of this thread, else the one the system knows (autograd's threads have no other)."""
    # threading.current_thread() would make up an object for a thread that Python did not start.
    for thread in threading.enumerate():
        if thread.ident == ident:
            return thread.name
    try:
        with open(f"/proc/self/task/{native_id}/comm", encoding="utf-8") as stream:
            return stream.read().strip() or f"thread-{native_id}"
    except OSError:
        return f"thread-{native_id}"


def _requires_grad(args: Sequence[Any]) -> bool:
    return any(getattr(value, "requires_grad", False) for value in args)


def _device(args: Sequence[Any]) -> int:
    for value in args:
        if getattr(value, "is_cuda", False):
            return int(value.get_device())
    return -1


def _shapes(args: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    found: list[tuple[int, ...]] = []
    for value in args:
        if hasattr(value, "shape"):
            found.append(tuple(value.shape))
        elif isinstance(value, (list, tuple)):
            found.extend(tuple(inner.shape) for inner in value if hasattr(inner, "shape"))
    return tuple(found[:_SHAPES])


def user_span() -> object | None:
    """Return the user's active OpenTelemetry span; costs nothing where OpenTelemetry is not in use."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    span = trace.get_current_span()
    return span if span.get_span_context().is_valid else None
