"""The tensor that says ``cuda`` and holds a placement instead of numbers."""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import handle_torch_function, has_torch_function

from syncagent.errors import SimulationError
from syncagent.simulate import devices
from syncagent.simulate.allocator import Held, claim, claim_bytes, hold, resize_allocation
from syncagent.simulate.failures import all_for_program, leave_simulation, mark_as_for_program
from syncagent.simulate.memory import Box, Layout, Placement, layout_of, nbytes_of
from syncagent.simulate.requirements import find

TensorBase: Any = torch._C.TensorBase
_set_base_data = TensorBase.data.__set__
_get_base_item = TensorBase.__getitem__
_set_base_item = TensorBase.__setitem__
_make_without_data = TensorBase._make_wrapper_subclass
_mode_is_on = find("_C._is_torch_function_mode_enabled") or (lambda: False)
_in_inference_mode = torch.is_inference_mode_enabled
CPU_KERNEL = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
AUTOCAST_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)
"""With this key among the tensor's own, autocast("cuda") finds it: see autocast.py."""
_printed = find("_tensor_str._str") or (lambda tensor, **_: repr(tensor.detach().cpu()))


dispatch: Any = None
"""Runs an op; dispatch.py puts it here."""

_NO_KWARGS: dict[str, Any] = {}
OWN = frozenset({"_sim", "_held", "_form"})
"""Attributes in which a tensor holds what it is, and which no copy takes over as they are."""
_attributes: Any = torch.Tensor.__dict__["__dict__"]
attributes_of, _set_attributes = _attributes.__get__, _attributes.__set__
"""Of all that a tensor has, including what it holds."""


class _Attributes(dict[str, Any]):
    """The attributes of a tensor but for what it holds, which no other tensor is to have.

    What is changed here is changed in the tensor.
    """

    def __init__(self, tensor: SimulatedTensor) -> None:
        super().__init__((name, value) for name, value in attributes_of(tensor).items() if name not in OWN)
        self._tensor = weakref.ref(tensor)

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        if (tensor := self._tensor()) is not None:
            attributes_of(tensor)[name] = value

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        if (tensor := self._tensor()) is not None:
            del attributes_of(tensor)[name]

    update, pop, popitem = MutableMapping.update, MutableMapping.pop, MutableMapping.popitem
    clear, setdefault = MutableMapping.clear, MutableMapping.setdefault

    def __reduce__(self) -> Any:
        return dict, (dict(self),)


ALL_ARGUMENTS = 100
"""More than any function has."""


def replacement(function: Any, original: Any, *, is_method: bool = False, asks: int = 0) -> Any:
    """What stands in torch for ``original`` while there is a device, and does what ``function`` does.

    Modes see a call of it under torch's own name, with the device that the program wrote.  So do those of the first
    ``asks`` arguments that have a ``__torch_function__``, such as TensorDicts, which look for the function in a table.
    """

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        try:
            given = (*args, *kwargs.values()) if kwargs and asks > 1 else args[:asks]
            has_mode = _mode_is_on()
            if has_mode or has_torch_function(given):
                asked = [x for x in given if has_torch_function((x,)) and not isinstance(x, type)]
                if has_mode or asked:
                    return handle_torch_function(stand_in, asked, *args, **kwargs)
            if devices.count() or (is_method and isinstance(args[0], SimulatedTensor)):
                return function(*args, **kwargs)
            return original(*args, **kwargs)  # the program has kept it from when there was a device
        except BaseException as error:
            leave_simulation(error)
            raise

    functools.update_wrapper(stand_in, original)
    del stand_in.__wrapped__  # type: ignore[attr-defined]  # else torch takes it for one that may be compiled
    mark_as_for_program(stand_in)
    if is_method:
        stand_in.__module__, stand_in.__qualname__ = "torch", f"Tensor.{stand_in.__name__}"
    return stand_in


_AS_THEY_ARE = frozenset({int, slice, type(None), type(...), torch.Tensor})


def _is_as_it_is(index: Any) -> bool:
    """Whether nothing in an index has to go to the device first."""
    if type(index) is not tuple:
        return type(index) in _AS_THEY_ARE or isinstance(index, SimulatedTensor)
    return all(type(part) in _AS_THEY_ARE or isinstance(part, SimulatedTensor) for part in index)


def _method(function: Any) -> Any:
    """A method that is Python here and C++ in torch."""
    return replacement(function, function, is_method=True)


def _item_of_any(tensor: SimulatedTensor, index: Any) -> Any:
    return _get_base_item(tensor, tensor._on_device(index))


_item_of_any.__name__ = "__getitem__"  # what modes are shown
_get_any_item = _method(_item_of_any)


