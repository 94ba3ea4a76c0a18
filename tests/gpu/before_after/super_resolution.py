"""Super-resolution whose PSNR is computed image by image on the host, in every step.

Named by the report, and done:

- ``total += psnr(image.clamp(0, 1).cpu(), truth.cpu())``, two copies an image: collect and copy once ("probably").
  The PSNR of a batch is computed on the GPU, and its sum is read when it is printed.
"""

from __future__ import annotations

import math

import torch
from stepclock import Clock, Run, main
from torch import nn
from torch.nn import functional as F

NAMED = ("total += psnr(image.clamp(0, 1).cpu(), truth.cpu())",)
TOLERANCE = 0.0
"""The metric has changed and the training has not."""
LOG_EVERY = 20


class Upscaler(nn.Module):
    """EDSR in small: residual blocks without norms, and a pixel shuffle."""

    def __init__(self, width: int, layers: int, scale: int = 2) -> None:
        super().__init__()
        self.into = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(layers)
        )
        self.out = nn.Sequential(nn.Conv2d(width, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x):
        x = self.into(x)
        for block in self.blocks:
            x = x + 0.1 * block(x)
        return self.out(x)


def psnr(restored, wanted) -> float:
    error = ((restored - wanted) ** 2).mean()
    return 10.0 * math.log10(1.0 / error)


def psnr_sum(restored, wanted):
    """The sum over a batch, as a tensor on its device."""
    errors = (restored - wanted).square().flatten(1).mean(1)
    return (-10.0 * errors.log10()).sum()


def train(run: Run) -> tuple[float, float]:
    torch.manual_seed(0)
    batch, size = run.sized(16, 2), run.sized(96, 8)
    net = Upscaler(run.sized(64, 4), run.sized(8, 1)).to(run.device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    photos = torch.rand(4, batch, 3, size, size).to(run.device)
    clock, total, count = Clock(run), 0.0, 0
    for step in range(run.steps):
        wanted = photos[step % 4]
        restored = net(F.avg_pool2d(wanted, 2))
        loss = F.l1_loss(restored, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            if run.before:
                for image, truth in zip(restored, wanted, strict=True):
                    total += psnr(image.clamp(0, 1).cpu(), truth.cpu())
            else:
                total += psnr_sum(restored.clamp(0, 1), wanted)
        count += batch
        if step % LOG_EVERY == 0:
            print(f"step {step}: loss {loss.item():.4f}, PSNR {float(total) / count:.2f} dB")
        clock.tick()
    return clock.step_ms, sum(p.double().abs().sum() for p in net.parameters()).item()


if __name__ == "__main__":
    main(train)
