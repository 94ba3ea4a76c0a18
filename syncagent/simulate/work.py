"""What an op gives a GPU to do: its bytes from the layouts of its tensors, its operations from torch's own table."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from syncagent.errors import SimulationWarning
from syncagent.simulate import standin
from syncagent.simulate.failures import attempt
from syncagent.simulate.memory import Layout, Placement, flatten
from syncagent.simulate.timing import Work

NO_KERNEL = frozenset({"aten::empty", "aten::resize_", "torch.UntypedStorage.resize_"})
"""These only take memory, and CUDA starts nothing for them."""

_READS_PART = frozenset({
    "aten::embedding", "aten::_embedding_bag", "aten::_embedding_bag_forward_only", "aten::gather", "aten::index",
    "aten::index_select", "aten::take", "aten::_unsafe_index",
})  # fmt: skip
"""These read as much of their first tensor as they return."""
_WRITES_PART = frozenset({
    "aten::index_add_", "aten::index_copy_", "aten::index_fill_", "aten::index_put_", "aten::_index_put_impl_",
    "aten::scatter_", "aten::scatter_add_", "aten::scatter_reduce_",
})  # fmt: skip
"""These change as much of their first tensor as the other tensors hold."""
_ONLY_WRITES = frozenset({
    "aten::bernoulli_", "aten::copy_", "aten::exponential_", "aten::fill_", "aten::normal_", "aten::random_",
    "aten::uniform_", "aten::zero_", "aten::_foreach_copy_", "aten::_foreach_zero_",
})  # fmt: skip
"""These do not read what they write to."""

_KERNELS = {
    "aten::_index_put_impl_": 4, "aten::_unique2": 10, "aten::convolution_backward": 3, "aten::cumsum": 2,
    "aten::embedding_dense_backward": 5, "aten::index_put_": 4, "aten::masked_select": 4,
    "aten::native_batch_norm_backward": 2, "aten::native_group_norm": 2, "aten::native_group_norm_backward": 3,
    "aten::native_layer_norm_backward": 2, "aten::nonzero": 4, "aten::nonzero_static": 4, "aten::sort": 4,
    "aten::topk": 3, "aten::unique_consecutive": 8, "aten::unique_dim": 12,
}  # fmt: skip
"""How many kernels CUDA starts for an op, where that is more than one."""
_TENSORS_A_KERNEL = 40
"""How many of a list's tensors one kernel of a ``_foreach_`` or ``_fused_`` op takes."""

_FLASH = "_scaled_dot_product_flash_attention"
_RECURRENT = frozenset({"aten::gru", "aten::lstm", "aten::rnn_relu", "aten::rnn_tanh"})
_CELLS = {"aten::gru_cell": 2, "aten::lstm_cell": 3, "aten::rnn_relu_cell": 2, "aten::rnn_tanh_cell": 2}
"""By the name of a cell's op: how many tensors come before its weights."""
_HALVES = (torch.float16, torch.bfloat16)


def nbytes_of(layout: Layout) -> int:
    """The bytes of a layout's elements: those that it shows many times (``expand``) count once."""
    sizes = (n for n, stride in zip(layout.size, layout.stride, strict=True) if stride or n == 0)
    return math.prod(sizes) * layout.dtype.itemsize


def of_op(
    op: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], made: Iterable[Any], written: Iterable[Any]
) -> Work:
    """Describe an op by its arguments and the placements that it makes and writes to; others are left out."""
    given = [x for x in flatten([*args, *kwargs.values()]) if isinstance(x, Placement)]
    if name == "aten::_local_scalar_dense":  # the copy to the host is all there is
        return Work(kernels=0)
    results = list(made)
    made, written = ([x for x in found if isinstance(x, Placement)] for found in (results, written))
    flops = _flops(op, args, kwargs, results or written)
    return Work(
        nbytes=_nbytes(name, given, made, written),
        flops=flops,
        rate=_rate(name, given) if flops else "fp32",
        kernels=_kernels(name, args),
    )


