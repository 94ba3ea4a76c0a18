"""The training thread's half of the agent: from "this call waited" to a small record in that thread's own buffer.

No lock, no formatting, no source lookup, no span happens here; :mod:`syncagent.delivery.pipeline` does the rest
elsewhere.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from syncagent.attribution.backward import OWNER, backward_frame, owner_of_backward
from syncagent.attribution.callsite import MODULE_CALL, NOWHERE, OPTIMIZER, SET_UP, CallSites, Point, Where
from syncagent.attribution.modules import ModulePaths
from syncagent.attribution.ranges import labels
from syncagent.errors import HostSyncError, HostSyncWarning
from syncagent.events import Phase, SyncKind
from syncagent.policy.reach import Numbers, in_force, open_reaches
from syncagent.policy.scopes import open_scopes, scopes_by_thread
from syncagent.recording.records import SETTING_UP, About, Observation, OpKey, OpSum, Tally, ThreadState
from syncagent.support.faults import Faults

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from syncagent.policy import Policy
    from syncagent.settings.schema import Settings
    from syncagent.torchbridge.internals import Internals

__all__ = ["Recorder"]

_now = time.perf_counter_ns
_new = tuple.__new__  # what a NamedTuple's own constructor does, in half the time
_NO_NODE = "aten::_local_scalar_dense"  # never makes an autograd node
_OTHER, _FORWARD, _BACKWARD, _OPTIMIZER = Phase.OTHER, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER
_COMPUTING = (SyncKind.DYNAMIC_SHAPE, SyncKind.CHECK)
_BUFFER = 16_384
_SHAPES = 4
_FAILURES = 20
"""After so many syncs that could not be attributed, none is any more."""
_WHOLE = 100
_TALLIES = 4_096
_ABOUTS = 4_096
_TASKS = "/proc/self/task" if os.path.isdir("/proc/self/task") else ""


class _OffError(Exception):
    """Attribution has failed too often and is not tried any more."""


class Recorder:
    """Turns waits into observations; one for an agent, shared by its sensors."""

    def __init__(
        self, settings: Settings, internals: Internals, current_step: Callable[[], int], faults: Faults | None = None
    ) -> None:
        self.internals = internals
        self.sites = CallSites(settings.user_code)
        self.states: list[ThreadState] = []
        self.local = threading.local()
        self.policy: Policy | None = None
        """Has its word before a wait and after; it may raise."""
        self.crossing_ns: tuple[Callable[[], float], Callable[[], float]] = (lambda: 0.0, lambda: 0.0)
        """Cost of one call through a kernel, and of one through both modes, beyond the agent's own code."""
        self.faults = faults if faults is not None else Faults()
        self.user_context: Callable[[], Any] = self._seek_user_context
        """Reads OpenTelemetry's context, in which the user's active span stands; empty or ``None`` where there is none.
        The span itself is found later, by :func:`span_in`."""
        self._failures = 0
        self._states_lock = threading.RLock()  # between threads that are new, and the draining thread
        self._retired: dict[OpKey, OpSum] = {}
        self._retired_cost_ns = self._retired_set_up = 0
        self._retired_passes = 0
        self._modules = ModulePaths() if settings.wraps_every_op else None
        self._stacks = settings.stacks
        self.current_step = current_step

    def _seek_user_context(self) -> Any:
        module = sys.modules.get("opentelemetry.context")
        if not hasattr(module, "get_current"):  # not in use, or just being imported
            return None
        self.user_context = _reader_of_context(module)
        return self.user_context()

    def thread_state(self) -> ThreadState:
        """Return this thread's state, made at its first use."""
        try:
            state: ThreadState = self.local.state
        except AttributeError:
            state = self.local.state = ThreadState()
            OWNER.set(state)
            for other in self.states:  # the number of a thread that has ended is given to the next
                other.ended = other.ended or other.ident == state.ident
            try:
                state.name = _thread_name(state.ident, state.native_id)
            except Exception as error:
                self.fault("looking up a thread's name", error)
            try:
                self.retire_threads(state)
            except Exception as error:
                self.states = [*self.states, state]
                self.fault("letting go of threads that have ended", error)
        return state

    def retire_threads(self, *new: ThreadState) -> None:
        """Let go of threads that have ended and whose buffers are empty, keeping their sums; add ``new`` ones."""
        with self._states_lock:
            # The buffer is looked at last: a thread may leave a sync behind and end between the two looks.
            gone = [s for s in self.states if (s.ended or not _is_alive(s.native_id)) and not s.has_news()]
            # The list is replaced, not changed, so that readers need no lock.
            self.states = [*(state for state in self.states if state not in gone), *new]
            for state in gone:
                _add_up(self._retired, state.ops)
                self._retired_cost_ns += state.own_ns
                self._retired_set_up += state.set_up
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

    def ask(
        self,
        op: str,
        kind: SyncKind,
        frame: FrameType | None,
        state: ThreadState,
        args: Sequence[Any] = (),
        sensor: str = "policy",
    ) -> str | None:
        """Have the policy judge a sync before it waits; what it raises comes out here, and nothing else.

        A sync that is stopped here is recorded, with no stall: nobody else hears of it.
        """
        state.where = None
        policy = self.policy  # another thread may switch it off
        if open_reaches:
            policy = self.in_force(state)[1]
        if policy is None or (policy.is_passive and not open_scopes() and not scopes_by_thread):
            return None
        asked_ns = _now()
        try:
            return policy.judge(op, kind, frame, state)
        except HostSyncError:
            about = self.describe(state, op, kind, frame, args, sensor)
            self._keep(state, about, kind, asked_ns, 0, violation=True)
            raise
        except Exception as error:
            self._policy_failed(error, policy)
            return None
        finally:
            state.own_ns += _now() - asked_ns

    def in_force(self, state: ThreadState) -> tuple[Numbers, Policy | None]:
        """Return the regions that cover this thread, and the policy that judges it."""
        try:
            return in_force(self, state)
        except Exception as error:
            self.fault("the look-up of regions", error, "failed for a sync")
            return (), self.policy

    def describe(
        self,
        state: ThreadState,
        op: str,
        kind: SyncKind,
        frame: FrameType | None,
        args: Sequence[Any],
        sensor: str,
        allowed: str | None = None,
    ) -> About:
        """Take down what is known of a sync; best before it waits, since the GPU is at work meanwhile."""
        began_ns = _now()
        internals = self.internals
        try:
            if self._failures >= _FAILURES:
                raise _OffError  # noqa: TRY301
            device, shapes = _device_and_shapes(args)
            if device < 0:
                device = internals.current_device()
            stream = internals.raw_stream(device)
            state.context = self.user_context()
            if internals.graph_task() != -1:
                where = state.where or self.locate(state, frame)
                if where.marks & SET_UP:
                    return SETTING_UP
                owner, forward, module = self._forward_of(state)
                return About(
                    op, state.api, where, _BACKWARD, device, stream, sensor, shapes, allowed,
                    labels(owner.open_ranges or state.open_ranges), module, forward, self._stack(frame),
                )  # fmt: skip
            user, offset, library, library_offset, marks = self.sites.walk(frame)
            grads = internals.grad_enabled()
            key: tuple[Any, ...] | None = None
            if allowed is None and self._modules is None and not (state.open_ranges or self._stacks):
                key = (op, kind, id(user), offset, id(library), library_offset, marks, grads, device, stream, shapes)
            about = state.abouts.get(key) if key is not None else None
            if about is None:
                if marks & SET_UP:
                    return SETTING_UP
                where = Where((user, offset) if user else None, (library, library_offset) if library else None, marks)
                module = self._modules.path(frame) if self._modules is not None and marks & MODULE_CALL else None
                about = About(
                    op, state.api, where, phase_outside_backward(marks, kind, grads), device, stream, sensor, shapes,
                    allowed, labels(state.open_ranges), module, None, self._stack(frame),
                )  # fmt: skip
                if key is not None:
                    if len(state.abouts) >= _ABOUTS:  # sizes that are never the same
                        state.abouts.clear()
                    state.abouts[key] = about
            if grads and op != _NO_NODE and _requires_grad(args):
                state.forwards.remember(internals.next_sequence() - 1, about.where, about.module)
            return about  # noqa: TRY300 - what follows is for faults alone
        except Exception as error:
            self._failures += 1
            self.fault("attribution", error, "failed for a sync" if self._failures < _FAILURES else "failed and is off")
            return About(op, None, NOWHERE, _OTHER, 0, 0, sensor, (), allowed, (), None, None, ())
        finally:
            state.where = None
            state.own_ns += _now() - began_ns

    def _stack(self, frame: FrameType | None) -> tuple[Point, ...]:
        return self.sites.stack(frame) if self._stacks else ()

    def settle(
        self,
        state: ThreadState,
        about: About,
        kind: SyncKind,
        start_ns: int,
        stall_ns: int,
        returned_ns: int,
        *,
        conditional: bool = False,
    ) -> Observation | None:
        """Keep a sync that has waited, then let the policy speak: what it raises comes out here.

        ``about`` is what :meth:`describe` said; ``returned_ns`` is the moment at which the call came back.  One that is
        ``conditional``, by the driver's state alone, is not for the policy: the next run need not have it.
        """
        if about is SETTING_UP:
            state.set_up += 1
            return None
        broken: str | None = None
        seen: Observation | None = None
        regions: Numbers = ()
        policy = self.policy  # another thread may switch it off
        if open_reaches:
            regions, policy = self.in_force(state)
        try:
            stall_ns = max(stall_ns, 0)
            if about.allowed is None and policy is not None and policy.mode != "observe" and not conditional:
                broken = self._verdict(policy, state, about.phase, stall_ns)
            seen = _new(
                Observation,
                (
                    about,
                    kind,
                    self.current_step(),
                    start_ns,
                    stall_ns,
                    state.context,
                    broken is not None,
                    conditional,
                    regions,
                ),
            )
            if len(state.buffer) < _BUFFER:
                state.buffer.append(seen)
            else:
                self._add_up(state, seen)
            state.own_ns += _now() - returned_ns
        except Exception as error:
            self.fault("recording", error, "failed for a sync")
        if broken is not None and policy is not None:
            try:
                policy.act(about.op, kind, about.where, stall_ns, state, broken)
            except (HostSyncError, HostSyncWarning):
                raise
            except Exception as error:
                self._policy_failed(error, policy)
        return seen

    def _keep(
        self, state: ThreadState, about: About, kind: SyncKind, start_ns: int, stall_ns: int, *, violation: bool
    ) -> None:
        """Keep a sync that the policy has spoken on."""
        if about is SETTING_UP:
            return
        try:
            regions = self.in_force(state)[0] if open_reaches else ()
            seen = Observation(
                about, kind, self.current_step(), start_ns, stall_ns, state.context, violation, regions=regions
            )
            if len(state.buffer) < _BUFFER:
                state.buffer.append(seen)
            else:
                self._add_up(state, seen)
        except Exception as error:
            self.fault("recording", error, "failed for a sync")

    def tally(self, state: ThreadState, seen: Observation | None, frame: FrameType | None) -> None:
        """Have further syncs of this allowed line summed, once enough of them were kept whole.

        Only where the user's own line made the call: then the caller says all about where it was.  In the backward pass
        the forward line has a say as well.
        """
        if seen is None or frame is None:
            return
        try:
            self._tally(state, seen, frame)
        except Exception as error:
            self.fault("adding up", error, "failed for a sync")

    def _tally(self, state: ThreadState, seen: Observation, frame: FrameType) -> None:
        about = seen.about
        code, offset = frame.f_code, frame.f_lasti
        if about.where.user is None or about.where.user[0] is not code or about.forward is not None:
            return
        key = (about.op, seen.kind, id(code), offset, open_scopes())
        tally = state.tallies.get(key)
        if tally is not None and tally.last is not None and tally.last.regions != seen.regions:
            # A region of another thread has begun or ended: what was summed so far keeps its own regions.
            aside, back = (*key, tally.last.regions), (*key, seen.regions)
            state.tallies[aside] = tally
            tally = state.tallies.pop(back, None)
            if tally is not None:
                state.tallies[key] = tally
        if tally is None:
            if len(state.tallies) >= _TALLIES:
                return
            tally = state.tallies[key] = Tally()
        tally.seen += 1
        tally.last = seen
        if tally.seen >= _WHOLE:
            tally.step = seen.step

    def _add_up(self, state: ThreadState, seen: Observation) -> None:
        """The draining thread cannot keep up: have the sync added to the sums of its line."""
        about = seen.about
        where, forward = about.where, about.forward
        points = (where.user, where.library, forward.user if forward is not None else None)
        lines = tuple((id(point[0]), point[1]) for point in points if point is not None)
        key = (
            about.op, lines, about.phase, about.allowed, seen.violation, seen.conditional, seen.regions,
        )  # fmt: skip
        tally = state.sums.get(key)
        if tally is None:
            if len(state.sums) >= _TALLIES:
                state.dropped += 1
                return
            tally = state.sums[key] = Tally()
        tally.last = seen
        tally.count += 1
        tally.stall_ns += seen.stall_ns
        tally.max_ns = max(tally.max_ns, seen.stall_ns)

    def _verdict(self, policy: Policy, state: ThreadState, phase: Phase, stall_ns: int) -> str | None:
        try:
            return policy.forbids(state, phase, stall_ns)
        except Exception as error:
            self._policy_failed(error, policy)
            return None

    def _policy_failed(self, error: Exception, policy: Policy) -> None:
        if policy is self.policy:
            self.policy = None
        for reach in tuple(open_reaches):
            if reach.judge is policy:
                reach.judge = None
        self.fault("the policy", error, "failed and is off")

    def fault(self, part: str, error: Exception, what: str = "failed") -> None:
        """Keep a mistake of our own for the report; the program never sees it."""
        if not isinstance(error, _OffError):
            self.faults.add(part, error, what)

    @property
    def set_up(self) -> int:
        """How many waits were torch's own, while it compiled, tuned or captured."""
        return self._retired_set_up + sum(state.set_up for state in self.states)

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

    def phase(self, where: Where, kind: SyncKind) -> Phase:
        """Tell the phase of a sync that is about to wait."""
        if self.internals.graph_task() != -1:
            return _BACKWARD
        return phase_outside_backward(where.marks, kind, self.internals.grad_enabled())

    def locate(self, state: ThreadState, frame: FrameType | None) -> Where:
        """Find the user's line; on an autograd thread, where the user stands in ``backward()`` on another thread."""
        where = self.sites.capture(frame)
        if where.user is None and self.internals.graph_task() != -1:
            owner = owner_of_backward(state, self.internals, self.states)
            if owner is not None:
                outer = self.sites.capture(backward_frame(owner, self.internals))
                return Where(outer.user, where.library or outer.library, where.marks | outer.marks)
        return where

    def site_in_backward(self, state: ThreadState, task: int) -> Point | None:
        """Return the forward line of the node that runs in this pass; one node's ops come one after another."""
        node = self.internals.autograd_node()
        sequence = node._sequence_nr() if node is not None else -1
        if state.sequence != sequence or state.task != task:
            _, where, _ = self._forward_of(state)
            state.task, state.sequence = task, sequence
            state.node_point = where.user if where is not None else None
        return state.node_point

    def forward_point(self, state: ThreadState) -> Point | None:
        """Return the line of the forward pass that a sync is reported with, in the backward pass."""
        if self.internals.graph_task() == -1:
            return None
        _, where, _ = self._forward_of(state)
        return (where.user or where.library) if where is not None else None

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


