"""``device="cuda"`` in everything that makes or moves a tensor.

Two layers.  In Python the functions and methods that take a device are replaced, and pass the stand-in's name on.  In
the dispatcher the stand-in gets kernels for the ops that allocate memory; everything else that torch builds on them in
C++ (``zeros``, ``arange``, ``randn`` ...) follows.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch

from syncagent.errors import SimulationError
from syncagent.simulate import (
    attention,
    devices,
    dispatch,
    fourier,
    patches,
    recurrent,
    sparse,
    sparse_compressed,
    sparse_ops,
    tensor,
)
from syncagent.simulate.failures import for_program
from syncagent.simulate.memory import Layout, flatten, is_pinned, mark_pinned, stride_for
from syncagent.simulate.requirements import aten, find, note_loss
from syncagent.simulate.special import empty
from syncagent.simulate.tensor import ALL_ARGUMENTS, SimulatedTensor, TensorBase, replacement

# --- the dispatcher ----------------------------------------------------------------------------------------


def _empty(size: Any, stride: Any = None, **kwargs: Any) -> Any:
    part = sparse.placeholder(tuple(size), kwargs.get("dtype") or torch.get_default_dtype())
    if part is not None:
        return part
    if kwargs.get("layout") not in {None, torch.strided}:
        raise SimulationError(f"tensors of layout {kwargs['layout']} are not simulated on CUDA")
    if kwargs.get("pin_memory"):
        raise RuntimeError("Only dense CPU tensors can be pinned")
    size = tuple(size)
    stride = stride_for(size, kwargs.get("memory_format")) if stride is None else tuple(stride)
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    return empty(Layout(size, stride, 0, dtype), devices.index_of(kwargs.get("device")))


def _copy_from(source: Any, target: Any, non_blocking: bool = False) -> Any:
    """What ``copy_`` calls where C++ bypasses Python's dispatch: it makes a tensor of a list in an index."""
    return dispatch.run(torch.ops.aten.copy_.default, (target, source, non_blocking), {})


_GENERAL = ("CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")
_RUN_WHOLE = ("silu_backward", "mish_backward")
"""Ops that CPU and CUDA have kernels of their own for; for any other device torch composes them of others."""
_MADE_BY_KERNELS = ("kaiser_window",)
"""Ops that make a tensor from nothing by torch's general kernel, which asks for a kernel of the device's own inside."""


@functools.cache
def install_kernels() -> Any:
    """Give the stand-in device the ops that make tensors from nothing and that torch has no general kernel for.

    They stay, since what was made on the device may still allocate other tensors once it is gone.
    """
    library = torch.library.Library("aten", "IMPL")
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    for name, kernel in (("_copy_from", _copy_from), ("empty.memory_format", _empty), ("empty_strided", _empty)):
        library.impl(name, for_program(kernel), "Lazy")
    for name in _RUN_WHOLE:
        if has_kernel(f"aten::{name}", "CPU") and has_kernel(f"aten::{name}", "CompositeImplicitAutograd"):
            op = getattr(torch.ops.aten, name).default
            dispatch.SPECIAL[op] = dispatch.run_generic
            library.impl(name, _dispatched(op), "Lazy")
    for name in _MADE_BY_KERNELS:
        packet = getattr(aten, name)
        for overload in packet.overloads():
            if not overload.endswith("out"):
                op = getattr(packet, overload)
                library.impl(op.name().removeprefix("aten::"), _dispatched(op), "Lazy")
    recurrent.install_kernels(library)
    fourier.install_kernels(library)
    attention.install_kernels(library)
    sparse_ops.install_kernels(library)
    sparse_compressed.install_kernels(library)
    for packet, overload in _without_general_kernel():
        name = f"{packet}.{overload}" if overload else packet
        library.impl(name, _dispatched(getattr(getattr(aten, packet), overload or "default")), "Lazy")
    return library


