"""torch's two stacks of modes of a thread: where a mode goes in and comes out without disturbing the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Call = Callable[..., Any]

__all__ = ["ModeStack", "dispatch_stack", "footprint", "function_stack", "none_active"]


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
    """Whether no mode of anybody's is active on this thread."""
    from torch import _C

    return not _C._len_torch_function_stack() and not _C._len_torch_dispatch_stack()


def footprint() -> dict[str, object]:
    """Return what is on the stacks of this thread, as a number for each."""
    from torch import _C

    return {"function modes": _C._len_torch_function_stack(), "dispatch modes": _C._len_torch_dispatch_stack()}
