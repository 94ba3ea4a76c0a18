"""A ``TorchDispatchMode`` that has each op counted and timed on the host, and changes nothing else about it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from syncagent.torchbridge.internals import skip_in_dynamo
from syncagent.torchbridge.numbers import restored
from syncagent.torchbridge.stand_ins import StandIns, ops_warn_at_once
from syncagent.torchbridge.tracebacks import leave_out_own_frames

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    Count = Callable[[Any, int, int, FrameType | None], None]

__all__ = ["op_mode"]

_now = time.perf_counter_ns


def op_mode(on: list[bool], count: Count, failed: Callable[[Exception], None]) -> Any:
    """Make the mode, which works while ``on`` holds anything.

    ``count(func, host_ns, returned, frame)`` is told of each op, how long it took and when it returned (both by
    ``perf_counter_ns``), and the frame that called it: none does on a thread of autograd's.  What it raises turns the
    mode off and goes to ``failed``.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    nothing: dict[str, Any] = {}
    overload: Any = getattr(getattr(torch, "_ops", None), "OpOverload", None)  # whose own __call__ is one more frame
    overload = overload if hasattr(torch.ops.aten.add.Tensor, "_op") else None
    can_skip = skip_in_dynamo(op_mode)
    stand_ins, warn_at_once = StandIns(), ops_warn_at_once()

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
                    failed(error)

    if can_skip:
        skip_in_dynamo(OpMode.__torch_dispatch__)
    return OpMode()  # type: ignore[no-untyped-call]
