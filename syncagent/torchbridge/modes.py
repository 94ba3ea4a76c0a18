"""torch's modes: where one goes in and comes out without disturbing others, and one that has each op counted."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from syncagent.torchbridge.frames import StandIns, is_agents, leave_out_own_frames, ops_warn_at_once
from syncagent.torchbridge.internals import skip_in_dynamo
from syncagent.torchbridge.numbers import restored
from syncagent.torchbridge.patches import Patch, Patches, find

Call = Callable[..., Any]
Count = Callable[[Any, int, int, FrameType | None], None]
Without = Callable[[Call, tuple[Any, ...], dict[str, Any]], Any]

_now = time.perf_counter_ns
_ENGINE = "_engine_run_backward"
_ASKED = "has_torch_function"
_RECORDERS = (
    ("", "_create_graph_by_tracing"),
    ("", "_create_function_from_trace"),
    ("", "_create_function_from_trace_with_dict"),
    ("ScriptModule", "_create_method_from_trace"),
    ("ScriptModule", "_create_method_from_trace_with_dict"),
)
"""Where in ``torch._C`` the functions are that run a program and record it."""


class ModeStack:
    """One of the two, of the thread that asks."""

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

    def holds(self, mode: Any) -> bool:
        """Whether the mode is in this thread's stack."""
        above = [self._pop() for _ in range(self._length())]
        for other in reversed(above):
            self.push(other)
        return any(other is mode for other in above)

    def remove(self, mode: Any) -> bool:
        """Remove one mode from wherever it is, keeping the order of the others; was it there?"""
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

    def call_without(self, mode: Any, on: Sequence[bool], function: Call, args: Any, kwargs: Any) -> Any:
        """Call a function with the mode taken out, and put it back unless ``on`` is empty by then."""
        was_there = self.remove(mode)
        try:
            return function(*args, **kwargs)
        finally:
            if on and was_there:
                self.put_below(mode)


def function_stack() -> ModeStack:
    from torch import _C
    from torch.overrides import _pop_mode, _push_mode

    return ModeStack(_push_mode, _pop_mode, _C._len_torch_function_stack)


def dispatch_stack() -> ModeStack:
    from torch import _C
    from torch.utils._python_dispatch import _pop_mode, _push_mode

    return ModeStack(_push_mode, _pop_mode, _C._len_torch_dispatch_stack)


def none_active() -> bool:
    """Whether no mode at all is active on this thread."""
    from torch import _C

    return not _C._len_torch_function_stack() and not _C._len_torch_dispatch_stack()


def wrap_backward(without: Without) -> Patches:
    """Have ``without`` run the autograd engine: under a dispatch mode some formulas (prod, cumprod) take other paths.

    They round differently, so that a step under the mode would not leave the weights that one without it leaves.
    """
    import torch

    def wrapped(original: Call) -> Call:
        @functools.wraps(original)
        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                return without(original, args, kwargs)
            except BaseException as error:
                leave_out_own_frames(error)
                raise

        skip_in_dynamo(run)
        return run

    patches = Patches()
    patches.wrap(torch.autograd, _ENGINE, wrapped)
    return patches


class FastPaths:
    """Hides one function mode from what decides whether attention takes its fast path in evaluation.

    ``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer`` ask ``torch.overrides.has_torch_function``, which says
    yes to anything under a mode; the other path rounds differently.
    """

    def __init__(self, mode: Any) -> None:
        import torch

        asked = _asked_instead()
        self._hidden = mode
        self._patch = None if asked is None else Patch(torch.overrides, _ASKED, asked)

    def keep(self) -> None:
        """From now on, until :meth:`let_go`; other threads are told what they would be told without."""
        if self._patch is not None:
            _hidden.append(self._hidden)
            self._patch.apply()

    def let_go(self) -> None:
        if self._patch is not None and self._hidden in _hidden:
            _hidden.remove(self._hidden)
            self._patch.restore()


_hidden: list[Any] = []


