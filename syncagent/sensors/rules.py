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

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from syncagent.event import SyncKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Waits = Callable[[Sequence[Any], Mapping[str, Any]], SyncKind | None]

__all__ = ["EXPLICIT_APIS", "RULES", "Rule", "find", "shown"]

STAGED_BYTES = 65536
"""Up to this size the driver stages a copy from pageable memory and returns; above it, it waits (measured, H100)."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What is known of one op overload."""

    op: str
    """Name with overload as the dispatcher writes it: ``aten::index.Tensor``; the default overload has no suffix."""
    waits: Waits
    proves: Waits
    evidence: str
    keys: tuple[str, ...] = ("CUDA",)
    """Dispatch keys that have a kernel to wrap."""
    shown: str = ""
    """The op's name in a sync, where it is not its own: parts of one op that differ between torch's own code paths."""
    hot: bool = False
    """Called so often in ordinary training that a Python kernel on it is felt (``copy_``)."""


# --- predicates: what of the arguments decides --------------------------------------------------------------------


def _always(kind: SyncKind) -> Waits:
    def waits(_args: Sequence[Any], _kwargs: Mapping[str, Any]) -> SyncKind | None:
        return kind

    return waits


def _never(_args: Sequence[Any], _kwargs: Mapping[str, Any]) -> SyncKind | None:
    return None


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], position: int, name: str, default: Any = None) -> Any:
    return args[position] if position < len(args) else kwargs.get(name, default)


