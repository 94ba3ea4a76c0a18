"""Checkpoints and pickles with the bytes of real CUDA tensors, so that either can be loaded as the other."""

from __future__ import annotations

import functools
import weakref
from collections import OrderedDict
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from syncagent.errors import SimulationError
from syncagent.simulate import copies, devices, patches
from syncagent.simulate.memory import Box, Layout, Placement
from syncagent.simulate.requirements import find
from syncagent.simulate.sparse import InParts, SparseTensor
from syncagent.simulate.tensor import SimulatedTensor, make

# A storage that stands for device memory has two marks: its device, and the box over it once there is one.
_DEVICE, _BOX = "_syncagent_device", "_syncagent_box"
_rebuild_sparse = find("_utils._rebuild_sparse_tensor")


def _reduce(source: SimulatedTensor, _protocol: Any) -> Any:
    """Pickle as torch does for CUDA, including the copy to the host that it waits for."""
    if isinstance(source, torch.nn.Parameter):
        return torch._utils._rebuild_parameter, (source.detach(), source.requires_grad, OrderedDict())
    if isinstance(source, InParts):
        form = source._form
        if isinstance(source, SparseTensor):
            parts = (form.indices, form.values, source.size(), form.is_coalesced)
        else:
            parts = (*form, source.size())
        if _rebuild_sparse is None:
            raise SimulationError("sparse tensors cannot be pickled with this torch")
        return _rebuild_sparse, (source.layout, parts)
    placement = source._sim
    engine = devices.order("pickle", placement.index, [placement])
    values = copies.wait_for_transfer(
        torch.empty(source.shape, dtype=source.dtype, device="cpu"),
        source,
        lambda call: devices.run_here(engine, placement.resolve, call),
    )
    storage = values.untyped_storage()
    setattr(storage, _DEVICE, placement.index)
    setattr(storage, _BOX, weakref.ref(placement.box))
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=source.dtype, _internal=True)
    layout = placement.layout
    form = (layout.offset, layout.size, layout.stride, source.requires_grad)
    return torch._utils._rebuild_tensor_v2, (typed, *form, OrderedDict())


def _tag(storage: Any) -> str | None:
    index = getattr(storage, _DEVICE, None)
    return None if index is None else f"cuda:{index}"


def _restore(storage: Any, location: str) -> Any:
    """Put a storage from a file onto the device: a blocking copy from pageable memory, as in torch."""
    if not location.startswith("cuda"):
        return None
    device = torch.device(location)
    index = devices.current() if device.index is None else device.index
    if index >= devices.count():
        raise RuntimeError(
            f"Attempting to deserialize object on CUDA device {index} but torch.cuda.device_count() is "
            f"{devices.count()}. Please use torch.load with map_location to map your storages to an existing device."
        )
    return _onto_device(storage, index)


def _onto_device(storage: Any, index: int) -> Any:
    host = torch.empty(0, dtype=torch.uint8)
    host.set_(storage)
    if not host.numel():
        setattr(storage, _DEVICE, index)
        return storage
    moved = host.to(devices.stand_ins[index])
    values = moved._sim.box.values.untyped_storage()  # type: ignore[attr-defined]  # a SimulatedTensor
    setattr(values, _DEVICE, index)
    return values


def _rebuild(original: Any) -> Any:
    @functools.wraps(original)
    def rebuild(
        storage: Any, storage_offset: int, size: Any, stride: Any, requires_grad: bool, *rest: Any, **named: Any
    ) -> Any:
        memory = getattr(storage, "_untyped_storage", storage)
        index = getattr(memory, _DEVICE, None)
        if index is None:
            return original(storage, storage_offset, size, stride, requires_grad, *rest, **named)
        layout = Layout(tuple(size), tuple(stride), storage_offset, storage.dtype)
        return make(Placement(_box_over(memory, storage.dtype), layout, index)).requires_grad_(requires_grad)

    return rebuild


def _box_over(storage: Any, dtype: torch.dtype) -> Box:
    """The box of a marked storage: one for all tensors that share it."""
    known = getattr(storage, _BOX, None)
    box: Box | None = None if known is None else known()
    if box is None:
        size = storage.nbytes() // dtype.itemsize
        whole = torch.empty(0, dtype=dtype)
        whole.set_(storage, 0, (size,), (1,))
        box = Box(Layout((size,), (1,), 0, dtype), whole)
        setattr(storage, _BOX, weakref.ref(box))
    return box


def _storage_to_cuda(self: Any, device: Any = None, non_blocking: bool = False) -> Any:  # noqa: ARG001 - torch's signature
    """``storage.cuda()``, which programs write in ``map_location``."""
    index = devices.index_of(device)
    if isinstance(self, torch.UntypedStorage):
        return _onto_device(self, index)
    memory = _onto_device(self._untyped_storage, index)
    return torch.storage.TypedStorage(wrap_storage=memory, dtype=self.dtype, _internal=True)


def _refuse_sharing(_tensor: SimulatedTensor) -> Any:
    raise SimulationError("CUDA IPC (sending a CUDA tensor to another process) is not simulated; send it from the CPU")


def _refuse_pickling(_tensor: SimulatedTensor, _protocol: Any) -> Any:
    raise SimulationError(
        f"tensors on the simulated device cannot be pickled with torch {torch.__version__}, which lacks a name that "
        "this needs (the report says which); save a copy on the CPU"
    )


def _unregister() -> None:
    """Undo ``register_package``: torch keeps a list, and has no function for this."""
    registry = find("serialization._package_registry")
    if registry is not None:
        registry[:] = [entry for entry in registry if entry[1] is not _tag]


def install() -> None:
    """Teach torch.save, torch.load and pickle."""
    rebuild_tensor = find("_utils._rebuild_tensor_v2")
    register, typed = find("serialization.register_package"), find("storage.TypedStorage")
    if all((rebuild_tensor, register, typed, find("_utils._rebuild_parameter"))):
        SimulatedTensor.__reduce_ex__ = _reduce  # type: ignore[assignment, method-assign]  # patched
        patches.also(lambda: register(1, _tag, _restore), _unregister)
        patches.put(torch._utils, "_rebuild_tensor_v2", _rebuild(rebuild_tensor))
    else:
        SimulatedTensor.__reduce_ex__ = _refuse_pickling  # type: ignore[assignment, method-assign]  # patched
    allowed = find("_weights_only_unpickler._get_allowed_globals")
    if allowed is not None:
        patches.also(allowed.cache_clear, allowed.cache_clear)  # it has cached the function that it found by name
    for storage in filter(None, (torch.UntypedStorage, typed)):
        patches.put(storage, "cuda", _storage_to_cuda)
    ForkingPickler.register(SimulatedTensor, _refuse_sharing)
