"""``inference_mode`` on the simulated device: each call gives what it gives on the CPU, in kind as well as in value."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import syncagent

VIEWS = """
t[0]
t[:1]
t[None]
t[..., None, :1]
t[:, 1:, ::2]
t[-1, 0, 1]
list(t)
t.transpose(0, 1)
t.permute(2, 0, 1)
t.mT
t.movedim(0, 1)
t.view(-1)
t.reshape(4, 6)
t.flatten(1)
t.unflatten(2, (2, 2))
t.unsqueeze(0).squeeze(0)
t.expand(5, 2, 3, 4)
t.broadcast_to(5, 2, 3, 4)
t.unbind(0)
t.split(1)
t.split([1, 2], 1)
t.chunk(2, 2)
t.tensor_split(3, 2)
t.narrow(1, 0, 2)
t.select(0, 1)
t.diagonal(0, 1, 2)
t.unfold(2, 2, 1)
t.as_strided((2, 2), (1, 2), 1)
t.detach()
t.view_as(t)
t.swapaxes(0, 2)
torch.view_as_complex(t.view(2, 3, 2, 2))
torch.view_as_real(torch.view_as_complex(t.view(2, 3, 2, 2)))
t.hsplit(3)
torch.atleast_3d(t[0])
t.data
torch.real(t)
t.contiguous()
t.to(t.dtype)
""".strip().splitlines()

WRITES = """
t.add_(1)
t.mul_(t)
t[0].zero_()
t.__setitem__(0, 0.0)
t.__setitem__((slice(None), 1), 5.0)
t.__setitem__(t > 0, 1.0)
t.view(-1).fill_(2)
t.copy_(t * 2)
t.transpose(0, 1).add_(1)
t.squeeze_()
t.unsqueeze_(0)
t.transpose_(0, 1)
t.resize_(2, 2)
t.clamp_(0)
torch.add(t, 1, out=t)
torch.add(t, 1, out=torch.empty(0, device=t.device))
t.index_put_((torch.tensor([0], device=t.device),), t[0] * 2)
t.index_fill_(0, torch.tensor([0], device=t.device), 0)
nn.functional.relu(t, inplace=True)
t.normal_().zero_()
""".strip().splitlines()

TO_THE_HOST = """
t.cpu()
t.cpu().numpy()
t.numpy(force=True)
t.to("cpu", torch.float64)
t.tolist()
t[0, 0, 0].item()
float(t.sum())
bool((t > 100).any())
repr(t).replace(", device='cuda:0'", "")
f"{t.sum():.3f}"
torch.empty(2, 3, 4).copy_(t)
list(map(float, t[0, 0]))
len(t)
torch.equal(t, t + 0)
torch.allclose(t, t)
int(t.argmax())
np.asarray(t.cpu())
""".strip().splitlines()


def values(on):
    return torch.arange(24.0, device=on).reshape(2, 3, 4) - 3


def kinds(result):
    if isinstance(result, torch.Tensor):
        return (result.is_inference(), result._is_view(), result.requires_grad)
    if isinstance(result, (list, tuple)):
        return [kinds(x) for x in result]
    return type(result).__name__


def plain(result):
    if isinstance(result, torch.Tensor):
        return (result.dtype, result.detach().cpu().tolist())
    if isinstance(result, (list, tuple)):
        return [plain(x) for x in result]
    return result.tolist() if isinstance(result, np.ndarray) else result


def outcome(expression, on, *, made_inside, used_inside):
    """What the expression gives, what it leaves of its tensor, and which kinds of tensors these are."""
    with torch.inference_mode(made_inside):
        t = values(on)
    with torch.inference_mode(used_inside):
        result = eval(expression, {"torch": torch, "nn": nn, "np": np, "t": t})

    return plain(result), plain(t), (kinds(result), kinds(t))


BORDERS = [(made, used) for made in (False, True) for used in (False, True)]


def differences(expressions, borders, *, compared):
    """Expressions that give something else on the device than on the CPU, each with what was different."""
    found = []
    for expression in expressions:
        for made, used in borders:
            try:
                there, here = (
                    outcome(expression, on, made_inside=made, used_inside=used)[:compared] for on in ("cuda", "cpu")
                )
                assert there == here
            except Exception as error:
                found.append((expression, f"made inside: {made}, used inside: {used}", repr(error)[:300]))
    return found


def test_views_are_what_they_are_on_the_cpu():
    assert differences(VIEWS, BORDERS, compared=3) == []


def test_writes_in_place_do_what_they_do_on_the_cpu():
    assert differences(WRITES, [(False, False), (False, True), (True, True)], compared=3) == []


def test_values_come_to_the_host():
    assert differences(TO_THE_HOST, BORDERS, compared=1) == []


def network():
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(), nn.Linear(144, 5)
    return nn.Sequential(*parts)


def test_a_model_is_moved_loaded_and_run_inside():
    model, x = network().eval(), torch.randn(2, 3, 8, 8)
    kept = io.BytesIO()
    torch.save(model.state_dict(), kept)
    with torch.inference_mode():
        expected = model(x)
        fresh = network().cuda().eval()
        fresh.load_state_dict(torch.load(io.BytesIO(kept.getvalue()), map_location="cuda"))
        found = fresh(x.cuda())
        assert found.is_inference()
        assert torch.equal(found.cpu(), expected)
        assert torch.equal(
            fresh.to(torch.float64)(x.cuda().double()).float().cpu().round(decimals=4), expected.round(decimals=4)
        )


def test_a_model_that_was_run_inside_is_trained_outside():
    model = network().cuda()
    with torch.inference_mode():
        model(torch.randn(2, 3, 8, 8, device="cuda"))
        rows = [row.sum().item() for row in model[-1].weight]
    model(torch.randn(2, 3, 8, 8, device="cuda")).sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert len(rows) == 5
    assert all(p.grad is not None for p in model.parameters())


def test_what_was_made_inside_is_refused_by_autograd_outside_as_on_the_cpu():
    words = []
    for on in ("cpu", "cuda"):
        with torch.inference_mode():
            made = torch.ones(3, device=on)
        weight = torch.ones(3, device=on, requires_grad=True)
        with pytest.raises(RuntimeError) as refused:
            (weight * made).sum()
        with pytest.raises(RuntimeError) as refused_in_place:
            made[0].add_(1)
        words.append((str(refused.value), str(refused_in_place.value)))
    assert words[0] == words[1]


def test_autocast_reaches_the_parts_of_an_op():
    for layer, shape in ((nn.LSTM(3, 4), (5, 2, 3)), (nn.Linear(3, 4), (2, 3)), (nn.Bilinear(3, 3, 2), (2, 3))):
        layer, x = layer.cuda(), torch.randn(*shape, device="cuda")
        inputs = (x, x) if isinstance(layer, nn.Bilinear) else (x,)
        with torch.autocast("cuda", torch.bfloat16):
            with torch.inference_mode():
                inside = layer(*inputs)
            with torch.no_grad():
                outside = layer(*inputs)
        pairs = zip(*(r if isinstance(r, tuple) else (r,) for r in (inside, outside)), strict=True)
        assert [a.dtype == b.dtype for a, b in pairs if isinstance(a, torch.Tensor)].count(False) == 0, layer


class Seen(TorchDispatchMode):
    """Notes the ops that it sees, and lets them pass."""

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
        self.ops.append(func.name())
        return func(*args, **(kwargs or {}))


MODULES = {
    "linear": nn.Linear(4, 2),
    "convolution": nn.Conv2d(3, 3, 3, padding="same"),
    "normalization": nn.BatchNorm2d(3).eval(),
    "interpolation": nn.Upsample((8, 8), mode="bilinear"),
    "transformer": nn.Sequential(nn.Flatten(0, 1), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()),
}


@pytest.mark.parametrize("name", MODULES)
def test_under_a_mode_the_parts_of_an_op_run_and_the_mode_sees_them(name):
    """As those of the steps that the agent watches whole: torch looked for a mode where there was none any more."""
    module, source = copy.deepcopy(MODULES[name]), torch.randn(2, 3, 4, 4)
    with torch.inference_mode(), Seen() as seen:
        expected, on_cpu = module(source), list(seen.ops)
    module, source = module.cuda(), source.cuda()
    with torch.inference_mode(), Seen() as seen:
        found = module(source)
    torch.testing.assert_close(found.cpu(), expected)
    assert {"aten::addmm", "aten::convolution"} & {*seen.ops} == {"aten::addmm", "aten::convolution"} & {*on_cpu}


@pytest.mark.parametrize("name", MODULES)
def test_under_the_agent(name):
    module, source = copy.deepcopy(MODULES[name]).cuda(), torch.randn(2, 3, 4, 4, device="cuda")
    with torch.inference_mode():
        expected = module(source)
        with syncagent.watch(detail="ops"):
            torch.testing.assert_close(module(source), expected)  # the fast path of a transformer is not for modes
