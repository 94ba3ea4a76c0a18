"""Autocast and GradScaler."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from syncagent.simulate import autocast


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_casts_what_torch_lists(dtype):
    layer, x = nn.Linear(4, 4).cuda(), torch.rand(2, 4, device="cuda")
    with torch.autocast("cuda", dtype=dtype):
        hidden = layer(x)
        assert hidden.dtype == dtype
        assert hidden.softmax(-1).dtype == torch.float32
        assert (hidden @ hidden.T).dtype == dtype
        assert nn.functional.mse_loss(hidden, hidden).dtype == torch.float32
        assert torch.addcmul(x, hidden, hidden).dtype == torch.float32
        assert hidden.norm().dtype == torch.float32
        with torch.autocast("cuda", enabled=False):
            assert layer(x).dtype == torch.float32
        with pytest.raises(RuntimeError, match="unsafe to autocast"):
            nn.functional.binary_cross_entropy(x, x)
    assert layer(x).dtype == torch.float32
    assert x.cpu().add(1).dtype == torch.float32


def test_autocast_leaves_cpu_tensors_alone():
    with torch.autocast("cuda", dtype=torch.float16):
        assert nn.Linear(2, 2)(torch.rand(1, 2)).dtype == torch.float32


def test_every_op_on_torchs_list_is_on_ours():
    assert autocast.unlisted(torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA")) == []


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_with_an_infinite_gradient_is_skipped(fused):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 2)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    losses = []
    for step in range(6):
        x, y = torch.rand(4, 1, 8, 8).cuda(), torch.tensor([0, 1, 0, 1]).cuda()
        if step == 3:
            x = x * float("inf")
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = nn.functional.cross_entropy(model(x), y)
        before = model[3].weight.detach().clone()
        scaler.scale(loss).backward()
        if not fused:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        unchanged = torch.equal(before, model[3].weight)
        assert unchanged == (step == 3)
        if step == 3:
            # the batch norm's running figures are spoilt, as they would be on a GPU
            model[1].reset_running_stats()
        losses.append(loss.item())
    assert scaler.get_scale() == 2.0**9
    assert losses[-1] < losses[0]


def test_scaling_waits_once_a_step(observed):
    model = nn.Linear(4, 4).cuda()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cuda")
    x = torch.rand(2, 4, device="cuda")
    scaler.scale(model(x).sum()).backward()
    observed.clear()
    scaler.step(optimizer)
    scaler.update()
    assert observed.waits == [("aten::_local_scalar_dense", "scalar_read")]


def test_a_parameter_used_twice_is_cast_once():
    layer, x = nn.Linear(4, 4, bias=False).cuda(), torch.rand(2, 4, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        layer(layer(x)).sum().backward()
        assert len(autocast._cast_parameters) == 1
    assert autocast._cast_parameters == {}
    assert layer.weight.grad.dtype == torch.float32
