"""Which aten calls make the host wait on CUDA, and as what kind: one table, as data.

Each :class:`Rule` answers two questions about a call of its op:

``waits``
    Does the call wait at all?  This is the whole truth about the call, and what the simulated device and the modes go
    by.
``proves``
    May a Python kernel around this op take the call itself as proof of a wait?  ``index.Tensor`` with a mask waits only
    because it calls ``nonzero``: there the inner kernel is the proof and the outer one gives the name.

The evidence for the table is ``tests/gpu/results/``: every row was tried behind a sleeping H100.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from syncagent.events import SyncKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Waits = Callable[[Sequence[Any], Mapping[str, Any]], SyncKind | None]
    Late = Callable[[Sequence[Any], Mapping[str, Any], int], SyncKind | None]

__all__ = ["EXPLICIT_APIS", "RULES", "Rule", "find", "shown"]

STAGED_BYTES = 2 << 20
"""A ``non_blocking`` copy of up to this size from pageable memory is staged by the driver and returns; a larger one may
waits.  Measured on an H100 (driver 580.159): 2 MB returns, 3 MB waits."""

_SLOW_NS_PER_BYTE = 1.0
"""A staged copy runs at 5 to 10 GB/s; one that takes so much longer found the driver's staging memory full and waited
(the third of three copies of 1 MB behind a sleeping H100 did)."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What is known of one op overload."""

    op: str
    """Name with overload as the dispatcher writes it: ``aten::index.Tensor``; the default overload has no suffix."""
    waits: Waits
    proves: Waits
    evidence: str
    host_us: float = 0.0
    """Host time of the call's own, in microseconds, that is no stall; at most."""
    late: Late | None = None
    """Tells from how long a call lasted that it has waited, where the arguments alone do not say (nanoseconds)."""
    keys: tuple[str, ...] = ("CUDA",)
    """Dispatch keys of the backends on which it waits; none where a Python kernel on it would serve nothing."""
    shown: str = ""
    """The op's name in a sync, where it is not its own: parts of one op that differ between torch's own code paths."""
    hot: bool = False
    """Called so often in ordinary training that a Python kernel on it is felt (``copy_``)."""


# --- predicates: what of the arguments decides --------------------------------------------------------------------


def _always(kind: SyncKind) -> Waits:
    def waits(_args: Sequence[Any], _kwargs: Mapping[str, Any]) -> SyncKind | None:
        return kind

    waits.always = kind  # type: ignore[attr-defined]  # so that it need not be asked
    return waits


def _never(_args: Sequence[Any], _kwargs: Mapping[str, Any]) -> SyncKind | None:
    return None


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], position: int, name: str, default: Any = None) -> Any:
    return args[position] if position < len(args) else kwargs.get(name, default)


def _on_device(value: Any) -> bool:
    # A Python number may stand for a 0-dim tensor on the host.
    return bool(getattr(value, "is_cuda", False))


def _from_host(value: Any) -> bool:
    """Is this a tensor on the host, with anything in it?"""
    return hasattr(value, "is_cuda") and not value.is_cuda and value.numel() > 0


_masks: dict[Any, bool] = {}


def _is_mask(tensor: Any) -> bool:
    dtype = tensor.dtype
    known = _masks.get(dtype)
    if known is None:
        # Compared by name so that this table imports without torch; uint8 indices are masks too.
        known = _masks[dtype] = str(dtype) in {"torch.bool", "torch.uint8"}
    return known