def _without_general_kernel() -> Iterator[tuple[str, str]]:
    """The ops, each with its overload, that make tensors from nothing and that the stand-in has no kernel for."""
    having = torch._C._dispatch_get_registrations_for_dispatch_key
    for name in set(having("CPU")).difference(*map(having, ("Lazy", *_GENERAL))):  # one question for each op takes long
        packet, _, overload = name.removeprefix("aten::").partition(".")
        if not name.startswith("aten::") or packet.endswith("_") or overload.endswith("out"):
            continue  # in place and with out=, an op takes tensors, and to look at all schemas takes long
        try:
            arguments = torch._C._get_schema(f"aten::{packet}", overload).arguments
        except RuntimeError:  # a kernel for an op that is not defined
            continue
        if any(a.name == "device" for a in arguments) and not any("Tensor" in str(a.type) for a in arguments):
            yield packet, overload


def _dispatched(op: Any) -> Any:
    @for_program
    def run(*args: Any, **kwargs: Any) -> Any:
        return dispatch.run(op, args, kwargs)

    return run


# --- functions of torch that take device= ------------------------------------------------------------------


def _with_device(original: Any) -> Any:
    def factory(*args: Any, **kwargs: Any) -> Any:
        device = kwargs.get("device")
        if device is not None:
            device = kwargs["device"] = devices.translate(device)
        if kwargs.get("layout") is torch.sparse_coo and _is_stand_in(device):
            return _without_elements(original, *args, **kwargs)
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
            made = original(*args, **kwargs)
            if isinstance(made, SimulatedTensor):
                raise RuntimeError("Only dense CPU tensors can be pinned")
            return mark_pinned(made)
        return original(*args, **kwargs)

    return factory


def _by_way_of_cpu(original: Any) -> Any:
    """``torch.tensor`` and similar functions read Python data: on the CPU first, then a blocking copy, as in torch."""
    always_copies = original.__name__ == "tensor"

    def factory(data: Any, *args: Any, **kwargs: Any) -> Any:
        pinned = kwargs.pop("pin_memory", False)
        device = devices.translate(kwargs.get("device"))
        on_device = _is_stand_in(device)
        if on_device:
            kwargs["device"] = device
        if isinstance(data, SimulatedTensor) and always_copies:
            moved = data.detach().clone().to(device=kwargs.get("device"), dtype=kwargs.get("dtype"))
            return moved.requires_grad_(kwargs.get("requires_grad", False))
        if isinstance(data, SimulatedTensor) or (on_device and isinstance(data, torch.Tensor) and not always_copies):
            return original(data, *args, **kwargs)
        if not on_device:
            made = original(_read(data), *args, **kwargs)
            return mark_pinned(made) if pinned else made
        requires_grad = kwargs.pop("requires_grad", False)
        kwargs["device"] = "cpu"
        return original(_read(data), *args, **kwargs).to(device).requires_grad_(requires_grad)

    return factory


def _read(data: Any) -> Any:
    """A list of tensors on the device becomes a list of numbers: one read each, as in torch."""
    if isinstance(data, (list, tuple)) and any(isinstance(x, SimulatedTensor) for x in data):
        return [(x.tolist() if x.dim() else x.item()) if isinstance(x, SimulatedTensor) else x for x in data]
    return data


def _without_elements(original: Any, *args: Any, **kwargs: Any) -> Any:
    """A sparse tensor of zeros: torch has no way to make one on the stand-in device."""
    device, requires_grad = kwargs.pop("device"), kwargs.pop("requires_grad", False)
    like = original(*args, **kwargs, device="meta")
    return sparse_ops.empty(like.shape, like.dtype, device).requires_grad_(requires_grad)


_PARTS = {
    "sparse_coo_tensor": ("indices", "values"),
    "sparse_csr_tensor": ("crow_indices", "col_indices", "values"),
    "sparse_bsr_tensor": ("crow_indices", "col_indices", "values"),
    "sparse_csc_tensor": ("ccol_indices", "row_indices", "values"),
    "sparse_bsc_tensor": ("ccol_indices", "row_indices", "values"),
    "sparse_compressed_tensor": ("compressed_indices", "plain_indices", "values"),
}
"""What each function makes a sparse tensor of."""


