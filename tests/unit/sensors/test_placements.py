"""Kernels above autograd (``detail="auto"``) see the syncs that those above the backends see, at the same lines."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import syncagent.runtime.process
from syncagent import Phase
from syncagent.settings import sources

X = torch.tensor([[1.0, 0.0, 3.0], [0.0, 5.0, 0.0]])
MASK = X > 0


def weights():
    return X.clone().requires_grad_()


class Passing(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Wrapped(torch.Tensor):
    """Holds a tensor, and does with it what is done with the wrapper."""

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return func(*(value.inner if isinstance(value, cls) else value for value in args), **(kwargs or {}))


class Counted(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        ctx.save_for_backward(value)
        return value * len(value.nonzero())

    @staticmethod
    def backward(ctx, gradient):
        (value,) = ctx.saved_tensors
        return gradient * len(value.nonzero())


def a_mask():
    kept = (weights() * 2)[MASK]
    kept.sum().backward()


def in_place_on_a_view():
    value = weights() * 1
    value[:1][MASK[:1]] = 0.0
    value.masked_select(MASK).sum().backward()


def several_in_one_expression():
    value = weights()
    (value[MASK].sum() + value.masked_select(~MASK).sum() + value.mode(-1).values.sum()).backward()


def of_its_own_formula():
    Counted.apply(weights()).sum().backward()


def recomputed():
    def part(value):
        return value[value > 0]

    for reenters in (True, False):
        checkpoint(part, weights(), use_reentrant=reenters).sum().backward()


def twice_differentiated():
    value = weights()
    (first,) = torch.autograd.grad((value[MASK] ** 3).sum(), value, create_graph=True)
    first.sum().backward()


def without_gradients():
    value = weights()
    with torch.no_grad():
        value[MASK].sum().item()
    with torch.inference_mode():
        value[MASK].sum().item()


def nothing_to_differentiate():
    value = weights()
    value.nonzero()
    (value * 3).sum().backward()


def transformed():
    def loss(value):
        return (value * 2)[MASK].sum()

    torch.func.grad(loss)(X)
    torch.func.functionalize(loss)(X)
    torch.func.vmap(lambda row: row * len(X.nonzero()))(X)


def refused():
    """By a transform, by autograd before the op runs, and by the op after it has waited."""
    for call in (
        lambda: torch.func.vmap(lambda row: row[0].item())(X),
        lambda: weights().index_put_((MASK,), torch.tensor(1.0)),
        lambda: torch.linalg.cholesky(-torch.eye(2)),
    ):
        with pytest.raises(RuntimeError):
            call()


def below_a_mode_of_the_programs():
    with Passing():
        a_mask()
        X.nonzero()


def a_subclass_that_holds_a_tensor():
    Wrapped(X).nonzero()


def scripted():
    @torch.jit.script
    def kept(value):
        return value.nonzero()

    kept(X)


def numbers_and_conjugates():
    value = X.clone()
    value[MASK] = 3.0
    X.to(torch.complex64).conj().nonzero()
    torch.isin(X, torch.tensor([1.0, 5.0]))


PROGRAMS = (
    a_mask, in_place_on_a_view, several_in_one_expression, of_its_own_formula, recomputed, twice_differentiated,
    without_gradients, nothing_to_differentiate, transformed, refused, below_a_mode_of_the_programs,
    a_subclass_that_holds_a_tensor, scripted, numbers_and_conjugates,
)  # fmt: skip


def seen(program, *, modes=True, **settings):
    agent = syncagent.runtime.process.launch(sources.load({"copies": "all", **settings}), (), modes=modes)
    program()
    found = agent.events()
    notes = list(agent.faults.parts)
    syncagent.runtime.process.release(agent)
    assert notes == []
    return [
        (
            event.op,
            event.kind,
            event.phase,
            event.site and event.site.line,
            event.forward_site and event.forward_site.line,
        )
        for event in found
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("modes", [True, False], ids=["with modes", "by themselves"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_sampled_step_shows_the_syncs_that_kernels_above_the_backends_see(cpu_device, program, modes):
    """Also those that an op causes inside of another, and with them the forward line of a backward sync."""
    expected = seen(program, detail="syncs")
    found = seen(program, detail="auto", modes=modes)
    assert expected
    if program is transformed:  # below the transform, tensors do not tell that they belong to a graph
        assert {phase for _, _, phase, *_ in expected} <= {phase for _, _, phase, *_ in found} | {Phase.OTHER}
        found, expected = ([(*sync[:2], None, *sync[3:]) for sync in syncs] for syncs in (found, expected))
    assert [sync[:-1] for sync in found] == [sync[:-1] for sync in expected]
    # Above a transform, the nodes that it makes are numbered as they come.
    assert all(line == known or known is None for (*_, line), (*_, known) in zip(found, expected, strict=True))
