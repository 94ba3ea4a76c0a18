"""PyTorch Geometric: GraphSAGE and GIN over batches of generated graphs, with pooling and its DataLoader."""

from __future__ import annotations

import torch
from outcome import device, done, warm
from torch.nn import functional as F
from torch_geometric.datasets import FakeDataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GIN, GraphSAGE, global_add_pool, global_max_pool
from torch_geometric.seed import seed_everything

seed_everything(0)
data = FakeDataset(num_graphs=48, avg_num_nodes=20, num_channels=16, num_classes=4)
values = {}
for kind, pool in ((GraphSAGE, global_max_pool), (GIN, global_add_pool)):
    model = kind(16, 32, 2, 4).to(device())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        for batch in DataLoader(data, batch_size=16, shuffle=True):
            moved = batch.to(device())
            out = pool(model(moved.x, moved.edge_index), moved.batch)
            loss = F.cross_entropy(out, moved.y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item() * moved.num_graphs)
        warm()
    values[kind.__name__] = losses
done(model=model, **values)
