"""A loop with Lightning Fabric: setup, backward, clipping, saving and loading."""

from __future__ import annotations

import torch
from lightning.fabric import Fabric
from outcome import done, warm
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
fabric = Fabric(devices=1)
fabric.launch()
model = nn.Sequential(nn.Embedding(100, 64), nn.Flatten(), nn.Linear(64 * 8, 100))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
model, optimizer = fabric.setup(model, optimizer)
rows = torch.randint(0, 100, (256, 9))
data = fabric.setup_dataloaders(DataLoader(TensorDataset(rows[:, :8], rows[:, 8]), batch_size=32, shuffle=True))
losses = []
for _ in range(4):
    for x, y in data:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
    losses.append(fabric.all_reduce(loss.detach()).item())
    warm()
state = {"model": model, "optimizer": optimizer, "epoch": 4}
fabric.save("state.ckpt", state)
fabric.load("state.ckpt", state)
done(model=model.module, losses=losses, epoch=state["epoch"])
