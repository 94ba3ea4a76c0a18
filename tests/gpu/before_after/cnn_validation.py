"""An image classifier with a validation pass, and meters of loss and accuracy that are read after every batch.

Named by the report, and done:

- ``losses.update(loss.item(), len(images))``, ``right.update(accuracy(scores, labels).item(), len(images))`` and,
  in validation, ``right.update(accuracy(net(images), labels).item(), len(images))``: keep the value on the GPU. The
  meters sum tensors, and are read once an epoch.
- ``images, labels = images.to(run.device), labels.to(run.device)``, in training and in validation: pinned memory.
  The loader pins, and the copies are ``non_blocking``.
"""

from __future__ import annotations

import torch
from stepclock import Clock, Run, main
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

NAMED = (
    "losses.update(loss.item(), len(images))",
    "right.update(accuracy(scores, labels).item(), len(images))",
    "right.update(accuracy(net(images), labels).item(), len(images))",
    "images, labels = images.to(run.device), labels.to(run.device)",
)
TOLERANCE = 0.0
"""The same kernels in the same order train the model."""


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x):
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class Meter:
    """A running mean, kept as a number or, where tensors are given, on their device."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, value, count: int = 1) -> None:
        self.total, self.count = self.total + value * count, self.count + count

    @property
    def mean(self) -> float:
        return float(self.total) / max(self.count, 1)


def accuracy(scores, labels):
    return (scores.argmax(1) == labels).float().mean()


def batches(run: Run, count: int):
    pixels = torch.rand(count, 3, run.sized(64, 8), run.sized(64, 8))
    data = TensorDataset(pixels, torch.randint(0, 10, (count,)))
    pin = not run.before and run.device == "cuda"
    return DataLoader(data, batch_size=run.sized(64, 4), pin_memory=pin)


def train(run: Run) -> tuple[float, float]:
    torch.manual_seed(0)
    width = run.sized(64, 8)
    blocks = [Block(width) for _ in range(run.sized(12, 2))]
    net = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(width, 10)).to(run.device)  # fmt: skip
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    train_loader, val_loader = batches(run, run.sized(1280, 16)), batches(run, run.sized(256, 8))
    clock, step = Clock(run), 0
    while step < run.steps:
        losses, right = Meter(), Meter()
        for images, labels in train_loader:
            if run.before:
                images, labels = images.to(run.device), labels.to(run.device)
            else:
                images = images.to(run.device, non_blocking=True)
                labels = labels.to(run.device, non_blocking=True)
            scores = net(images)
            loss = F.cross_entropy(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if run.before:
                losses.update(loss.item(), len(images))
                right.update(accuracy(scores, labels).item(), len(images))
            else:
                losses.update(loss.detach(), len(images))
                right.update(accuracy(scores, labels), len(images))
            step += 1
            clock.tick()
            if step == run.steps:
                break
        validate(run, net, val_loader)
        print(f"step {step}: loss {losses.mean:.4f}, accuracy {right.mean:.3f}")
    return clock.step_ms, sum(p.double().abs().sum() for p in net.parameters()).item()


@torch.no_grad()
def validate(run: Run, net, loader) -> float:
    net.eval()
    right = Meter()
    for images, labels in loader:
        if run.before:
            images, labels = images.to(run.device), labels.to(run.device)
            right.update(accuracy(net(images), labels).item(), len(images))
        else:
            images, labels = images.to(run.device, non_blocking=True), labels.to(run.device, non_blocking=True)
            right.update(accuracy(net(images), labels), len(images))
    net.train()
    return right.mean


if __name__ == "__main__":
    main(train)
