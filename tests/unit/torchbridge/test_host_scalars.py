"""Optimizers read their step counts from the host without passing the hook, and compute the same."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.optim import optimizer

import syncagent
from syncagent.torchbridge.host_scalars import HostScalars

OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, foreach=True),
    "adam, one by one": lambda p: torch.optim.Adam(p, foreach=False),
    "adamw": lambda p: torch.optim.AdamW(p, foreach=True),
    "nadam": lambda p: torch.optim.NAdam(p, foreach=True),
    "radam": lambda p: torch.optim.RAdam(p, foreach=False),
    "adamax": lambda p: torch.optim.Adamax(p, foreach=True),
    "asgd": lambda p: torch.optim.ASGD(p, foreach=False),
    "adagrad": lambda p: torch.optim.Adagrad(p, foreach=False),
}


@pytest.fixture(autouse=True)
def _nothing_compiled(cpu_device):
    """Whatever other tests have compiled, nothing is when these begin."""


@pytest.fixture
def on():
    """The way past the hook is open."""
    past = HostScalars()
    past.start()
    yield past
    past.stop()


def trained(make):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    optim = make(model.parameters())
    for _ in range(5):
        model(torch.ones(2, 3)).sum().backward()
        optim.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_result_is_the_same_to_the_last_bit(name):
    """The number is the same by another way."""
    bare = trained(OPTIMIZERS[name])
    past = HostScalars()
    past.start()
    try:
        through = trained(OPTIMIZERS[name])
    finally:
        past.stop()
    assert all(torch.equal(a, b) for a, b in zip(bare, through, strict=True))


@pytest.mark.parametrize("name", ["adam", "adam, one by one", "adamw", "nadam"])
def test_no_step_count_is_read_through_the_hook(cpu_agent, name):
    """Else each parameter would cost two crossings in every step."""
    agent = cpu_agent(detail="syncs")
    trained(OPTIMIZERS[name])
    assert [event.op for event in agent.events() if event.op == "aten::_local_scalar_dense"] == []


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize(
    "value", [torch.tensor(3.5), torch.tensor(7), torch.tensor([2.5]), torch.nn.Parameter(torch.tensor(1.0)), 4.0]
)
def test_any_value_is_read_as_before(value):
    """Also those that the original has to see to."""
    read = optimizer._get_value(value)
    wanted = value.item() if isinstance(value, torch.Tensor) else value
    assert (read, type(read)) == (wanted, type(wanted))


@pytest.mark.usefixtures("on")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Guards may run slower:RuntimeWarning")
def test_an_optimizer_is_compiled_as_before():
    """torch.compile sees through it, without a break."""
    import torch._dynamo

    def make_step():
        parameter = torch.nn.Parameter(torch.ones(3))
        parameter.grad = torch.ones(3)
        return torch.optim.Adam([parameter], capturable=False).step

    torch._dynamo.reset()
    explained = torch._dynamo.explain(make_step())()
    assert explained.graph_break_count == 0


def test_nothing_is_left_of_it():
    """In no module that has the function by name."""
    original = optimizer._get_value
    past = HostScalars()
    past.start()
    assert optimizer._get_value is not original
    past.stop()
    holders = [module for name, module in sys.modules.items() if name.startswith("torch.optim")]
    assert {module._get_value for module in holders if hasattr(module, "_get_value")} == {original}


def test_where_code_is_compiled_already_it_stays_away(monkeypatch):
    """A guard would find another function, and the optimizer would be compiled again."""
    import torch._dynamo.utils

    monkeypatch.setitem(torch._dynamo.utils.counters, "frames", {"total": 1})
    original = optimizer._get_value
    past = HostScalars()
    past.start()
    assert optimizer._get_value is original
    past.stop()
    assert syncagent.current() is None