def _of_parts(original: Any) -> Any:
    """``torch.sparse_coo_tensor`` and its kind read Python data in the same way."""
    names = _PARTS[original.__name__]

    def factory(*args: Any, **kwargs: Any) -> Any:
        device = kwargs["device"] = devices.translate(kwargs.get("device"))
        given = dict(zip(names, args, strict=False)) | kwargs
        parts = {name: given[name] for name in names if name in given}
        if len(parts) < len(names):
            return _without_elements(original, *args, **kwargs) if _is_stand_in(device) else original(*args, **kwargs)
        if device is None and isinstance(parts["values"], SimulatedTensor):
            device = devices.stand_ins[parts["values"]._sim.index]
        if not _is_stand_in(device):
            return original(*args, **kwargs)
        for name, part in parts.items():
            if not isinstance(part, torch.Tensor):
                dtype = kwargs.get("dtype") if name == "values" else torch.int64
                parts[name] = torch.as_tensor(_read(part), dtype=dtype, device="cpu").to(device)
        kwargs = {name: value for name, value in kwargs.items() if name not in parts}
        return original(*parts.values(), *args[len(names) :], **kwargs)

    return factory


def _refusing(original: Any, what: str) -> Any:
    """Not simulated for CUDA, unchanged for other devices."""

    def factory(*args: Any, **kwargs: Any) -> Any:
        on_device = any(isinstance(x, SimulatedTensor) for x in flatten(args))
        if on_device or _is_stand_in(devices.translate(kwargs.get("device"))):
            raise SimulationError(f"torch.{original.__name__}: {what} are not simulated on CUDA")
        return original(*args, **kwargs)

    return factory


def _is_stand_in(device: Any) -> bool:
    return isinstance(device, torch.device) and device.type == devices.STAND_IN


_TAKE_DEVICE = (
    "arange bartlett_window blackman_window empty empty_like empty_permuted empty_strided eye full full_like "
    "hamming_window hann_window kaiser_window linspace logspace normal ones ones_like rand rand_like randint "
    "randint_like randn randn_like randperm range scalar_tensor tril_indices triu_indices zeros zeros_like"
)
_COMPRESSED = "sparse_compressed_tensor sparse_csr_tensor sparse_csc_tensor sparse_bsr_tensor sparse_bsc_tensor"
_NESTED = "nested_tensor as_nested_tensor nested_tensor_from_jagged"
_FACTORIES: tuple[tuple[Any, str, Any], ...] = (
    (torch, _TAKE_DEVICE, _with_device),
    (torch.fft, "fftfreq rfftfreq", _with_device),
    (torch, "tensor as_tensor asarray", _by_way_of_cpu),
    (torch, "sparse_coo_tensor", _of_parts),
    (torch, _COMPRESSED, _of_parts),
    (torch.nested, _NESTED, functools.partial(_refusing, what="nested tensors")),
)


def wrap_functions() -> None:
    """Replace the functions of torch that take a device."""
    find_builtin, register_builtin = find("jit._builtins._find_builtin"), find("jit._builtins._register_builtin")
    for holder, names, wrap in _FACTORIES:
        for name in names.split():
            original = getattr(holder, name, None)
            if original is None:
                note_loss(f"{holder.__name__}.{name}")
                continue
            reads_any_object = wrap not in {_with_device, _of_parts}
            wrapped = replacement(wrap(original), original, asks=0 if reads_any_object else ALL_ARGUMENTS)
            patches.put(holder, name, wrapped)
            builtin = find_builtin(original) if find_builtin and register_builtin else None
            if builtin is not None:
                register_builtin(wrapped, builtin)
    # torch remembers by object which functions a default device applies to.
    constructors = find("utils._device._device_constructors")
    if constructors is not None:
        patches.also(constructors.cache_clear, constructors.cache_clear)


# --- methods -----------------------------------------------------------------------------------------------


def _to(self: Any, *args: Any, **kwargs: Any) -> Any:
    if args and not isinstance(args[0], (torch.dtype, torch.Tensor)):
        args = (devices.translate(args[0]), *args[1:])
    elif args and isinstance(args[0], SimulatedTensor):
        other = args[0]
        if _is_sparse_on_host(self):
            return _sparse_to(self, devices.stand_ins[other._sim.index], other.dtype, *args[1:], **kwargs)
        return TensorBase.to(self, devices.stand_ins[other._sim.index], other.dtype, *args[1:], **kwargs)
    if kwargs.get("device") is not None:
        kwargs["device"] = devices.translate(kwargs["device"])
    return (_sparse_to if _is_sparse_on_host(self) else TensorBase.to)(self, *args, **kwargs)


