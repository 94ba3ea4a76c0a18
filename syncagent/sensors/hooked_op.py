"""Decides for each call of a hooked op whether it waits, and times the wait.

Ops nest: the innermost hooked op that waits is the proof and is timed, the outermost is what the user wrote and names
the sync.  All that can be done before a wait is done before it: the GPU is at work meanwhile.
"""

from __future__ import annotations

import functools
import sys
import time
from typing import TYPE_CHECKING, Any

from syncagent.policy.scopes import open_reaches, open_scopes, scopes_by_thread
from syncagent.rules.rule import own_time_taken_off

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import FrameType

    from syncagent.events import SyncKind
    from syncagent.recording.recorder import Recorder
    from syncagent.recording.records import SyncContext, Tally, ThreadState
    from syncagent.rules.rule import Rule, Waits

    Call = Callable[..., Any]

_now = time.perf_counter_ns
_SENSOR = "kernels"
_LATE_NS = 500_000
"""Shorter calls are not checked for having returned late."""


def watched(  # noqa: PLR0915 - four functions over one set of names
    recorder: Recorder, rule: Rule, call: Call, *, above_backends: bool = False
) -> Call:
    """Build what runs an op under watch; ``call`` runs it without.

    ``above_backends``: the kernel stands so high in the dispatcher that it is called for tensors without data as well.
    """
    local = recorder.threads.local
    current_step, describe, settle = recorder.current_step, recorder.describe, recorder.settle
    capturing = recorder.locator.internals.capturing
    name, late, part = rule.reported_op, rule.late, f"the rule of {rule.op}"
    proves = _of_data(rule.proves) if above_backends else rule.proves
    names_itself = rule.waits is rule.proves  # else the kind of its wait is another question
    always: SyncKind | None = getattr(proves, "always", None)
    waited_ns = own_time_taken_off(rule)

    def watch(below: Any, args: Any, kwargs: Any) -> Any:
        try:
            state: ThreadState = local.state
        except AttributeError:
            state = recorder.threads.current()
        kind = always
        if kind is None:
            try:
                kind = proves(args, kwargs)
            except Exception as error:
                recorder.fault(part, error)
        if kind is None:
            return call(below, *args, **kwargs) if state.op is not None else not_proven(state, below, args, kwargs)
        kernel = sys._getframe().f_back
        frame = kernel.f_back if kernel is not None else None  # none on a thread of autograd's
        if state.op is not None:
            return inside(state, kind, frame, below, args, kwargs)
        named = kind if names_itself else _kind(recorder, rule, args, kwargs) or kind
        if frame is not None and state.tallies:  # the line's syncs may only be added up
            tally = state.tallies.get((name, named, id(frame.f_code), frame.f_lasti, open_scopes()))
            if tally is not None and tally.step == current_step() and not (open_reaches and is_other(tally, state)):
                return summed(tally, state, below, args, kwargs)
        started = 0
        try:  # an interrupt may come at any point
            state.op = name
            state.passes += 1
            state.stall_ns = 0
            policy = recorder.policy
            allowed = None
            if policy is None or not policy.is_passive or open_scopes() or scopes_by_thread:
                allowed = recorder.ask(name, named, frame, state, args, _SENSOR)  # which may raise
            context = state.context = describe(state, name, named, frame, args, _SENSOR, allowed)
            started = _now()
            result = call(below, *args, **kwargs)
            returned = _now()
            state.op = None
        except BaseException:  # where the op raised, it has waited, unless a graph capture refused it
            state.op = None
            if started and not is_refused():
                now = _now()
                settle(state, context, named, started, now - started, now)
            raise
        whole_ns, inside_ns = returned - started, state.stall_ns
        # What hooked ops inside have timed is closer to the wait, unless the wait was elsewhere.
        stall_ns = inside_ns if 2 * inside_ns >= whole_ns else waited_ns(whole_ns, args)
        seen = settle(state, context, named, started, stall_ns, returned)
        if allowed is not None:
            recorder.tally(state, seen, frame)
        return result

    def is_refused() -> bool:
        """Has a graph capture refused an op that raised?  The program has to see that error, never the agent's."""
        try:
            return capturing()
        except Exception as error:
            recorder.fault("the check for a graph capture", error)
            return False

    def inside(state: ThreadState, kind: SyncKind, frame: FrameType | None, below: Any, args: Any, kwargs: Any) -> Any:
        """Run an op that waits inside another one, which names the sync."""
        if state.outer is not None and state.context is None:
            state.context = _describe_outer(recorder, state, kind, frame, judged=True)  # which may raise
        inside_ns = state.stall_ns
        started = _now()
        try:
            return call(below, *args, **kwargs)
        finally:
            whole_ns = _now() - started
            if state.kind is None:
                state.kind, state.start_ns = kind, started
            inside_ns, state.stall_ns = state.stall_ns - inside_ns, inside_ns
            state.stall_ns += inside_ns if 2 * inside_ns >= whole_ns else waited_ns(whole_ns, args)

    def not_proven(state: ThreadState, below: Any, args: Any, kwargs: Any) -> Any:
        """Run an outermost op whose arguments alone do not prove that it waits."""
        raised = True
        started = _now()
        try:
            state.kind = state.context = None
            state.op, state.outer = name, (rule, args, kwargs)
            state.passes += 1
            state.stall_ns = 0
            result = call(below, *args, **kwargs)
            raised = False
            return result
        finally:
            returned = _now()
            kind, is_late = state.kind, False
            if kind is None and not raised and late is not None and returned - started > _LATE_NS:
                is_late = True
                kind = recorder.faults.guard(part, functools.partial(late, args, kwargs, returned - started), None)
                state.start_ns, state.stall_ns = started, waited_ns(returned - started, args)
            elif raised and is_refused():
                kind = None
            if kind is not None:
                context = state.context or _describe_outer(recorder, state, kind, _caller(3), judged=False)
                state.op = None
                seen = settle(
                    state, context, state.named, state.start_ns, state.stall_ns, returned, conditional=is_late
                )
                if context.allowed is not None:
                    recorder.tally(state, seen, _caller(3))
            state.op = state.outer = None

    def is_other(tally: Tally, state: ThreadState) -> bool:
        """Do other regions cover this sync than those that were summed, of other threads or of a backward pass?"""
        return tally.last is None or tally.last.regions != recorder.in_force(state)[0]

    def summed(tally: Tally, state: ThreadState, below: Any, args: Any, kwargs: Any) -> Any:
        """Run an allowed op of a known line: it is only added to the line's sums."""
        started = _now()
        try:
            state.op = name
            result = call(below, *args, **kwargs)
        finally:
            state.op = None
        stall_ns = waited_ns(_now() - started, args)
        tally.count += 1
        tally.stall_ns += stall_ns
        tally.max_ns = max(tally.max_ns, stall_ns)
        return result

    return watch


