"""Compressed sparse tensors (CSR, CSC, BSR, BSC) on a simulated device.

They consist of three dense tensors: for each row, or column, where its elements begin; for each element, or block, in
which column, or row, it is; and the values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from syncagent.errors import SimulationError
from syncagent.events import SyncKind
from syncagent.simulate import composite, devices, dispatch, sparse
from syncagent.simulate.dispatch import runs
from syncagent.simulate.facts import OpFacts
from syncagent.simulate.failures import all_for_program, leave_simulation
from syncagent.simulate.memory import Layout, Placement, stride_for
from syncagent.simulate.requirements import MissingOp, aten
from syncagent.simulate.sparse import Call, InParts, Kept, set_form
from syncagent.simulate.sparse_ops import UNARY, UNARY_IN_PLACE, ToDevice, handles_coo, of_layout, wait_to_coalesce
from syncagent.simulate.tensor import SimulatedTensor, adopt, make_view

_HANDLERS: dict[Any, dispatch.Handler] = {}
_has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
_unsafe = aten._sparse_compressed_tensor_unsafe.default
_make_subclass = sparse.make_subclass
_BY_ROW = {torch.sparse_csr, torch.sparse_bsr}
_NAMES: dict[Any, tuple[Any, Any]] = {
    layout: (aten.crow_indices.default, aten.col_indices.default)
    if layout in _BY_ROW
    else (aten.ccol_indices.default, aten.row_indices.default)
    for layout in (torch.sparse_csr, torch.sparse_bsr, torch.sparse_csc, torch.sparse_bsc)
}


class Parts(NamedTuple):
    """What makes a compressed tensor, besides its size and layout."""

    compressed: SimulatedTensor
    plain: SimulatedTensor
    values: SimulatedTensor


@all_for_program
class CompressedTensor(InParts):
    """A compressed sparse tensor on a simulated CUDA device."""

    _form: Parts

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub lacks func
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        try:
            return _run(func, args, kwargs or {})
        except BaseException as error:
            leave_simulation(error)
            raise

    def kept(self) -> Kept:
        return _KeptParts(self._form, tuple(self.shape), self.layout)

    def become(self, values: torch.Tensor) -> None:
        if tuple(values.shape) != tuple(self.shape):
            raise SimulationError("to give a compressed sparse tensor another size in place is not simulated on CUDA")
        set_form(self, _adopt(values, self._sim.index)._form)


class _KeptParts(Kept):
    def __init__(self, parts: Parts, size: tuple[int, ...], layout: torch.layout) -> None:
        self.placements: tuple[Placement, ...] = tuple(part._sim for part in parts)
        self.size = size
        self.layout = layout

    def resolve(self) -> torch.Tensor:
        return on_host([x.resolve() for x in self.placements], self.size, self.layout)


def on_host(parts: Any, size: Any, layout: torch.layout) -> torch.Tensor:
    """A compressed tensor on the CPU over this memory."""
    made: torch.Tensor = _unsafe(*parts, size, dtype=parts[2].dtype, layout=layout, device=devices.CPU)
    return made


def _parts_of(value: torch.Tensor) -> tuple[torch.Tensor, ...]:
    compressed, plain = _NAMES[value.layout]
    return compressed(value), plain(value), aten.values.default(value)


def _adopt(value: torch.Tensor, index: int) -> CompressedTensor:
    return _make(Parts(*(adopt(x, index) for x in _parts_of(value))), value.shape, value.layout)


for _layout in _NAMES:
    sparse.know_layout(_layout, _parts_of, _adopt)


@functools.lru_cache(maxsize=256)
def _bare(shapes: tuple[Any, ...], kinds: tuple[torch.dtype, ...], size: Any, layout: torch.layout) -> torch.Tensor:
    with torch.inference_mode(False):
        parts = [torch.empty(shape, dtype=kind, device="meta") for shape, kind in zip(shapes, kinds, strict=True)]
        made: torch.Tensor = _unsafe(*parts, size, dtype=kinds[2], layout=layout, device=devices.META)
        return made


def _make(parts: Parts, size: Any, layout: torch.layout) -> CompressedTensor:
    if _make_subclass is None:
        raise SimulationError(f"sparse tensors are not simulated on CUDA with torch {torch.__version__}")
    index = parts.values._sim.index
    shapes, kinds = tuple(tuple(x.shape) for x in parts), tuple(x.dtype for x in parts)
    made: CompressedTensor = _make_subclass(
        CompressedTensor,
        _bare(shapes, kinds, tuple(size), layout),
        False,
        dispatch_device=True,  # C++ asks for the device, and has no such tensor on the stand-in's
        device_for_backend_keys=devices.stand_ins[index],
    )
    set_form(made, parts)
    return made


# --- ops ---------------------------------------------------------------------------------------------------------


def _handles(*ops: Any) -> Callable[[Any], Any]:
    def register(handler: Any) -> Any:
        _HANDLERS.update(dict.fromkeys(ops, handler))
        return handler

    return register


def _run(op: Any, args: Any, kwargs: Any) -> Any:
    if op is _DEVICE:
        return devices.stand_ins[args[0]._sim.index]
    handler = _HANDLERS.get(op) or _default(op)
    return handler(dispatch.facts_of(op), args, kwargs)


_DEVICE = torch.ops.prim.device.default


@functools.cache
def _default(op: Any) -> dispatch.Handler:
    return of_layout(op, "SparseCsrCPU", _run_now)


def _run_now(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """On a GPU these wait for nothing: the number of elements is that of an argument."""
    return Call(facts, args, kwargs).run_now(None)


@_handles(aten._sparse_mm_reduce_impl.default)
def _only_on_the_cpu(facts: OpFacts, _args: Any, _kwargs: Any) -> Any:
    """Torch has no kernel for it on CUDA, and the CPU's ends the process in a backward pass of such parts."""
    raise NotImplementedError(f"Could not run '{facts.name}' with arguments from the 'SparseCsrCUDA' backend.")


