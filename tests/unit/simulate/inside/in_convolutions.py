"""Convolutions of tensors whose channels come last in memory."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F


def order(tensor):
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


@pytest.mark.parametrize("last", ["input", "weight", "both", "a sequence"])
@pytest.mark.parametrize(
    ("function", "x", "weight", "options"),
    [
        (F.conv2d, (2, 4, 8, 8), (6, 4, 3, 3), {"padding": 1}),
        (F.conv2d, (2, 4, 8, 8), (6, 4, 1, 1), {}),
        (F.conv2d, (2, 4, 8, 8), (4, 1, 3, 3), {"groups": 4}),
        (F.conv3d, (2, 4, 6, 6, 6), (6, 4, 3, 3, 3), {}),
        (F.conv_transpose2d, (2, 4, 8, 8), (4, 6, 2, 2), {"stride": 2}),
    ],
)
def test_the_order_in_memory_and_the_numbers_are_the_cpus(function, x, weight, options, last):
    form = {4: torch.channels_last, 5: torch.channels_last_3d}[len(x)]
    x, weight = torch.randn(x), torch.randn(weight)
    if last in {"input", "both"}:
        x = x.contiguous(memory_format=form)
    if last in {"weight", "both"}:
        weight = weight.contiguous(memory_format=form)
    if last == "a sequence":  # as vision transformers make it
        x = x.flatten(2).transpose(1, 2).contiguous().transpose(1, 2).view(x.shape)
    results = []
    for device in ("cpu", "cuda"):
        a, b = (each.detach().to(device).requires_grad_() for each in (x, weight))
        out = function(a, b, **options)
        F.gelu(out).square().mean().backward()
        results.append((out.detach(), F.gelu(out).detach(), a.grad, b.grad))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(expected, found.cpu())
        assert order(expected) == order(found)
