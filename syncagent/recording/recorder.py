"""The training thread's half of the agent: from "this call waited" to a small record in that thread's own buffer.

No lock, no formatting, no source lookup, no span happens here; :mod:`syncagent.delivery.pipeline` does the rest
elsewhere.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from types import FrameType
from typing import Any

from syncagent.attribution.callsite import MODULE_CALL, NOWHERE, SET_UP, CallSites, Point, Where
from syncagent.attribution.locator import Locator
from syncagent.attribution.modules import ModulePaths
from syncagent.attribution.ranges import labels
from syncagent.attribution.threads import Threads
from syncagent.errors import HostSyncError, HostSyncWarning
from syncagent.events import Phase, SyncKind
from syncagent.native import NUMBER
from syncagent.policy import Policy
from syncagent.policy.scopes import Numbers, in_force, open_reaches, open_scopes, scopes_by_thread
from syncagent.recording.collectives import CollectiveWaits
from syncagent.recording.looks import OF_PROCESS, Looker
from syncagent.recording.records import (
    SETTING_UP,
    Observation,
    OpKey,
    OpSum,
    SyncContext,
    Tally,
    ThreadState,
    add_up,
)
from syncagent.recording.waits import DriverWaits, Note, SeenWait
from syncagent.settings.schema import Settings
from syncagent.support.faults import Faults
from syncagent.torchbridge.internals import Internals

_now = time.perf_counter_ns
_new = tuple.__new__  # what a NamedTuple's own constructor does, in half the time
_NO_NODE = "aten::_local_scalar_dense"  # never makes an autograd node
_BUFFER = 16_384
_SHAPES = 4
_FAILURES = 20
"""After so many syncs that could not be attributed, attribution is off."""
_WHOLE = 100
"""Syncs of an allowed line that are kept one by one; further ones are summed."""
_NEVER = 1 << 62
_TALLIES = 4_096
_CONTEXTS = 4_096


class Recorder:
    """Turns waits into observations; one for an agent, shared by its sensors."""

    def __init__(
        self, settings: Settings, internals: Internals, current_step: Callable[[], int], faults: Faults | None = None
    ) -> None:
        self.faults = faults if faults is not None else Faults()
        self.threads = Threads(ThreadState, self.faults)
        self.locator = Locator(CallSites(settings.user_code), internals, self.threads)
        self.looker = Looker(self.locator)
        self.waits = DriverWaits(current_step)
        """What the driver sensor has seen and no other sensor has named."""
        self.collectives = CollectiveWaits()
        """How long the GPU has waited for other ranks."""
        self.current_step = current_step
        self.policy: Policy | None = None
        """Judges each sync before the wait and after it; it may raise."""
        self.crossing_ns: tuple[Callable[[], float], Callable[[], float]] = (lambda: 0.0, lambda: 0.0)
        """Cost of one call through a kernel, and of one through both modes, beyond the agent's own code."""
        self.user_context: Callable[[], Any] = self._seek_user_context
        """Returns OpenTelemetry's current context, which holds the user's active span; empty or ``None`` without one.
        The span itself is found later, by :func:`span_in`."""
        self.set_up_in_driver = 0
        """The same as :attr:`set_up`, of waits that only the driver saw."""
        self._failures = 0
        self._modules = ModulePaths() if settings.wraps_every_op or settings.samples_steps else None
        self._stacks = settings.stacks

    def _seek_user_context(self) -> Any:
        module = sys.modules.get("opentelemetry.context")
        if not hasattr(module, "get_current"):  # not in use, or just being imported
            return None
        self.user_context = _reader_of_context(module)
        return self.user_context()

    # --- a sync: ask, describe, wait, settle

    def ask(
        self,
        op: str,
        kind: SyncKind,
        frame: FrameType | None,
        state: ThreadState,
        args: Sequence[Any] = (),
        sensor: str = "policy",
    ) -> str | None:
        """Have the policy judge a sync before it waits, and return the reason why it is allowed, if there is one.

        What the policy raises comes out here, and nothing else.  A sync that is stopped here is recorded with no stall,
        since no sensor will see it.
        """
        state.where = None
        policy = self.policy  # another thread may switch it off
        if open_reaches:
            policy = self.in_force(state)[1]
        if policy is None or (policy.is_passive and not open_scopes() and not scopes_by_thread):
            return None
        asked_ns = _now()
        try:
            return policy.judge(op, kind, frame, state, args)
        except HostSyncError:
            self._keep_stopped(state, self.describe(state, op, kind, frame, args, sensor), kind, asked_ns)
            raise
        except Exception as error:
            self._policy_failed(error, policy)
            return None
        finally:
            state.own_ns += _now() - asked_ns

    def describe(
        self,
        state: ThreadState,
        op: str,
        kind: SyncKind,
        frame: FrameType | None,
        args: Sequence[Any],
        sensor: str,
        allowed: str | None = None,
    ) -> SyncContext:
        """Describe a sync; best before it waits, while the GPU is still busy."""
        began_ns = _now()
        locator = self.locator
        internals = locator.internals
        try:
            if self._failures >= _FAILURES:
                return _unattributed(op, sensor, allowed)
            device, shapes = _device_and_shapes(args)
            if device < 0:
                device = internals.current_device()
            stream = internals.raw_stream(device)
            state.user_context = self.user_context()
            if internals.graph_task() != -1:
                where = state.where or locator.locate(state, frame)
                if where.marks & SET_UP:
                    return SETTING_UP
                owner, forward, module = locator.forward_of(state)
                return SyncContext(
                    op, state.api, where, Phase.BACKWARD, device, stream, sensor, shapes, allowed,
                    labels(owner.open_ranges or state.open_ranges), module, forward, self._stack(frame),
                )  # fmt: skip
            user, offset, library, library_offset, marks = locator.sites.walk(frame)
            grads = internals.grad_enabled()
            phase = locator.phase_outside_backward(state, marks, kind, frame, args, grads=grads)
            key: tuple[Any, ...] | None = None
            if allowed is None and self._modules is None and not (state.open_ranges or self._stacks):
                key = (op, kind, id(user), offset, id(library), library_offset, marks, phase, device, stream, shapes)
            context = state.contexts.get(key) if key is not None else None
            if context is None:
                if marks & SET_UP:
                    return SETTING_UP
                where = Where((user, offset) if user else None, (library, library_offset) if library else None, marks)
                module = self._modules.path(frame) if self._modules is not None and marks & MODULE_CALL else None
                if grads and marks & MODULE_CALL:
                    locator.publish_module(frame)
                context = SyncContext(
                    op, state.api, where, phase, device, stream, sensor, shapes, allowed, labels(state.open_ranges),
                    module, None, self._stack(frame),
                )  # fmt: skip
                if key is not None:
                    if len(state.contexts) >= _CONTEXTS:  # shapes that keep changing
                        state.contexts.clear()
                    state.contexts[key] = context
            if grads and op != _NO_NODE and _requires_grad(args):
                if state.node is None:
                    state.forwards.remember(internals.next_sequence() - 1, context.where, context.module)
                else:
                    state.awaited = (state.node, context)
            return context  # noqa: TRY300 - what follows is for faults alone
        except Exception as error:
            self._failures += 1
            self.fault("attribution", error, "failed for a sync" if self._failures < _FAILURES else "failed and is off")
            return _unattributed(op, sensor, allowed)
        finally:
            state.where = state.node = None
            state.own_ns += _now() - began_ns

    def optimizer_stepped(self) -> None:
        """Note that an optimizer has stepped on this thread: the graphs made so far are done with."""
        self.threads.current().step_sequence = self.locator.internals.next_sequence()

    def node_was_made(self, state: ThreadState) -> None:
        """Remember the line of an op that was described before autograd made its node, now that it has run."""
        try:
            (sequence, context), state.awaited = state.awaited, None
            if self.locator.internals.next_sequence() > sequence:  # it made one, if not more
                state.forwards.remember(sequence, context.where, context.module)
        except Exception as error:
            self.fault("attribution", error, "failed for a sync")

    def _stack(self, frame: FrameType | None) -> tuple[Point, ...]:
        return self.locator.sites.stack(frame) if self._stacks else ()

    def settle(
        self,
        state: ThreadState,
        context: SyncContext,
        kind: SyncKind,
        start_ns: int,
        stall_ns: int,
        returned_ns: int,
        *,
        conditional: bool = False,
    ) -> Observation | None:
        """Keep a sync that has waited, then have the policy judge it: what the policy raises comes out here.

        ``context`` is what :meth:`describe` returned; ``returned_ns`` is the moment at which the call came back.  A
        sync that is ``conditional``, by the driver's state alone, is not judged: the next run need not have it.
        """
        if context is SETTING_UP:
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
            if context.allowed is None and policy is not None and policy.mode != "observe" and not conditional:
                try:
                    broken = policy.forbids(state, context.phase, stall_ns)
                except Exception as error:
                    self._policy_failed(error, policy)
            seen = _new(Observation, (
                context, kind, self.current_step(), start_ns, stall_ns, state.user_context, broken is not None,
                conditional, regions,
            ))  # fmt: skip
            if len(state.buffer) < _BUFFER:
                state.buffer.append(seen)
            else:
                self._add_up(state, seen)
            state.own_ns += _now() - returned_ns
        except Exception as error:
            self.fault("recording", error, "failed for a sync")
        if broken is not None and policy is not None:
            try:
                policy.act(context.op, kind, context.where, stall_ns, state, broken, context.phase)
            except (HostSyncError, HostSyncWarning):
                raise
            except Exception as error:
                self._policy_failed(error, policy)
        return seen

    def note_waits(self, state: ThreadState, op: str, started_ns: int, frame: FrameType | None) -> None:
        """Say of this thread's waits since ``started_ns``, which no sensor has named, that they were in this op."""
        slot = state.slot
        if slot is None:
            return
        began_ns = _now()
        try:
            where = self.locator.locate(state, frame)
            phase = self.locator.phase(state, where.marks, SyncKind.OTHER, frame)
            ident = state.ident
            owner = self.locator.owner_of_backward(state)
            look = self.looker.described(where, phase, frame, owner.ident if owner is not None else ident)
            self.waits.note(state.slot_number, slot[NUMBER], started_ns, Note(op, state.api, look))
        except Exception as error:
            self.fault("attribution", error, "failed for a wait that the driver saw")
        finally:
            state.own_ns += _now() - began_ns

    def judge_ended(self, wait: SeenWait) -> tuple[str | None, bool]:
        """Have the policy judge a wait that only the driver saw: why it is allowed, and whether it was warned of."""
        policy: Policy | None = self.policy if wait.look.judge is OF_PROCESS else wait.look.judge
        if policy is None:
            return wait.look.allowed, False
        try:
            state = next((state for state in self.threads.all if state.native_id == wait.tid), None)
            return policy.judge_ended(wait.op, wait.kind, wait.look, wait.stall_ns, state, is_copy=wait.is_copy)
        except Exception as error:
            self._policy_failed(error, policy)
            return wait.look.allowed, False

    def tally(self, state: ThreadState, seen: Observation | None, frame: FrameType | None) -> None:
        """Have further syncs of this allowed line summed, once enough of them were kept whole.

        Only where the user's own line made the call: then the calling instruction determines the whole location.  In
        the backward pass the forward line is part of it as well.
        """
        if seen is None or frame is None:
            return
        try:
            context = seen.context
            user, code = context.where.user, frame.f_code
            if user is None or user[0] is not code or context.forward is not None:
                return
            grads = self.locator.internals.grad_enabled()
            key = (context.op, seen.kind, id(code), frame.f_lasti, grads, open_scopes())
            tally = state.tallies.get(key)
            if tally is not None and tally.last is not None and tally.last.regions != seen.regions:
                # A region of another thread has begun or ended: what was summed so far keeps its own regions.
                before = (*key, tally.last.regions)  # in the brackets below mypy takes it for 3.11's syntax
                state.tallies[before] = tally
                tally = state.tallies.pop((*key, seen.regions), None)
                if tally is not None:
                    state.tallies[key] = tally
            if tally is None:
                if len(state.tallies) >= _TALLIES:
                    return
                tally = state.tallies[key] = Tally()
            if tally.last is not None and tally.seen > 0 and tally.last.context.phase is not context.phase:
                # In several phases: each is kept whole from now on, and what was summed so far keeps its own.
                apart = (*key, tally.last.context.phase)
                state.tallies[apart] = tally
                tally = state.tallies[key] = Tally()
                tally.seen = -_NEVER
            tally.seen += 1
            tally.last = seen
            if tally.seen >= _WHOLE:
                tally.step = seen.step
        except Exception as error:
            self.fault("adding up", error, "failed for a sync")

    def _keep_stopped(self, state: ThreadState, context: SyncContext, kind: SyncKind, start_ns: int) -> None:
        """Keep a sync that the policy has stopped before it waited."""
        if context is SETTING_UP:
            return
        try:
            regions = self.in_force(state)[0] if open_reaches else ()
            step, user_context = self.current_step(), state.user_context
            seen = Observation(context, kind, step, start_ns, 0, user_context, violation=True, regions=regions)
            if len(state.buffer) < _BUFFER:
                state.buffer.append(seen)
            else:
                self._add_up(state, seen)
        except Exception as error:
            self.fault("recording", error, "failed for a sync")

    def _add_up(self, state: ThreadState, seen: Observation) -> None:
        """Add a sync to the sums of its line, since the draining thread cannot keep up."""
        context = seen.context
        where, forward = context.where, context.forward
        points = (where.user, where.library, forward.user if forward is not None else None)
        lines = tuple((id(point[0]), point[1]) for point in points if point is not None)
        key = (context.op, lines, context.phase, context.allowed, seen.violation, seen.conditional, seen.regions)
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

    # --- regions, policy, faults

    def in_force(self, state: ThreadState) -> tuple[Numbers, Policy | None]:
        """Return the regions that cover this thread, and the policy that judges it."""
        try:
            return in_force(self.locator, state, self.policy)
        except Exception as error:
            self.fault("the look-up of regions", error, "failed for a sync")
            return (), self.policy

    def _policy_failed(self, error: Exception, policy: Policy) -> None:
        if policy is self.policy:
            self.policy = None
        for reach in tuple(open_reaches):
            if reach.judge is policy:
                reach.judge = None
        self.fault("the policy", error, "failed and is off")

    def fault(self, part: str, error: Exception, what: str = "failed") -> None:
        """Keep an error of the agent's own for the report; the program never sees it."""
        self.faults.add(part, error, what)

    # --- sums over all threads

    @property
    def set_up(self) -> int:
        """Number of waits inside torch while it compiled, tuned or captured."""
        return sum(state.set_up for state in self.threads.with_ended()) + self.set_up_in_driver

    def op_sums(self) -> dict[OpKey, OpSum]:
        """Return the op counts of all threads."""
        total: dict[OpKey, OpSum] = {}
        for state in self.threads.with_ended():
            add_up(total, state.ops)
        return total

    def own_cost_ns(self, passes: int = 0) -> int:
        """Return the time that the agent took from the program, in ns: recording, and calls that passed through it.

        ``passes`` are calls that passed through and are counted elsewhere.
        """
        states = self.threads.with_ended()
        recorded = sum(state.own_ns for state in states)
        passes += sum(state.passes for state in states)
        wrapped = sum(entry.count for state in states for entry in list(state.ops.values()))
        per_pass_ns, per_op_ns = self.crossing_ns
        return recorded + int(passes * per_pass_ns() + (wrapped * per_op_ns() if wrapped else 0))


def _unattributed(op: str, sensor: str, allowed: str | None) -> SyncContext:
    """Describe a sync that could not be attributed."""
    return SyncContext(op, None, NOWHERE, Phase.OTHER, 0, 0, sensor, (), allowed, (), None, None, ())


def _requires_grad(args: Sequence[Any]) -> bool:
    return any(getattr(value, "requires_grad", False) for value in args)


def _device_and_shapes(args: Sequence[Any]) -> tuple[int, tuple[Sequence[int], ...]]:
    """Return the number of the device, -1 where the arguments do not say, and the shapes of the tensors among them."""
    try:
        (value,) = args  # most calls have a single argument, a tensor
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

    This saves two Python calls per sync, into code that is no longer in the CPU's caches.
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
