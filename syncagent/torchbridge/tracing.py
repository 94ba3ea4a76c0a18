"""Takes the mode off while ``torch.jit.trace`` records, which names values by the variables of the innermost frames."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from syncagent.torchbridge.patches import Patches, find

if TYPE_CHECKING:
    from collections.abc import Callable

    Without = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

__all__ = ["footprint", "wrap_recorders"]

_RECORDERS = (
    ("", "_create_graph_by_tracing"),
    ("", "_create_function_from_trace"),
    ("", "_create_function_from_trace_with_dict"),
    ("ScriptModule", "_create_method_from_trace"),
    ("ScriptModule", "_create_method_from_trace_with_dict"),
)
"""Where in ``torch._C`` the functions are that run a program and record it."""


def wrap_recorders(without: Without) -> Patches:
    """Wrap them, so that ``without`` runs the call; a torch that lacks one records under the mode."""
    import torch

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def record(*args: Any, **kwargs: Any) -> Any:
            return without(original, args, kwargs)

        return record

    patches = Patches()
    for place, name in _RECORDERS:
        patches.wrap(find(torch._C, place), name, wrapped)
    return patches


def footprint() -> dict[str, object]:
    """Return what it changes, as it is now."""
    import torch

    return {"what torch.jit.trace records with": getattr(torch._C, "_create_graph_by_tracing", None)}
