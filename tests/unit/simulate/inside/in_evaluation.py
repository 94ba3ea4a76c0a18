"""Evaluation loops: what CPU and CUDA kernels keep for the backward pass in different forms, and packed batches."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from syncagent import simulate

SHAPES = {1: (4, 3, 5), 2: (4, 3, 5, 5), 3: (4, 3, 2, 3, 3)}
SETTINGS = [
    (kind, dim, {"track_running_stats": track, "affine": affine, "momentum": momentum}, training)
    for kind, dim, track, affine, momentum, training in itertools.product(
        ("BatchNorm", "InstanceNorm"), SHAPES, (True, False), (True, False), (0.1, None), (True, False)
    )
    if kind == "BatchNorm" or momentum is not None
]


def normalized(on, dtype, kind, dim, settings, training, *, parameters=None):
    """The output of a layer, all gradients and its buffers after one forward and backward pass."""
    torch.manual_seed(0)
    layer = getattr(nn, f"{kind}{dim}d")(3, **settings).to(parameters or dtype)
    if settings["track_running_stats"]:
        layer.running_mean.uniform_()
        layer.running_var.uniform_(0.5, 2)
    x = torch.randn(SHAPES[dim]).to(dtype).to(on).requires_grad_()
    y = layer.to(on).train(training)(x)
    (y.float() * torch.arange(y.numel()).reshape(y.shape).to(on)).sum().backward()
    return [t.detach().cpu() for t in (y, x.grad, *[p.grad for p in layer.parameters()], *layer.buffers())]


def differs(*arguments, **keywords):
    here, there = (normalized(on, *arguments, **keywords) for on in ("cpu", "cuda"))
    return not all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_normalization_gives_the_cpus_numbers_in_training_and_in_evaluation(dtype):
    assert [setting for setting in SETTINGS if differs(dtype, *setting)] == []


def test_normalization_of_16_bit_numbers_with_32_bit_parameters():
    assert [s for s in SETTINGS if differs(torch.bfloat16, *s, parameters=torch.float32)] == []


def test_synchronized_normalization_is_evaluated_as_batch_normalization():
    layer = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(3))).eval()
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        expected = layer(x)
        assert torch.equal(layer.cuda()(x.cuda()).cpu(), expected)


@pytest.mark.parametrize("op", ["native_batch_norm", "_native_batch_norm_legit"])
def test_statistics_in_evaluation_are_those_that_cuda_hands_on(op):
    mean, var = torch.rand(3), torch.rand(3) + 0.5
    x, mean_there, var_there = (t.cuda() for t in (torch.randn(4, 3, 5), mean, var))
    _, used_mean, used_inverse = getattr(torch.ops.aten, op)(x, None, None, mean_there, var_there, False, 0.1, 1e-5)
    assert torch.equal(used_mean.cpu(), mean)
    assert torch.equal(used_inverse.cpu(), (var + 1e-5).rsqrt())


def test_an_auxiliary_result_that_only_the_cpus_backward_pass_can_read_is_refused_to_all_others(monkeypatch):
    from syncagent.simulate import dispatch

    monkeypatch.setattr(dispatch.facts_of(torch.ops.aten.native_batch_norm.default), "in_cuda_form", None)
    one = torch.ones(3, device="cuda")
    x = torch.ones(4, 3, 5, device="cuda", requires_grad=True)
    y, used_mean, _ = torch.native_batch_norm(x, None, None, one, one, training=False, momentum=0.1, eps=1e-5)
    y.sum().backward()
    assert x.grad.sum().item() > 0
    with pytest.raises(simulate.SimulationError, match=r"native_batch_norm: this result has the shape \(3,\) on CUDA"):
        used_mean.sum().item()


def test_an_op_without_a_kernel_for_the_cpu_says_so():
    x, one = torch.ones(4, 3, 5, device="cuda"), torch.ones(3, device="cuda")
    with pytest.raises(simulate.SimulationError, match="cudnn_batch_norm has no kernel for the CPU"):
        torch.cudnn_batch_norm(x, one, one, one, one, training=False, exponential_average_factor=0.1, epsilon=1e-5)


@pytest.mark.parametrize("function", [F.silu, F.mish])
def test_what_cuda_has_one_kernel_for_is_not_taken_apart(function):
    x, gradients = torch.randn(7, 20), []
    for on in ("cpu", "cuda"):
        leaf = x.detach().to(on).clone().requires_grad_()
        function(leaf).sum().backward()
        gradients.append(leaf.grad.cpu())
    assert torch.equal(*gradients)


def encoded(on, dtype, *, left_aligned):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(8)).to(dtype).to(on).eval()
    x = torch.randn(3, 5, 8).to(dtype).to(on)
    second = [0, 0, 0, 1, 1] if left_aligned else [1, 0, 0, 1, 1]
    pad = torch.tensor([[0] * 5, second, [0, 1, 1, 1, 1]], dtype=torch.bool).to(on)
    return encoder(x, src_key_padding_mask=pad).cpu()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("left_aligned", [True, False])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_packs_a_padded_batch_and_waits_as_on_an_h100(mode, left_aligned, observed):
    for dtype in (torch.float32, torch.bfloat16):
        with mode():
            here = encoded("cpu", dtype, left_aligned=left_aligned)
            observed.clear()
            there = encoded("cuda", dtype, left_aligned=left_aligned)
        assert torch.equal(here, there)
        packing = [("aten::equal", "scalar_read"), ("aten::copy_", "copy_d2h"), ("aten::copy_", "copy_h2d")]
        waited = observed.waits[observed.ops.index("aten::equal") : -1]  # the last one is our own copy of the result
        assert waited == (packing if left_aligned else packing[:1])


def test_a_packed_batch_that_is_used_otherwise_is_refused_with_a_way_out():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1).cuda().eval()
    encoder.layers[0].linear1.register_forward_hook(lambda *_: None)
    with torch.no_grad(), pytest.raises(simulate.SimulationError, match="enable_nested_tensor=False"):
        encoder(torch.rand(1, 4, 8, device="cuda"), src_key_padding_mask=torch.zeros(1, 4, device="cuda").bool())
