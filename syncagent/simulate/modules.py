"""``Module.to``: parameters keep their identity when they move, so that an optimizer made before still trains them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from syncagent.simulate import patches
from syncagent.simulate.tensor import SimulatedTensor, set_data

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["install"]


class _Moving:
    """What a module applies to its tensors; a parameter that changes between host and device is moved in its place.

    torch would put a new parameter there, because the two are of different classes.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(self, tensor: Any) -> Any:
        result = self._function(tensor)
        crosses = isinstance(result, SimulatedTensor) != isinstance(tensor, SimulatedTensor)
        if crosses and isinstance(tensor, torch.nn.Parameter) and not result.is_meta and not tensor.is_meta:
            set_data(tensor, result)
            return tensor
        return result


def install() -> None:
    """Wrap ``Module._apply``, through which every move of a module goes."""
    original: Any = torch.nn.Module._apply

    @functools.wraps(original)
    def apply(self: Any, fn: Any, recurse: bool = True) -> Any:
        return original(self, fn if isinstance(fn, _Moving) else _Moving(fn), recurse)

    patches.put(torch.nn.Module, "_apply", apply)
