"""Decides for each call of a hooked op whether it waits, and times the wait.

Ops nest: the innermost hooked op that waits is the proof and is timed, the outermost is what the user wrote and names
the sync.  All that can be done before a wait is done before it: the GPU is at work meanwhile.
"""

from __future__ import annotations

import functools
import sys
import time
from typing import TYPE_CHECKING, Any

from syncagent.native import NAMED, NAMED_NS, NAMED_WAITS, NUMBER, UNNAMED_NS
from syncagent.policy.scopes import open_reaches, open_scopes, scopes_by_thread
from syncagent.recording.waits import THRESHOLD_NS
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
    recorder: Recorder,
    rule: Rule,
    call: Call,
    *,
    above_backends: bool = False,
    above_autograd: bool = False,
    above_python: bool = False,
) -> Call:
    """Build what runs an op under watch; ``call`` runs it without.

    ``above_backends``: the kernel stands so high in the dispatcher that it is called for tensors without data as well.
    ``above_autograd``: the op's autograd node is made inside of the call, not before it.  ``above_python``: the call is
    to pass a mode or a tensor's own class in Python, in which kernels above them are off.  So the ops inside, which
    would prove the wait, are not seen, and the rule is taken at its word.
    """
    local = recorder.threads.local
    current_step, describe, settle = recorder.current_step, recorder.describe, recorder.settle
    capturing = recorder.locator.internals.capturing
    grad_enabled = recorder.locator.internals.grad_enabled
    next_sequence = recorder.locator.internals.next_sequence if above_autograd else _unknown
    name, late, part = rule.reported_op, rule.late, f"the rule of {rule.op}"
    proves = rule.waits if above_python else rule.proves
    proves = _of_data(proves) if above_backends else proves
    names_itself = rule.waits is rule.proves  # else the kind of its wait is another question
    always: SyncKind | None = getattr(proves, "always", None)
    waited_ns, outside_runtime = own_time_taken_off(rule), rule.outside_runtime

    def in_driver(slot: memoryview, waits: int, driver_ns: int, whole_ns: int, args: Any) -> int:
        """Return how long the driver waited since the slot had these sums; if it saw no wait, what the rule says."""
        if slot[NAMED_WAITS] == waits:
            return waited_ns(whole_ns, args)
        stall_ns: int = slot[NAMED_NS] - driver_ns
        return max(stall_ns, waited_ns(whole_ns, args)) if outside_runtime else stall_ns

    def watch(below: Any, args: Any, kwargs: Any) -> Any:  # noqa: PLR0915 - calls would cost time here
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
            key = (name, named, id(frame.f_code), frame.f_lasti, grad_enabled(), open_scopes())
            tally = state.tallies.get(key)
            if tally is not None and tally.step == current_step() and not (open_reaches and is_other(tally, state)):
                return summed(tally, state, below, args, kwargs)
        started = waits = driver_ns = 0
        slot = state.slot
        try:  # an interrupt may come at any point
            state.op = name
            state.passes += 1
            state.stall_ns = 0
            policy = recorder.policy
            allowed = None
            if policy is None or not policy.is_passive or open_scopes() or scopes_by_thread:
                allowed = recorder.ask(name, named, frame, state, args, _SENSOR)  # which may raise
            state.node = next_sequence()
            context = state.context = describe(state, name, named, frame, args, _SENSOR, allowed)
            if slot is not None:
                waits, driver_ns = slot[NAMED_WAITS], slot[NAMED_NS]
                slot[NAMED] = 1
            started = _now()
            result = call(below, *args, **kwargs)
            returned = _now()
            state.op = None
            if slot is not None:
                slot[NAMED] = 0
            if state.awaited is not None:
                recorder.node_was_made(state)
        except BaseException as error:  # where the op raised, it has waited, unless a graph capture refused it
            state.op = state.node = state.awaited = None
            if slot is not None:
                slot[NAMED] = 0
            if started and not is_refused() and not (above_autograd and is_early(error, state)):
                now = _now()
                stall_ns = now - started if slot is None else in_driver(slot, waits, driver_ns, now - started, args)
                settle(state, context, named, started, stall_ns, now)
            raise
        whole_ns, inside_ns = returned - started, state.stall_ns
        if slot is not None:
            stall_ns = in_driver(slot, waits, driver_ns, whole_ns, args)
        else:  # what hooked ops inside have timed is closer to the wait, unless the wait was elsewhere
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

    def is_early(error: BaseException, state: ThreadState) -> bool:
        """May autograd have refused this call before it reached a backend?  Then it has not waited."""
        return not state.stall_ns and not type(error).__name__.endswith("LinAlgError")  # which says what was read back

    def inside(state: ThreadState, kind: SyncKind, frame: FrameType | None, below: Any, args: Any, kwargs: Any) -> Any:
        """Run an op that waits inside another one, which names the sync."""
        if state.outer is not None and state.context is None:
            state.context = _describe_outer(recorder, state, kind, frame, judged=True)  # which may raise
        inside_ns = state.stall_ns
        slot = state.slot
        waits = driver_ns = around = 0
        if slot is not None:
            waits, driver_ns, around = slot[NAMED_WAITS], slot[NAMED_NS], slot[NAMED]
            slot[NAMED] = 1
        started = _now()
        try:
            return call(below, *args, **kwargs)
        finally:
            whole_ns = _now() - started
            if state.kind is None:
                state.kind, state.start_ns = kind, started
            inside_ns, state.stall_ns = state.stall_ns - inside_ns, inside_ns
            if slot is not None:
                slot[NAMED] = around
                state.stall_ns += in_driver(slot, waits, driver_ns, whole_ns, args)
            else:
                state.stall_ns += inside_ns if 2 * inside_ns >= whole_ns else waited_ns(whole_ns, args)

    def not_proven(state: ThreadState, below: Any, args: Any, kwargs: Any) -> Any:
        """Run an outermost op whose arguments alone do not prove that it waits."""
        raised = True
        slot = state.slot
        number = slot[NUMBER] if slot is not None else 0
        unnamed_ns = slot[UNNAMED_NS] if slot is not None else 0
        started = _now()
        try:
            state.kind = state.context = None
            state.op, state.outer = name, (rule, args, kwargs, next_sequence())
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
                if slot is not None and slot[NUMBER] != number and kind is not None:
                    state.stall_ns = slot[UNNAMED_NS] - unnamed_ns
                    recorder.waits.note(state.slot_number, slot[NUMBER], started, None)  # recorded here
            elif raised and is_refused():
                kind = None
            if kind is not None:
                context = state.context or _describe_outer(recorder, state, kind, _caller(3), judged=False)
                state.op = None
                if state.awaited is not None:
                    recorder.node_was_made(state)
                seen = settle(
                    state, context, state.named, state.start_ns, state.stall_ns, returned, conditional=is_late
                )
                if context.allowed is not None:
                    recorder.tally(state, seen, _caller(3))
            elif slot is not None and slot[UNNAMED_NS] - unnamed_ns >= THRESHOLD_NS and not raised:
                recorder.note_waits(state, name, started, _caller(3))
            state.op = state.outer = state.node = state.awaited = None

    def is_other(tally: Tally, state: ThreadState) -> bool:
        """Do other regions cover this sync than those that were summed, of other threads or of a backward pass?"""
        return tally.last is None or tally.last.regions != recorder.in_force(state)[0]

    def summed(tally: Tally, state: ThreadState, below: Any, args: Any, kwargs: Any) -> Any:
        """Run an allowed op of a known line: it is only added to the line's sums."""
        slot = state.slot
        waits = driver_ns = 0
        if slot is not None:
            waits, driver_ns = slot[NAMED_WAITS], slot[NAMED_NS]
        started = _now()
        try:
            state.op = name
            if slot is not None:
                slot[NAMED] = 1
            result = call(below, *args, **kwargs)
        finally:
            state.op = None
            if slot is not None:
                slot[NAMED] = 0
        whole_ns = _now() - started
        stall_ns = waited_ns(whole_ns, args) if slot is None else in_driver(slot, waits, driver_ns, whole_ns, args)
        tally.count += 1
        tally.stall_ns += stall_ns
        tally.max_ns = max(tally.max_ns, stall_ns)
        return result

    return watch


def _describe_outer(
    recorder: Recorder, state: ThreadState, kind: SyncKind, frame: FrameType | None, *, judged: bool
) -> SyncContext:
    """Describe the outermost op for a wait that an op inside has proven; ``judged``: the policy can still be asked."""
    rule, args, kwargs, state.node = state.outer
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


def _unknown() -> None:
    """Stand for the number of a node that is made already."""


def _of_data(proves: Waits) -> Waits:
    def real(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
        fake = args and (_is_fake(args[0]) or (len(args) > 1 and _is_fake(args[1])))
        return None if fake else proves(args, kwargs)

    return real


def _is_fake(value: Any) -> bool:
    """Has this tensor no data: is it fake, or does it stand for a fake one while a program is exported?"""
    return hasattr(value, "fake_mode") or hasattr(getattr(value, "elem", None), "fake_mode")