@all_for_program
class SimulatedTensor(torch.Tensor):
    """A tensor on a simulated CUDA device."""

    _sim: Placement
    _held: Held
    is_cuda = True
    is_cpu = False
    is_lazy = False
    # No detour through Python for each API call; modes see the calls all the same.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # a C function

    @staticmethod
    def __new__(cls: type, data: Any = None, *, requires_grad: bool = False, **_: Any) -> Any:
        """Called by code that rebuilds a tensor of the same type: ``type(x)(data)``."""
        if isinstance(data, SimulatedTensor):
            return data.detach().requires_grad_(requires_grad)
        host = torch.empty(0) if data is None else torch.as_tensor(data, device="cpu")
        return host.to(devices.stand_ins[devices.current()]).requires_grad_(requires_grad)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub lacks func
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if len(types) > 1 and not all(issubclass(kind, SimulatedTensor) for kind in types):
            return NotImplemented  # a tensor that holds others is among them, and its class knows what to do
        try:
            return dispatch(func, args, kwargs or _NO_KWARGS)
        except BaseException as error:
            leave_simulation(error)
            raise

    def take_over(self, data: SimulatedTensor) -> None:
        """Take over what another tensor holds; C++ has done the same."""
        self._sim, self._held = data._sim, data._held

    @property
    def __dict__(self) -> dict[str, Any]:
        found: dict[str, Any] = attributes_of(self)
        return found if OWN.isdisjoint(found) else _Attributes(self)

    @__dict__.setter
    def __dict__(self, attributes: dict[str, Any]) -> None:
        """Programs give one tensor the attributes of another, as fastai does: what it holds itself stays with it."""
        if hasattr(self, "_sim"):
            held = {name: value for name, value in attributes_of(self).items() if name in OWN}
            attributes = {name: value for name, value in attributes.items() if name not in OWN} | held
        _set_attributes(self, attributes)

    # --- what it says about itself --------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # read-only, as torch's
        return devices.shown[self._sim.index]

    def get_device(self) -> int:
        return self._sim.index

    def data_ptr(self) -> int:
        placement = self._sim
        return placement.box.address + placement.layout.offset * placement.layout.dtype.itemsize

    const_data_ptr = data_ptr

    def is_pinned(self, _device: Any = None) -> bool:
        return False

    def pin_memory(self, _device: Any = None) -> torch.Tensor:
        raise RuntimeError(f"cannot pin '{self.type()}' only dense CPU tensors can be pinned")

    def is_shared(self) -> bool:
        return True  # as for every CUDA tensor

    def share_memory_(self) -> SimulatedTensor:
        return self

    def record_stream(self, stream: Any) -> None:
        pass  # nothing to do: a queued kernel keeps a reference to its memory

    def untyped_storage(self) -> Any:
        return Storage(self._sim.box, self.device, self.dtype)

    def _typed_storage(self) -> Any:
        return TypedStorage(self._sim.box, self.device, self.dtype)

    storage = _typed_storage

    # --- what needs the numbers -----------------------------------------------------------------------------

    @_method
    def tolist(self) -> Any:
        return self.cpu().tolist()

    @_method
    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().resolve_conj().resolve_neg().numpy()
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
            "memory first."
        )

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def __format__(self, spec: str) -> str:
        return object.__format__(self, spec) if self.dim() else format(self.item(), spec)

    def __repr__(self, *, tensor_contents: Any = None) -> Any:  # type: ignore[override]  # torch's is untyped
        text: str = _printed(self, tensor_contents=tensor_contents)
        is_parameter = isinstance(self, torch.nn.Parameter)
        if is_parameter and text.startswith("Parameter("):
            text = text.removeprefix("Parameter(").removesuffix(")")
        prefix = f"{type(self).__name__}("
        if text.startswith(prefix):
            # Continuation lines are indented by the length of the prefix.
            excess = " " * (len(prefix) - len("tensor("))
            text = "tensor(" + text[len(prefix) :].replace("\n" + excess, "\n")
        return "Parameter containing:\n" + text if is_parameter else text

    # --- indexing: Python data among the indices goes to the device by a copy, as the C++ binding does it for CUDA --

    def __getitem__(self, index: Any) -> Any:
        if _is_as_it_is(index):
            return _get_base_item(self, index)  # it shows modes the call under torch's own name
        return _get_any_item(self, index)

    @_method
    def __setitem__(self, index: Any, value: Any) -> None:
        index = self._on_device(index)
        if isinstance(value, (bool, int, float, complex)):
            # For CUDA the binding makes this tensor on the CPU: hence the copy that `v[3] = 1.0` waits for.
            value = torch.scalar_tensor(value, dtype=self.dtype, device="cpu")
        _set_base_item(self, index, value)

    def _on_device(self, index: Any) -> Any:
        kind = type(index)
        if kind is int or kind is slice or kind is SimulatedTensor:
            return index
        if kind is tuple or (
            kind is list and any(isinstance(part, (slice, torch.Tensor, type(None), type(...))) for part in index)
        ):
            return tuple(self._on_device_one(part) for part in index)
        return self._on_device_one(index)

    def _on_device_one(self, index: Any) -> Any:
        is_array = type(index).__module__ == "numpy" and getattr(index, "shape", ()) != ()
        if not is_array and not isinstance(index, (list, range)):
            return index
        found = torch.as_tensor(index, device="cpu")
        if isinstance(index, (list, range)) and not found.numel():
            found = found.long()  # an empty list has no type of its own
        return found.to(self.device)

    # --- copies of the whole object -------------------------------------------------------------------------

    def __copy__(self) -> SimulatedTensor:
        again = make(self._sim, type(self))
        again.requires_grad_(self.requires_grad)
        again.__dict__.update(self.__dict__)
        return again

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) in memo:
            return memo[id(self)]
        if not self.is_leaf:
            raise RuntimeError(
                "Only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol at the "
                "moment."
            )
        with torch.no_grad():
            again = self.detach().clone(memory_format=torch.preserve_format)
        again.requires_grad_(self.requires_grad)
        memo[id(self)] = again
        again.__dict__.update({k: copy.deepcopy(v, memo) for k, v in self.__dict__.items() if k not in OWN})
        if self.grad is not None:
            again.grad = copy.deepcopy(self.grad, memo)
        return again

    # --- other libraries ------------------------------------------------------------------------------------

    def __dlpack__(self, *_: Any, **__: Any) -> Any:
        raise SimulationError("DLPack is not simulated: there is no device memory that another library could read")

    __dlpack_device__ = __dlpack__

    @property
    def __cuda_array_interface__(self) -> Any:
        raise AttributeError("a simulated CUDA tensor has no __cuda_array_interface__: there is no device memory")