def phase_outside_backward(marks: int, kind: SyncKind, grad_enabled: bool) -> Phase:
    """Tell the phase from what was running; shape-changing calls outside a module count while gradients are on."""
    if marks & OPTIMIZER:
        return _OPTIMIZER
    return _FORWARD if marks & MODULE_CALL or (grad_enabled and kind in _COMPUTING) else _OTHER


def _add_up(total: dict[OpKey, OpSum], sums: dict[OpKey, OpSum]) -> None:
    for key, entry in list(sums.items()):
        into = total.get(key)
        if into is None:
            into = total[key] = OpSum(entry.op, entry.point)
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
        # The system cuts names to 15 bytes, in the middle of a character if need be.
        with open(f"/proc/self/task/{native_id}/comm", encoding="utf-8", errors="replace") as stream:
            return stream.read().strip() or f"thread-{native_id}"
    except OSError:
        return f"thread-{native_id}"


def _requires_grad(args: Sequence[Any]) -> bool:
    return any(getattr(value, "requires_grad", False) for value in args)


def _device_and_shapes(args: Sequence[Any]) -> tuple[int, tuple[Sequence[int], ...]]:
    """Return the number of the device, -1 where the arguments do not say, and the shapes of the tensors among them."""
    try:
        (value,) = args  # most calls have one argument, a tensor
        return value.get_device(), (value.shape,)
    except (ValueError, AttributeError):
        pass
    device = -1
    found: list[Sequence[int]] = []
    for value in args:
        if hasattr(value, "shape"):
            found.append(value.shape)
            if device < 0 and value.is_cuda:
                device = int(value.get_device())
        elif isinstance(value, (list, tuple)):
            found.extend(inner.shape for inner in value if hasattr(inner, "shape"))
    return device, tuple(found[:_SHAPES])


def _reader_of_context(module: Any) -> Callable[[], Any]:
    """Return what reads OpenTelemetry's current context: its ``get_current``, or what that comes down to.

    That is two Python calls less, of code that has left the caches when a sync comes.
    """
    variable = getattr(getattr(module, "_RUNTIME_CONTEXT", None), "_current_context", None)
    read: Callable[[], Any] = variable.get if isinstance(variable, ContextVar) else module.get_current
    return read


def span_in(context: Any) -> object | None:
    """Return the user's span of a context that :attr:`Recorder.user_context` has read."""
    if not context:
        return None
    from opentelemetry import trace

    span = trace.get_current_span(context)
    return span if span.get_span_context().is_valid else None
