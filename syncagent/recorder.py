"""The training thread's half of the agent: from "this call waited" to a small record in that thread's own buffer.

No lock, no formatting, no source lookup, no span happens here; :mod:`syncagent.pipeline` does the rest elsewhere.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from syncagent.attribution.autograd import OWNER, ForwardSites, backward_frame, owner_of_backward
from syncagent.attribution.callsite import MODULE_CALL, OPTIMIZER, CallSites, Point, Where
from syncagent.attribution.modules import ModulePaths
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

OpKey = tuple[Any, Point | None, bool]
"""An op overload, the user's line, and whether it ran in the backward pass."""


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
        "api", "buffer", "dropped", "forwards", "ident", "kind", "last_sequence", "native_id", "op", "ops", "own_ns",
        "passes", "ranges", "stall_ns", "start_ns",
    )  # fmt: skip

    def __init__(self) -> None:
        self.ident = threading.get_ident()
        self.native_id = threading.get_native_id()
        self.buffer: deque[Observation] = deque()
        self.dropped = 0
        self.forwards = ForwardSites()
        self.last_sequence = 0
        # The outermost hooked op that is running on this thread, and what is known of its wait so far.
        self.op: str | None = None
        self.kind: SyncKind | None = None
        self.start_ns = 0
        self.stall_ns = 0
        self.api: Any = None
        self.ranges: tuple[str, ...] = ()
        self.ops: dict[OpKey, list[int]] = {}
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
            # The list is replaced, not changed, so that readers need no lock.
            alive = sys._current_frames()
            self.states = [s for s in self.states if s.buffer or s.ops or s.ident in alive] + [state]
        return state

    def forget_threads(self) -> None:
        """In a forked child: the threads, and what they saw, are the parent's."""
        self.states = []
        if hasattr(self.local, "state"):  # the sensors hold on to ``local`` itself
            del self.local.state

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
    ) -> None:
        """Keep a sync; ``times`` are its start, its stall and the moment the call returned (all ns)."""
        start_ns, stall_ns, returned_ns = times
        if len(state.buffer) >= _BUFFER:
            state.dropped += 1
            return
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

    def own_cost_ns(self, passes: int = 0) -> int:
        """Return what the agent took of the program's time: recording, and calls that passed through it.

        ``passes`` are calls that passed through and are counted elsewhere.
        """
        states = self.states
        recorded = sum(state.own_ns for state in states)
        passes += sum(state.passes for state in states)
        wrapped = sum(count for state in states for count, _ in list(state.ops.values()))
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