def _describe_outer(
    recorder: Recorder, state: ThreadState, kind: SyncKind, frame: FrameType | None, *, judged: bool
) -> SyncContext:
    """Describe the outermost op for a wait that an op inside has proven; ``judged``: the policy can still be asked."""
    rule, args, kwargs = state.outer
    state.named = named = kind if rule.waits is rule.proves else _kind(recorder, rule, args, kwargs) or kind
    allowed = recorder.ask(state.op or "", named, frame, state, args, _SENSOR) if judged else None
    return recorder.describe(state, state.op or "", state.named, frame, args, _SENSOR, allowed)


def _kind(recorder: Recorder, rule: Rule, args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """Return what the outermost op says of its wait."""
    try:
        return rule.waits(args, kwargs)
    except Exception as error:
        recorder.fault(f"the rule of {rule.op}", error)
        return None


def _caller(depth: int = 1) -> FrameType | None:
    """Return the frame that called the op, or ``None`` on a thread that has no Python frame (autograd's)."""
    try:
        return sys._getframe(depth + 1)
    except ValueError:
        return None


def _of_data(proves: Waits) -> Waits:
    def real(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
        fake = hasattr(args[0], "fake_mode") or (len(args) > 1 and hasattr(args[1], "fake_mode"))
        return None if fake else proves(args, kwargs)

    return real
