"""The parts of ``SyncBatchNorm``, which only CUDA has kernels for, composed of other ops.

Statistics are of shape (C,) in 32 bits, or (ranks, C) where those of all ranks meet; inputs are (N, C, ...).
"""

from __future__ import annotations

from typing import Any

import torch

from syncagent.simulate.dispatch import runs
from syncagent.simulate.facts import OpFacts
from syncagent.simulate.requirements import aten


def _wide(source: Any) -> Any:
    return source.float() if source.dtype in {torch.float16, torch.bfloat16} else source


def _others(source: Any) -> list[int]:
    """The dimensions that statistics are taken over."""
    return [0, *range(2, source.dim())]


def _beside(source: Any, statistic: Any) -> Any:
    """A value for each channel in a shape that broadcasts to the input's."""
    return statistic.view(1, -1, *[1] * (source.dim() - 2))


@runs(aten.batch_norm_stats.default)
def _stats(_facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    source, eps = _wide(args[0]), args[1]
    variance, mean = torch.var_mean(source, _others(source), correction=0)
    return mean, (variance + eps).rsqrt()


@runs(aten.batch_norm_gather_stats_with_counts.default)
def _gather_stats(_facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    _, means, inverses, running_mean, running_var, momentum, eps, counts = args
    counts = counts.to(means.dtype)
    total = counts.sum()
    share = (counts / total).view(-1, 1)
    mean = (means * share).sum(0)
    variance = ((inverses.pow(-2) - eps + (means - mean).square()) * share).sum(0)
    if running_mean is not None:
        running_mean.mul_(1 - momentum).add_(mean * momentum)
        running_var.mul_(1 - momentum).add_(variance * (total / (total - 1)) * momentum)
    return mean, (variance + eps).rsqrt()


@runs(aten.batch_norm_elemt.default)
def _normalize(_facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    given, weight, bias, mean, inverse, _ = args
    source = _wide(given)
    result = (source - _beside(source, mean)) * _beside(source, inverse)
    if weight is not None:
        result = result * _beside(source, weight)
    if bias is not None:
        result = result + _beside(source, bias)
    return result.to(given.dtype)


@runs(aten.batch_norm_backward_reduce.default)
def _backward_sums(_facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    grad, source, mean, inverse, weight, for_input, for_weight, for_bias = args
    grad, source = _wide(grad), _wide(source)
    total = grad.sum(_others(source))
    with_source = (grad * (source - _beside(source, mean))).sum(_others(source))
    dtype = total.dtype if weight is None else weight.dtype
    return (
        total if for_input else None,
        with_source if for_input else None,
        (with_source * inverse).to(dtype) if for_weight else None,
        total.to(dtype) if for_bias else None,
    )


@runs(aten.batch_norm_backward_elemt.default)
def _backward(_facts: OpFacts, args: Any, _kwargs: Any) -> Any:
    given, source, mean, inverse, weight, total, with_source, counts = args
    grad, source = _wide(given), _wide(source)
    count = counts.sum()
    scale = inverse if weight is None else inverse * weight
    centred = source - _beside(source, mean)
    result = grad - _beside(source, total / count) - centred * _beside(source, inverse.square() * with_source / count)
    return (result * _beside(source, scale)).to(given.dtype)