@functools.cache
def _asked_instead() -> Any:
    """Make what is asked instead, once in a process: TorchScript knows such functions by their identity."""
    import torch

    original = getattr(torch.overrides, _ASKED, None)
    make_known = find(torch, "jit._builtins._register_builtin")
    if original is None or make_known is None:
        return None

    def has_torch_function(relevant_args: Any) -> bool:
        stack, mode = function_stack(), _hidden[-1] if _hidden else None
        was_there = stack.remove(mode)
        try:
            return bool(original(relevant_args))
        finally:
            if was_there:
                stack.put_below(mode)

    make_known(has_torch_function, f"aten::{_ASKED}")
    return has_torch_function


def op_mode(on: list[bool], count: Count, failed: Callable[[Exception], None], reopened: str | None = None) -> Any:
    """Make the mode, which works while ``on`` holds anything.

    torch keeps keys above the modes off while a mode runs; the key ``reopened``, if given, is at work in the op all the
    same: what stands on it sees the ops inside.

    ``count(func, host_ns, returned, frame)`` is called after each op: how long the op took, when it returned (both by
    ``perf_counter_ns``) and the frame that called it (``None`` on autograd's threads).  An exception in it turns the
    mode off and is passed to ``failed``.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    nothing: dict[str, Any] = {}
    overload: Any = getattr(getattr(torch, "_ops", None), "OpOverload", None)  # its own __call__ is one more frame
    overload = overload if hasattr(torch.ops.aten.add.Tensor, "_op") else None
    can_skip = skip_in_dynamo(op_mode)
    stand_ins, warn_at_once = StandIns(), ops_warn_at_once()
    is_shut: Any = getattr(torch._C, "_dispatch_tls_is_dispatch_key_excluded", lambda _: False)
    shut: Any = getattr(torch._C, "_dispatch_tls_set_dispatch_key_excluded", None)

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
            reopens = reopened is not None and is_shut(reopened)
            started = _now()
            try:
                if reopens:
                    shut(reopened, False)
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
                if reopens:
                    shut(reopened, True)
                try:
                    count(func, returned - started, returned, sys._getframe().f_back)
                except Exception as error:
                    on.clear()
                    failed(error)

    if can_skip:
        skip_in_dynamo(OpMode.__torch_dispatch__)
    return OpMode()  # type: ignore[no-untyped-call]  # torch's __init__


_ASKS_FOR_MODES = (
    "handle_torch_function", "has_torch_function", "_is_torch_function_mode", "_pop_mode", "_push_mode",
    "_pop_torch_", "_push_on_torch_", "_len_torch_", "_get_current_function_mode", "_get_current_dispatch_mode",
)  # fmt: skip


def acts_on_modes(frame: FrameType | None) -> bool:
    """Whether what a call between two instructions has interrupted may have asked for the modes that are on.

    It acts on the answer next: torch's Python functions ask whether there is one, and then take the innermost from its
    stack.  Where there is none any more, that fails in the program.
    """
    while frame is not None and is_agents(frame.f_code):
        frame = frame.f_back
    if frame is None:
        return False
    code = frame.f_code
    is_entering = code.co_filename.endswith("contextlib.py")  # the way into and out of what takes a mode out
    return is_entering or any(name.startswith(_ASKS_FOR_MODES) for name in code.co_names)


def wrap_recorders(without: Without) -> Patches:
    """Have ``without`` run what records a program: a trace names values by the variables of the innermost frames.

    A torch that lacks one of the functions records under the mode.
    """
    import torch

    def wrapped(original: Call) -> Call:
        @functools.wraps(original)
        def record(*args: Any, **kwargs: Any) -> Any:
            try:
                return without(original, args, kwargs)
            except BaseException as error:
                leave_out_own_frames(error)
                raise

        return record

    patches = Patches()
    for place, name in _RECORDERS:
        patches.wrap(find(torch._C, place), name, wrapped)
    return patches


def footprint() -> dict[str, object]:
    """Return what all this changes on this thread, as it is now."""
    import torch
    from torch import _C

    return {
        "what torch.jit.trace records with": getattr(_C, "_create_graph_by_tracing", None),
        "function modes": _C._len_torch_function_stack(),
        "dispatch modes": _C._len_torch_dispatch_stack(),
        "what runs the backward pass": find(torch.autograd, _ENGINE),
        "what attention asks": find(torch.overrides, _ASKED),
    }