def _nonempty(kind: SyncKind) -> Waits:
    """Waits unless the first tensor has no elements."""

    def waits(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
        tensor = args[0] if args else kwargs.get("self")
        return kind if tensor is None or tensor.numel() else None

    return waits


def _indices(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    return [index for index in _argument(args, kwargs, 1, "indices", ()) if index is not None]


def _index_from_host(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """An index on the host is copied to the device; a mask on the host is turned into indices there, without a wait."""
    copied = any(_from_host(index) and index.dim() > 0 and not _is_mask(index) for index in _indices(args, kwargs))
    return SyncKind.COPY_H2D if copied else None


def _indexed(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """A mask is turned into indices by ``nonzero``; an index on the host is copied to the device."""
    if any(_is_mask(index) and index.is_cuda for index in _indices(args, kwargs)):
        return SyncKind.DYNAMIC_SHAPE
    return _index_from_host(args, kwargs)


def _fills(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Is it one mask and one value on the host?  That becomes ``masked_fill``."""
    indices, values = _indices(args, kwargs), _argument(args, kwargs, 2, "values")
    if len(indices) != 1 or not _is_mask(indices[0]) or _argument(args, kwargs, 3, "accumulate", default=False):
        return False
    return not _on_device(values) and (not hasattr(values, "numel") or values.numel() == 1)


def _mask_copied(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """``masked_fill`` takes a mask on the host to the device first; with one that is there it waits for nothing."""
    return SyncKind.COPY_H2D if _from_host(_indices(args, kwargs)[0]) else None


def _adds_up_from_host(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Does it add up through a mask on the host that selects anything?

    Then the indices that come of the mask are sorted, on the device, to which they are copied by a blocking copy; a
    plain assignment copies them through pinned memory.
    """
    if not _argument(args, kwargs, 3, "accumulate", default=False) and not _is_deterministic():
        return False
    return any(_from_host(index) and _is_mask(index) and bool(index.any()) for index in _indices(args, kwargs))


def _is_deterministic() -> bool:
    """Has the program asked for deterministic algorithms?  Assignments are sorted, too, then."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.are_deterministic_algorithms_enabled())


def _value_from_host(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """The part of an assignment that waits by itself: the value or an index is copied to the device."""
    if _fills(args, kwargs):
        return _mask_copied(args, kwargs)
    values = _argument(args, kwargs, 2, "values")
    if not hasattr(values, "is_cuda") or _from_host(values):
        return SyncKind.COPY_H2D
    return _index_from_host(args, kwargs)


def _index_assigned(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """Assignment through indices."""
    if _fills(args, kwargs):
        return _mask_copied(args, kwargs)
    if any(_is_mask(index) and index.is_cuda for index in _indices(args, kwargs)):
        return SyncKind.DYNAMIC_SHAPE
    if _adds_up_from_host(args, kwargs):
        return SyncKind.COPY_H2D
    return _value_from_host(args, kwargs)


def _copied(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """A copy waits if it crosses between host and device, and is blocking or goes through pageable memory."""
    target, source = args[0], args[1]
    to_device, from_device = target.is_cuda, _on_device(source)
    if to_device == from_device or not target.numel():
        return None
    if from_device and not target.is_cpu:
        return None  # to a meta tensor, which has no data
    blocking = not _argument(args, kwargs, 2, "non_blocking", default=False)
    if to_device:
        return SyncKind.COPY_H2D if blocking or _waits_for_staging(source) else None
    # To pageable memory the driver always waits; so it does for a strided view, which goes through such memory.
    direct = not blocking and target.is_contiguous() and target.is_pinned()
    return None if direct else SyncKind.COPY_D2H


def _waits_for_staging(source: Any) -> bool:
    """Does the driver wait for a ``non_blocking`` copy to the device, since it is too large to be staged?"""
    if not hasattr(source, "numel") or source.numel() * source.element_size() <= STAGED_BYTES:
        return False
    return not (source.is_contiguous() and source.is_pinned())


def _staged_late(args: Sequence[Any], _kwargs: Mapping[str, Any], lasted_ns: int) -> SyncKind | None:
    """A small ``non_blocking`` copy from pageable memory waits where earlier ones have filled the staging memory."""
    target, source = args[0], args[1]
    if not target.is_cuda or not _from_host(source) or source.is_pinned():
        return None
    if target.dtype != source.dtype or not source.is_contiguous():
        return None  # converting and packing on the host take time of their own
    usual_ns = 500_000 + source.numel() * source.element_size() * _SLOW_NS_PER_BYTE
    return SyncKind.COPY_H2D if lasted_ns > usual_ns else None


def _converted(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """``_to_copy``: a copy whose target it makes itself, in pinned memory where it is ``non_blocking`` to the host."""
    source = args[0]
    device = kwargs.get("device")
    if device is None or not source.numel() or source.is_cuda == (device.type != "cpu"):
        return None
    blocking = not kwargs.get("non_blocking", False)
    if source.is_cuda:
        return SyncKind.COPY_D2H if blocking else None
    return SyncKind.COPY_H2D if blocking or _waits_for_staging(source) else None


def _some_copied(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """``_foreach_copy_``: as each of its copies."""
    rest = (_argument(args, kwargs, 2, "non_blocking", default=False),)
    kinds = (_copied((target, source, *rest), {}) for target, source in zip(args[0], args[1], strict=True))
    return next((kind for kind in kinds if kind is not None), None)


def _repeats_summed(_args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    return None if kwargs.get("output_size") is not None else SyncKind.DYNAMIC_SHAPE


def _compared(args: Sequence[Any], _kwargs: Mapping[str, Any]) -> SyncKind | None:
    """``equal`` answers at once where both are the same memory or their shapes differ."""
    left, right = args[0], args[1]
    if tuple(left.shape) != tuple(right.shape) or not left.numel():
        return None
    same = left is right or (
        left.data_ptr() == right.data_ptr() and left.stride() == right.stride() and left.dtype == right.dtype
    )
    return None if same else SyncKind.SCALAR_READ


def _searched(args: Sequence[Any], _kwargs: Mapping[str, Any]) -> SyncKind | None:
    """``isin`` sorts, and so waits, once there are many values to look for (ATen's own threshold)."""
    elements, tests = args[0], args[1]
    sought = float(elements.numel()) if hasattr(elements, "numel") else 1.0
    many = tests.numel() >= 10.0 * sought**0.145
    return SyncKind.DYNAMIC_SHAPE if many and sought else None


def _range_unknown(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """``histc`` reads the extremes back where no range is given."""
    low, high = _argument(args, kwargs, 2, "min", 0), _argument(args, kwargs, 3, "max", 0)
    return SyncKind.DYNAMIC_SHAPE if low == high and args[0].numel() else None


def _reads(kind: SyncKind, *positions: int) -> Waits:
    """Waits if one of these arguments is a tensor on the device: its value is read."""

    def waits(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
        values = [*args, *kwargs.values()]
        return kind if any(_on_device(values[p]) for p in positions if p < len(values)) else None

    return waits


def _scalar_from_host(args: Sequence[Any], _kwargs: Mapping[str, Any]) -> SyncKind | None:
    """``where``: a 0-dim tensor on the host is copied to the device."""
    return SyncKind.COPY_H2D if any(_from_host(value) for value in args) else None


def _lengths_on_device(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """``ctc_loss`` needs the lengths and targets on both sides, wherever they are."""
    del kwargs
    return SyncKind.COPY_D2H if any(_on_device(value) for value in args) else None


MODE_ROW = 2048
"""Up to so many numbers in a row ``mode`` has a kernel of its own; a longer one is sorted by Thrust, row by row."""


def _long_rows(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    values, dim = args[0], _argument(args, kwargs, 1, "dim", -1)
    if not values.numel() or not values.dim():
        return None
    return SyncKind.OTHER if values.shape[dim] > MODE_ROW else None


def _nested(args: Sequence[Any], _kwargs: Mapping[str, Any]) -> SyncKind | None:
    """``to_padded_tensor``: the sizes of the rows, which are on the host, are copied to the device."""
    return SyncKind.COPY_H2D if getattr(args[0], "is_nested", False) else None


def _sparse_product(args: Sequence[Any], _kwargs: Mapping[str, Any]) -> SyncKind | None:
    """A product of two sparse matrices has to count its elements."""
    return SyncKind.DYNAMIC_SHAPE if str(args[1].layout) == str(args[2].layout) else None


# --- the table ------------------------------------------------------------------------------------------------------

_D, _S, _C = SyncKind.DYNAMIC_SHAPE, SyncKind.SCALAR_READ, SyncKind.CHECK
_PUT = "aten::index_put_"
_SPARSE, _CSR = ("SparseCUDA",), ("SparseCsrCUDA",)


_HOST_US = {
    "_local_scalar_dense": 45, "nonzero": 130, "nonzero.out": 130, "_unique2": 35, "unique_consecutive": 80,
    "unique_dim": 475, "unique_dim_consecutive": 475, "bincount": 60, "histc": 60, "histc.out": 60, "_coalesce": 425,
    "_sparse_sparse_matmul": 600, "addmm.out": 620, "_sparse_softmax": 630, "_sparse_log_softmax": 640,
    "_linalg_check_errors": 40, "_linalg_eigh": 1180, "_linalg_eigh.eigenvalues": 1180, "_linalg_svd": 2430,
    "_linalg_svd.U": 2430, "_linalg_eigvals": 5000, "linalg_eig": 4600, "linalg_ldl_factor_ex": 1120,
    "linalg_ldl_factor_ex.out": 1120, "linalg_ldl_solve": 980, "linalg_ldl_solve.out": 980, "copy_": 45,
}  # fmt: skip
"""What a call takes on the host by itself, at most, where it proves its own wait: what remained of its duration on an
H100 after the driver's own waiting time (CUPTI) was taken off; the mean of four runs."""


def _rule(op: str, waits: Waits, evidence: str, *, proves: Waits | None = None, **rest: Any) -> Rule:
    host_us = _HOST_US.get(op, 0)
    return Rule(f"aten::{op}", waits, waits if proves is None else proves, evidence, host_us=host_us, **rest)


def _whole(op: str, waits: Waits, evidence: str, **rest: Any) -> Rule:
    """For the simulated device and the modes only: on a GPU another op of this table, inside, is the proof."""
    return _rule(op, waits, evidence, proves=_never, keys=(), **rest)


RULES: tuple[Rule, ...] = (
    # values for Python
    _rule("_local_scalar_dense", _always(_S), "item, float, int, bool, `if t`: memcpy and stream synchronize"),
    _rule("equal", _compared, "eq().all().item() inside", proves=_never),
    _whole("allclose", _always(_S), "isclose().all().item() inside"),
    # sizes that depend on values
    _rule("nonzero", _always(_D), "number of nonzeros copied back to size the result; waits for an empty tensor too"),
    _rule("nonzero.out", _always(_D), "as nonzero"),
    # isin(3, t) calls _unique on a number on the device, which torch cannot hand to a Python kernel (2.11).
    _whole("_unique", _nonempty(_D), "number of distinct values read back"),
    _rule("_unique2", _nonempty(_D), "number of distinct values read back; of booleans in its own kernel"),
    _rule("unique_consecutive", _nonempty(_D), "as _unique2; with dim in its own kernel"),
    _rule("unique_dim", _nonempty(_D), "Thrust waits without a synchronize that c10 sees"),
    _rule("unique_dim_consecutive", _nonempty(_D), "as unique_dim"),
    _rule("masked_select", _always(_D), "nonzero inside", proves=_never),
    _rule("masked_select.out", _always(_D), "nonzero inside", proves=_never),
    _rule("index.Tensor", _indexed, "mask: nonzero inside; index on the host: copied", proves=_index_from_host),
    _rule("index.Tensor_out", _indexed, "as index.Tensor", proves=_index_from_host),
    _rule("index_put", _index_assigned, "as index_put_", proves=_value_from_host, shown=_PUT),
    _rule("index_put_", _index_assigned, "mask: nonzero inside; from the host: copied", proves=_value_from_host),
    _rule("_index_put_impl_", _index_assigned, "as index_put_", proves=_value_from_host, shown=_PUT),
    _rule("repeat_interleave.Tensor", _repeats_summed, "sum of the repeats read back", proves=_never),
    _rule("bincount", _nonempty(_D), "extremes copied back"),
    _rule("histc", _range_unknown, "extremes copied back"),
    _rule("histc.out", _range_unknown, "extremes copied back"),
    _whole("isin.Tensor_Tensor", _searched, "unique or a copy inside"),
    _whole("isin.Scalar_Tensor", _searched, "as isin.Tensor_Tensor"),
    _whole("masked_scatter_backward", _always(_D), "masked_select inside"),
    _rule("mode", _long_rows, "Thrust sorts and counts row after row, and waits without a synchronize that c10 sees"),
    _rule("mode.values", _long_rows, "as mode"),
    _whole("_to_sparse", _nonempty(_D), "nonzero inside"),
    _whole("_to_sparse.sparse_dim", _nonempty(_D), "nonzero inside"),
    _whole("_to_sparse_csr", _nonempty(_D), "nonzero inside"),
    _whole("_to_sparse_csc", _nonempty(_D), "nonzero inside"),
    _whole("_to_sparse_bsr", _nonempty(_D), "nonzero inside"),
    _whole("_to_sparse_bsc", _nonempty(_D), "nonzero inside"),
    _rule("_coalesce", _always(_D), "Thrust counts the distinct indices", keys=_SPARSE),
    _rule("_sparse_sparse_matmul", _always(_D), "number of elements of the product", keys=_SPARSE),
    _rule("addmm.out", _sparse_product, "number of elements of the product", keys=_CSR),
    _rule("_sparse_softmax", _always(_D), "pools of equal indices are counted by Thrust", keys=_SPARSE),
    _rule("_sparse_log_softmax", _always(_D), "as _sparse_softmax", keys=_SPARSE),
    # values read for a scalar argument
    _rule("masked_fill.Tensor", _reads(_S, 2), "value read back", proves=_never),
    _rule("masked_fill_.Tensor", _reads(_S, 2), "value read back", proves=_never),
    _rule("index_fill_.int_Tensor", _reads(_S, 3), "value read back", proves=_never),
    _whole("index_fill.int_Tensor", _reads(_S, 3), "value read back"),
    _whole("linspace.Tensor_Tensor", _reads(_S, 0, 1), "end points read back"),
    _whole("linspace.Tensor_Scalar", _reads(_S, 0), "end point read back"),
    _whole("linspace.Scalar_Tensor", _reads(_S, 1), "end point read back"),
    _whole("logspace.Tensor_Tensor", _reads(_S, 0, 1), "end points read back"),
    _whole("logspace.Tensor_Scalar", _reads(_S, 0), "end point read back"),
    _whole("logspace.Scalar_Tensor", _reads(_S, 1), "end point read back"),
    # checks
    _rule("_linalg_check_errors", _always(_C), "info flags read back"),
    _rule("_linalg_eigh", _always(_C), "cuSOLVER's convergence is waited for"),
    _rule("_linalg_eigh.eigenvalues", _always(_C), "as _linalg_eigh"),
    _rule("_linalg_svd", _always(_C), "cuSOLVER's convergence is waited for"),
    _rule("_linalg_svd.U", _always(_C), "as _linalg_svd"),
    _rule("_linalg_eigvals", _always(_C), "computed on the host"),
    _rule("linalg_eig", _always(_C), "computed on the host"),
    _rule("linalg_ldl_factor_ex", _always(_C), "cuSOLVER's pivots are waited for"),
    _rule("linalg_ldl_factor_ex.out", _always(_C), "as linalg_ldl_factor_ex"),
    _rule("linalg_ldl_solve", _always(_C), "pivots copied back"),
    _rule("linalg_ldl_solve.out", _always(_C), "as linalg_ldl_solve"),
    _whole("linalg_lstsq", _always(_C), "info flags read back"),
    _whole("linalg_pinv.atol_rtol_tensor", _always(_C), "SVD inside"),
    _whole("linalg_matrix_exp", _nonempty(_D), "norms copied back to choose the degree"),
    _rule("normal.Tensor_Tensor", _reads(_C, 1), "std >= 0 checked", proves=_never),
    _rule("normal.float_Tensor", _reads(_C, 1), "std >= 0 checked", proves=_never),
    # copies
    _rule("copy_", _copied, "waits for the copy, or in the driver for staging", late=_staged_late, hot=True),
    _whole("_to_copy", _converted, "copy_ inside"),
    _whole("_foreach_copy_", _some_copied, "copy_ inside"),
    _whole("_nested_tensor_from_mask_left_aligned", _always(_S), "equal inside", shown="aten::equal"),
    _whole("_nested_tensor_from_mask", _always(SyncKind.COPY_D2H), "copy_ inside", shown="aten::copy_"),
    _whole("to_padded_tensor", _nested, "copy_ inside", shown="aten::copy_"),
    _whole("where.self", _scalar_from_host, "copy_ inside"),
    _whole("_ctc_loss", _lengths_on_device, "copy_ inside"),
    _whole("_ctc_loss.Tensor", _lengths_on_device, "copy_ inside"),
    _whole("_ctc_loss_backward", _lengths_on_device, "copy_ inside"),
    _whole("_ctc_loss_backward.Tensor", _lengths_on_device, "copy_ inside"),
)

EXPLICIT_APIS: tuple[str, ...] = (
    "torch.cuda.synchronize",
    "torch.accelerator.synchronize",
    "torch.cuda.Stream.synchronize",
    "torch.cuda.Event.synchronize",
)
"""Callables by which a program asks to wait; all are :attr:`SyncKind.EXPLICIT`."""

_BY_OP = {rule.op: rule for rule in RULES}


def find(op: str) -> Rule | None:
    """Return the rule for an op (name with overload, as in :attr:`Rule.op`), or ``None`` if it never waits."""
    return _BY_OP.get(op)


def shown(rule: Rule) -> str:
    """Return the name that a sync of this op carries: the dispatcher's, without overload."""
    return rule.shown or rule.op.partition(".")[0]
