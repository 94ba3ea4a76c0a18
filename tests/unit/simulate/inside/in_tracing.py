"""Programs that trace what they compute, and ops that take functions: the same numbers as on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

pytestmark = pytest.mark.filterwarnings(
    "ignore:flex_attention called without",
    "ignore:.torch.jit.script. is deprecated",
    "ignore:Attempted to insert a get_attr",  # by torch.func.linearize
)


def values(device, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device)


@pytest.mark.parametrize("function", [torch.sin, lambda x: x * x, lambda x: x @ x.T, lambda x: x.relu().sum(1)])
def test_a_function_is_linearized(function):
    def run(device):
        x = values(device, 4, 3)
        result, product = torch.func.linearize(function, x)
        return [each.cpu() for each in (result, product(x), product(2 * x))]

    assert all(map(torch.equal, run("cuda"), run("cpu")))


def test_a_traced_program_uses_its_argument_beside_tensors_that_it_holds():
    x, weight = values("cuda", 4, 3), values("cuda", 3, 3)
    traced = make_fx(lambda x: (x @ weight).relu() + 1)(x)
    assert torch.equal(traced(2 * x), (2 * x @ weight).relu() + 1)


def _attention(device, *, with_bias, is_compiled):
    q, k, v = (x.requires_grad_() for x in values(device, 3, 1, 2, 64, 16).unbind())
    bias = torch.tensor([0.5, -1.0]).to(device).requires_grad_()
    before = create_block_mask(lambda _b, _h, i, j: i >= j, None, None, 64, 64, device=device)
    attend = torch.compile(flex_attention) if is_compiled else flex_attention

    def score(score, _b, head, i, j):
        return score + bias[head] * (i - j)

    return attend(q, k, v, score_mod=score if with_bias else None, block_mask=before), (q, k, v, bias)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_flex_attention_is_its_formula(with_bias, is_compiled):
    found, inputs = _attention("cuda", with_bias=with_bias, is_compiled=is_compiled)
    q, k, v, bias = inputs
    places = torch.arange(64, device="cuda")
    scores = q @ k.mT / 4
    if with_bias:
        scores = scores + bias[:, None, None] * (places[:, None] - places)
    expected = scores.masked_fill(places[:, None] < places, -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(found, expected)
    wanted = inputs if with_bias else inputs[:3]
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), wanted),
        torch.autograd.grad(expected.square().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_flex_attention_without_gradients_gives_the_numbers_of_the_cpu():
    def run(device):
        with torch.no_grad():
            q = values(device, 1, 2, 64, 16)
            return flex_attention(q, q[:, :1], q[:, :1], score_mod=lambda s, _b, _h, i, j: s + (i - j), enable_gqa=True)

    assert torch.equal(run("cuda").cpu(), run("cpu"))


def test_a_branch_is_chosen_by_a_tensor():
    x = values("cuda", 3).requires_grad_()
    found = torch.cond(x.sum() > 1000, lambda x: x + 1, lambda x: x * 3, (x,))
    found.sum().backward()
    assert torch.equal(found, x * 3)
    assert x.grad.tolist() == [3, 3, 3]


def test_modes_see_indexing_under_torchs_own_name():
    seen = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    x, places = torch.arange(6.0, device="cuda"), torch.tensor([3, 0], device="cuda")
    with Mode():
        found = x[2:4], x[places], x[[1]]
    assert [each is torch.Tensor.__getitem__ for each in seen] == [True, True, False]
    assert [each.tolist() for each in found] == [[2, 3], [3, 0], [1]]
