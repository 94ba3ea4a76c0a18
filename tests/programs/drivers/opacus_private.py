"""Opacus: training with differential privacy, gradients of each sample, and what was spent."""

from __future__ import annotations

import torch
from opacus import PrivacyEngine
from outcome import device, done, warm
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 4)).to(
    device()
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
data = DataLoader(TensorDataset(torch.rand(128, 1, 16, 16), torch.randint(0, 4, (128,))), batch_size=16)
engine = PrivacyEngine(accountant="rdp")
model, optimizer, data = engine.make_private(
    module=model, optimizer=optimizer, data_loader=data, noise_multiplier=1.0, max_grad_norm=1.0
)
losses = []
for _ in range(3):
    for x, y in data:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x.to(device())), y.to(device()))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    warm()
done(model=model, losses=losses, epsilon=float(engine.get_epsilon(1e-5)))
