"""TorchFunctionMode and TorchDispatchMode around every op: the API call by name, each op counted and timed on the host.

Modes belong to a thread.  They are entered on the thread that starts the agent; autograd's threads inherit the dispatch
mode from the caller of ``backward()``; the ops of other threads are seen by the kernels alone.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from syncagent.native import UNNAMED_NS
from syncagent.recording.records import OpSum
from syncagent.recording.waits import THRESHOLD_NS
from syncagent.sensors.base import Sensor
from syncagent.torchbridge import modes
from syncagent.torchbridge.frames import StandIns, leave_out_own_frames
from syncagent.torchbridge.internals import op_name, skip_in_dynamo
from syncagent.torchbridge.patches import Patches
from syncagent.torchbridge.switch import SWITCHED_KEY

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from syncagent.attribution.callsite import Point
    from syncagent.recording.recorder import Recorder
    from syncagent.recording.records import ThreadState
    from syncagent.sensors.base import Conditions

_now = time.perf_counter_ns


class ModeSensor(Sensor):
    """Wraps every op of the thread that starts it: of every step, or of those that are sampled."""

    name = "modes"
    starts_on_thread = True
    cannot_see = "ops of threads other than the one that started the agent, and ops inside compiled code"

    def __init__(self, recorder: Recorder, conditions: Conditions) -> None:
        super().__init__(recorder, conditions)
        self._entered: list[tuple[modes.ModeStack, Any]] = []
        self._thread = threading.local()
        self._on: list[bool] = []
        self._made: tuple[Any, Any] | None = None
        self._fast_paths: modes.FastPaths | None = None
        self._is_on = False
        self._lost = 0
        self._tracing = Patches()
        self._backward = Patches()
        self.explains: Callable[[], str] = str
        """What a report says of which steps' ops are wrapped."""

    @classmethod
    def is_listed(cls, conditions: Conditions) -> bool:  # noqa: ARG003 - always listed
        return True

    @classmethod
    def is_wanted(cls, conditions: Conditions) -> bool:
        return conditions.every_op or conditions.some_steps

    @property
    def live(self) -> bool:
        return self._is_on

    @property
    def detail(self) -> str:
        if self._conditions.some_steps:
            return self.explains()
        return "" if self._conditions.every_op else 'off: detail is "syncs"'

    @property
    def notes(self) -> list[str]:
        lost = "the modes were not found where they had been entered, and do nothing there any more"
        return [lost] if self._lost else []

    @classmethod
    def footprint(cls) -> dict[str, object]:
        return modes.footprint()

    def start(self) -> None:
        """Enter both modes on this thread, unless a sampled step is to do that."""
        self._tracing = modes.wrap_recorders(functools.partial(self._without, 0))
        if self._conditions.some_steps:
            self._backward = modes.wrap_backward(functools.partial(self._without, 1))
        else:
            self.enter()
        self._is_on = True

    def enter(self) -> None:
        """Enter both modes on this thread; the one that has entered them has to leave them."""
        if self._entered:
            if self.can_leave:
                return
            self.leave()
        if self._made is None:
            self._on = []
            self._made = _modes(self._recorder, self._on, SWITCHED_KEY if self._conditions.some_steps else None)
            self._fast_paths = modes.FastPaths(self._made[0]) if self._conditions.some_steps else None
        self._on.append(True)
        if self._fast_paths is not None:
            self._fast_paths.keep()
        for stack, mode in zip((modes.function_stack(), modes.dispatch_stack()), self._made, strict=True):
            stack.put_below(mode)
            self._entered.append((stack, mode))
        if not hasattr(self._thread, "end") and threading.current_thread() is not threading.main_thread():
            self._thread.end = _AtItsEnd(self._thread_ends)

    def leave(self) -> None:
        """Leave both modes, wherever in this thread's stacks they stand by now.

        On another thread than the one that entered them they cannot be taken out, nor where torch or the program has
        taken one out for a while: they stay, and do nothing, and other ones are made when they are to be entered again.
        """
        self._on.clear()
        if self._fast_paths is not None:
            self._fast_paths.let_go()
        while self._entered:
            stack, mode = self._entered.pop()
            if not stack.remove(mode):
                self._made = None
                self._lost += 1

    def _thread_ends(self) -> None:
        """Leave what this thread has entered: torch would take it out when the thread can run no Python any more."""
        if self._entered and self.can_leave:
            self._recorder.faults.guard(self.part, self.leave, None)

    @property
    def can_leave(self) -> bool:
        """Whether both are where they were put, or are not entered."""
        return all(stack.holds(mode) for stack, mode in self._entered)

    def _without(self, which: int, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a function with one of the modes taken out, if they are entered."""
        if not self._on or self._made is None:
            return function(*args, **kwargs)
        stack = (modes.function_stack, modes.dispatch_stack)[which]()
        return stack.call_without(self._made[which], self._on, function, args, kwargs)

    def stop(self) -> None:
        """Leave both modes and undo the rest; the program's own patch may call what is wrapped beyond this end."""
        lost = self._lost
        self.leave()
        self._lost, self._is_on = lost, False  # after the end they are in nobody's way
        self._tracing.restore()
        self._backward.restore()


class _AtItsEnd:
    """Kept in a ``threading.local``, calls something when its thread ends, on that thread."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def __del__(self) -> None:
        self._call()


def _modes(  # noqa: PLR0915 - two modes over one set of names
    recorder: Recorder, on: list[bool], reopened: str | None
) -> tuple[Any, Any]:
    import torch
    from torch.compiler import is_dynamo_compiling  # a constant, which torch.compile knows
    from torch.overrides import TorchFunctionMode

    local = recorder.threads.local
    innermost = recorder.locator.sites.innermost
    internals, node_line = recorder.locator.internals, recorder.locator.node_line
    graph_task, next_sequence, grad_enabled = internals.graph_task, internals.next_sequence, internals.grad_enabled
    nothing: dict[str, Any] = {}
    unknown: Point = (_modes.__code__, -1)
    stand_ins = StandIns()
    # Functions of torch that are written in Python are called through this one, a second time.
    by_python = torch.overrides.handle_torch_function.__code__
    # Where any dispatch mode is active, ctc_loss takes an overload that refuses lengths on the host (torch 2.11, 2.13).
    apart: tuple[Any, ...] = tuple(getattr(place, "ctc_loss", unknown) for place in (torch, torch.nn.functional))

    class ApiMode(TorchFunctionMode):
        """Knows what Python called.  It holds no state: torch.compile guards on a mode's attributes."""

        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            if is_dynamo_compiling() or not on:
                return func(*args, **(kwargs or nothing))
            try:
                state: ThreadState = local.state
            except AttributeError:
                state = recorder.threads.current()
            if state.api is not None:
                return func(*args, **(kwargs or nothing))
            frame: Any = sys._getframe(1)
            if frame.f_code is by_python:
                frame = frame.f_back.f_back
            try:
                call = stand_ins[id(frame.f_code), frame.f_lasti]
            except KeyError:
                call = stand_ins.of(frame)
            state.api = func
            state.api_point = unknown
            try:
                if func is apart[0] or func is apart[1]:
                    return modes.dispatch_stack().call_without(below, on, func, args, kwargs or nothing)
                return call(func, args, kwargs or nothing)
            except BaseException as error:
                leave_out_own_frames(error)
                raise
            finally:
                state.api = None

    def count(func: Any, host_ns: int, returned: int, frame: FrameType | None) -> None:
        """Add one call to the sums of this thread; ``frame`` called the op, none does on a thread of autograd's."""
        try:
            state: ThreadState = local.state
        except AttributeError:
            state = recorder.threads.current()
        slot = state.slot
        if slot is not None and slot[UNNAMED_NS] != state.waited_ns:
            state.waited_ns = slot[UNNAMED_NS]
            if host_ns >= THRESHOLD_NS and state.op is None:  # perhaps in this op, and no kernel knows why
                recorder.note_waits(state, op_name(func), returned - host_ns, frame)
        task = graph_task()
        backward = task != -1
        inside = state.api is not None and not backward  # all ops of one API call are of one line
        point: Point | None = state.api_point if inside else unknown
        if point is unknown:
            point = innermost(frame) if frame is not None else None
            if inside:
                state.api_point = point
        if backward and point is None:
            point = node_line(state, task)
        key = (id(func), id(point[0]), point[1], backward) if point is not None else (id(func), 0, 0, backward)
        try:
            entry = state.ops[key]
        except KeyError:
            entry = state.ops[key] = OpSum(func, point)
        entry.count += 1
        entry.host_ns += host_ns
        if not backward and grad_enabled():
            sequence = next_sequence()
            if sequence != state.last_sequence:  # the op made an autograd node
                state.last_sequence = sequence
                if point is not None:
                    state.forwards.remember_if_new(sequence - 1, entry.where)
        if not entry.count % 16:  # one look at the clock in sixteen ops
            state.own_ns += 16 * (_now() - returned)

    skip_in_dynamo(ApiMode.__torch_function__)
    below = modes.op_mode(on, count, lambda error: recorder.fault("counting ops", error, "failed and is off"), reopened)
    return ApiMode(), below