def _part(position: int, layouts: Any) -> dispatch.Handler:
    def handler(facts: OpFacts, args: Any, _kwargs: Any) -> Any:
        if args[0].layout not in layouts:
            name = facts.name.removeprefix("aten::")
            raise RuntimeError(f"{name} is not one of the parts of a tensor of layout {args[0].layout}")
        part = args[0]._form[position]
        return make_view(part, part._sim)

    return handler


_BY_COLUMN = set(_NAMES) - _BY_ROW
_HANDLERS.update(
    {
        aten.crow_indices.default: _part(0, _BY_ROW),
        aten.col_indices.default: _part(1, _BY_ROW),
        aten.ccol_indices.default: _part(0, _BY_COLUMN),
        aten.row_indices.default: _part(1, _BY_COLUMN),
        aten.values.default: _part(2, _NAMES),
        aten._nnz.default: lambda _facts, args, _kwargs: args[0]._form.plain.shape[-1],
        aten.sparse_dim.default: lambda _facts, _args, _kwargs: 2,
        aten.lift.default: lambda _facts, args, _kwargs: args[0],
        aten.lift_fresh.default: lambda _facts, args, _kwargs: args[0],
        aten.is_pinned.default: lambda _facts, _args, _kwargs: False,
        aten.record_stream.default: lambda _facts, _args, _kwargs: None,
        aten.is_same_size.default: lambda _facts, args, _kwargs: bool(args[0].shape == args[1].shape),
        aten._has_compatible_shallow_copy_type.default: lambda _facts, args, _kwargs: (
            isinstance(args[0], SimulatedTensor)
            and isinstance(args[1], SimulatedTensor)
            and args[0].layout == args[1].layout
        ),
    }
)


