"""Ops that are computed in a wider type than their arguments have, and rounded once to the type of the result.

Two reasons: CUDA's kernels take types that the CPU's refuse, and many of the CPU's kernels for 16-bit numbers are up to
a hundred times slower than those for 32 bits.  CUDA's matrix products and convolutions add up in 32 bits as well, so
this is nearer to its numbers, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from syncagent.simulate.memory import flatten, in_type, on_each
from syncagent.simulate.requirements import MissingOp, aten, find

Types = Mapping[torch.dtype, torch.dtype]
"""For each type that an op is not computed in, the one that it is computed in."""

_HALF: Types = {torch.float16: torch.float32}
_BRAIN: Types = {torch.bfloat16: torch.float32}
_SIXTEEN_BITS: Types = {**_HALF, **_BRAIN}

_PRODUCTS = (
    aten.mm, aten.addmm, aten.addmm_, aten.bmm, aten.baddbmm, aten.baddbmm_, aten.addbmm, aten.addbmm_,
    aten._addmm_activation, aten.convolution, aten.convolution_backward, aten.conv_tbc, aten.conv_tbc_backward,
)  # fmt: skip
"""Slow in 16 bits on processors without instructions for them.  Where there are some for bfloat16, torch uses them."""

_VECTOR_PRODUCTS = (aten.mv, aten.addmv, aten.addmv_, aten.dot, aten.vdot, aten.addr, aten.addr_)
"""Slow in 16 bits on any processor."""

_ONLY_ON_CUDA: tuple[tuple[Any, Types], ...] = (
    (aten.abs, {torch.bool: torch.uint8}),
    (aten.rrelu_with_noise, _HALF),
    (aten.rrelu_with_noise_, _HALF),
    (aten.rrelu_with_noise_backward, _HALF),
    *(
        (op, _SIXTEEN_BITS)
        for op in (
            aten.avg_pool3d, aten.avg_pool3d_backward, aten.multi_margin_loss, aten.multi_margin_loss_backward,
            aten.multilabel_margin_loss_forward, aten.multilabel_margin_loss_backward, aten._upsample_bilinear2d_aa,
            aten._upsample_bilinear2d_aa_backward,
        )
    ),
)  # fmt: skip
"""Types that CUDA's kernels take and the CPU's do not; a test compares this with torch's own list of types."""


def compute_of(op: Any) -> Callable[..., Any]:
    """Return what computes the op on CPU tensors: the op itself, unless it has to be told to use a wider type."""
    instead = _instead().get(op)
    if instead is not None:
        return instead
    types = _types().get(op)
    return op if types is None else functools.partial(_in_wider_type, op, types)


@functools.cache
def _types() -> dict[Any, Types]:
    found: dict[Any, Types] = {}
    products = _types_of_products()
    listed = (*((op, products) for op in _PRODUCTS), *((op, _SIXTEEN_BITS) for op in _VECTOR_PRODUCTS), *_ONLY_ON_CUDA)
    for packet, types in listed:
        found.update((getattr(packet, overload), types) for overload in packet.overloads())
    return found


@functools.cache
def _types_of_products() -> Types:
    has_bfloat16 = find("cpu._is_avx512_bf16_supported")
    return _HALF if has_bfloat16 is not None and has_bfloat16() else _SIXTEEN_BITS


def _in_wider_type(op: Any, types: Types, *args: Any, **kwargs: Any) -> Any:
    """Run the op; what it writes to is written in its own type, and so are new results.

    Where the types differ, the op itself says what is wrong with that.
    """
    given = {x.dtype for x in flatten([*args, *kwargs.values()]) if isinstance(x, torch.Tensor)}
    if sum(dtype.is_floating_point for dtype in given) > 1:
        return op(*args, **kwargs)
    widened: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def widen(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dtype not in types:
            return value
        if id(value) not in widened:
            widened[id(value)] = value, in_type(value, types[value.dtype])
        return widened[id(value)][1]

    positional, named = on_each(widen, args), {name: on_each(widen, x) for name, x in kwargs.items()}
    result = op(*positional, **named)
    if not widened:
        return result
    for original in _written(op, args, kwargs):
        if id(original) in widened:
            original.copy_(widened[id(original)][1])
    narrower = {wide.dtype: original.dtype for original, wide in widened.values()}

    def narrow(value: Any) -> Any:
        return in_type(value, narrower.get(value.dtype, value.dtype)) if isinstance(value, torch.Tensor) else value

    return on_each(narrow, result)


def _written(op: Any, args: Any, kwargs: dict[str, Any]) -> Iterator[Any]:
    for position, argument in enumerate(op._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield args[position] if position < len(args) else kwargs.get(argument.name)


# --- ops that the CPU has no kernel for in another type either ----------------------------------------------


@functools.cache
def _instead() -> dict[Any, Callable[..., Any]]:
    found: dict[Any, Callable[..., Any]] = {
        aten.histc.default: _histc,
        aten.trace.default: _trace,
        aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _attention_backward,
    }
    return {op: function for op, function in found.items() if not isinstance(op, MissingOp)}


def _attention(query: Any, key: Any, value: Any, *args: Any, attn_mask: Any = None, **kwargs: Any) -> Any:
    """Its second result is in 32 bits in any case."""
    op, dtype = aten._scaled_dot_product_flash_attention_for_cpu.default, query.dtype
    wide = _types_of_products().get(dtype)
    if wide is None:
        return op(query, key, value, *args, attn_mask=attn_mask, **kwargs)
    mask = None if attn_mask is None else attn_mask.to(wide)
    output, sums = op(query.to(wide), key.to(wide), value.to(wide), *args, attn_mask=mask, **kwargs)
    return output.to(dtype), sums


def _attention_backward(*args: Any, attn_mask: Any = None, **kwargs: Any) -> Any:
    """The forward pass's second result, in 32 bits, stands among its arguments."""
    op, dtype = aten._scaled_dot_product_flash_attention_for_cpu_backward.default, args[0].dtype
    wide = _types_of_products().get(dtype)
    if wide is None:
        return op(*args, attn_mask=attn_mask, **kwargs)

    def widen(value: Any) -> Any:
        return in_type(value, wide) if isinstance(value, torch.Tensor) and value.dtype == dtype else value

    gradients = op(*map(widen, args), attn_mask=widen(attn_mask), **kwargs)
    return tuple(in_type(x, dtype) for x in gradients)


def _trace(matrix: torch.Tensor) -> torch.Tensor:
    """Of truth values it is a number, as of other integers."""
    return aten.trace.default(matrix.long() if matrix.dtype == torch.bool else matrix)  # type: ignore[no-any-return]  # torch gives its ops no types


def _histc(source: torch.Tensor, bins: int = 100, min: Any = 0, max: Any = 0) -> torch.Tensor:  # noqa: A002 - torch's
    """Of integers it is counted in integers, so that a number on the edge of a bin is on its right side."""
    if source.is_floating_point():
        return aten.histc.default(source, bins, min, max)  # type: ignore[no-any-return]  # torch gives its ops no types
    values, low, high = source.flatten().long(), int(min), int(max)
    if low == high and len(values):
        low, high = int(values.min()), int(values.max())
    if low == high:
        low, high = low - 1, high + 1
    if low > high:
        raise RuntimeError("max must be larger than min")
    values = values[(values >= low) & (values <= high)]
    places = ((values - low) * bins // (high - low)).clamp_(max=bins - 1)
    return torch.bincount(places, minlength=bins).to(source.dtype)
