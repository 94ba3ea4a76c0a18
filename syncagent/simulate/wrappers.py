"""Tensors that only hold other ones and run their ops themselves, with a ``__torch_dispatch__`` of their own.

torch makes them without data on any device that it is told.  On ``cuda`` itself autograd would ask CUDA's runtime for a
stream, which ends the process where there is no driver.  So they are on the stand-in device in C++, as every simulated
tensor, and their classes say ``cuda`` to the program.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch

from syncagent.errors import SimulationError
from syncagent.simulate import devices, patches
from syncagent.simulate.failures import for_program
from syncagent.simulate.requirements import find
from syncagent.simulate.tensor import AUTOCAST_KEYS, TensorBase

_new = TensorBase._make_wrapper_subclass
_device_of = TensorBase.device.__get__
_is_cuda = TensorBase.is_cuda.__get__
_record_stream = TensorBase.record_stream
_NAMES = (
    "size", "strides", "storage_offset", "memory_format", "dtype", "layout", "device", "pin_memory", "requires_grad",
    "dispatch_sizes_strides_policy", "dispatch_device", "dispatch_layout", "_extra_dispatch_keys",
)  # fmt: skip
"""Of the arguments after the class, in their order: torch's own classes give them by place."""


# --- what such a tensor says about itself, wherever it is -----------------------------------------------------


def _device(self: Any) -> torch.device:
    device: torch.device = _device_of(self)
    return devices.shown[device.index or 0] if device.type == devices.STAND_IN else device


def _is_on_device(self: Any) -> bool:
    return bool(_is_cuda(self)) or _device_of(self).type == devices.STAND_IN


def _record(self: Any, stream: Any) -> None:
    if _device_of(self).type != devices.STAND_IN:  # where it is, a queued kernel keeps a reference to its memory
        _record_stream(self, stream)


_SAID: dict[str, Any] = {"device": property(_device), "is_cuda": property(_is_on_device), "record_stream": _record}


def show(kind: type) -> None:
    """Let tensors of a class say ``cuda`` instead of the stand-in; what the class defines itself stays."""
    _put(kind, _SAID)


def _put(kind: type, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        if getattr(kind, name, None) is getattr(TensorBase, name):
            patches.put(kind, name, value)


# --- how they are made ----------------------------------------------------------------------------------------


def _make(cls: Any, *args: Any, **kwargs: Any) -> Any:
    """Make a tensor without data, on the stand-in device if it is to be on ``cuda``."""
    given = dict(zip(_NAMES, args, strict=False)) | kwargs
    device = devices.translate(given.get("device")) if devices.count() else None
    if not (isinstance(device, torch.device) and device.type == devices.STAND_IN):
        return _new(cls, *args, **kwargs)
    given["device"] = device
    given["dispatch_device"] = False  # else C++ would ask the class, whose answer is ``cuda``
    keys = given.get("_extra_dispatch_keys")
    given["_extra_dispatch_keys"] = AUTOCAST_KEYS if keys is None else AUTOCAST_KEYS | keys
    made = _new(cls, given.pop("size"), **given)
    show(cls)
    return made


def _show_dtensors() -> None:
    """Do the same with DTensors, which C++ makes on the device of the tensor that they hold."""
    original: Any = find("Tensor._dtensor__new__")
    module = sys.modules.get("torch.distributed.tensor")  # only if it is there: to import it takes long
    known = getattr(module, "DTensor", None)
    if known is not None:
        show(known)
        return
    if original is None:
        return

    @for_program
    @functools.wraps(original)
    def make(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(vars(cls).get("__new__"), "__func__", None) is make:
            cls.__new__ = original  # as it is without the device; this one is needed to learn of the class
        if devices.count():
            show(cls)
        return original(cls, *args, **kwargs)

    patches.put(torch.Tensor, "_dtensor__new__", staticmethod(make))


# --- those that C++ itself asks for their device, as FakeTensorMode's: autograd would ask, too --------------------


def _refuse_gradient(kind: type, device: torch.device) -> None:
    if device.type == "cuda":
        raise SimulationError(
            f"a {kind.__name__} on {device} that requires a gradient is not simulated; "
            "make it of a tensor that requires none, or of one on the CPU"
        )


def _set_requires_grad(self: Any, value: bool) -> None:
    if value:
        _refuse_gradient(type(self), self.device)
    TensorBase.requires_grad.__set__(self, value)


def _require_grad(self: Any, requires_grad: bool = True) -> Any:
    _set_requires_grad(self, requires_grad)
    return self


_GUARDED: dict[str, Any] = {
    "requires_grad": property(TensorBase.requires_grad.__get__, for_program(_set_requires_grad)),
    "requires_grad_": _require_grad,
}


def _guarded(original: Any) -> Any:
    """``Tensor._make_subclass``, with a clear error in the place of the end of the process."""

    @functools.wraps(original)
    def make(cls: Any, data: Any, require_grad: bool = False, **options: Any) -> Any:
        device = options.get("device_for_backend_keys")
        if options.get("dispatch_device") and isinstance(device, torch.device) and device.type == "cuda":
            if require_grad:
                _refuse_gradient(cls, device)
            _put(cls, _GUARDED)
        return original(cls, data, require_grad, **options)

    return make


def install() -> None:
    """Replace ``Tensor._make_wrapper_subclass``, and what makes DTensors."""
    patches.put(torch.Tensor, "_make_wrapper_subclass", staticmethod(for_program(functools.wraps(_new)(_make))))
    _show_dtensors()
    make_subclass = find("Tensor._make_subclass")
    if make_subclass is not None:
        patches.put(torch.Tensor, "_make_subclass", staticmethod(for_program(_guarded(make_subclass))))
