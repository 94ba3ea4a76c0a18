"""What becomes of each op on sparse tensors: which answer at once, which are queued, and which the host waits for.

The number of a result's elements is CUDA's, and so are the waits for it; the numbers are the CPU's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from syncagent.events import SyncKind
from syncagent.simulate import composite, devices, dispatch, sparse, standin, waits
from syncagent.simulate.dispatch import runs
from syncagent.simulate.facts import OpFacts
from syncagent.simulate.memory import Layout, stride_for
from syncagent.simulate.requirements import aten
from syncagent.simulate.sparse import Call, Form, SparseTensor, make, no_elements, replace, set_form
from syncagent.simulate.tensor import SimulatedTensor, make_view

_HANDLERS: dict[Any, dispatch.Handler] = {}
_has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
_COUNTED = SyncKind.DYNAMIC_SHAPE


def handles_coo(*ops: Any) -> Callable[[Any], Any]:
    """Register a handler for these ops on sparse tensors, as a decorator."""

    def register(handler: Any) -> Any:
        _HANDLERS.update(dict.fromkeys(ops, handler))
        return handler

    return register


def _run(op: Any, args: Any, kwargs: Any) -> Any:
    handler = _HANDLERS.get(op) or _default(op)
    return handler(dispatch.facts_of(op), args, kwargs)


sparse.run = _run


@functools.cache
def _default(op: Any) -> dispatch.Handler:
    """How an op is run that has no handler here."""
    facts = dispatch.facts_of(op)
    if facts.third_party:
        body = facts.python_body()
        return _run_now if body is None else lambda _facts, args, kwargs: body(*args, **kwargs)
    return of_layout(op, "SparseCPU", _run_now)


def of_layout(op: Any, key: str, run_now: dispatch.Handler) -> dispatch.Handler:
    """How an op is run by what torch has for it: ``run_now`` where there is a kernel for this key of the CPU's."""
    name = op.name()
    if not _has_kernel(name, key):
        if _has_kernel(name, "CompositeImplicitAutograd"):
            return lambda facts, args, kwargs: facts.op.decompose(*args, **kwargs)
        if _has_kernel(name, "CompositeExplicitAutograd"):
            # torch's general kernel, so that the ops inside come here one by one
            keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
            return lambda facts, args, kwargs: facts.op.redispatch(keys, *args, **kwargs)
    return run_now


