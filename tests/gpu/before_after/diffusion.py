"""A diffusion model whose noise schedule is looked up by timestep, after the well-known ``a.gather(-1, t.cpu())``.

Named by the report, and done:

- ``out = a.gather(-1, t.cpu())``: copy into pinned memory, or collect ("probably"). Better, and done: the schedule
  is on the GPU, and is indexed there.
- ``return out.reshape(len(t), *(1,) * (len(shape) - 1)).to(t.device)``: pinned memory. Gone with it.
- ``running += loss.item()``: keep the value on the GPU, read every N steps. Done.
"""

from __future__ import annotations

import copy
import math

import torch
from stepclock import Clock, Run, main
from torch import nn
from torch.nn import functional as F

NAMED = (
    "out = a.gather(-1, t.cpu())",
    "return out.reshape(len(t), *(1,) * (len(shape) - 1)).to(t.device)",
    "running += loss.item()",
)
TOLERANCE = 0.0
"""The same numbers of the schedule, looked up elsewhere."""
TIMES, LOG_EVERY = 1000, 20


class ResBlock(nn.Module):
    def __init__(self, width: int, place: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.norm1, self.norm2 = nn.GroupNorm(4, width), nn.GroupNorm(4, width)
        self.place = nn.Linear(place, width)

    def forward(self, x, time):
        h = self.conv1(F.silu(self.norm1(x))) + self.place(time)[:, :, None, None]
        return x + self.conv2(F.silu(self.norm2(h)))


class Denoiser(nn.Module):
    def __init__(self, width: int, layers: int, place: int = 32) -> None:
        super().__init__()
        self.into, self.out = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.blocks = nn.ModuleList(ResBlock(width, place) for _ in range(layers))
        self.register_buffer("rates", torch.exp(torch.arange(place // 2) * (-math.log(10000.0) / (place // 2))))

    def forward(self, x, t):
        angles = t[:, None] * self.rates
        time = torch.cat((angles.sin(), angles.cos()), 1)
        x = self.into(x)
        for block in self.blocks:
            x = block(x, time)
        return self.out(x)


def extract(a, t, shape):
    out = a.gather(-1, t.cpu())
    return out.reshape(len(t), *(1,) * (len(shape) - 1)).to(t.device)


def extract_after(a, t, shape):
    return a.gather(-1, t).reshape(len(t), *(1,) * (len(shape) - 1))


def train(run: Run) -> tuple[float, float]:
    torch.manual_seed(0)
    batch, size = run.sized(16, 2), run.sized(32, 8)
    net = Denoiser(run.sized(64, 8), run.sized(10, 1)).to(run.device)
    ema = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-4)
    kept = torch.linspace(1.0 - 1e-4, 1.0 - 0.02, TIMES).cumprod(0)
    signal, noise_share = kept.sqrt(), (1.0 - kept).sqrt()
    if not run.before:
        signal, noise_share = signal.to(run.device), noise_share.to(run.device)
    look_up = extract if run.before else extract_after
    images = torch.rand(4, batch, 3, size, size).to(run.device) * 2 - 1
    clock, running = Clock(run), 0.0
    for step in range(run.steps):
        x = images[step % 4]
        t = torch.randint(0, TIMES, (batch,), device=run.device)
        noise = torch.randn_like(x)
        noisy = look_up(signal, t, x.shape) * x + look_up(noise_share, t, x.shape) * noise
        loss = F.mse_loss(net(noisy, t), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 0.01)
        if run.before:
            running += loss.item()
        else:
            running += loss.detach()
        if step % LOG_EVERY == 0:
            print(f"step {step}: loss {float(running) / (step + 1):.4f}")
        clock.tick()
    return clock.step_ms, sum(p.double().abs().sum() for p in ema.parameters()).item()


if __name__ == "__main__":
    main(train)
