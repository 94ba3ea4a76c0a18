"""A graph network in plain torch: messages are summed by scatter, graphs pooled by an index whose maximum is looked
for.

Named by the report, and done:

- ``size = int(index.max()) + 1``, in each layer and for the pooling: a size that the host knows. It is the number
  of nodes and of graphs.
- ``owner = torch.repeat_interleave(batch["sizes"])``: ``output_size=``, which is the number of nodes.
"""

from __future__ import annotations

import torch
from stepclock import Clock, Run, main
from torch import nn
from torch.nn import functional as F

NAMED = (
    "size = int(index.max()) + 1",
    'owner = torch.repeat_interleave(batch["sizes"])',
)
TOLERANCE = 1e-4
"""The same sums; a GPU adds them in any order."""
LOG_EVERY = 20


def scatter_mean(values, index, size=None):
    """The mean of the rows with the same index."""
    if size is None:
        size = int(index.max()) + 1
    total = values.new_zeros(size, values.shape[1]).index_add_(0, index, values)
    count = values.new_zeros(size).index_add_(0, index, values.new_ones(len(index)))
    return total / count.clamp(min=1)[:, None]


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.message, self.update = nn.Linear(2 * width, width), nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, nodes, source, target, size):
        messages = F.relu(self.message(torch.cat((nodes[source], nodes[target]), 1)))
        gathered = scatter_mean(messages, target, size)
        return self.norm(nodes + F.relu(self.update(torch.cat((nodes, gathered), 1))))


class Graphs(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.into = nn.Linear(8, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.head = nn.Linear(width, 1)

    def forward(self, batch, nodes_known, graphs_known):
        source, target = batch["edges"]
        nodes = F.relu(self.into(batch["nodes"]))
        if graphs_known is None:
            owner = torch.repeat_interleave(batch["sizes"])
        else:
            owner = torch.repeat_interleave(batch["sizes"], output_size=nodes_known)
        for layer in self.layers:
            nodes = layer(nodes, source, target, nodes_known if graphs_known is not None else None)
        return self.head(scatter_mean(nodes, owner, graphs_known)).squeeze(1)


def make(run: Run, count: int):
    """A batch of graphs of different sizes; every node has at least one edge to it."""
    sizes = torch.randint(run.sized(16, 3), run.sized(48, 6), (count,))
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    spread = sizes.repeat_interleave(sizes)
    own = torch.arange(int(sizes.sum()))
    source = torch.cat([starts + (torch.rand(len(own)) * spread).long() for _ in range(4)])
    return {"nodes": torch.rand(len(own), 8), "edges": torch.stack((source, own.repeat(4))), "sizes": sizes,
            "wanted": torch.rand(count)}  # fmt: skip


def train(run: Run) -> tuple[float, float]:
    torch.manual_seed(0)
    graphs = run.sized(128, 4)
    net = Graphs(run.sized(128, 8), run.sized(6, 2)).to(run.device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    batches = [{name: part.to(run.device) for name, part in make(run, graphs).items()} for _ in range(4)]
    clock = Clock(run)
    for step in range(run.steps):
        batch = batches[step % 4]
        nodes = len(batch["nodes"])
        found = net(batch, nodes, None if run.before else graphs)
        loss = F.mse_loss(found, batch["wanted"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % LOG_EVERY == 0:
            print(f"step {step}: loss {loss.item():.5f}")
        clock.tick()
    return clock.step_ms, loss.item()


if __name__ == "__main__":
    main(train)
