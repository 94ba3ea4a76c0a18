"""Ops that dispatch.py's general rule does not fit, each with the reason."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch

from syncagent.errors import SimulationError
from syncagent.simulate import devices, dispatch, tensor
from syncagent.simulate.dispatch import runs
from syncagent.simulate.facts import OpFacts, UnknownShapeError, infer
from syncagent.simulate.memory import Layout, Placement, flatten, stride_for
from syncagent.simulate.requirements import aten
from syncagent.simulate.tensor import CPU_KERNEL, SimulatedTensor, make_view, new_output

# --- answered from what the host knows ---------------------------------------------------------------------


@runs(aten.detach.default)
def _same_memory(_facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    """The view that changes nothing is by far the most frequent one."""
    return make_view(args[0], args[0]._sim)


dispatch.SPECIAL.update(
    {
        aten.lift.default: lambda _facts, args, _kwargs: args[0],
        aten.lift_fresh.default: lambda _facts, args, _kwargs: args[0],
        aten.is_same_size.default: lambda _facts, args, _kwargs: bool(args[0].shape == args[1].shape),
        aten._has_compatible_shallow_copy_type.default: lambda _facts, args, _kwargs: (
            isinstance(args[0], SimulatedTensor) == isinstance(args[1], SimulatedTensor)
            and args[0].layout == args[1].layout
        ),
        aten.is_pinned.default: lambda _facts, _args, _kwargs: False,
        # Nothing to do: a queued kernel keeps a reference to its memory.
        aten.record_stream.default: lambda _facts, _args, _kwargs: None,
        # Asked for by a program; attention.py chooses for attention itself.
        aten._fused_sdp_choice.default: lambda _facts, _args, _kwargs: 0,
        # In torch a bit says "read this conjugated", or negated; here the numbers are changed at once.
        aten._conj.default: lambda _facts, args, _kwargs: dispatch.run(aten._conj_physical.default, args, {}),
        aten._neg_view.default: lambda _facts, args, _kwargs: dispatch.run(aten.neg.default, args, {}),
    }
)


@runs(aten.as_strided.default)
def _as_strided(_facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """The offset counts from the beginning of the storage, not of the tensor."""
    placement = args[0]._sim
    offset = args[3] if len(args) > 3 else kwargs.get("storage_offset")
    layout = Layout(
        tuple(args[1]), tuple(args[2]), placement.layout.offset if offset is None else offset, placement.layout.dtype
    )
    return make_view(args[0], Placement(placement.box, layout, placement.index))


@runs(aten.as_strided_.default)
def _as_strided_in_place(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    tensor.replace(args[0], _as_strided(facts, args, kwargs)._sim)
    return args[0]


@runs(aten.equal.default)
def _equal(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """For the same memory, or different shapes, torch knows the answer without reading the numbers."""
    if facts.rule is not None and facts.rule.waits(args, kwargs) is None:
        return bool(args[0].shape == args[1].shape)
    return dispatch.run_generic(facts, args, kwargs)


@runs(aten.index.Tensor)
def _index(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """The host itself can count how many elements a mask on the host selects, as torch does: nothing waits."""
    source, indices = args
    masks = [index for index in indices if _is_mask(index)]
    spec = None
    if isinstance(source, SimulatedTensor) and masks and not any(isinstance(mask, SimulatedTensor) for mask in masks):
        counted = flatten(index.nonzero().unbind(1) if _is_mask(index) else [index] for index in indices)
        kept = [index._sim if isinstance(index, SimulatedTensor) else index for index in counted]
        with contextlib.suppress(UnknownShapeError):  # torch's own error
            spec = infer(facts.op, [source._sim, kept], {})
    return dispatch.run_generic(facts, args, kwargs, spec)


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in {torch.bool, torch.uint8}


# --- memory ------------------------------------------------------------------------------------------------


@runs(aten.resize_.default)
def _resize(_facts: OpFacts, args: Any, kwargs: Any) -> Any:
    target = args[0]
    size = tuple(args[1])
    layout = target._sim.layout
    if layout.size != size:
        tensor.resize(target, layout._replace(size=size, stride=stride_for(size, kwargs.get("memory_format"))))
    return target


@runs(aten.set_.source_Tensor)
def _set(_facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    target, source = args
    if not (isinstance(target, SimulatedTensor) and isinstance(source, SimulatedTensor)):
        raise SimulationError("set_ between a CPU tensor and one on simulated CUDA is not simulated")
    tensor.replace(target, source._sim)
    return target


@runs(aten.empty_like.default)
def _empty_like(_facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """Only memory is needed, so no kernel runs."""
    form = {name: kwargs.get(name) for name in ("dtype", "memory_format")}
    layout = infer(aten.empty_like.default, [args[0]._sim], form)
    return _empty_beside(args[0], layout, kwargs.get("device"))


@runs(aten.new_empty_strided.default)
def _new_empty_strided(_facts: OpFacts, args: Any, kwargs: Any) -> Any:
    source, size, stride = args
    layout = Layout(tuple(size), tuple(stride), 0, kwargs.get("dtype") or source.dtype)
    return _empty_beside(source, layout, kwargs.get("device"))


def _empty_beside(source: SimulatedTensor, layout: Layout, device: torch.device | None) -> torch.Tensor:
    """Memory on the device that is given, or on the one that ``source`` is on."""
    if device is not None and not devices.is_simulated(device):
        return torch.empty_strided(layout.size, layout.stride, dtype=layout.dtype, device=device)
    return empty(layout, source._sim.index if device is None else devices.index_of(device))


def empty(layout: Layout, index: int) -> SimulatedTensor:
    """Uninitialized memory."""
    made = new_output(layout, index)
    placement = made._sim

    def allocate() -> None:
        placement.box.values = torch.empty_strided(layout.size, layout.stride, dtype=layout.dtype)

    devices.queue(devices.current_engine(index), "aten::empty", allocate, [placement])
    return made


@runs(aten.arange.start_out)
def _arange(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """Torch's meta kernel for it is Python that imports the whole compiler at its first call."""
    start, end = args[:2]
    step = args[2] if len(args) > 2 else kwargs.get("step", 1)
    if step == 0 or (end - start) * step < 0:
        return dispatch.run_generic(facts, args, kwargs)  # torch's own error
    size = math.ceil((end - start) / step)
    return dispatch.run_generic(facts, args, kwargs, Layout((size,), (1,), 0, kwargs["out"].dtype))


