"""torchdiffeq: a neural ODE with an adaptive solver and the adjoint method."""

from __future__ import annotations

import torch
from outcome import device, done, warm
from torch import nn
from torchdiffeq import odeint, odeint_adjoint


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, t, y):
        return self.layers(y**3)


torch.manual_seed(0)
times = torch.linspace(0.0, 2.0, 10).to(device())
spiral = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]]).to(device())
with torch.no_grad():
    true = odeint(lambda t, y: y**3 @ spiral, torch.tensor([[2.0, 0.0]]).to(device()), times, method="dopri5")
field = Field().to(device())
optimizer = torch.optim.RMSprop(field.parameters(), lr=1e-3)
losses = []
for step in range(4):
    optimizer.zero_grad()
    found = odeint_adjoint(field, true[0], times, rtol=1e-4, atol=1e-4) if step % 2 else odeint(field, true[0], times)
    loss = (found - true).abs().mean()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    if step == 1:
        warm()
done(model=field, losses=losses)
