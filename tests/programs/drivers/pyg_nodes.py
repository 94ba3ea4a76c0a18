"""PyTorch Geometric: a GCN and a GAT on a random graph of its own, with accuracy by masks."""

from __future__ import annotations

import torch
from outcome import device, done, warm
from torch.nn import functional as F
from torch_geometric.datasets import FakeDataset
from torch_geometric.nn import GAT, GCN
from torch_geometric.seed import seed_everything
from torch_geometric.transforms import RandomNodeSplit

seed_everything(0)
graph = FakeDataset(avg_num_nodes=200, avg_degree=6, num_channels=16, num_classes=3, task="node")[0]
graph = RandomNodeSplit(num_val=30, num_test=30)(graph).to(device())
values = {}
for kind in (GCN, GAT):
    model = kind(16, 32, 2, 3).to(device())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    losses = []
    for epoch in range(10):
        model.train()
        optimizer.zero_grad()
        out = model(graph.x, graph.edge_index)
        loss = F.cross_entropy(out[graph.train_mask], graph.y[graph.train_mask])
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
        model.eval()
        with torch.no_grad():
            best = model(graph.x, graph.edge_index).argmax(-1)
        right = int((best[graph.test_mask] == graph.y[graph.test_mask]).sum()) / int(graph.test_mask.sum())
        if epoch == 1:
            warm()
    values[kind.__name__] = [*losses, right]
done(model=model, **values)
