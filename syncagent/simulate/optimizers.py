"""Optimizers: the foreach and fused forms are chosen by the exact type of the parameters, and group them by device."""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

from syncagent.simulate import devices
from syncagent.simulate.tensor import SimulatedTensor

__all__ = ["install"]


def install() -> None:
    """Let optimizers treat simulated parameters as CUDA ones."""
    foreach: Any = importlib.import_module("torch.utils._foreach_utils")
    for module in (importlib.import_module("torch.optim.optimizer"), foreach):
        module._foreach_supported_types.append(SimulatedTensor)
    original = foreach._group_tensors_by_device_and_dtype

    @functools.wraps(original)
    def group(*args: Any, **kwargs: Any) -> Any:
        groups = original(*args, **kwargs)
        return {(_shown(device), dtype): members for (device, dtype), members in groups.items()}

    # Modules have taken the function by name.
    for name, module in list(sys.modules.items()):
        if name.startswith("torch.") and vars(module).get("_group_tensors_by_device_and_dtype") is original:
            module._group_tensors_by_device_and_dtype = group  # type: ignore[attr-defined]


def _shown(device: Any) -> Any:
    if device is not None and device.type == devices.STAND_IN:
        return devices.shown(device.index or 0)
    return device
