"""The path of the ``nn.Module`` whose forward made the sync."""

from __future__ import annotations

import pytest
import torch
from torch import nn

X = torch.tensor([[1.0, 0.0], [0.0, 5.0]])


class Masking(nn.Module):
    """Syncs."""

    def forward(self, x):
        x.nonzero()
        return x


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = Masking()

    def forward(self, x):
        return self.attn(x)


class Net(nn.Module):
    def __init__(self, depth=4):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture
def agent(cpu_agent):
    """Paths are reported under ``detail="ops"``."""
    return cpu_agent(detail="ops")


def modules(agent):
    return [event.module for event in agent.events()]


def test_a_module_is_named_by_its_path_below_the_outermost(agent):
    """As ``named_modules`` writes it."""
    Net()(X)
    assert modules(agent) == [f"layers.{n}.attn" for n in range(4)]


def test_the_outermost_module_is_named_by_its_class(agent):
    """It has no path of its own."""
    Masking()(X)
    assert modules(agent) == ["Masking"]


def test_outside_of_a_module_there_is_no_path(agent):
    """Also after one has run."""
    Masking()(X)
    X.nonzero()
    assert modules(agent) == ["Masking", None]


def test_the_path_is_that_of_the_module_that_called(agent):
    """A sync after an inner module has returned is the outer one's."""

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Masking()

        def forward(self, x):
            self.inner(x).nonzero()

    nn.Sequential(Outer())(X)
    assert modules(agent) == ["0.inner", "0"]


def test_a_shared_module_has_the_first_of_its_paths(agent):
    """``named_modules`` names it once."""
    shared = Masking()
    nn.Sequential(shared, shared)(X)
    assert modules(agent) == ["0", "0"]


def test_a_module_added_later_is_found(agent):
    """Paths that are known are looked up again where they do not do."""
    net = Net(depth=1)
    net(X)
    net.layers.append(Block())
    net(X)
    assert modules(agent) == ["layers.0.attn", "layers.0.attn", "layers.1.attn"]


def test_a_module_that_is_replaced_keeps_the_path(agent):
    """The new one stands where the old one stood."""
    net = Net(depth=1)
    net(X)
    net.layers[0].attn = Masking()
    net(X)
    assert modules(agent) == ["layers.0.attn"] * 2


def test_a_module_that_moved_is_named_by_where_it_is_now(agent):
    """A path that is no longer true is not reported."""
    net = nn.Sequential(nn.Identity(), Masking())
    net(X)
    net[0], net[1] = net[1], nn.Identity()
    net(X)
    assert modules(agent) == ["1", "0"]


def test_a_module_that_is_no_part_of_the_outermost_is_named_by_its_class(agent):
    """Called from a forward, but registered nowhere below."""
    loose = Masking()

    class Outer(nn.Module):
        def forward(self, x):
            return loose(x)

    Outer()(X)
    assert modules(agent) == ["Masking"]


def test_forward_hooks_belong_to_their_module(agent):
    """They run inside its call."""

    def reads(_module, inputs, *_output):
        inputs[0].nonzero()

    net = nn.Sequential(nn.Identity())
    net[0].register_forward_pre_hook(reads)
    net[0].register_forward_hook(reads)
    net(X)
    assert modules(agent) == ["0", "0"]


def test_a_backward_sync_names_the_module_of_its_forward(agent):
    """The module whose forward made the autograd node."""

    class Kept(nn.Module):
        def forward(self, x):
            return x[x > 0]

    x = X.clone().requires_grad_()
    nn.Sequential(nn.Identity(), Kept())(x).sum().backward()
    assert modules(agent) == ["1", "1"]


def test_under_syncs_there_is_no_path(cpu_agent):
    """It costs a walk that ``detail="syncs"`` does not make."""
    agent = cpu_agent(detail="syncs")
    Masking()(X)
    assert modules(agent) == [None]


def test_modules_are_not_kept_alive(agent):
    """What is remembered of their names goes with them."""
    import gc
    import weakref

    net = Net()
    net(X)
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None