def _nonempty(kind: SyncKind) -> Waits:
    """Waits unless the first tensor has no elements."""

    def waits(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
        tensor = args[0] if args else kwargs.get("self")
        return kind if tensor is None or tensor.numel() else None

    return waits


def _is_mask(tensor: Any) -> bool:
    # Compared by name so that this table imports without torch; uint8 indices are masks too.
    return str(tensor.dtype) in {"torch.bool", "torch.uint8"}


def _indexed(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """Indexing: a mask is turned into indices by ``nonzero``, an index on the host is copied to the device."""
    for index in _argument(args, kwargs, 1, "indices", ()):
        if index is None:
            continue
        if _is_mask(index):
            return SyncKind.DYNAMIC_SHAPE
        if not index.is_cuda and index.dim() > 0 and index.numel():
            return SyncKind.COPY_H2D
    return None


def _index_from_host(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """The part of indexing that waits by itself, with no other op of this table inside: the hidden copy."""
    for index in _argument(args, kwargs, 1, "indices", ()):
        if index is not None and not index.is_cuda and index.dim() > 0 and index.numel():
            return SyncKind.COPY_H2D
    return None


def _index_assigned(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """Assignment through indices; one mask and one value become ``masked_fill``, which reads a value on the device."""
    indices = [index for index in _argument(args, kwargs, 1, "indices", ()) if index is not None]
    values = _argument(args, kwargs, 2, "values")
    accumulate = _argument(args, kwargs, 3, "accumulate", default=False)
    fills = len(indices) == 1 and _is_mask(indices[0]) and values.numel() == 1 and not accumulate
    if fills and values.dim() == 0:
        return SyncKind.SCALAR_READ if values.is_cuda else None
    if not values.is_cuda and values.dim() > 0 and values.numel():
        return SyncKind.COPY_H2D
    return _indexed(args, kwargs)


def _copied(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """A copy waits if it crosses between host and device, and is blocking or goes through pageable memory."""
    target, source = args[0], args[1]
    to_device, from_device = target.is_cuda, getattr(source, "is_cuda", False)  # a number stands for a host tensor
    if to_device == from_device or not target.numel():
        return None
    kind = SyncKind.COPY_H2D if to_device else SyncKind.COPY_D2H
    if not _argument(args, kwargs, 2, "non_blocking", default=False):
        return kind
    return kind if _staged(source if to_device else target, target, source) else None


def _staged(host: Any, target: Any, source: Any) -> bool:
    """Does a ``non_blocking`` copy wait all the same, because the driver has to stage the host's side?"""
    if host.numel() * host.element_size() <= STAGED_BYTES:
        return False
    direct = target.dtype == source.dtype and host.is_contiguous()
    return not (direct and host.is_pinned())


def _converted(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """``_to_copy``: a copy whose target it makes itself, in pinned memory where it is ``non_blocking`` to the host."""
    source = args[0]
    device = kwargs.get("device")
    if device is None or not source.numel() or source.is_cuda == (device.type != "cpu"):
        return None
    kind = SyncKind.COPY_D2H if source.is_cuda else SyncKind.COPY_H2D
    if not kwargs.get("non_blocking", False):
        return kind
    if source.is_cuda:
        return None
    dtype = kwargs.get("dtype")
    direct = dtype in (None, source.dtype) and source.is_contiguous()
    small = source.numel() * source.element_size() <= STAGED_BYTES
    return None if small or (direct and source.is_pinned()) else kind


def _repeats_summed(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    return None if kwargs.get("output_size") is not None else SyncKind.DYNAMIC_SHAPE


def _compared(args: Sequence[Any], _kwargs: Mapping[str, Any]) -> SyncKind | None:
    """``equal`` answers at once where both are the same memory or their shapes differ."""
    left, right = args[0], args[1]
    if tuple(left.shape) != tuple(right.shape) or not left.numel():
        return None
    same = left is right or (
        left.data_ptr() == right.data_ptr()
        and left.stride() == right.stride()
        and left.dtype == right.dtype
    )
    return None if same else SyncKind.SCALAR_READ


def _searched(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """``isin`` sorts, and so calls ``unique``, once there are many values to look for (ATen's own threshold)."""
    elements, tests = args[0], args[1]
    many = tests.numel() >= 10.0 * float(elements.numel()) ** 0.145
    return SyncKind.DYNAMIC_SHAPE if many and elements.numel() and not kwargs.get("assume_unique", False) else None


def _range_unknown(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """``histc`` reads the extremes back where no range is given."""
    low, high = _argument(args, kwargs, 2, "min", 0), _argument(args, kwargs, 3, "max", 0)
    return SyncKind.DYNAMIC_SHAPE if low == high and args[0].numel() else None


def _value_on_device(position: int, name: str, kind: SyncKind = SyncKind.SCALAR_READ) -> Waits:
    """Waits if that argument is a tensor on the device whose value is read."""

    def waits(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
        return kind if getattr(_argument(args, kwargs, position, name), "is_cuda", False) else None

    return waits


def _any_on_device(kind: SyncKind, *positions: int) -> Waits:
    def waits(args: Sequence[Any], _kwargs: Mapping[str, Any]) -> SyncKind | None:
        found = any(getattr(args[p], "is_cuda", False) for p in positions if p < len(args))
        return kind if found else None

    return waits


# --- the table ------------------------------------------------------------------------------------------------------

_PUT = "aten::index_put_"
_D, _S, _C = SyncKind.DYNAMIC_SHAPE, SyncKind.SCALAR_READ, SyncKind.CHECK


def _rule(op: str, waits: Waits, evidence: str, *, proves: Waits | None = None, **rest: Any) -> Rule:
    return Rule(f"aten::{op}", waits, waits if proves is None else proves, evidence, **rest)


RULES: tuple[Rule, ...] = (
    # values for Python
    _rule("_local_scalar_dense", _always(_S), "item, float, int, bool, `if t`: memcpy and stream synchronize"),
    _rule("equal", _compared, "eq().all().item() inside", proves=_never),
    # sizes that depend on values
    _rule("nonzero", _always(_D), "number of nonzeros copied back to size the result"),
    _rule("nonzero.out", _always(_D), "as nonzero"),
    _rule("_unique", _nonempty(_D), "Thrust counts on the host"),
    _rule("_unique2", _nonempty(_D), "Thrust or CUB counts on the host"),
    _rule("unique_consecutive", _nonempty(_D), "as _unique2"),
    _rule("unique_dim", _nonempty(_D), "Thrust waits without a synchronize that c10 sees"),
    _rule("unique_dim_consecutive", _nonempty(_D), "as unique_dim"),
    _rule("masked_select", _always(_D), "index by mask inside", proves=_never),
    _rule("masked_select.out", _always(_D), "index by mask inside", proves=_never),
    _rule("index.Tensor", _indexed, "mask: nonzero inside; index on the host: copied", proves=_index_from_host),
    _rule("index.Tensor_out", _indexed, "as index.Tensor", proves=_index_from_host),
    _rule("index_put", _index_assigned, "as index_put_", proves=_index_from_host, shown=_PUT),
    _rule("index_put_", _index_assigned, "mask: nonzero or masked_fill inside", proves=_index_from_host, shown=_PUT),
    _rule("_index_put_impl_", _index_assigned, "as index_put_", proves=_index_from_host, shown=_PUT),
    _rule("repeat_interleave.Tensor", _repeats_summed, "sum of the repeats read back", proves=_never),
    _rule("bincount", _nonempty(_D), "largest value read back"),
    _rule("histc", _range_unknown, "extremes read back", proves=_never),
    _rule("histc.out", _range_unknown, "extremes read back", proves=_never),
    _rule("isin.Tensor_Tensor", _searched, "unique inside", proves=_never),
    _rule("_to_sparse", _nonempty(_D), "nonzero inside", proves=_never),
    _rule("_coalesce", _always(_D), "Thrust unique_by_key", keys=("SparseCUDA",)),
    # values read for a scalar argument
    _rule("masked_fill.Tensor", _value_on_device(2, "value"), "value read back", proves=_never),
    _rule("masked_fill_.Tensor", _value_on_device(2, "value"), "value read back", proves=_never),
    _rule("linspace.Tensor_Tensor", _any_on_device(_S, 0, 1), "end points read back", proves=_never),
    _rule("linspace.Tensor_Scalar", _any_on_device(_S, 0), "end point read back", proves=_never),
    _rule("linspace.Scalar_Tensor", _any_on_device(_S, 1), "end point read back", proves=_never),
    # checks
    _rule("_linalg_check_errors", _always(_C), "info flags read back"),
    _rule("_linalg_eigh", _always(_C), "convergence read back"),
    _rule("_linalg_svd", _always(_C), "convergence read back"),
    _rule("normal.Tensor_Tensor", _any_on_device(_C, 1), "std >= 0 checked", proves=_never),
    _rule("normal.float_Tensor", _any_on_device(_C, 1), "std >= 0 checked", proves=_never),
    # copies
    _rule("copy_", _copied, "waits for the copy, or in the driver for staging", hot=True),
    _rule("_to_copy", _converted, "copy_ inside", proves=_never, keys=()),
)

EXPLICIT_APIS: tuple[str, ...] = (
    "torch.cuda.synchronize",
    "torch.accelerator.synchronize",
    "torch.cuda.Stream.synchronize",
    "torch.cuda.Event.synchronize",
)
"""Callables by which a program asks to wait; all are :attr:`SyncKind.EXPLICIT`."""


def shown(rule: Rule) -> str:
    """Return the name that a sync of this op carries: the dispatcher's, without overload."""
    return rule.shown or rule.op.partition(".")[0]


_BY_OP = {rule.op: rule for rule in RULES}


def find(op: str) -> Rule | None:
    """Return the rule for an op (name with overload, as in :attr:`Rule.op`), or ``None`` if it never waits."""
    return _BY_OP.get(op)
