"""A segmentation net on large images, whose confusion matrix is counted by ``bincount`` in every step.

Named by the report, and done:

- ``pairs = CLASSES * target[valid] + guess[valid]``: keep the shape. What is ignored goes to a last cell by
  ``torch.where``.
- ``return torch.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, CLASSES)``: count into a tensor of fixed
  size. ``scatter_add_`` does.

No gain is expected: the wait comes last in a step that keeps the GPU busy ten times as long as Python.
"""

from __future__ import annotations

import torch
from stepclock import Clock, Run, main
from torch import nn
from torch.nn import functional as F

NAMED = (
    "pairs = CLASSES * target[valid] + guess[valid]",
    "return torch.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, CLASSES)",
)
TOLERANCE = 0.0
"""The metric has changed and the training has not."""
CLASSES, IGNORED, LOG_EVERY = 12, 255, 20


class UNet(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down1, self.down2 = self.pair(3, width), self.pair(width, 2 * width)
        self.low = self.pair(2 * width, 4 * width)
        self.up2, self.up1 = self.pair(6 * width, 2 * width), self.pair(3 * width, width)
        self.head = nn.Conv2d(width, CLASSES, 1)

    @staticmethod
    def pair(narrow: int, wide: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(narrow, wide, 3, padding=1), nn.ReLU(), nn.Conv2d(wide, wide, 3, padding=1),
                             nn.ReLU())  # fmt: skip

    def forward(self, x):
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = F.interpolate(self.low(F.max_pool2d(two, 2)), scale_factor=2.0)
        x = F.interpolate(self.up2(torch.cat((x, two), 1)), scale_factor=2.0)
        return self.head(self.up1(torch.cat((x, one), 1)))


def confusion_before(guess, target):
    valid = target != IGNORED
    pairs = CLASSES * target[valid] + guess[valid]
    return torch.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def confusion_after(guess, target):
    """What is ignored is counted in a last cell, which is cut off."""
    pairs = torch.where(target != IGNORED, CLASSES * target + guess, CLASSES**2).flatten()
    counted = torch.zeros(CLASSES**2 + 1, dtype=torch.long, device=pairs.device)
    return counted.scatter_add_(0, pairs, torch.ones_like(pairs))[:-1].reshape(CLASSES, CLASSES)


def mean_iou(matrix):
    right = matrix.diagonal().float()
    return (right / (matrix.sum(0) + matrix.sum(1) - right).clamp(min=1)).mean()


def train(run: Run) -> tuple[float, float]:
    torch.manual_seed(0)
    batch, size = run.sized(8, 1), run.sized(256, 16)
    net = UNet(run.sized(64, 4)).to(run.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    images = torch.rand(2, batch, 3, size, size).to(run.device)
    targets = torch.randint(0, CLASSES, (2, batch, size, size))
    targets[torch.rand(targets.shape) < 0.1] = IGNORED
    targets = targets.to(run.device)
    confusion = confusion_before if run.before else confusion_after
    matrix = torch.zeros(CLASSES, CLASSES, dtype=torch.long, device=run.device)
    clock = Clock(run)
    for step in range(run.steps):
        scores = net(images[step % 2])
        loss = F.cross_entropy(scores, targets[step % 2], ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        matrix += confusion(scores.argmax(1), targets[step % 2])
        if step % LOG_EVERY == 0:
            print(f"step {step}: loss {loss.item():.4f}, mean IoU {mean_iou(matrix).item():.4f}")
        clock.tick()
    return clock.step_ms, mean_iou(matrix).item() + loss.item()


if __name__ == "__main__":
    main(train)
