"""Takes the mode off while ``torch.jit.trace`` records, which names values by the variables of the innermost frames."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Tracing"]

_RECORDERS = (
    ("", "_create_graph_by_tracing"),
    ("", "_create_function_from_trace"),
    ("", "_create_function_from_trace_with_dict"),
    ("ScriptModule", "_create_method_from_trace"),
    ("ScriptModule", "_create_method_from_trace_with_dict"),
)
"""Where in ``torch._C`` the functions are that run a program and record it."""


class Tracing:
    """Wraps them, so that ``without`` runs the call; a torch that lacks one records under the mode."""

    def __init__(self, without: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]) -> None:
        self._without = without
        self._restore: list[tuple[Any, str, Any, Any]] = []

    def start(self) -> None:
        import torch

        for place, name in _RECORDERS:
            holder: Any = getattr(torch._C, place, None) if place else torch._C
            original = getattr(holder, name, None)
            if original is None:
                continue
            wrapper = self._wrapped(original)
            setattr(holder, name, wrapper)
            self._restore.append((holder, name, original, wrapper))

    def stop(self) -> None:
        while self._restore:
            holder, name, original, wrapper = self._restore.pop()
            if getattr(holder, name, None) is wrapper:
                setattr(holder, name, original)

    def _wrapped(self, original: Callable[..., Any]) -> Callable[..., Any]:
        without = self._without

        @functools.wraps(original)
        def record(*args: Any, **kwargs: Any) -> Any:
            return without(original, args, kwargs)

        return record
