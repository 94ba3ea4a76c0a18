"""``device="cuda"`` in everything that makes or moves a tensor.

Two layers.  In Python the functions and methods that take a device are wrapped, and pass the stand-in's name on.  In
the dispatcher the stand-in gets kernels for the ops that make memory; everything else that torch builds on them in C++
(``zeros``, ``arange``, ``randn`` ...) follows.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import handle_torch_function

from syncagent.simulate import devices, dispatch, patches, tensor
from syncagent.simulate.errors import SimulationError
from syncagent.simulate.lookups import Absent, aten, find, lost
from syncagent.simulate.memory import Layout, contiguous_stride, is_pinned, mark_pinned
from syncagent.simulate.special import empty
from syncagent.simulate.tensor import SimulatedTensor

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["install_kernels", "wrap_functions", "wrap_methods"]

TensorBase: Any = torch._C.TensorBase
_mode_is_on = find("_C._is_torch_function_mode_enabled") or (lambda: False)


# --- the dispatcher ----------------------------------------------------------------------------------------


def _make_empty(_op: Any, size: Any, kwargs: dict[str, Any], stride: Any = None) -> Any:
    layout = kwargs.get("layout")
    if layout is not None and layout != torch.strided:
        raise SimulationError(f"tensors of layout {layout} are not simulated on CUDA")
    if kwargs.get("pin_memory"):
        raise RuntimeError("Only dense CPU tensors can be pinned")
    size = tuple(size)
    form = kwargs.get("memory_format")
    if stride is None:
        stride = contiguous_stride(size)
        if form not in {None, torch.contiguous_format, torch.preserve_format}:
            stride = torch.empty(size, device=devices.META, memory_format=form).stride()
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    return empty(Layout(size, tuple(stride), 0, dtype), devices.index_of(kwargs.get("device")))


_AS_ONE = ("silu_backward", "mish_backward")
"""Ops that CPU and CUDA have kernels of their own for; for any other device torch makes them of others."""


def install_kernels(library: Any) -> None:
    """Give the stand-in device the ops that make tensors of nothing and that torch has no general kernel for."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    general = ("CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")

    def empty_kernel(size: Any, **kwargs: Any) -> Any:
        return _make_empty(None, size, kwargs)

    def strided_kernel(size: Any, stride: Any, **kwargs: Any) -> Any:
        return _make_empty(None, size, kwargs, stride)

    def copy_from_kernel(source: Any, target: Any, non_blocking: bool = False) -> Any:
        """What ``copy_`` is, where C++ has put Python's dispatch aside: it makes a tensor of a list in an index."""
        return dispatch.run(torch.ops.aten.copy_.default, (target, source, non_blocking), {})

    library.impl("_copy_from", copy_from_kernel, "Lazy")
    for name in _AS_ONE:
        if has_kernel(f"aten::{name}", "CPU") and has_kernel(f"aten::{name}", "CompositeImplicitAutograd"):
            op = getattr(torch.ops.aten, name).default
            dispatch.run_whole(op)
            library.impl(name, _factory_kernel(op), "Lazy")
    library.impl("empty.memory_format", empty_kernel, "Lazy")
    library.impl("empty_strided", strided_kernel, "Lazy")
    done = {"aten::empty.memory_format", "aten::empty_strided"}
    for name in torch._C._dispatch_get_all_op_names():
        if not name.startswith("aten::") or name in done or has_kernel(name, "Lazy"):
            continue
        if any(has_kernel(name, key) for key in general) or not has_kernel(name, "CPU"):
            continue
        packet, _, overload = name.removeprefix("aten::").partition(".")
        op = getattr(getattr(aten, packet), overload or "default")
        if isinstance(op, Absent):
            continue
        arguments = op._schema.arguments
        if any(a.name == "device" for a in arguments) and not any("Tensor" in str(a.type) for a in arguments):
            library.impl(name.removeprefix("aten::"), _factory_kernel(op), "Lazy")


def _factory_kernel(op: Any) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        return dispatch.run(op, args, kwargs)

    return kernel


# --- functions of torch that take device= ------------------------------------------------------------------


def _public(wrapper: Any, original: Any) -> Any:
    """Let modes see the call under torch's own name, with the device that the program wrote."""
    functools.update_wrapper(wrapper, original)
    del wrapper.__wrapped__  # else torch takes the wrapper for a function of its own that may be compiled
    return wrapper


def _with_device(original: Any) -> Any:
    def factory(*args: Any, **kwargs: Any) -> Any:
        if _mode_is_on():
            return handle_torch_function(factory, (), *args, **kwargs)
        if not devices.count():
            return original(*args, **kwargs)
        device = kwargs.get("device")
        if device is not None:
            kwargs["device"] = devices.translate(device)
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
            made = original(*args, **kwargs)
            if isinstance(made, SimulatedTensor):
                raise RuntimeError("Only dense CPU tensors can be pinned")
            return mark_pinned(made)
        return original(*args, **kwargs)

    return _public(factory, original)


