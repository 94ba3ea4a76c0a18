"""What is refused by name, with a sentence, before it fails somewhere deep inside torch."""

from __future__ import annotations

import functools
import os
from typing import Any

import torch

from syncagent.simulate import devices, patches
from syncagent.simulate.errors import SimulationError
from syncagent.simulate.tensor import SimulatedTensor

__all__ = ["install"]


def _compile_is_off() -> bool:
    return any(os.environ.get(name) == "1" for name in ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE"))


def _wrap_compile(original: Any) -> Any:
    @functools.wraps(original)
    def compile(*args: Any, **kwargs: Any) -> Any:  # noqa: A001
        if kwargs.get("disable") or _compile_is_off() or not devices.count():
            return original(*args, **kwargs)
        raise SimulationError(
            "torch.compile is not simulated (it would write kernels for a GPU). Set TORCHDYNAMO_DISABLE=1 to run the "
            "program without it."
        )

    return compile


def _wrap_parallel(cls: Any, limit: int) -> None:
    original = cls.__init__

    @functools.wraps(original)
    def __init__(self: Any, module: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        on_device = any(isinstance(parameter, SimulatedTensor) for parameter in module.parameters())
        if on_device and torch.cuda.device_count() > limit:
            raise SimulationError(
                f"torch.nn.parallel.{cls.__name__}: training on several CUDA devices is not simulated"
            )
        original(self, module, *args, **kwargs)

    patches.put(cls, "__init__", __init__)


def _wrap_dlpack(original: Any) -> Any:
    def to_dlpack(tensor: Any) -> Any:
        return tensor.__dlpack__() if isinstance(tensor, SimulatedTensor) else original(tensor)

    return to_dlpack


def install() -> None:
    """Refuse torch.compile, models spread over processes or devices, and handing memory to other libraries."""
    to_dlpack = _wrap_dlpack(torch.to_dlpack)  # type: ignore[attr-defined]
    patches.put(torch.utils.dlpack, "to_dlpack", to_dlpack)
    patches.put(torch, "to_dlpack", to_dlpack)
    patches.put(torch, "compile", _wrap_compile(torch.compile))
    _wrap_parallel(torch.nn.parallel.DistributedDataParallel, 0)
    _wrap_parallel(torch.nn.DataParallel, 1)
