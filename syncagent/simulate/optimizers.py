"""Optimizers: the foreach and fused forms are chosen by the exact type of the parameters, and group them by device."""

from __future__ import annotations

import functools
import sys
from typing import Any

from syncagent.simulate import devices, patches
from syncagent.simulate.lookups import find
from syncagent.simulate.tensor import SimulatedTensor

__all__ = ["install"]


def install() -> None:
    """Let optimizers treat simulated parameters as CUDA ones."""
    for path in ("optim.optimizer._foreach_supported_types", "utils._foreach_utils._foreach_supported_types"):
        types = find(path)
        if types is not None:
            patches.also(functools.partial(types.append, SimulatedTensor), functools.partial(_remove, types))
    original: Any = find("utils._foreach_utils._group_tensors_by_device_and_dtype")
    if original is None:
        return

    @functools.wraps(original)
    def group(*args: Any, **kwargs: Any) -> Any:
        groups = original(*args, **kwargs)
        return {(_shown(device), dtype): members for (device, dtype), members in groups.items()}

    # Modules have taken the function by name.
    for name, module in list(sys.modules.items()):
        if name.startswith("torch.") and vars(module).get("_group_tensors_by_device_and_dtype") is original:
            patches.put(module, "_group_tensors_by_device_and_dtype", group)


def _remove(types: list[Any]) -> None:
    if SimulatedTensor in types:
        types.remove(SimulatedTensor)


def _shown(device: Any) -> Any:
    if device is not None and device.type == devices.STAND_IN:
        return devices.shown(device.index or 0)
    return device
