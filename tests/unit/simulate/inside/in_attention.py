"""Attention: one fused kernel where there is one on CUDA, with the CPU's numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as attention

MASKS = {
    "none": lambda: None,
    "truth values": lambda: torch.ones(16, 16).tril() > 0,
    "added numbers": lambda: torch.linspace(-2, 2, 16).expand(3, 1, 16, 16),
}


def tensors(dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(3, 2, 16, 8).to(dtype).transpose(0, 0).requires_grad_() for _ in range(3)]


def results(given, mask, weights, **options):
    output = attention(*given, attn_mask=mask, **options)
    gradients = torch.autograd.grad(output, given, weights)
    return [x.detach().cpu() for x in (output, *gradients)]


def both(mask=None, dtype=torch.float32, wide=None, **options):
    given = tensors(dtype)
    weights = torch.randn(3, 2, 16, 8).to(dtype)
    ours = [x.detach().cuda().requires_grad_() for x in given]
    theirs = [x.detach().to(wide or dtype).requires_grad_() for x in given]
    found = results(ours, None if mask is None else mask.cuda(), weights.cuda(), **options)
    return found, results(theirs, mask, weights.to(wide or dtype), **options)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.5}], ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_it_gives_the_cpus_numbers(mask, options):
    if MASKS[mask]() is not None and options.get("is_causal"):
        pytest.skip("torch takes one or the other")
    for mine, expected in zip(*both(MASKS[mask](), **options), strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_are_near_the_result_in_32(dtype):
    for mine, expected in zip(*both(dtype=dtype, wide=torch.float32), strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.float(), expected, rtol=2e-2, atol=2e-2)


def test_fp16_is_computed_in_32_bits_and_rounded_once_in_the_backward_pass_too():
    op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    given, weights = tensors(torch.float16), torch.randn(3, 2, 16, 8).half()
    found = results([x.detach().cuda().requires_grad_() for x in given], None, weights.cuda())
    wide = [x.detach().float() for x in given]
    output, sums = op(*wide)
    rounded = output.half()
    expected = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        weights.float(), *wide, rounded.float(), sums, 0.0, False
    )
    for mine, theirs in zip(found, (rounded, *(x.half() for x in expected)), strict=True):
        assert torch.equal(mine, theirs)


def queued(call):
    """How many kernels a call queues."""
    engine = torch.cuda.current_stream().engine
    before = engine.submitted
    call()
    return engine.submitted - before


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_it_is_one_kernel(mode):
    given = [x.detach().cuda() for x in tensors()]
    with mode():
        assert queued(lambda: attention(*given)) == 1


def test_the_plain_formula_where_there_is_no_fused_kernel():
    given = [x.detach().cuda() for x in tensors()]
    expected = attention(*(x.cpu() for x in given))
    for call in (
        lambda: attention(*given, dropout_p=0.5),
        lambda: attention(given[0], given[1][:, :1], given[2][:, :1], enable_gqa=True),
        lambda: attention(*given, attn_mask=torch.zeros(16, 16, device="cuda", requires_grad=True)),
    ):
        assert call().shape == expected.shape
    with sdpa_kernel(SDPBackend.MATH):
        assert queued(lambda: attention(*given)) > 1
        torch.testing.assert_close(attention(*given).cpu(), expected)
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        torch.testing.assert_close(attention(*given).cpu(), expected)


def test_autocast_lowers_it():
    given = [x.detach().cuda() for x in tensors()]
    with torch.autocast("cuda"):
        assert attention(*given).dtype == torch.float16


def test_tensors_of_two_devices_are_refused():
    query, key, value = (x.detach().cuda() for x in tensors())
    with pytest.raises(RuntimeError, match="same device"):
        attention(query, key.cpu(), value)


def test_an_encoder_layer_trains_with_the_cpus_numbers():
    found = []
    for device in ("cuda", "cpu"):
        torch.manual_seed(4)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).to(device)
        loss = layer(torch.rand(3, 5, 8).to(device)).square().mean()
        loss.backward()
        found.append([loss.detach().cpu(), *(p.grad.cpu() for p in layer.parameters())])
    for mine, expected in zip(*found, strict=True):
        assert torch.equal(mine, expected)