def _by_way_of_cpu(original: Any) -> Any:
    """``torch.tensor`` and its like read Python data: on the CPU first, then a blocking copy, as torch does it."""

    def factory(data: Any, *args: Any, **kwargs: Any) -> Any:
        if _mode_is_on():
            return handle_torch_function(factory, (), data, *args, **kwargs)
        if not devices.count():
            return original(data, *args, **kwargs)
        pinned = kwargs.pop("pin_memory", False)
        device = devices.translate(kwargs.get("device"))
        on_device = isinstance(device, torch.device) and device.type == devices.STAND_IN
        if isinstance(data, SimulatedTensor) and not on_device:
            if original.__name__ != "tensor" or device is not None:
                if device is not None:
                    kwargs["device"] = device
                return original(data, *args, **kwargs) if original.__name__ != "tensor" else _copied(data, kwargs)
            return _copied(data, kwargs)
        if not on_device:
            made = original(_read(data), *args, **kwargs)
            return mark_pinned(made) if pinned else made
        if isinstance(data, torch.Tensor) and original.__name__ != "tensor":
            kwargs["device"] = device
            return original(data, *args, **kwargs)
        if isinstance(data, SimulatedTensor):
            return _copied(data, {**kwargs, "device": device})
        requires_grad = kwargs.pop("requires_grad", False)
        kwargs["device"] = "cpu"
        return original(_read(data), *args, **kwargs).to(device).requires_grad_(requires_grad)

    return _public(factory, original)


def _read(data: Any) -> Any:
    """A list of tensors on the device becomes a list of numbers: one read each, as torch does it."""
    if isinstance(data, (list, tuple)) and any(isinstance(x, SimulatedTensor) for x in data):
        return [x.tolist() if isinstance(x, SimulatedTensor) and x.dim() else _item(x) for x in data]
    return data


def _item(value: Any) -> Any:
    return value.item() if isinstance(value, SimulatedTensor) else value


def _copied(data: SimulatedTensor, kwargs: dict[str, Any]) -> Any:
    made = data.detach().clone()
    moved = made.to(device=kwargs.get("device"), dtype=kwargs.get("dtype"))
    return moved.requires_grad_(kwargs.get("requires_grad", False))


def _refusing(original: Any, what: str) -> Any:
    """For CUDA not simulated, for other devices as ever."""

    def factory(*args: Any, **kwargs: Any) -> Any:
        if _mode_is_on():
            return handle_torch_function(factory, (), *args, **kwargs)
        if not devices.count():
            return original(*args, **kwargs)
        device = devices.translate(kwargs.get("device"))
        on_device = isinstance(device, torch.device) and device.type == devices.STAND_IN
        if on_device or any(_holds_simulated(x) for x in args):
            raise SimulationError(f"torch.{original.__name__}: {what} are not simulated on CUDA")
        return original(*args, **kwargs)

    return _public(factory, original)


def _holds_simulated(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds_simulated(x) for x in value)
    return isinstance(value, SimulatedTensor)


_WITH_DEVICE = (
    "arange bartlett_window blackman_window empty empty_like empty_permuted empty_strided eye full full_like "
    "hamming_window hann_window kaiser_window linspace logspace normal ones ones_like rand rand_like randint "
    "randint_like randn randn_like randperm range scalar_tensor tril_indices triu_indices zeros zeros_like"
)
_FROM_DATA = "tensor as_tensor asarray"
_SPARSE = (
    "sparse_coo_tensor sparse_compressed_tensor sparse_csr_tensor sparse_csc_tensor sparse_bsr_tensor sparse_bsc_tensor"
)


def wrap_functions() -> None:
    """Wrap the functions of torch that take a device."""
    find_builtin, register_builtin = find("jit._builtins._find_builtin"), find("jit._builtins._register_builtin")
    for holder, names, wrap in (
        (torch, _WITH_DEVICE, _with_device),
        (torch.fft, "fftfreq rfftfreq", _with_device),
        (torch, _FROM_DATA, _by_way_of_cpu),
        (torch, _SPARSE, functools.partial(_refusing, what="sparse tensors")),
        (
            torch.nested,
            "nested_tensor as_nested_tensor nested_tensor_from_jagged",
            functools.partial(_refusing, what="nested tensors"),
        ),
    ):
        for name in names.split():
            original = getattr(holder, name, None)
            if original is None:
                lost(f"{holder.__name__}.{name}", "a call of it is not simulated")
                continue
            wrapped = wrap(original)
            patches.put(holder, name, wrapped)
            if find_builtin and register_builtin:
                builtin = find_builtin(original)
                if builtin is not None:
                    register_builtin(wrapped, builtin)
    # Which functions a default device applies to is remembered by object.
    constructors = find("utils._device._device_constructors")
    if constructors is not None:
        patches.also(constructors.cache_clear, constructors.cache_clear)


