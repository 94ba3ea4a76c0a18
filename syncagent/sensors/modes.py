"""TorchFunctionMode and TorchDispatchMode around every op: the API call by name, each op counted and timed on the host.

Modes belong to a thread.  They are entered on the thread that starts the agent; autograd's threads inherit the dispatch
mode from the caller of ``backward()``; what other threads do is left to the kernels below.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from syncagent.recording.records import OpSum
from syncagent.torchbridge.internals import skip_in_dynamo
from syncagent.torchbridge.numbers import restored
from syncagent.torchbridge.stand_ins import StandIns, ops_warn_at_once
from syncagent.torchbridge.tracebacks import leave_out_own_frames
from syncagent.torchbridge.tracing import Tracing

if TYPE_CHECKING:
    from types import FrameType

    from syncagent.attribution.callsite import Point
    from syncagent.recording.recorder import Recorder
    from syncagent.recording.records import ThreadState

__all__ = ["ModeSensor"]

_now = time.perf_counter_ns


class ModeSensor:
    """Wraps every op of the thread that starts it."""

    name = "modes"
    cannot_see = "ops of threads other than the one that started the agent, and ops inside compiled code"

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._entered: list[tuple[_Stack, Any]] = []
        self._on: list[bool] = []
        self._tracing: Tracing | None = None

    @property
    def live(self) -> bool:
        return bool(self._entered)

    def start(self) -> None:
        """Enter both modes on this thread."""
        self._on = [True]
        api_mode, op_mode = _modes(self._recorder, self._on)
        for stack, mode in ((_function_stack(), api_mode), (_dispatch_stack(), op_mode)):
            stack.put_below(mode)
            self._entered.append((stack, mode))
        on = self._on

        def without_api_mode(function: Any, args: Any, kwargs: Any) -> Any:
            stack = _function_stack()
            was_there = stack.remove(api_mode)
            try:
                return function(*args, **kwargs)
            finally:
                if on and was_there:
                    stack.put_below(api_mode)

        self._tracing = Tracing(without_api_mode)
        self._tracing.start()

    def stop(self) -> None:
        """Leave both modes, wherever in this thread's stacks they stand by now.

        On another thread than the one that entered them they cannot be taken out; they stay, and do nothing.
        """
        self._on.clear()
        if self._tracing is not None:
            self._tracing.stop()
        while self._entered:
            stack, mode = self._entered.pop()
            stack.remove(mode)


def _modes(recorder: Recorder, on: list[bool]) -> tuple[Any, Any]:  # noqa: PLR0915 - two classes over one set of names
    import torch
    from torch.compiler import is_dynamo_compiling  # a constant, which torch.compile knows
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    local = recorder.threads.local
    innermost = recorder.locator.sites.innermost
    internals, node_line = recorder.locator.internals, recorder.locator.node_line
    graph_task, next_sequence, grad_enabled = internals.graph_task, internals.next_sequence, internals.grad_enabled
    nothing: dict[str, Any] = {}
    overload: Any = getattr(getattr(torch, "_ops", None), "OpOverload", None)  # whose own __call__ is one more frame
    overload = overload if hasattr(torch.ops.aten.add.Tensor, "_op") else None
    unknown: Point = (_modes.__code__, -1)
    can_skip = skip_in_dynamo(_modes)
    stand_ins, warn_at_once = StandIns(), ops_warn_at_once()
    # Functions of torch that are written in Python come by way of this one, and are called a second time.
    by_python = torch.overrides.handle_torch_function.__code__
    # Where any dispatch mode is active, ctc_loss takes an overload that refuses lengths on the host (torch 2.11, 2.13).
    apart = tuple(getattr(place, "ctc_loss", unknown) for place in (torch, torch.nn.functional))

    def without_op_mode(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        stack = _dispatch_stack()
        was_there = stack.remove(op_mode)
        try:
            return func(*args, **(kwargs or nothing))
        finally:
            if on and was_there:
                stack.put_below(op_mode)

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
                    return without_op_mode(func, args, kwargs)
                return call(func, args, kwargs or nothing)
            except BaseException as error:
                leave_out_own_frames(error)
                raise
            finally:
                state.api = None

    class OpMode(TorchDispatchMode):
        """Counts and times each op on the host, by op and line."""

        @classmethod
        def ignore_compile_internals(cls) -> bool:
            """Without this, torch silently runs compiled code eagerly while the mode is on."""
            return True

        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            """Keep torch from wrapping each call; :func:`skip_in_dynamo` says the same once and for all."""
            return not can_skip

        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            if not on:
                return func(*args, **(kwargs or nothing))
            started = _now()
            try:
                call = func._op if type(func) is overload else func  # what an overload's own __call__ comes down to
                if warn_at_once:
                    return stand_ins.call(call, args, kwargs or nothing)
                return call(*args, **kwargs) if kwargs else call(*args)
            except BaseException as error:
                again = restored(func, args, kwargs, error)
                if again is None:
                    leave_out_own_frames(error)
                    raise
                return call(*again[0], **again[1])
            finally:
                returned = _now()
                try:
                    count(func, returned - started, returned, sys._getframe().f_back)
                except Exception as error:
                    on.clear()
                    recorder.fault("counting ops", error, "failed and is off")

    def count(func: Any, host_ns: int, returned: int, frame: FrameType | None) -> None:
        """Add one call to the sums of this thread; ``frame`` called the op, none does on a thread of autograd's."""
        try:
            state: ThreadState = local.state
        except AttributeError:
            state = recorder.threads.current()
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

    if can_skip:
        skip_in_dynamo(OpMode.__torch_dispatch__)
        skip_in_dynamo(ApiMode.__torch_function__)
    op_mode = OpMode()  # type: ignore[no-untyped-call]
    return ApiMode(), op_mode


class _Stack:
    """One of torch's two stacks of modes of this thread."""

    def __init__(self, push: Any, pop: Any, length: Any) -> None:
        self.push, self._pop, self._length = push, pop, length

    def put_below(self, mode: Any) -> None:
        """Put a mode below those that are open.

        Theirs end by popping the top, whatever stands there; that of ``torch.set_default_device`` alone insists on the
        very bottom.
        """
        import torch

        default_device = getattr(getattr(torch, "_GLOBAL_DEVICE_CONTEXT", None), "device_context", None)
        above = []
        while self._length():
            top = self._pop()
            if top is default_device:
                self.push(top)
                break
            above.append(top)
        self.push(mode)
        for other in reversed(above):
            self.push(other)

    def remove(self, mode: Any) -> bool:
        """Take one mode out from wherever it stands and leave the others in their order; was it there?"""
        above = []
        found = False
        while self._length() and not found:
            top = self._pop()
            found = top is mode
            if not found:
                above.append(top)
        for other in reversed(above):
            self.push(other)
        return found


def _function_stack() -> _Stack:
    from torch import _C
    from torch.overrides import _pop_mode, _push_mode

    return _Stack(_push_mode, _pop_mode, _C._len_torch_function_stack)


def _dispatch_stack() -> _Stack:
    from torch import _C
    from torch.utils._python_dispatch import _pop_mode, _push_mode

    return _Stack(_push_mode, _pop_mode, _C._len_torch_dispatch_stack)


def none_active() -> bool:
    """Whether no mode of anybody's is active on this thread."""
    from torch import _C

    return not _C._len_torch_function_stack() and not _C._len_torch_dispatch_stack()
