"""Training leaves the same bits where every step is watched whole (``detail="auto"``) as where none is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import syncagent
from syncagent.sensors.sampling import FIRST

STEPS = 6


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 8, num_layers=2, dropout=0.2, batch_first=True)
        self.last = nn.Linear(8, 1)

    def forward(self, value):
        return self.last(self.lstm(value.view(4, 2, 6))[0][:, -1])


class Products(nn.Module):
    """Their backward formulas look whether a mode is on, and round differently then."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, 9)

    def forward(self, value):
        hidden = torch.tanh(self.first(value)) + 1.5
        some = hidden * (torch.arange(9) != 3)
        return hidden.prod(1).sum() + hidden.cumprod(0).sum() + hidden[:, :4].prod() + some.prod(1).sum()


class Assigning(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, 12)

    def forward(self, value):
        hidden = self.first(value)
        kept = hidden.clone()
        kept[hidden > 0.1] = 0.5
        kept[:, [0, 2]] = hidden[:, [1, 3]]
        return kept[kept < 0.4].sum() + hidden[torch.arange(4), torch.arange(4)].sum()


ZOO = {
    "mlp with dropout": lambda: nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1)),
    "convolution and batch norm": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(24, 1)
    ),
    "transformer": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 4)), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Flatten(), nn.Linear(12, 1)
    ),
    "lstm": Recurrent,
    "prod and cumprod": Products,
    "masks and index_put": Assigning,
}  # fmt: skip


def train(name, steps):
    """The bytes of all losses, gradients and weights, and the state of the generator behind them."""
    torch.manual_seed(7)
    model = ZOO[name]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    found = []
    for _ in range(steps):
        loss = model(torch.randn(4, 12)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
        found += [parameter.grad.clone() for parameter in model.parameters()]
    found += model.state_dict().values()
    return [value.numpy().tobytes() for value in found], torch.get_rng_state()


@pytest.mark.parametrize("name", ZOO)
def test_steps_that_are_watched_whole_leave_the_bits_that_others_leave(cpu_agent, name):
    bare, state = train(name, STEPS)
    agent = cpu_agent()
    watched, state_after = train(name, STEPS)
    report = agent.report()
    assert watched == bare
    assert torch.equal(state, state_after)
    assert report.ops, "the modes were at work"
    assert agent.faults.sentences == []


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_evaluation_takes_the_same_path(cpu_agent):
    """Attention has a fast one, and does not take it under a function mode unless it is told that there is none."""
    torch.manual_seed(3)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    value = torch.randn(2, 5, 8)
    asked = torch.overrides.has_torch_function
    with torch.no_grad():
        bare = layer(value)
        agent = cpu_agent()
        assert torch.overrides.has_torch_function is not asked
        assert torch.equal(layer(value), bare)
        assert torch.equal(torch.jit.script(layer)(value), bare)
    assert any(op.op == "aten::_transformer_encoder_layer_fwd" for op in agent.report().ops)
    agent.stop()
    assert torch.overrides.has_torch_function is asked


def test_so_do_steps_of_which_some_are_sampled(cpu_agent):
    name, count = "prod and cumprod", FIRST + 40
    bare, _ = train(name, count)
    agent = cpu_agent(overhead=1)
    assert train(name, count)[0] == bare
    assert agent.sensors.sampled().numbers.total()
    assert syncagent.current() is agent