# --- methods -----------------------------------------------------------------------------------------------


def _method(name: str, function: Any) -> None:
    """Put a method on torch.Tensor; modes see it as torch's own."""
    original = getattr(torch.Tensor, name, None)
    if original is None:
        lost(f"torch.Tensor.{name}", "a call of it is not simulated")
        return

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _mode_is_on():
            return handle_torch_function(method, (self,), self, *args, **kwargs)
        if not devices.count() and not isinstance(self, SimulatedTensor):
            return original(self, *args, **kwargs)  # kept by the program from when there was a device
        return function(self, *args, **kwargs)

    functools.update_wrapper(method, original)
    del method.__wrapped__  # type: ignore[attr-defined]
    method.__module__ = "torch"
    method.__qualname__ = f"Tensor.{name}"
    patches.put(torch.Tensor, name, method)
    if name not in vars(SimulatedTensor):
        setattr(SimulatedTensor, name, method)  # its own, for when the device is gone


def _to(self: Any, *args: Any, **kwargs: Any) -> Any:
    if args and not isinstance(args[0], (torch.dtype, torch.Tensor)):
        args = (devices.translate(args[0]), *args[1:])
    elif args and isinstance(args[0], SimulatedTensor):
        other = args[0]
        return TensorBase.to(self, devices.stand_in(other._sim.index), other.dtype, *args[1:], **kwargs)
    if kwargs.get("device") is not None:
        kwargs["device"] = devices.translate(kwargs["device"])
    return TensorBase.to(self, *args, **kwargs)


def _cuda(self: Any, device: Any = None, non_blocking: bool = False, memory_format: Any = torch.preserve_format) -> Any:
    target = devices.stand_in(devices.index_of(device))
    return TensorBase.to(self, target, non_blocking=non_blocking, memory_format=memory_format)


_TYPES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool,
}  # fmt: skip


def _type(self: Any, dtype: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
    on_device = isinstance(self, SimulatedTensor)
    if isinstance(dtype, str) and dtype.endswith("Tensor") and (on_device or "cuda" in dtype):
        *place, name = dtype.split(".")
        device = devices.stand_in(devices.index_of(None)) if "cuda" in place else devices.CPU
        return TensorBase.to(self, device, _TYPES[name.removesuffix("Tensor")], non_blocking=non_blocking)
    if on_device and isinstance(dtype, torch.dtype):
        return TensorBase.to(self, dtype, non_blocking=non_blocking)
    return TensorBase.type(self) if dtype is None else TensorBase.type(self, dtype, non_blocking, **kwargs)


def _new_tensor(self: Any, data: Any, *, dtype: Any = None, device: Any = None, **kwargs: Any) -> Any:
    if isinstance(self, SimulatedTensor) and device is None and not devices.count():
        made = torch.tensor(data, dtype=self.dtype if dtype is None else dtype, device=devices.CPU)
        return made.to(devices.stand_in(self._sim.index)).requires_grad_(kwargs.get("requires_grad", False))
    return torch.tensor(
        data, dtype=self.dtype if dtype is None else dtype, device=self.device if device is None else device, **kwargs
    )


def _pin_memory(self: Any, device: Any = None) -> Any:  # noqa: ARG001 - deprecated in torch, too
    return self if is_pinned(self) else mark_pinned(self.detach().clone())


def _is_pinned(self: Any, device: Any = None) -> bool:  # noqa: ARG001 - deprecated in torch, too
    return is_pinned(self)


def _new(name: str) -> Any:
    original = getattr(TensorBase, name)

    def new(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("device") is not None:
            kwargs["device"] = devices.translate(kwargs["device"])
        return original(self, *args, **kwargs)

    return new


def wrap_methods() -> None:
    """Wrap the methods of torch.Tensor that take a device, and what tells pinned memory."""
    for name, function in {
        "to": _to, "cuda": _cuda, "type": _type, "new_tensor": _new_tensor, "pin_memory": _pin_memory,
        "is_pinned": _is_pinned,
    }.items():  # fmt: skip
        _method(name, function)
    for name in ("new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided"):
        if hasattr(TensorBase, name):
            _method(name, _new(name))
        else:
            lost(f"torch.Tensor.{name}", "a call of it is not simulated")
    read_data = TensorBase.data.__get__
    data = property(read_data, tensor.set_data)
    patches.put(torch.Tensor, "data", data)
    SimulatedTensor.data = data  # type: ignore[assignment]
