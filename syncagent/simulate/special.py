"""Ops that are not run by the general rule, each with the reason."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from syncagent.simulate import devices, dispatch, queues, rebinding, shapes
from syncagent.simulate.errors import SimulationError
from syncagent.simulate.lookups import Absent, aten
from syncagent.simulate.memory import Layout, Placement, contiguous_stride
from syncagent.simulate.tensor import SimulatedTensor, make_view, new_output

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncagent.simulate.facts import OpFacts


def _runs(*ops: Any) -> Callable[[Any], Any]:
    def register(handler: Any) -> Any:
        for op in ops:
            if not isinstance(op, Absent):
                dispatch.SPECIAL[op] = handler
        return handler

    return register


# --- answered from what the host knows ---------------------------------------------------------------------


@_runs(aten.detach.default, aten.alias.default)
def _same_memory(_facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    """Views that change nothing: by far the most frequent ones."""
    return make_view(args[0], args[0]._sim)


@_runs(aten.lift.default, aten.lift_fresh.default)
def _itself(_facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    return args[0]


@_runs(aten.as_strided.default)
def _as_strided(_facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """Its offset counts from the beginning of the storage, not of the tensor."""
    placement = args[0]._sim
    offset = args[3] if len(args) > 3 else kwargs.get("storage_offset")
    layout = Layout(
        tuple(args[1]), tuple(args[2]), placement.layout.offset if offset is None else offset, placement.layout.dtype
    )
    return make_view(args[0], Placement(placement.box, layout, placement.index))


@_runs(aten.as_strided_.default)
def _as_strided_in_place(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    rebinding.set_placement(args[0], _as_strided(facts, args, kwargs)._sim)
    return args[0]


@_runs(aten.is_same_size.default)
def _is_same_size(_facts: OpFacts, args: Any, _kwargs: Any) -> bool:
    return bool(args[0].shape == args[1].shape)


@_runs(aten._has_compatible_shallow_copy_type.default)
def _can_take_data_of(_facts: OpFacts, args: Any, _kwargs: Any) -> bool:
    return isinstance(args[0], SimulatedTensor) == isinstance(args[1], SimulatedTensor)


@_runs(aten.is_pinned.default)
def _is_pinned(_facts: OpFacts, _args: Any, _kwargs: Any) -> bool:
    return False


@_runs(aten.record_stream.default)
def _record_stream(_facts: OpFacts, _args: Any, _kwargs: Any) -> None:
    """Memory is freed by Python's own count: a queued kernel holds on to it."""


@_runs(aten._fused_sdp_choice.default)
def _choose_attention(_facts: OpFacts, _args: Any, _kwargs: Any) -> int:
    return 0  # the plain formula: CUDA's fused kernels have no CPU counterpart under the same name