@all_for_program
@dataclass(unsafe_hash=True)
class Storage:
    """The part of a storage that programs look at: identity, size, address."""

    _box: Box
    device: torch.device = field(compare=False)
    dtype: torch.dtype = field(compare=False)
    is_cuda = True

    def data_ptr(self) -> int:
        return self._box.address

    _cdata = property(data_ptr)

    def nbytes(self) -> int:
        return self._box.nbytes

    size = nbytes

    def __len__(self) -> int:
        return self.size()

    def untyped(self) -> Storage:
        return Storage(self._box, self.device, self.dtype)

    @property
    def _untyped_storage(self) -> Storage:
        return self.untyped()

    def is_pinned(self, _device: Any = None) -> bool:
        return False

    def resize_(self, size: int) -> Storage:
        """Give it another size, in bytes and in stream order; FSDP frees and allocates parameters so."""
        placement = Placement(self._box, self._box.layout, self.device.index)
        resize_allocation(self._box, size)
        name = "torch.UntypedStorage.resize_"
        engine = devices.order(name, placement.index, [placement])
        devices.queue(engine, name, lambda: _resize_storage(self._box, size), [placement])
        return self

    # --- contents: those of a tensor of bytes over the same memory ---

    def _bytes(self) -> torch.Tensor:
        return make(Placement(self._box, Layout((self._box.nbytes,), (1,), 0, torch.uint8), self.device.index))

    def clone(self) -> Storage:
        again: SimulatedTensor = self._bytes().clone()  # type: ignore[assignment]  # of the same class
        return type(self)(again._sim.box, self.device, self.dtype)

    def copy_(self, source: Any, non_blocking: bool = False) -> Storage:
        """Copy from another storage, of either device."""
        untyped = source.untyped() if isinstance(source, (Storage, torch.TypedStorage)) else source
        numbers = untyped._bytes() if isinstance(untyped, Storage) else _bytes_of(untyped)
        self._bytes().copy_(numbers, non_blocking)
        return self

    def cpu(self) -> Any:
        """A storage of torch's own, with these bytes."""
        return self._bytes().cpu().untyped_storage()

    def cuda(self, device: Any = None, non_blocking: bool = False) -> Storage:
        index = devices.index_of(device)
        if index == self.device.index:
            return self
        device = devices.shown[index]
        there: SimulatedTensor = self._bytes().to(device, non_blocking=non_blocking)  # type: ignore[assignment]  # as above
        return type(self)(there._sim.box, device, self.dtype)

    def fill_(self, value: int) -> Storage:
        self._bytes().fill_(value)
        return self

    def tolist(self) -> list[int]:
        return self._bytes().tolist()


