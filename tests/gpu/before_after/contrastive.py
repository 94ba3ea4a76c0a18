"""Contrastive learning with a triplet loss over the hardest negatives, which are searched by masks, row by row.

Named by the report, and done:

- ``same[anchor] = False``: build the index on the GPU. (The index is a number; what is copied is ``False``.) One
  mask for all anchors.
- ``if not same.any():``: decide on the GPU, by ``torch.where`` ("probably").
- ``hardest_positive = distances[anchor][same].max()`` and ``negatives = torch.where(labels != labels[anchor])[0]``:
  keep the shape. What does not count is put out of reach of ``amax`` and ``amin``.
- ``active = sum(loss.item() > 0 for loss in losses)``: read them together. The sum is taken on the GPU and read
  when it is printed.
- ``loss.backward()`` waited for the masks of the forward pass, which are gone.
"""

from __future__ import annotations

import torch
from stepclock import Clock, Run, main
from torch import nn
from torch.nn import functional as F

NAMED = (
    "same[anchor] = False",
    "if not same.any():",
    "hardest_positive = distances[anchor][same].max()",
    "negatives = torch.where(labels != labels[anchor])[0]",
    "active = sum(loss.item() > 0 for loss in losses)",
    "loss.backward()",
)
TOLERANCE = 1e-4
"""The same triplets, whose mean is taken in one sum."""
MARGIN, LOG_EVERY = 0.2, 20


def loss_before(embedded, labels):
    """For each anchor the farthest of its own class and the nearest of another one."""
    distances = torch.cdist(embedded, embedded)
    losses = []
    for anchor in range(len(labels)):
        same = labels == labels[anchor]
        same[anchor] = False
        if not same.any():
            continue
        hardest_positive = distances[anchor][same].max()
        negatives = torch.where(labels != labels[anchor])[0]
        if len(negatives) == 0:
            continue
        losses.append(F.relu(hardest_positive - distances[anchor][negatives].min() + MARGIN))
    active = sum(loss.item() > 0 for loss in losses)
    return torch.stack(losses).mean(), active


def loss_after(embedded, labels):
    """The same for all anchors at once: what does not count is put out of reach."""
    distances = torch.cdist(embedded, embedded)
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive, negative = same & ~itself, ~same
    hardest_positive = torch.where(positive, distances, -torch.inf).amax(1)
    hardest_negative = torch.where(negative, distances, torch.inf).amin(1)
    counts = positive.any(1) & negative.any(1)
    losses = torch.where(counts, F.relu(hardest_positive - hardest_negative + MARGIN), 0.0)
    return losses.sum() / counts.sum(), (losses > 0).sum()


def train(run: Run) -> tuple[float, float]:
    torch.manual_seed(0)
    batch, width = run.sized(32, 6), run.sized(64, 8)
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, stride=2, padding=1), nn.ReLU()]
    for _ in range(run.sized(8, 1)):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 64)).to(run.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    images = torch.rand(4, batch, 3, run.sized(64, 8), run.sized(64, 8)).to(run.device)
    labels = torch.randint(0, run.sized(8, 2), (4, batch)).to(run.device)
    compute_loss, clock = loss_before if run.before else loss_after, Clock(run)
    for step in range(run.steps):
        embedded = F.normalize(net(images[step % 4]), dim=1)
        loss, active = compute_loss(embedded, labels[step % 4])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % LOG_EVERY == 0:
            print(f"step {step}: loss {loss.item():.4f}, {int(active)} active")
        clock.tick()
    return clock.step_ms, loss.item()


if __name__ == "__main__":
    main(train)