@_handles(aten.detach.default, aten.alias.default)
def _same(_facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    return _make(args[0]._form, args[0].shape, args[0].layout)


@_handles(aten.clone.default)
def _clone(_facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    parts = Parts(*(aten.clone.default(part) for part in args[0]._form))
    return _make(parts, args[0].shape, args[0].layout)


@runs(aten.sparse_compressed_tensor.comp_plain_value_size)
def _from_parts(_facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """Nothing is computed: the tensor consists of these three."""
    *parts, size = args
    if not all(isinstance(part, SimulatedTensor) for part in parts):
        raise RuntimeError("indices and values of a sparse tensor must be on the same device")
    dtype = kwargs.get("dtype")
    if dtype is not None and dtype != parts[2].dtype:
        parts[2] = aten._to_copy.default(parts[2], dtype=dtype)
    return _make(Parts(*(make_view(part, part._sim) for part in parts)), size, kwargs["layout"])


@runs(aten.sparse_compressed_tensor.comp_plain_value)
def _of_unknown_size(_facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """Along the rows of a CSR tensor, say, its size is what the columns say, which is read."""
    compressed, plain, values = args
    ends = compressed.shape[-1] - 1
    other = int(aten.add.Scalar(aten.max.default(plain), 1)) if plain.numel() else 0
    layout = kwargs["layout"]
    block = values.shape[1:3] if layout in {torch.sparse_bsr, torch.sparse_bsc} else (1, 1)
    size = (ends * block[0], other * block[1]) if layout in _BY_ROW else (other * block[0], ends * block[1])
    return aten.sparse_compressed_tensor.comp_plain_value_size(*args, size, **kwargs)


@_handles(aten._to_copy.default)
def _to_copy(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    source: CompressedTensor = args[0]
    if kwargs.get("layout") not in {None, source.layout}:
        raise RuntimeError(f"{facts.name}: to() does not change the layout of a sparse tensor; use to_sparse()")
    device = kwargs.get("device")
    place = devices.stand_ins[source._sim.index] if device is None else device
    non_blocking = bool(kwargs.get("non_blocking"))
    dtypes = (None, None, kwargs.get("dtype"))
    parts = [
        aten._to_copy.default(part, device=place, dtype=dtype or part.dtype, non_blocking=non_blocking)
        for part, dtype in zip(source._form, dtypes, strict=True)
    ]
    if isinstance(parts[2], SimulatedTensor):
        return _make(Parts(*parts), source.shape, source.layout)
    return on_host(parts, source.shape, source.layout)


def to_device(source: torch.Tensor, like: SimulatedTensor, *, non_blocking: bool) -> CompressedTensor:
    """A tensor of the host's, moved to the device in parts."""
    place = devices.stand_ins[like._sim.index]
    kinds = (torch.int64, torch.int64, like.dtype)
    parts = [
        aten._to_copy.default(
            part, device=place, dtype=kind if kind.is_floating_point else part.dtype, non_blocking=non_blocking
        )
        for part, kind in zip(_parts_of(source), kinds, strict=True)
    ]
    return _make(Parts(*parts), source.shape, source.layout)


ToDevice.other = staticmethod(to_device)


@_handles(aten.copy_.default)
def _copy(_facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    target, source = args[:2]
    if target.layout != source.layout or target.shape != source.shape:
        raise RuntimeError(
            f"copy of sparse compressed tensors having different layouts is not supported: {source.layout} to "
            f"{target.layout}"
        )
    for into, part in zip(_pieces(target), _pieces(source), strict=True):
        aten.copy_.default(into, part)
    return target


def _pieces(value: Any) -> Any:
    return value._form if isinstance(value, CompressedTensor) else _parts_of(value)


@_handles(aten._to_dense.default)
def _to_dense(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    size = tuple(args[0].shape)
    dtype = (args[1] if len(args) > 1 else kwargs.get("dtype")) or args[0].dtype
    return Call(facts, args, kwargs).queue_dense(Layout(size, stride_for(size), 0, dtype))


@_handles(aten.sum.default)
def _sum(_facts: OpFacts, args: Any, kwargs: Any) -> Any:
    return aten.sum.default(args[0]._form.values, **kwargs)


@_handles(aten.mm.default, aten.addmm.default, aten.addmv.default)
def _product(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    if sum(isinstance(x, InParts) for x in args[-2:]) > 1:  # the elements of the product have to be counted
        return Call(facts, args, kwargs).run_now(SyncKind.DYNAMIC_SHAPE, "aten::addmm")
    if isinstance(args[0], InParts) and len(args) > 2:
        return _run_now(facts, args, kwargs)
    return Call(facts, args, kwargs).queue_dense()


def _sparse_mm(one: Any, other: Any) -> Any:
    """``torch.sparse.mm``, whose general form makes a sparse tensor of zeros first."""
    if isinstance(one, CompressedTensor) and isinstance(other, CompressedTensor):
        return torch.mm(one, other)
    return aten._sparse_mm.default.decompose(one, other)


_HANDLERS[aten._sparse_mm.default] = lambda _facts, args, _kwargs: _sparse_mm(*args)


def install_kernels(library: Any) -> None:
    """Give the stand-in device what torch cannot compose of other ops there."""
    composite.register(library, aten._sparse_mm.default, _sparse_mm)


def _of_values(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """Element by element: the indices stay."""
    compressed, plain, values = args[0]._form
    values = facts.op(values, *args[1:], **kwargs)
    return _make(Parts(compressed, plain, values), args[0].shape, args[0].layout)


def _of_values_in_place(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    facts.op(args[0]._form.values, *args[1:], **kwargs)
    return args[0]


def _known(ops: Any) -> list[Any]:
    """Those of them that torch has for these layouts."""
    return [op for op in ops if not isinstance(op, MissingOp) and _has_kernel(op.name(), "SparseCsrCPU")]


_handles(*_known(UNARY), aten.mul.Scalar)(_of_values)
_handles(*_known(UNARY_IN_PLACE), aten.mul_.Scalar)(_of_values_in_place)


@_handles(aten.mul.Tensor)
def _scaled(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    is_number = not isinstance(args[1], torch.Tensor) or (args[1].dim() == 0 and args[1].layout is torch.strided)
    handler = _of_values if isinstance(args[0], CompressedTensor) and is_number else _run_now
    return handler(facts, args, kwargs)


@_handles(aten.empty_like.default, aten.zeros_like.default)
def _zeros_like(_facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """No elements: nothing begins anywhere else than at the beginning."""
    source, dtype, device = args[0], kwargs.get("dtype"), kwargs.get("device")
    if (
        source.dim() != 2
        or kwargs.get("layout") not in {None, source.layout}
        or not (device is None or devices.is_simulated(device))
    ):
        raise SimulationError(
            "zeros_like of a batch, or in another layout or on another device, is not simulated for "
            "compressed sparse tensors on CUDA; make the tensor of its parts"
        )
    compressed, plain, values = source._form
    parts = (
        aten.zeros_like.default(compressed),
        aten.new_empty.default(plain, (0,)),
        aten.new_empty.default(values, (0, *values.shape[1:]), dtype=dtype or source.dtype),
    )
    return _make(Parts(*parts), source.shape, source.layout)


_TRANSPOSED = {
    torch.sparse_csr: torch.sparse_csc, torch.sparse_csc: torch.sparse_csr,
    torch.sparse_bsr: torch.sparse_bsc, torch.sparse_bsc: torch.sparse_bsr,
}  # fmt: skip


@_handles(aten.t.default, aten.transpose.int, aten.permute.default)
def _transposed(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """The same three tensors: what were rows are columns."""
    source = args[0]
    shape = facts.op(torch.empty(source.shape, device=devices.META), *args[1:], **kwargs).shape
    if source.dim() != 2:
        raise SimulationError(f"{facts.name} of a batch of compressed sparse tensors is not simulated on CUDA")
    if facts.op is aten.permute.default and [dim % 2 for dim in args[1]] == [0, 1]:
        return _same(facts, args, {})
    if facts.op is aten.transpose.int and args[1] % 2 == args[2] % 2:
        return _same(facts, args, {})
    compressed, plain, values = source._form
    if values.dim() > 2:  # blocks
        values = aten.transpose.int(values, 1, 2)
    return _make(Parts(compressed, plain, values), shape, _TRANSPOSED[source.layout])


# --- from one layout to another ------------------------------------------------------------------------------------

CONVERSIONS = tuple(getattr(aten, f"_to_sparse_{kind}").default for kind in ("csr", "csc", "bsr", "bsc"))


@runs(*CONVERSIONS)
def from_dense(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """How many elements are not zero has to be counted."""
    _warn_that_it_is_new()
    kind = None if facts.rule is None else facts.rule.waits(args, kwargs)
    return Call(facts, args, kwargs).run_now(kind)


@functools.cache
def _warn_that_it_is_new() -> None:
    """Have torch give its warning of these layouts here and not on a worker, where nothing can filter it."""
    torch.empty(0, 0, layout=torch.sparse_csr, device="meta")


@_handles(*CONVERSIONS)
def _convert(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """Between rows and columns the host makes a table of the permutation, and copies it."""
    to_rows = facts.name.endswith("r")
    kind = SyncKind.COPY_H2D if to_rows != (args[0].layout in _BY_ROW) else None
    return Call(facts, args, kwargs).run_now(kind, "aten::copy_")


@handles_coo(*CONVERSIONS)
def _compress(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    _warn_that_it_is_new()
    wait_to_coalesce(args[0])
    return Call(facts, args, kwargs).run_now(None)