class TypedStorage(Storage):
    """The same, counted in elements."""

    def size(self) -> int:
        return self._box.nbytes // self.dtype.itemsize

    _size = size

    def resize_(self, size: int) -> Storage:
        """Give it another size, in elements."""
        return super().resize_(size * self.dtype.itemsize)

    _resize_ = resize_

    def _elements(self) -> torch.Tensor:
        return self._bytes().view(self.dtype)

    def cpu(self) -> Any:
        """A storage of torch's own, with these numbers."""
        return self._elements().cpu()._typed_storage()

    def fill_(self, value: float) -> Storage:
        self._elements().fill_(value)
        return self

    def tolist(self) -> list[Any]:
        return self._elements().tolist()


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    """A tensor over a storage on the host."""
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _resize_storage(box: Box, size: int) -> None:
    values = box.values
    if values is not None:
        values.untyped_storage().resize_(size)


def make(placement: Placement, kind: type[SimulatedTensor] = SimulatedTensor) -> SimulatedTensor:
    """A tensor over this memory."""
    size, stride, offset, dtype = placement.layout
    device = devices.stand_ins[placement.index]
    # Up to the device in their places (see wrappers.py), which is faster than by their names.
    tensor: SimulatedTensor = _make_without_data(
        kind, size, stride, offset, None, dtype, torch.strided, device, _extra_dispatch_keys=AUTOCAST_KEYS
    )
    tensor._sim = placement
    tensor._held = hold(placement.box, placement.index)
    return tensor


def make_view(
    base: SimulatedTensor, placement: Placement, kind: type[SimulatedTensor] = SimulatedTensor
) -> SimulatedTensor:
    """A tensor that shares its base's memory: inside ``inference_mode`` or outside, a view is what its base is."""
    inference = base.is_inference()
    if inference == _in_inference_mode():
        return make(placement, kind)
    with torch.inference_mode(inference):
        return make(placement, kind)


def new_output(layout: Layout, index: int) -> SimulatedTensor:
    """A tensor in new memory that a queued kernel will fill."""
    claim(layout, index)
    return make(Placement(Box(layout), layout, index))


def adopt(values: torch.Tensor, index: int) -> SimulatedTensor:
    """A tensor over memory that is already filled."""
    if values.layout != torch.strided or values.is_quantized:
        raise SimulationError(f"tensors of layout {values.layout} and type {values.dtype} are not simulated on CUDA")
    layout = layout_of(values)
    return make(Placement(Box(layout, values), layout, index, values))


def set_data(tensor: torch.Tensor, data: torch.Tensor) -> None:
    """``tensor.data = data``: torch's own setter if both are of one class, else the two exchange their contents."""
    to_device, on_device = isinstance(data, SimulatedTensor), isinstance(tensor, SimulatedTensor)
    if to_device == on_device:
        _set_base_data(tensor, data)
        if on_device:
            tensor.take_over(data)  # type: ignore[attr-defined]  # both are simulated
        return
    # What Module.to does to each parameter.  torch would exchange the storage and keep the object; here a CPU tensor
    # and a simulated one are of different classes, so the objects exchange everything but their identity.
    grad, tensor.grad = tensor.grad, None
    fresh = data.detach()
    if isinstance(tensor, torch.nn.Parameter):
        fresh = torch.nn.Parameter(fresh, tensor.requires_grad)
    elif tensor.is_leaf:
        fresh.requires_grad_(tensor.requires_grad)
    try:
        torch.utils.swap_tensors(tensor, fresh)
    except RuntimeError as error:
        raise SimulationError(
            "the simulated device cannot move this tensor between host and device in place, because something else "
            "holds on to it (an autograd graph or a weak reference); move the model before its first forward"
        ) from error
    if grad is not None:
        moved = grad.detach().to(data.device)
        torch.utils.swap_tensors(grad, moved)
        tensor.grad = grad


# --- tensors that become a view of other memory, or of the same memory in another way -----------------------


def resize(target: SimulatedTensor, layout: Layout) -> None:
    """Give a tensor another size; its storage grows, in stream order, if it has to."""
    placement = target._sim
    box = placement.box
    needed = nbytes_of(layout)
    if needed > box.nbytes:
        claim_bytes(needed - box.nbytes, placement.index)
        resize_allocation(box, needed)
        engine = devices.order("aten::resize_", placement.index, [placement])
        grow = lambda: placement.resolve().untyped_storage().resize_(needed)  # noqa: E731
        devices.queue(engine, "aten::resize_", grow, [placement])
    replace(target, Placement(box, layout, placement.index))


def replace(target: SimulatedTensor, placement: Placement) -> None:
    """Make a tensor a view of any memory."""
    set_data(target, make_view(target, placement))


def take_resized(target: SimulatedTensor, values: torch.Tensor) -> None:
    """Give an ``out=`` tensor the shape that a kernel has resized it to."""
    box: Box = target._sim.box
    fresh = adopt(values, target._sim.index)._sim
    box.values, box.nbytes = values, fresh.box.nbytes
    replace(target, Placement(box, fresh.layout, fresh.index))