def _run_now(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    kind = None if facts.rule is None else facts.rule.waits(args, kwargs)
    return Call(facts, args, kwargs).run_now(kind)


def _argument(args: Any, kwargs: Any, position: int, name: str, default: Any = None) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


# --- answered from what the host knows -----------------------------------------------------------------------


def _part(name: str) -> dispatch.Handler:
    def handler(facts: OpFacts, args: Any, _kwargs: Any) -> Any:
        form = args[0]._form
        if not form.is_coalesced and not facts.name.startswith("aten::_"):
            raise RuntimeError(f"Cannot get {name} on an uncoalesced tensor, please call .coalesce() first")
        part = getattr(form, name)
        return make_view(part, part._sim)

    return handler


_HANDLERS.update(
    {
        aten._indices.default: _part("indices"),
        aten.indices.default: _part("indices"),
        aten._values.default: _part("values"),
        aten.values.default: _part("values"),
        aten._nnz.default: lambda _facts, args, _kwargs: args[0]._form.count,
        aten.is_coalesced.default: lambda _facts, args, _kwargs: args[0]._form.is_coalesced,
        aten.lift.default: lambda _facts, args, _kwargs: args[0],
        aten.lift_fresh.default: lambda _facts, args, _kwargs: args[0],
        aten.is_pinned.default: lambda _facts, _args, _kwargs: False,
        aten.record_stream.default: lambda _facts, _args, _kwargs: None,
        aten.is_same_size.default: lambda _facts, args, _kwargs: bool(args[0].shape == args[1].shape),
        aten._has_compatible_shallow_copy_type.default: lambda _facts, args, _kwargs: (
            isinstance(args[0], SparseTensor) == isinstance(args[1], SparseTensor)
        ),
    }
)
_HANDLERS.update(
    dict.fromkeys((aten.sparse_dim.default, aten._dimI.default), lambda _facts, args, _kwargs: args[0]._form.sparse_dim)
)
_HANDLERS.update(
    dict.fromkeys(
        (aten.dense_dim.default, aten._dimV.default), lambda _facts, args, _kwargs: args[0]._form.values.dim() - 1
    )
)


@handles_coo(aten.detach.default, aten.alias.default)
def _same(_facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    return make(args[0]._form, args[0].shape)


@handles_coo(aten._coalesced_.default)
def _set_coalesced(_facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    target, flag = args
    set_form(target, Form(target._form.indices, target._form.values, flag))
    return target


# --- making one ------------------------------------------------------------------------------------------------


@runs(aten._sparse_coo_tensor_with_dims_and_tensors.default)
def _from_parts(_facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """Nothing is computed: the tensor consists of these two."""
    size, indices, values = args[2:5]
    if not isinstance(indices, SimulatedTensor) or not isinstance(values, SimulatedTensor):
        raise RuntimeError(  # noqa: TRY004 - as torch
            f"indices and values must be on the same device, not {indices.device} and {values.device}"
        )
    if indices._sim.index != values._sim.index:
        raise RuntimeError(f"device of indices ({indices.device}) must match device of values ({values.device})")
    dtype = kwargs.get("dtype")
    if dtype is not None and dtype != values.dtype:
        values = aten._to_copy.default(values, dtype=dtype)
    is_coalesced = _argument(args, kwargs, 5, "is_coalesced")
    count = indices.shape[1]
    # Views of their own, as in torch: what becomes of the given tensors later is nothing to this one.
    indices, values = (make_view(part, part._sim) for part in (indices, values))
    return make(Form(indices, values, count < 2 if is_coalesced is None else is_coalesced), size)


def empty(size: Any, dtype: torch.dtype | None, device: Any) -> SparseTensor:
    """A sparse tensor without elements."""
    size = tuple(size)
    form = no_elements(size, len(size), dtype or torch.get_default_dtype(), devices.index_of(device))
    return make(form, size)


@handles_coo(aten.empty_like.default, aten.zeros_like.default)
def _empty_like(_facts: OpFacts, args: Any, kwargs: Any) -> Any:
    source = args[0]
    dtype, device = kwargs.get("dtype") or source.dtype, kwargs.get("device")
    layout = kwargs.get("layout")
    if layout not in {None, torch.sparse_coo}:
        return torch.empty(source.shape, dtype=dtype, device=source.device if device is None else device, layout=layout)
    if device is not None and not devices.is_simulated(device):
        return torch.empty(source.shape, dtype=dtype, device=device, layout=torch.sparse_coo)
    index = source._sim.index if device is None else devices.index_of(device)
    return make(no_elements(tuple(source.shape), source._form.sparse_dim, dtype, index), source.shape)


@handles_coo(aten.zero_.default)
def _zero(_facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    target = args[0]
    set_form(target, no_elements(tuple(target.shape), target._form.sparse_dim, target.dtype, target._sim.index))
    return target


@handles_coo(aten.sparse_resize_and_clear_.default)
def _resize_and_clear(_facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    target, size, sparse_dim, _ = args
    replace(target, no_elements(tuple(size), sparse_dim, target.dtype, target._sim.index), size)
    return target


@handles_coo(aten.resize_as_sparse_.default, aten.resize_as_.default)
def _resize_as(_facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    target, like = args[:2]
    if tuple(target.shape) != tuple(like.shape) or target.sparse_dim() != like.sparse_dim():
        size, sparse_dim = tuple(like.shape), like.sparse_dim()
        replace(target, no_elements(size, sparse_dim, target.dtype, target._sim.index), size)
    return target


_TO_SPARSE = (aten._to_sparse.default, aten._to_sparse.sparse_dim)


@runs(*_TO_SPARSE)
def _to_sparse(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """How many elements are not zero has to be counted."""
    kind = None if facts.rule is None else facts.rule.waits(args, kwargs)
    return Call(facts, args, kwargs).run_now(kind)


# --- copies ------------------------------------------------------------------------------------------------------


def _moved(form: Any, device: Any, dtype: torch.dtype, *, non_blocking: bool = False) -> tuple[Any, Any]:
    """Copies of the indices and the values elsewhere, each of which waits as any copy does."""
    if isinstance(form, Form):
        indices, values = form.indices, form.values
    else:
        indices, values = aten._indices.default(form), aten._values.default(form)
    return (
        aten._to_copy.default(indices, device=device, non_blocking=non_blocking),
        aten._to_copy.default(values, device=device, dtype=dtype, non_blocking=non_blocking),
    )


class ToDevice(torch.autograd.Function):
    """A sparse tensor of the host's, moved to the device: torch's own way makes an empty one there first."""

    other: Any = None
    """Moves those of other layouts; sparse_compressed.py puts it here."""

    @staticmethod
    def forward(_ctx: Any, source: torch.Tensor, like: SimulatedTensor, non_blocking: bool) -> Any:
        if source.layout is not torch.sparse_coo:
            return ToDevice.other(source, like, non_blocking=non_blocking)
        indices, values = _moved(source, devices.stand_ins[like._sim.index], like.dtype, non_blocking=non_blocking)
        return make(Form(indices, values, source.is_coalesced()), source.shape)

    @staticmethod
    def backward(_ctx: Any, gradient: Any) -> Any:
        return gradient.cpu(), None, None


@handles_coo(aten._to_copy.default)
def _to_copy(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    source: SparseTensor = args[0]
    form = source._form
    if kwargs.get("layout") not in {None, torch.sparse_coo}:
        raise RuntimeError(
            f"{facts.name}: a sparse tensor does not become one of layout {kwargs['layout']}; use to_dense()"
        )
    device = kwargs.get("device")
    place = devices.stand_ins[source._sim.index] if device is None else device
    dtype, non_blocking = kwargs.get("dtype") or source.dtype, bool(kwargs.get("non_blocking"))
    if place.type == "meta":
        return torch.empty(source.shape, dtype=dtype, device=place, layout=torch.sparse_coo)
    indices, values = _moved(form, place, dtype, non_blocking=non_blocking)
    if isinstance(indices, SimulatedTensor):
        return make(Form(indices, values, form.is_coalesced), source.shape)
    return sparse.on_host(indices, values, source.shape, is_coalesced=form.is_coalesced)


@handles_coo(aten.clone.default)
def _clone(facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    form = args[0]._form
    return Call(facts, args, {}).queue_sparse(form.count, form.sparse_dim, is_coalesced=form.is_coalesced)


@handles_coo(aten.copy_.default, aten.copy_sparse_to_sparse_.default)
def _copy(_facts: OpFacts, args: Any, kwargs: Any) -> Any:
    target, source = args[:2]
    if not (target.is_sparse and source.is_sparse):
        raise RuntimeError(
            "copy_() between dense and sparse Tensors is not implemented! Found self type = "
            f"{target.type()} and src type = {source.type()}"
        )
    if target is source:
        return target
    non_blocking = bool(_argument(args, kwargs, 2, "non_blocking"))
    flag = source.is_coalesced()
    form = source._form if isinstance(source, SparseTensor) else source
    if isinstance(target, SparseTensor):
        place = devices.stand_ins[target._sim.index]
        indices, values = _moved(form, place, target.dtype, non_blocking=non_blocking)
        replace(target, Form(indices, values, flag), source.shape)
        return target
    indices, values = _moved(form, target.device, source.dtype, non_blocking=non_blocking)
    return aten.copy_.default(target, sparse.on_host(indices, values, source.shape, is_coalesced=flag))


# --- distinct indices --------------------------------------------------------------------------------------------


@handles_coo(aten._coalesce.default)
def _coalesce(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    source = args[0]
    if source._form.count < 2:
        made = aten.clone.default(source)
        return _set_coalesced(facts, (made, True), {})
    kind = None if facts.rule is None else facts.rule.waits(args, kwargs)
    # The CPU's own form may be coalesced already, where CUDA's is not.
    return Call(facts, args, kwargs).run_now(kind, compute=lambda coo: coo.coalesce())


def _coalesced(value: Any) -> Any:
    """The tensor itself if it is coalesced; else wait as CUDA does, and return what it becomes."""
    if not isinstance(value, SparseTensor) or value._form.is_coalesced:
        return value
    op = aten._coalesce.default
    return _coalesce(dispatch.facts_of(op), (value,), {})


def wait_to_coalesce(*values: Any) -> None:
    """Wait where CUDA's kernel coalesces an argument; the CPU's takes it as it is, and sums in another order."""
    for value in values:
        if isinstance(value, SparseTensor) and not value._form.is_coalesced and value._form.count > 1:
            rule = dispatch.facts_of(aten._coalesce.default)
            kind = None if rule.rule is None else rule.rule.waits((value,), {})
            parts = [value._form.indices._sim, value._form.values._sim]
            engine = devices.order(rule.name, parts[0].index, parts)
            waits.reported(
                rule.shown, kind, (value,), functools.partial(devices.run_here, engine, lambda: None, standin.read())
            )


# --- dense results -------------------------------------------------------------------------------------------------


@handles_coo(aten._to_dense.default)
def _to_dense(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    size = tuple(args[0].shape)
    dtype = _argument(args, kwargs, 1, "dtype") or args[0].dtype
    return Call(facts, args, kwargs).queue_dense(Layout(size, stride_for(size), 0, dtype))


@handles_coo(aten.any.default)
def _of_values(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """Uncoalesced elements count as they are."""
    return Call(facts, args, kwargs).queue_dense()


@handles_coo(aten.sum.default)
def _sum(_facts: OpFacts, args: Any, kwargs: Any) -> Any:
    return aten.sum.default(args[0]._form.values, **kwargs)


@handles_coo(aten.norm.ScalarOpt_dim, aten.norm.ScalarOpt_dim_dtype, aten.native_norm.default)
def _norm(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    wait_to_coalesce(args[0])
    return Call(facts, args, kwargs).queue_dense(Layout((), (), 0, args[0].dtype.to_real()))


@handles_coo(aten.addmm.default, aten.addmm_.default, aten.addmm.out, aten.mv.default)
def _product(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """On CUDA the rows have to be in order for it."""
    if sum(isinstance(x, SparseTensor) for x in args) > 1 or isinstance(args[-1], SparseTensor):
        return _run_now(facts, args, kwargs)
    wait_to_coalesce(*args)
    return Call(facts, args, kwargs).queue_dense()


@handles_coo(aten.mm.default)
def _mm(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    if all(isinstance(x, SparseTensor) for x in args):
        return aten._sparse_sparse_matmul.default(*args)
    return _product(facts, args, kwargs)


@handles_coo(aten.bmm.default)
def _bmm(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """CUDA multiplies the matrices one by one, and copies to the host where each ends."""
    if isinstance(args[1], SparseTensor):
        return _run_now(facts, args, kwargs)
    wait_to_coalesce(args[0])
    has_work = args[0]._form.count and args[0].shape[2] and args[1].shape[2]
    return Call(facts, args, kwargs).run_now(SyncKind.COPY_D2H) if has_work else Call(facts, args, kwargs).queue_dense()


# --- sums and products of two ---------------------------------------------------------------------------------------


@handles_coo(aten.add.Tensor, aten.sub.Tensor)
def _add(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    one, other = args[:2]
    call = Call(facts, args, kwargs)
    if not isinstance(other, SparseTensor) or one.shape != other.shape or _differ(one, other):
        return call.run_now(None)  # an error, in torch's words
    if not isinstance(one, SparseTensor):
        return call.queue_dense()
    left, right = one._form, other._form
    count = left.count + right.count
    flag = right.is_coalesced if not left.count else left.is_coalesced and not right.count
    if left.count and right.count and count > math.prod(one.shape):
        # CUDA's kernel appends one to the other, and coalesces what has grown beyond a dense tensor.
        own = []

        def summed(*args: Any, **kwargs: Any) -> Any:
            own.append(facts.compute(*args, **kwargs))
            return own[0].coalesce()

        made = call.run_now(_COUNTED, "aten::_coalesce", compute=summed)
        sparse.remember(made, own[0])
        return made
    return call.queue_sparse(count, left.sparse_dim, is_coalesced=flag)


def _differ(one: Any, other: Any) -> bool:
    """Whether both are sparse, but in other dimensions."""
    return isinstance(one, SparseTensor) and one._form.sparse_dim != other._form.sparse_dim


_OUT_OF_PLACE = {aten.add_.Tensor: aten.add.Tensor, aten.sub_.Tensor: aten.sub.Tensor}


@handles_coo(*_OUT_OF_PLACE)
def _add_in_place(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    target = args[0]
    if not isinstance(target, SparseTensor):
        return Call(facts, args, kwargs).queue_dense()
    op = _OUT_OF_PLACE[facts.op]
    result = _add(dispatch.facts_of(op), args, kwargs)
    if result.dtype != target.dtype:
        if not torch.can_cast(result.dtype, target.dtype):
            raise RuntimeError(f"Can't convert result type {result.dtype} to output {target.dtype}")
        result = aten._to_copy.default(result, dtype=target.dtype)
    set_form(target, result._form)
    return target


def _is_number(value: Any) -> bool:
    return not isinstance(value, torch.Tensor) or (value.dim() == 0 and not value.is_sparse)


@handles_coo(aten.mul.Tensor, aten.div.Tensor)
def _scaled(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """By a number, or element by element: none of it has to be counted."""
    one, other = args
    call = Call(facts, args, kwargs)
    source = one if isinstance(one, SparseTensor) else other
    form = source._form
    if _is_number(other if source is one else one):
        return call.queue_sparse(form.count, form.sparse_dim, is_coalesced=form.is_coalesced)
    if facts.op is not aten.mul.Tensor or one.shape != other.shape:
        return call.run_now(None)
    if not (isinstance(one, SparseTensor) and isinstance(other, SparseTensor)):
        return call.queue_sparse(form.count, form.sparse_dim, is_coalesced=form.is_coalesced)
    if not (one._form.is_coalesced and other._form.is_coalesced) or _differ(one, other):
        return call.run_now(None)
    # CUDA keeps every element of the one that has fewer, and multiplies by zero what the other one lacks.
    first = one._form.count < other._form.count
    fewer = (one if first else other)._form

    def multiplied(*args: Any, **kwargs: Any) -> Any:
        return facts.compute(*args, **kwargs).sparse_mask(args[0 if first else 1])

    return call.queue_sparse(fewer.count, fewer.sparse_dim, is_coalesced=True, compute=multiplied)


@handles_coo(aten.mul_.Tensor, aten.div_.Tensor)
def _scale_in_place(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    target, other = args
    if not isinstance(target, SparseTensor) or not _is_number(other):
        return Call(facts, args, kwargs).run_now(None)
    form = target._form
    if facts.op is aten.div_.Tensor:
        facts.op(form.values, other)
        return target
    # torch's kernel gives the tensor new values, and no longer knows that it is coalesced.
    values = facts.op(aten.clone.default(form.values), other)
    set_form(target, Form(form.indices, values, form.count < 2))
    return target


@handles_coo(aten.sparse_mask.default)
def _sparse_mask(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """The elements at the places of another tensor's."""
    source, mask = args
    call = Call(facts, args, kwargs)
    if not isinstance(mask, SparseTensor) or source.shape != mask.shape or _differ(source, mask):
        return call.run_now(None)
    wait_to_coalesce(source)
    form = mask._form
    size, dtype = tuple(mask.shape), source.dtype
    return call.queue_sparse(
        form.count, form.sparse_dim, is_coalesced=form.is_coalesced, layout=Layout(size, stride_for(size), 0, dtype)
    )


# --- element by element --------------------------------------------------------------------------------------------

_TO_BOOL = "isinf isnan isneginf isposinf signbit"
_WITH_IN_PLACE = (
    "abs asin asinh atan atanh ceil deg2rad erf erfinv expm1 floor frac log1p nan_to_num neg rad2deg relu round sgn "
    "sign sin sinh sqrt tan tanh trunc"
)
UNARY = [getattr(aten, name).default for name in f"{_TO_BOOL} {_WITH_IN_PLACE}".split()]
UNARY_IN_PLACE = [getattr(aten, f"{name}_").default for name in _WITH_IN_PLACE.split()]


def _element_by_element(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    source = args[0] if facts.name == "aten::neg" else _coalesced(args[0])
    form = source._form
    call = Call(facts, (source, *args[1:]), kwargs)
    return call.queue_sparse(form.count, form.sparse_dim, is_coalesced=form.is_coalesced)


def _element_by_element_in_place(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    target = args[0]
    if not target._form.is_coalesced and facts.name != "aten::neg_":
        return Call(facts, args, kwargs).run_now(None)  # an error, in torch's words
    facts.op(target._form.values, *args[1:], **kwargs)
    return target


handles_coo(*UNARY, aten.pow.Tensor_Scalar)(_element_by_element)
handles_coo(*UNARY_IN_PLACE)(_element_by_element_in_place)


@handles_coo(aten.threshold_backward.default)
def _threshold_backward(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    gradient, source = (_coalesced(x) for x in args[:2])
    call = Call(facts, (gradient, source, *args[2:]), kwargs)
    form = source._form
    if not isinstance(gradient, SparseTensor) or gradient._form.count != form.count:
        return call.run_now(None)
    return call.queue_sparse(form.count, form.sparse_dim, is_coalesced=True)


# --- other shapes ----------------------------------------------------------------------------------------------------


@handles_coo(aten.t.default, aten.transpose.int, aten.permute.default)
def _transposed(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    form = args[0]._form
    flag = _stays_coalesced(facts.op, form, args, kwargs)
    return Call(facts, args, kwargs).queue_sparse(form.count, form.sparse_dim, is_coalesced=flag)


def _stays_coalesced(op: Any, form: Form, args: Any, kwargs: Any) -> bool:
    """What the op says of two elements of an otherwise empty tensor of that size."""
    size = tuple(args[0].shape)
    indices = torch.zeros(form.sparse_dim, 2, dtype=torch.int64, device="cpu")
    values = torch.zeros(2, *size[form.sparse_dim :], device="cpu")
    tried = op(sparse.on_host(indices, values, size, is_coalesced=form.is_coalesced), *args[1:], **kwargs)
    return bool(tried.is_coalesced())


@handles_coo(aten.unsqueeze.default)
def _unsqueezed(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    source, dim = args
    form = source._form
    at = dim + source.dim() + 1 if dim < 0 else dim
    call = Call(facts, args, kwargs)
    return call.queue_sparse(form.count, form.sparse_dim + (at <= form.sparse_dim), is_coalesced=False)


@handles_coo(aten.cat.default)
def _cat(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    call = Call(facts, args, kwargs)
    parts = args[0]
    dims = {x._form.sparse_dim for x in parts if isinstance(x, SparseTensor)}
    if len(dims) != 1 or not all(isinstance(x, SparseTensor) for x in parts):
        return call.run_now(None)  # an error, in torch's words
    return call.queue_sparse(sum(x._form.count for x in parts), dims.pop(), is_coalesced=False)


@handles_coo(aten.index_select.default)
def _index_select(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    source, dim, index = args
    if not isinstance(source, SparseTensor):
        return _run_now(facts, args, kwargs)
    call = Call(facts, args, kwargs)
    form = source._form
    if dim % max(source.dim(), 1) >= form.sparse_dim:
        return call.queue_sparse(form.count, form.sparse_dim, is_coalesced=form.is_coalesced)
    if not index.numel():
        return call.queue_sparse(0, form.sparse_dim, is_coalesced=True)
    return call.run_now(SyncKind.SCALAR_READ, "aten::_local_scalar_dense")


@handles_coo(aten.narrow_copy.default)
def _narrow_copy(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    return Call(facts, args, kwargs).run_now(_COUNTED, "aten::nonzero")


# --- gradients of embeddings -----------------------------------------------------------------------------------------


@runs(aten._embedding_bag_backward.default)
def _embedding_bag_backward(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """nn.EmbeddingBag(sparse=True): a row of the gradient for each index, but for the one that only pads."""
    if not _argument(args, kwargs, 9, "sparse"):
        return dispatch.run_generic(facts, args, kwargs)
    gradient, indices, count_of_rows = args[0], args[1], args[6]
    call = Call(facts, args, kwargs)
    if _argument(args, kwargs, 11, "padding_idx", -1) >= 0:
        return call.run_now(_COUNTED, "aten::index")
    size = (count_of_rows, gradient.shape[1])
    return call.queue_sparse(
        indices.numel(), 1, is_coalesced=False, layout=Layout(size, stride_for(size), 0, gradient.dtype)
    )


# --- sums along dimensions, and softmax -------------------------------------------------------------------------------


@handles_coo(aten.sum.dim_IntList)
def _sum_along(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """Elements that come to lie at the same index are summed by coalescing."""
    source, dims = args[0], _argument(args, kwargs, 1, "dim")
    if not dims:
        return _run_now(facts, args, kwargs)
    call = Call(facts, args, kwargs)
    all_sparse = {dim % source.dim() for dim in dims} >= set(range(source._form.sparse_dim))
    return call.run_now(None if all_sparse else _COUNTED, "aten::_coalesce")


@handles_coo(aten._sparse_sum_backward.default)
def _sum_backward(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    gradient, source, _ = args
    wait_to_coalesce(source, gradient)
    call = Call(facts, args, kwargs)
    form = source._form
    if not form.is_coalesced or not gradient.numel():
        return call.run_now(None)
    size = tuple(source.shape)
    return call.queue_sparse(
        form.count, form.sparse_dim, is_coalesced=False, layout=Layout(size, stride_for(size), 0, gradient.dtype)
    )


@handles_coo(aten._sparse_softmax_backward_data.default, aten._sparse_log_softmax_backward_data.default)
def _softmax_backward(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    return Call(facts, args, kwargs).run_now(_COUNTED)


# --- ops that torch composes by way of an empty sparse tensor, which it cannot make on the stand-in device -----------


def _whole(op: Any) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return _run_now(dispatch.facts_of(op), args, kwargs)

    return run


def _validating(op: Any) -> Callable[..., Any]:
    """Torch composes it of other ops, but 2.15 knows the types of devices by name there."""

    def validate(*args: Any, **kwargs: Any) -> Any:
        try:
            return op.decompose(*args, **kwargs)
        except RuntimeError as error:
            if devices.STAND_IN not in str(error):
                raise
        return op(*(x.cpu() if isinstance(x, SimulatedTensor) else x for x in args), **kwargs)

    return validate


def install_kernels(library: Any) -> None:
    """Give the stand-in device kernels for these."""
    for op in (aten._validate_sparse_coo_tensor_args.default, aten._validate_sparse_compressed_tensor_args.default):
        composite.register(library, op, _validating(op))
    for op in (aten.smm.default, aten.sspaddmm.default):
        composite.register(library, op, _whole(op))
