"""``Module.to``: parameters keep their identity when they move, so that an optimizer made before still trains them."""

from __future__ import annotations

from typing import Any

import torch

from syncagent.simulate.tensor import SimulatedTensor

__all__ = ["install"]


def install() -> None:
    """Let a module set ``parameter.data`` across devices, as it does between CPU and CUDA; see ``tensor.set_data``."""
    original = torch._has_compatible_shallow_copy_type

    def has_compatible_type(tensor: Any, data: Any) -> bool:
        if isinstance(tensor, SimulatedTensor) or isinstance(data, SimulatedTensor):
            return tensor.layout == data.layout and not (tensor.is_meta or data.is_meta)
        return bool(original(tensor, data))

    torch._has_compatible_shallow_copy_type = has_compatible_type