@_runs(aten.equal.default)
def _equal(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """Of the same memory, and of different shapes, torch knows the answer without a look."""
    left, right = args
    if facts.rule is not None and facts.rule.waits(args, kwargs) is None:
        return bool(left.shape == right.shape)
    return dispatch.run_generic(facts, args, kwargs)


# --- memory ------------------------------------------------------------------------------------------------


@_runs(aten.resize_.default)
def _resize(_facts: OpFacts, args: Any, kwargs: Any) -> Any:
    target = args[0]
    size = tuple(args[1])
    form = kwargs.get("memory_format")
    stride = contiguous_stride(size)
    if form not in {None, torch.contiguous_format, torch.preserve_format}:
        stride = torch.empty(size, device=devices.META, memory_format=form).stride()
    placement = target._sim
    if placement.layout.size != size:
        rebinding.resize(target, Layout(size, stride, placement.layout.offset, placement.layout.dtype))
    return target


@_runs(aten.set_.source_Tensor)
def _set(_facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    target, source = args
    if not (isinstance(target, SimulatedTensor) and isinstance(source, SimulatedTensor)):
        raise SimulationError("set_ between a CPU tensor and one on simulated CUDA is not simulated")
    rebinding.replace(target, source._sim)
    return target


@_runs(aten.empty_like.default)
def _empty_like(_facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """No kernel: only memory."""
    source = args[0]
    form = {name: kwargs.get(name) for name in ("dtype", "memory_format")}
    layout = shapes.infer(aten.empty_like.default, [source._sim], form)
    device = kwargs.get("device")
    if device is not None and device.type not in {devices.STAND_IN, "cuda"}:
        return torch.empty_strided(layout.size, layout.stride, dtype=layout.dtype, device=device)
    return empty(layout, source._sim.index if device is None else devices.index_of(device))


def empty(layout: Layout, index: int) -> SimulatedTensor:
    """Memory that nobody has written to."""
    made = new_output(layout, index)
    placement = made._sim

    def allocate() -> None:
        placement.box.values = torch.empty_strided(layout.size, layout.stride, dtype=layout.dtype)

    queues.queue(devices.current_engine(index), allocate, [placement])
    return made


@_runs(aten.new_empty_strided.default)
def _new_empty_strided(_facts: OpFacts, args: Any, kwargs: Any) -> Any:
    source, size, stride = args
    device = kwargs.get("device")
    if device is not None and device.type not in {devices.STAND_IN, "cuda"}:
        return torch.empty_strided(size, stride, dtype=kwargs.get("dtype") or source.dtype, device=device)
    layout = Layout(tuple(size), tuple(stride), 0, kwargs.get("dtype") or source.dtype)
    return empty(layout, source._sim.index if device is None else devices.index_of(device))


@_runs(aten._conj.default)
def _conj(_facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    """Torch keeps a bit that says "read this conjugated"; here the numbers are conjugated at once."""
    return dispatch.run(aten._conj_physical.default, args, {})


@_runs(aten._neg_view.default)
def _neg(_facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    return dispatch.run(aten.neg.default, args, {})


@_runs(aten.arange.start_out)
def _arange(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """Torch's meta kernel for it is Python that imports the whole compiler at its first call."""
    start, end = args[:2]
    step = args[2] if len(args) > 2 else kwargs.get("step", 1)
    if step == 0 or (end - start) * step < 0:
        return dispatch.run_generic(facts, args, kwargs)  # torch's own error
    size = math.ceil((end - start) / step)
    layout = Layout((size,), (1,), 0, kwargs["out"].dtype)
    return dispatch.run_generic(facts, args, kwargs, layout)


# --- ops that torch itself makes of others, where that makes a difference ----------------------------------

# On the CPU key these ops have torch's general kernel and no other.
_GENERAL = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


@_runs(
    aten.allclose.default,
    aten.linalg_pinv.atol_rtol_tensor,
    aten.logspace.Tensor_Tensor,
    aten.logspace.Tensor_Scalar,
    aten.logspace.Scalar_Tensor,
    aten._unsafe_index.Tensor,
    aten.resize_as_.default,
    # These look at no numbers of their argument: as kernels they would be queued behind what writes it.
    aten.ones_like.default,
    aten.zeros_like.default,
    aten.full_like.default,
    aten.new_empty.default,
    aten.new_full.default,
    aten.new_ones.default,
    aten.new_zeros.default,
)
def _of_others(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """Run torch's general kernel on the simulated tensors, so that the ops inside come here one by one."""
    return facts.op.redispatch(_GENERAL, *args, **kwargs)


# --- error checks -------------------------------------------------------------------------------------------------


@_runs(
    aten.linalg_cholesky_ex.default,
    aten.linalg_inv_ex.default,
    aten._linalg_solve_ex.default,
    aten.linalg_lu_factor_ex.default,
    aten.linalg_ldl_factor_ex.default,
)
def _checked(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """Asked to check, the op reads its error flags back: that is an op of its own, and the one that waits."""
    position = facts.arguments.index("check_errors")
    check = args[position] if position < len(args) else kwargs.get("check_errors", False)
    if not check:
        return dispatch.run_generic(facts, args, kwargs)
    kwargs = {name: value for name, value in kwargs.items() if name != "check_errors"}
    result = dispatch.run_generic(facts, args[:position], kwargs)
    shown = facts.name.removeprefix("aten::").removeprefix("_").replace("linalg_", "torch.linalg.", 1)
    aten._linalg_check_errors.default(result[-1], shown, is_matrix=args[0].dim() == 2)
    return result


@_runs(aten.cholesky.default)
def _cholesky(_facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """The old name; it checks always."""
    upper = args[1] if len(args) > 1 else kwargs.get("upper", False)
    factor, info = aten.linalg_cholesky_ex.default(args[0], upper=upper)
    aten._linalg_check_errors.default(info, "cholesky", is_matrix=args[0].dim() == 2)
    return factor


# --- results that the CPU's kernel gives in another form -----------------------------------------------------------


def _batch_norm_in_eval(arguments: dict[str, Any], results: list[Any]) -> list[Any]:
    """CUDA's kernels hand on what they have normalized with; the CPU's hand on nothing."""
    output, mean, inverse, *rest = results
    if mean.numel() or not output.numel():
        return results
    mean = arguments["running_mean"].to(mean.dtype)
    inverse = (arguments["running_var"].to(mean.dtype) + arguments["eps"]).rsqrt()
    return [output, mean.clone(), inverse, *rest]


for _op in (
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_no_update",
):
    if hasattr(aten, _op):
        dispatch.CUDA_FORM[getattr(aten, _op).default] = _batch_norm_in_eval


# --- random numbers: ops that have no argument for a generator ---------------------------------------------


@_runs(aten.native_dropout.default)
def _dropout(_facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    source, p, train = args
    if not train or p == 0:
        return aten.clone.default(source), aten.ones_like.default(source, dtype=torch.bool)
    keep = aten.bernoulli_.float(aten.empty_like.default(source, dtype=torch.bool), 1 - p)
    scale = 0.0 if p == 1 else 1 / (1 - p)
    return aten.mul.Tensor(aten.mul.Tensor(source, keep), scale), keep


def _like(fill: Callable[..., Any]) -> Any:
    def handler(_facts: OpFacts, args: Any, kwargs: Any) -> Any:
        generator = {"generator": kwargs["generator"]} if kwargs.get("generator") is not None else {}
        form = {k: v for k, v in kwargs.items() if k in {"dtype", "device", "memory_format"} and v is not None}
        return fill(aten.empty_like.default(args[0], **form), *args[1:], **generator)

    return handler


def _register_like() -> None:
    fills = {
        "rand_like": lambda made, **g: made.uniform_(**g),
        "randn_like": lambda made, **g: made.normal_(**g),
    }
    for name, fill in fills.items():
        for overload in getattr(aten, name).overloads():
            if "out" not in overload:
                dispatch.SPECIAL[getattr(getattr(aten, name), overload)] = _like(fill)
    for overload in aten.randint_like.overloads():
        if "out" not in overload and "Tensor" not in overload:
            dispatch.SPECIAL[getattr(aten.randint_like, overload)] = _like(
                lambda made, *bounds, **g: made.random_(*((0, *bounds) if len(bounds) == 1 else bounds), **g)
            )


_register_like()


# --- results on two devices --------------------------------------------------------------------------------


@_runs(aten._pack_padded_sequence.default)
def _pack(_facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    """The lengths are on the CPU, and so are the batch sizes: nothing here waits on CUDA."""
    source, lengths = args[0], args[1]
    batch_first = bool(args[2]) if len(args) > 2 else False
    if isinstance(lengths, SimulatedTensor):
        raise RuntimeError(  # noqa: TRY004 - as torch
            "'lengths' argument should be a 1D CPU int64 tensor, but got 1D cuda:0 Long tensor"
        )
    padded = source.transpose(0, 1) if batch_first else source
    longest = int(lengths[0])
    batch_sizes = torch.tensor([int((lengths > t).sum()) for t in range(longest)], dtype=torch.int64)
    data = torch.cat([padded[t, :n] for t, n in enumerate(batch_sizes.tolist())])
    return data, batch_sizes


# --- what has no simulation --------------------------------------------------------------------------------


def _unsupported(what: str, *ops: Any) -> None:
    def handler(facts: OpFacts, _args: Any, _kwargs: Any) -> Any:
        raise SimulationError(f"{facts.name}: {what} are not simulated on CUDA")

    for op in ops:
        for overload in op.overloads():
            dispatch.SPECIAL[getattr(op, overload)] = handler


_unsupported(
    "sparse tensors",
    aten._to_sparse, aten._to_sparse_csr, aten._to_sparse_csc, aten._to_sparse_bsr, aten._to_sparse_bsc,
    aten._sparse_coo_tensor_with_dims_and_tensors, aten._sparse_coo_tensor_unsafe, aten._coalesce,
)  # fmt: skip
_unsupported(
    "nested tensors",
    aten._nested_tensor_from_tensor_list, aten._nested_view_from_buffer, aten._nested_view_from_jagged,
)  # fmt: skip
_unsupported("quantized tensors", aten.quantize_per_tensor, aten.quantize_per_channel)

__all__ = ["empty"]