def of_named(name: str, read: Sequence[Placement], written: Sequence[Placement]) -> Work:
    """Describe a kernel that is not a single op: a recurrent layer or cell, or any other by its bytes alone."""
    forward = name.removesuffix("_backward")
    times = 1 if forward == name else 2
    nbytes = _nbytes(name, list(read), list(written), [])
    if forward in _RECURRENT:
        source, state = read[0].layout.size, read[1].layout.size
        rows = math.prod(source[:-1])
        weights = [x for x in read[1:] if len(x.layout.size) == 2]
        flops = times * 2 * rows * sum(math.prod(x.layout.size) for x in weights)
        return Work(nbytes, flops, _rate("rnn", read), kernels=1, serial=times * state[0] * max(rows // state[1], 1))
    if forward in _CELLS:
        rows, weights = read[0].layout.size[0], [x for x in read[_CELLS[forward] :] if len(x.layout.size) == 2]
        flops = times * 2 * rows * sum(math.prod(x.layout.size) for x in weights)
        return Work(nbytes, flops, _rate("mm", read), kernels=times * 3)
    return Work(nbytes)


def of_copy(target: Any, source: Any, *, is_pinned: bool) -> Work:
    """Describe a copy between placements, or between one and a tensor on the host."""
    if isinstance(target, Placement) and isinstance(source, Placement):
        return Work(nbytes_of(target.layout) + nbytes_of(source.layout))
    host = source if isinstance(target, Placement) else target
    return Work(transferred=host.nbytes, is_pinned=is_pinned)


def of_call(call: standin.Call) -> Work:
    """Describe the copy that the host waits for in a function of CUDA's runtime."""
    return Work(transferred=call.bytes, is_pinned=call.function == standin.PINNED)


# --- bytes -------------------------------------------------------------------------------------------------


def _nbytes(name: str, given: list[Placement], made: list[Placement], written: list[Placement]) -> int:
    changed = {id(x.box) for x in written}
    if name in _READS_PART and given:
        return 2 * _sum(made) + _sum(given[1:])
    if name in _WRITES_PART and given:
        return 3 * _sum(x for x in given if id(x.box) not in changed)
    if name in _ONLY_WRITES or not changed.isdisjoint(id(x.box) for x in made):
        given = [x for x in given if id(x.box) not in changed]
    return _sum(given) + _sum(made) + _sum(written)


def _sum(placements: Iterable[Placement]) -> int:
    """Each part of the memory once, however often the op is given it."""
    return sum(nbytes_of(layout) for _, layout in {(id(x.box), x.layout) for x in placements})


def _kernels(name: str, args: Sequence[Any]) -> int:
    if name.startswith(("aten::_foreach_", "aten::_fused_")) and args and isinstance(args[0], (list, tuple)):
        return max(math.ceil(len(args[0]) / _TENSORS_A_KERNEL), 1)
    return _KERNELS.get(name, 1)


# --- operations --------------------------------------------------------------------------------------------


@functools.cache
def _formula(op: Any) -> Callable[..., int] | None:
    """What torch counts the operations of this op with; it takes shapes in place of tensors."""
    from torch.utils.flop_counter import flop_registry

    packet = getattr(op, "overloadpacket", None)
    name = getattr(packet, "__name__", "")
    if name.startswith(f"{_FLASH}_for_cpu"):  # it has none, and CUDA's counts the same
        packet = getattr(torch.ops.aten, name.replace("_for_cpu", ""))
    return flop_registry.get(packet)


def _flops(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], results: Sequence[Any]) -> int:
    formula = _formula(op)
    if formula is None:
        return 0
    shapes = [_shape(x) for x in results]
    counted, error = attempt(
        lambda: formula(
            *map(_shape, args),
            **{name: _shape(x) for name, x in kwargs.items()},
            out_val=shapes[0] if len(shapes) == 1 else shapes,
        )
    )
    if counted is None:
        said = f"{op}: torch cannot count the operations of this call ({type(error).__name__}: {error})"
        warnings.warn(f"{said}; its modelled time comes from its bytes alone", SimulationWarning, stacklevel=2)
        return 0
    return int(counted)


def _shape(value: Any) -> Any:
    if isinstance(value, Placement):
        return value.layout.size
    if isinstance(value, (list, tuple)):
        return [_shape(x) for x in value]
    return value.shape if isinstance(value, torch.Tensor) else value


def _rate(name: str, given: Sequence[Placement]) -> str:
    dtype = next((x.layout.dtype for x in given if x.layout.dtype.is_floating_point), torch.float32)
    if dtype in _HALVES:
        return "half"
    if dtype == torch.float64:
        return "fp64"
    return "tf32" if dtype == torch.float32 and _allows_tf32(name) else "fp32"


def _allows_tf32(name: str) -> bool:
    """Whether the program lets products in fp32 be computed in TF32: by default convolutions and recurrent layers."""
    backends: Any = torch.backends
    part = backends.cudnn.conv if "conv" in name else backends.cudnn.rnn if name == "rnn" else backends.cuda.matmul
    return bool(part.fp32_precision == "tf32")
