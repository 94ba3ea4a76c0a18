"""What of a call's arguments decides whether it waits, and as what kind: the predicates of the rules."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from syncagent.events import SyncKind
from syncagent.rules.rule import Waits

STAGED_BYTES = 2 << 20
"""A ``non_blocking`` copy of up to this size from pageable memory is staged by the driver and returns; a larger one may
wait.  Measured on an H100 (driver 580.159): 2 MB returns, 3 MB waits."""

_SLOW_NS_PER_BYTE = 1.0
"""A staged copy runs at 5 to 10 GB/s; one that takes so much longer found the driver's staging memory full and waited
(the third of three copies of 1 MB behind a sleeping H100 did)."""


def always(kind: SyncKind) -> Waits:
    def waits(_args: Sequence[Any], _kwargs: Mapping[str, Any]) -> SyncKind | None:
        return kind

    waits.always = kind  # type: ignore[attr-defined]  # so that it need not be asked
    return waits


def never(_args: Sequence[Any], _kwargs: Mapping[str, Any]) -> SyncKind | None:
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


def nonempty(kind: SyncKind) -> Waits:
    """Waits unless the first tensor has no elements."""

    def waits(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
        tensor = args[0] if args else kwargs.get("self")
        return kind if tensor is None or tensor.numel() else None

    return waits


def _indices(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    return [index for index in _argument(args, kwargs, 1, "indices", ()) if index is not None]


def index_from_host(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """An index on the host is copied to the device; a mask on the host is turned into indices there, without a wait."""
    copied = any(_from_host(index) and index.dim() > 0 and not _is_mask(index) for index in _indices(args, kwargs))
    return SyncKind.COPY_H2D if copied else None


def indexed(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """A mask is turned into indices by ``nonzero``; an index on the host is copied to the device."""
    if any(_is_mask(index) and index.is_cuda for index in _indices(args, kwargs)):
        return SyncKind.DYNAMIC_SHAPE
    return index_from_host(args, kwargs)


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


def value_from_host(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """The part of an assignment that waits without another hooked op: the value or an index is copied to the device."""
    if _fills(args, kwargs):
        return _mask_copied(args, kwargs)
    values = _argument(args, kwargs, 2, "values")
    if not hasattr(values, "is_cuda") or _from_host(values):
        return SyncKind.COPY_H2D
    return index_from_host(args, kwargs)


def index_assigned(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """Assignment through indices."""
    if _fills(args, kwargs):
        return _mask_copied(args, kwargs)
    if any(_is_mask(index) and index.is_cuda for index in _indices(args, kwargs)):
        return SyncKind.DYNAMIC_SHAPE
    if _adds_up_from_host(args, kwargs):
        return SyncKind.COPY_H2D
    return value_from_host(args, kwargs)


def copied(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
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


def staged_late(args: Sequence[Any], _kwargs: Mapping[str, Any], lasted_ns: int) -> SyncKind | None:
    """A small ``non_blocking`` copy from pageable memory waits where earlier ones have filled the staging memory."""
    target, source = args[0], args[1]
    if not target.is_cuda or not _from_host(source) or source.is_pinned():
        return None
    if target.dtype != source.dtype or not source.is_contiguous():
        return None  # converting and packing on the host take time of their own
    usual_ns = 500_000 + source.numel() * source.element_size() * _SLOW_NS_PER_BYTE
    return SyncKind.COPY_H2D if lasted_ns > usual_ns else None


def converted(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """``_to_copy``: a copy to a new tensor, which is in pinned memory if the copy to the host is ``non_blocking``."""
    source = args[0]
    device = kwargs.get("device")
    if device is None or not source.numel() or source.is_cuda == (device.type != "cpu"):
        return None
    blocking = not kwargs.get("non_blocking", False)
    if source.is_cuda:
        return SyncKind.COPY_D2H if blocking else None
    return SyncKind.COPY_H2D if blocking or _waits_for_staging(source) else None


def some_copied(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """``_foreach_copy_``: as each of its copies."""
    rest = (_argument(args, kwargs, 2, "non_blocking", default=False),)
    kinds = (copied((target, source, *rest), {}) for target, source in zip(args[0], args[1], strict=True))
    return next((kind for kind in kinds if kind is not None), None)


def repeats_summed(_args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    return None if kwargs.get("output_size") is not None else SyncKind.DYNAMIC_SHAPE


def compared(args: Sequence[Any], _kwargs: Mapping[str, Any]) -> SyncKind | None:
    """``equal`` answers at once where both are the same memory or their shapes differ."""
    left, right = args[0], args[1]
    if tuple(left.shape) != tuple(right.shape) or not left.numel():
        return None
    same = left is right or (
        left.data_ptr() == right.data_ptr() and left.stride() == right.stride() and left.dtype == right.dtype
    )
    return None if same else SyncKind.SCALAR_READ


def searched(args: Sequence[Any], _kwargs: Mapping[str, Any]) -> SyncKind | None:
    """``isin`` sorts, and so waits, once there are many values to look for (ATen's own threshold)."""
    elements, tests = args[0], args[1]
    sought = float(elements.numel()) if hasattr(elements, "numel") else 1.0
    many = tests.numel() >= 10.0 * sought**0.145
    return SyncKind.SCALAR_READ if many and sought else None


def range_unknown(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    """``histc`` reads the extremes back where no range is given."""
    low, high = _argument(args, kwargs, 2, "min", 0), _argument(args, kwargs, 3, "max", 0)
    return SyncKind.DYNAMIC_SHAPE if low == high and args[0].numel() else None


def reads(kind: SyncKind, *positions: int) -> Waits:
    """Waits if one of these arguments is a tensor on the device: its value is read."""

    def waits(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
        values = [*args, *kwargs.values()]
        return kind if any(_on_device(values[p]) for p in positions if p < len(values)) else None

    return waits


def scalar_from_host(args: Sequence[Any], _kwargs: Mapping[str, Any]) -> SyncKind | None:
    """``where``: a 0-dim tensor on the host is copied to the device."""
    return SyncKind.COPY_H2D if any(_from_host(value) for value in args) else None


def lengths_on_device(kind: SyncKind) -> Waits:
    """``ctc_loss`` needs the lengths and targets on both sides, wherever they are."""

    def waits(args: Sequence[Any], _kwargs: Mapping[str, Any]) -> SyncKind | None:
        return kind if any(_on_device(value) for value in args) else None

    return waits


MODE_ROW = 2048
"""Up to so many numbers in a row ``mode`` has a kernel of its own; a longer one is sorted by Thrust, row by row."""


def long_rows(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
    values, dim = args[0], _argument(args, kwargs, 1, "dim", -1)
    if not values.numel() or not values.dim():
        return None
    return SyncKind.OTHER if values.shape[dim] > MODE_ROW else None


def nested(args: Sequence[Any], _kwargs: Mapping[str, Any]) -> SyncKind | None:
    """``to_padded_tensor``: the sizes of the rows, which are on the host, are copied to the device."""
    return SyncKind.COPY_H2D if getattr(args[0], "is_nested", False) else None


def sparse_product(args: Sequence[Any], _kwargs: Mapping[str, Any]) -> SyncKind | None:
    """A product of two sparse matrices has to count its elements."""
    return SyncKind.DYNAMIC_SHAPE if str(args[1].layout) == str(args[2].layout) else None