def _is_sparse_on_host(value: Any) -> bool:
    return value.layout in sparse.LAYOUTS and not isinstance(value, SimulatedTensor)


def _sparse_to(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A sparse tensor of the host's goes to the device in parts."""
    like = TensorBase.to(torch.empty(0, dtype=self.dtype, device="cpu"), *args, **kwargs)
    if not isinstance(like, SimulatedTensor):
        return TensorBase.to(self, *args, **kwargs)
    non_blocking = kwargs.get("non_blocking", next((x for x in args if isinstance(x, bool)), False))
    return sparse_ops.ToDevice.apply(self, like, non_blocking)  # type: ignore[no-untyped-call]  # torch's


def _cuda(self: Any, device: Any = None, non_blocking: bool = False, memory_format: Any = torch.preserve_format) -> Any:
    target = devices.stand_ins[devices.index_of(device)]
    if _is_sparse_on_host(self):
        return _sparse_to(self, target, non_blocking=non_blocking)
    return TensorBase.to(self, target, non_blocking=non_blocking, memory_format=memory_format)


def _type(self: Any, dtype: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
    on_device = self.is_cuda
    if isinstance(dtype, type):
        dtype = f"{dtype.__module__}.{dtype.__name__}"
    if on_device and dtype is None:
        kind = "torch.cuda.sparse." if isinstance(self, sparse.InParts) else "torch.cuda."
        return TensorBase.type(torch.empty(0, dtype=self.dtype)).replace("torch.", kind)
    if isinstance(dtype, str) and dtype.endswith("Tensor") and (on_device or "cuda" in dtype):
        *place, name = dtype.split(".")
        device = devices.stand_ins[devices.current()] if "cuda" in place else devices.CPU
        return TensorBase.to(self, device, getattr(torch, name).dtype, non_blocking=non_blocking)
    if on_device and isinstance(dtype, torch.dtype):
        return TensorBase.to(self, dtype, non_blocking=non_blocking)
    return TensorBase.type(self) if dtype is None else TensorBase.type(self, dtype, non_blocking, **kwargs)


def _new_tensor(self: Any, data: Any, *, dtype: Any = None, device: Any = None, **kwargs: Any) -> Any:
    dtype = self.dtype if dtype is None else dtype
    if isinstance(self, SimulatedTensor) and device is None and not devices.count():
        made = torch.tensor(data, dtype=dtype, device=devices.CPU)
        return made.to(devices.stand_ins[self._sim.index]).requires_grad_(kwargs.get("requires_grad", False))
    return torch.tensor(data, dtype=dtype, device=self.device if device is None else device, **kwargs)


_NEW = "new_zeros new_ones new_empty new_full new_empty_strided"
_METHODS: dict[str, Any] = {
    "to": _to, "cuda": _cuda, "type": _type, "new_tensor": _new_tensor,
    "pin_memory": lambda self, *_, **__: self if is_pinned(self) else mark_pinned(self.detach().clone()),
    "is_pinned": lambda self, *_, **__: is_pinned(self),
    **{name: _with_device(getattr(TensorBase, name)) for name in _NEW.split()},
}  # fmt: skip


def wrap_methods() -> None:
    """Replace the methods of torch.Tensor that take a device, and those that concern pinned memory."""
    for name, function in _METHODS.items():
        asks = 1 if name == "new_tensor" else ALL_ARGUMENTS  # its data may be any object
        method = replacement(function, getattr(torch.Tensor, name), is_method=True, asks=asks)
        patches.put(torch.Tensor, name, method)
        if name not in vars(SimulatedTensor):
            setattr(SimulatedTensor, name, method)  # its own, for when the device is gone
    data = property(TensorBase.data.__get__, for_program(tensor.set_data))
    patches.put(torch.Tensor, "data", data)
    SimulatedTensor.data = data  # type: ignore[assignment]  # a property in place of an attribute
