"""``torch.cuda.FloatTensor`` and its kind: types as old programs name them, to make tensors and to ask what one is."""

from __future__ import annotations

import functools
from typing import Any

import torch

from syncagent.simulate import devices, patches
from syncagent.simulate.tensor import SimulatedTensor

_DTYPES = {
    "Bool": torch.bool, "Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16, "Int": torch.int32,
    "Long": torch.int64, "Half": torch.float16, "BFloat16": torch.bfloat16, "Float": torch.float32,
    "Double": torch.float64,
}  # fmt: skip


class TensorType(type):
    """The class of these types: a call makes a tensor, and ``isinstance`` asks for device and ``dtype``."""

    dtype: torch.dtype
    is_cuda = True
    is_sparse = False
    layout = torch.strided

    def __call__(cls, *args: Any, device: Any = None) -> torch.Tensor:
        """Make a tensor of sizes, of numbers, or over a tensor's memory, as torch's own types do."""
        device = "cuda" if device is None else device
        if len(args) != 1 or isinstance(args[0], (int, torch.Size)):
            sizes = args[0] if len(args) == 1 and isinstance(args[0], torch.Size) else args
            return torch.empty(tuple(sizes) or (0,), dtype=cls.dtype, device=device)
        if isinstance(args[0], torch.Tensor):
            if not cls.__instancecheck__(args[0]):
                raise TypeError(f"expected {cls.__module__}.{cls.__name__} (got {args[0].type()})")
            return args[0].detach()
        return torch.tensor(args[0], dtype=cls.dtype, device=device)

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, SimulatedTensor) and value.dtype == cls.dtype


def _made(kind: str, dtype: torch.dtype) -> TensorType:
    made = TensorType(f"{kind}Tensor", (), {"__module__": "torch.cuda", "dtype": dtype})
    made.__qualname__ = made.__name__
    return made


TYPES = {f"{kind}Tensor": _made(kind, dtype) for kind, dtype in _DTYPES.items()}


def install() -> None:
    """Replace the types in ``torch.cuda``, and what takes one of them as the default."""
    for name, made in TYPES.items():
        patches.put(torch.cuda, name, made)
    original = torch.set_default_tensor_type
    has_device: list[bool] = []  # whether the default device is ours to take back

    def take_back() -> None:
        if has_device:
            torch.set_default_device(None)
            has_device.clear()

    def set_default_tensor_type(t: Any, /) -> None:
        name = t if isinstance(t, str) else ""
        kind = TYPES.get(name.removeprefix("torch.cuda.")) if name.startswith("torch.cuda.") else t
        if isinstance(kind, TensorType) and devices.count():
            torch.set_default_dtype(kind.dtype)
            torch.set_default_device("cuda")
            has_device[:] = [True]
            return
        take_back()
        original(t)

    patches.also(lambda: None, take_back)
    # No mode may be asked for it: a default device is one, which has left the stack while it is asked.
    patches.put(torch, "set_default_tensor_type", functools.update_wrapper(set_default_tensor_type, original))
