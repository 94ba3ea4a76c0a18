"""``scaled_dot_product_attention``: one kernel where the CPU has a fused one, and the plain formula elsewhere.

On CUDA it is a fused one as well.  It has another name, but what matters here is alike: there is no second backward
pass, and no matrix of all pairs of positions in memory.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from syncagent.simulate import composite
from syncagent.simulate.failures import attempt
from syncagent.simulate.memory import Layout
from syncagent.simulate.requirements import MissingOp, aten
from syncagent.simulate.tensor import SimulatedTensor

_FUSED = 1
"""What torch calls flash attention among its ways."""


@functools.lru_cache(maxsize=1024)
def _way(tensors: tuple[tuple[Layout, bool] | None, ...], is_causal: bool, scale: float | None, _enabled: bool) -> int:
    """Which way torch takes on the CPU for tensors of these layouts, some of which require gradients."""

    def like(description: tuple[Layout, bool] | None) -> torch.Tensor | None:
        if description is None:
            return None
        (size, stride, _, dtype), requires_grad = description
        return torch.empty_strided(size, stride, dtype=dtype).requires_grad_(requires_grad)

    chosen, error = attempt(
        lambda: int(aten._fused_sdp_choice.default(*map(like, tensors), 0.0, is_causal, scale=scale))
    )
    if error is not None and not isinstance(error, RuntimeError):
        raise error
    return chosen or 0  # an error: the program has switched off all but what the CPU does not have


def _kernel(op: Any) -> Any:
    fused = aten._scaled_dot_product_flash_attention_for_cpu.default

    def run(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **kwargs: Any,
    ) -> Any:
        given = (query, key, value, attn_mask)
        scale = kwargs.get("scale")
        if dropout_p or kwargs.get("enable_gqa") or not _are_on_device(given):
            return op.decompose(query, key, value, attn_mask, dropout_p, is_causal, **kwargs)
        described = tuple(None if x is None else (x._sim.layout._replace(offset=0), x.requires_grad) for x in given)
        if _way(described, is_causal, scale, torch.backends.cuda.flash_sdp_enabled()) != _FUSED:
            return op.decompose(query, key, value, attn_mask, dropout_p, is_causal, **kwargs)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            hidden = attn_mask.logical_not()
            attn_mask = torch.zeros_like(hidden, dtype=query.dtype).masked_fill_(hidden, -torch.inf)
        return fused(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]

    return run


def _are_on_device(given: tuple[Any, ...]) -> bool:
    """Whether all are plain simulated tensors on one device."""
    index = given[0]._sim.index if type(given[0]) is SimulatedTensor else None
    return all(x is None or (type(x) is SimulatedTensor and x._sim.index == index) for x in given)


def install_kernels(library: Any) -> None:
    """Give the stand-in device a kernel for attention."""
    op = aten.scaled_dot_product_attention.default
    used = (op, aten._fused_sdp_choice.default, aten._scaled_dot_product_flash_attention_for_cpu.default)
    if not any(isinstance(each, MissingOp) for each in used):
        composite.register(library, op, _kernel(op))