# --- composite ops, where it makes a difference that they are composite ------------------------------------


_COMPOSITE = (
    aten.allclose.default, aten.linalg_pinv.atol_rtol_tensor, aten.logspace.Tensor_Tensor, aten.logspace.Tensor_Scalar,
    aten.logspace.Scalar_Tensor, aten._unsafe_index.Tensor, aten.resize_as_.default,
    # These look at no numbers of their argument: as kernels they would be queued behind what writes it.
    aten.ones_like.default, aten.zeros_like.default, aten.full_like.default, aten.new_empty.default,
    aten.new_full.default, aten.new_ones.default, aten.new_zeros.default,
)  # fmt: skip


@runs(*_COMPOSITE)
def _of_others(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """Run torch's general kernel, the only one on the CPU's key, so that the ops inside come here one by one."""
    return facts.op.redispatch(CPU_KERNEL, *args, **kwargs)


# --- error checks ------------------------------------------------------------------------------------------


@runs(
    aten.linalg_cholesky_ex.default,
    aten.linalg_inv_ex.default,
    aten._linalg_solve_ex.default,
    aten.linalg_lu_factor_ex.default,
    aten.linalg_ldl_factor_ex.default,
)
def _checked(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """Asked to check, the op reads its error flags back: that is an op of its own, and the one that waits."""
    position = facts.arguments.index("check_errors")
    if not (args[position] if position < len(args) else kwargs.get("check_errors", False)):
        return dispatch.run_generic(facts, args, kwargs)
    kwargs = {name: value for name, value in kwargs.items() if name != "check_errors"}
    result = dispatch.run_generic(facts, args[:position], kwargs)
    shown = facts.name.removeprefix("aten::").removeprefix("_").replace("linalg_", "torch.linalg.", 1)
    aten._linalg_check_errors.default(result[-1], shown, is_matrix=args[0].dim() == 2)
    return result


_SVD_DRIVERS = (None, "gesvd", "gesvdj", "gesvda")


@runs(aten._linalg_svd.default)
def _svd(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """The choice among cuSOLVER's methods, which the CPU's kernel refuses, says how and not what."""
    driver = kwargs.get("driver")
    if driver not in _SVD_DRIVERS:
        raise RuntimeError(f"torch.linalg.svd: unknown svd driver {driver} in svd_cusolver computation")
    return dispatch.run_generic(facts, args, {name: value for name, value in kwargs.items() if name != "driver"})


@runs(aten.cholesky.default)
def _cholesky(_facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """The old name, which always checks."""
    upper = args[1] if len(args) > 1 else kwargs.get("upper", False)
    factor, info = aten.linalg_cholesky_ex.default(args[0], upper=upper)
    aten._linalg_check_errors.default(info, "cholesky", is_matrix=args[0].dim() == 2)
    return factor


# --- results that the CPU's kernel gives in another form ----------------------------------------------------


def _batch_norm_in_eval(arguments: dict[str, Any], results: list[Any]) -> list[Any]:
    """CUDA's kernels return the statistics that they have normalized with; the CPU's return empty tensors."""
    output, mean, inverse, *rest = results
    if mean.numel() or not output.numel():
        return results
    mean = arguments["running_mean"].to(mean.dtype)
    inverse = (arguments["running_var"].to(mean.dtype) + arguments["eps"]).rsqrt()
    return [output, mean.clone(), inverse, *rest]


_BATCH_NORMS = (
    aten.native_batch_norm.default, aten._native_batch_norm_legit.default,
    aten._native_batch_norm_legit_no_training.default, aten._batch_norm_no_update.default,
)  # fmt: skip
dispatch.CUDA_FORM.update(dict.fromkeys(_BATCH_NORMS, _batch_norm_in_eval))


# --- random numbers: ops that have no argument for a generator ---------------------------------------------


@runs(aten.native_dropout.default)
def _dropout(_facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    source, p, train = args
    if not train or p == 0:
        return aten.clone.default(source), aten.ones_like.default(source, dtype=torch.bool)
    keep = aten.bernoulli_.float(aten.empty_like.default(source, dtype=torch.bool), 1 - p)
    scale = 0.0 if p == 1 else 1 / (1 - p)
    return aten.mul.Tensor(aten.mul.Tensor(source, keep), scale), keep


def _fill_like(name: str, fill: Callable[..., Any]) -> None:
    """Run an op as an ``empty_like`` and a ``fill``, which has an argument for a generator."""

    def handler(_facts: OpFacts, args: Any, kwargs: Any) -> Any:
        generator = {"generator": kwargs["generator"]} if kwargs.get("generator") is not None else {}
        form = {k: v for k, v in kwargs.items() if k in {"dtype", "device", "memory_format"} and v is not None}
        return fill(aten.empty_like.default(args[0], **form), *args[1:], **generator)

    packet = getattr(aten, name)
    runs(*(getattr(packet, o) for o in packet.overloads() if "out" not in o and "Tensor" not in o))(handler)


def _fill_with_integers(made: SimulatedTensor, *bounds: Any, **generator: Any) -> Any:
    return made.random_(*((0, *bounds) if len(bounds) == 1 else bounds), **generator)


_fill_like("rand_like", torch.Tensor.uniform_)
_fill_like("randn_like", torch.Tensor.normal_)
_fill_like("randint_like", _fill_with_integers)


# --- results on two devices --------------------------------------------------------------------------------


@runs(aten._pack_padded_sequence.default)
def _pack(_facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    """The lengths are on the CPU, and so are the batch sizes: nothing here waits on CUDA."""
    source, lengths = args[0], args[1]
    if isinstance(lengths, SimulatedTensor):
        raise RuntimeError(  # noqa: TRY004 - as torch
            f"'lengths' argument should be a 1D CPU int64 tensor, but got {lengths.dim()}D {lengths.device} "
            f"{lengths.type().rpartition('.')[2].removesuffix('Tensor')} tensor"
        )
    batch_first = bool(len(args) > 2 and args[2])
    # torch checks the lengths on the host; the numbers of one feature are enough for it.
    shape = (*source.shape[:2], 1) if source.numel() else source.shape
    _, batch_sizes = aten._pack_padded_sequence.default(torch.zeros(()).expand(shape), lengths, batch_first)
    padded = source.transpose(0, 1) if batch_first else source
    data = torch.cat([steps[:n] for steps, n in zip(padded.unbind(), batch_sizes.tolist(), strict=False)])
    return data, batch_sizes


# --- what has no simulation --------------------------------------------------------------------------------


_NOT_SIMULATED = {
    "nested tensors": (
        aten._nested_tensor_from_tensor_list, aten._nested_view_from_buffer, aten._nested_view_from_jagged,
    ),
    "quantized tensors": (aten.quantize_per_tensor, aten.quantize_per_channel),
}  # fmt: skip
for _what, _ops in _NOT_SIMULATED.items():
    _overloads = [getattr(op, overload) for op in _ops for overload in op.overloads()]
    runs(*_overloads)(dispatch.refusing(f": {_what} are not simulated on CUDA"))
