"""A toy segmentation loss that makes the CPU wait for the GPU three times per step, and its three fixes.

Written after the toy of "PyTorch Model Performance Analysis and Optimization, part 3" (Chaim Rand): variant 0 waits at
``torch.nonzero``, ``torch.unique`` and the boolean masks; each further variant fixes one of them.  Nothing in this file
knows of syncagent.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import nn

CLASSES = 10
BACKGROUND = CLASSES - 1
IGNORED = -1
SIZE = 256


class Net(nn.Module):
    """A fully convolutional net: 3 → 10 channels, ten hidden 10 → 10 convolutions with ReLU, → 10 classes."""

    def __init__(self, hidden: int = 10, width: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding="same")]
        for _ in range(hidden):
            layers += [nn.Conv2d(width, width, 3, padding="same"), nn.ReLU()]
        layers.append(nn.Conv2d(width, CLASSES, 3, padding="same"))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


class MaskedLoss(nn.Module):
    """Cross entropy over labelled pixels; ``variant`` says how many of its three waits are fixed."""

    def __init__(self, variant: int) -> None:
        super().__init__()
        self.variant = variant
        self.cross_entropy = nn.CrossEntropyLoss(ignore_index=IGNORED)

    def ignore_background(self, target: torch.Tensor) -> torch.Tensor:
        if self.variant < 1:
            background = torch.nonzero(target == BACKGROUND, as_tuple=True)
            target = target.clone()
            target[background] = IGNORED
            return target
        return torch.where(target == BACKGROUND, IGNORED, target)

    def has_two_labels(self, target: torch.Tensor) -> bool | torch.Tensor:
        if self.variant < 2:
            return torch.unique(target).numel() >= 2
        in_order, _ = torch.sort(target.flatten())
        return torch.count_nonzero(torch.diff(in_order)) + 1 >= 2

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        with torch.profiler.record_function("ignore background"):
            target = self.ignore_background(target)
        with torch.profiler.record_function("count labels"):
            enough = self.has_two_labels(target)
        with torch.profiler.record_function("cross entropy"):
            if self.variant < 3:
                labelled = target != IGNORED
                loss = self.cross_entropy(prediction.permute(0, 2, 3, 1)[labelled], target[labelled])
            else:
                loss = self.cross_entropy(prediction, target)
        if self.variant < 2:
            return loss if enough else 0.0 * loss
        return torch.where(enough, loss, 0.0 * loss)


def train(variant: int, batch: int, steps: int, device: str, size: int = SIZE) -> tuple[list[float], nn.Module]:
    """Train and return the loss of each step and the net."""
    torch.manual_seed(0)
    net = Net().to(device)
    criterion = MaskedLoss(variant)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    images = torch.rand(batch, 3, size, size).to(device)
    labels = torch.randint(-1, CLASSES, (batch, size, size)).to(device)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = criterion(net(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [loss.item() for loss in losses], net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", type=int, choices=range(4), default=0, help="how many of the waits are fixed")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=SIZE, help="height and width of the images")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    began = time.perf_counter()
    losses, _ = train(arguments.variant, arguments.batch, arguments.steps, arguments.device, arguments.size)
    print(f"variant {arguments.variant}: loss {losses[-1]:.6f} after {len(losses)} steps, "
          f"{time.perf_counter() - began:.2f} s")  # fmt: skip


if __name__ == "__main__":
    main()
