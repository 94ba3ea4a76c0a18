"""A detector with anchors: its loss picks the positive anchors of each image by masks and nonzero.

Named by the report, and done:

- ``rows = torch.nonzero(positive).squeeze(1)``: keep the shape. ``scatter_`` writes a one or, where an anchor does
  not count, a zero.
- ``wanted[rows, labels[image][rows]] = 1.0``: gone with it; the advice (an index on the GPU) does not fit, the
  number is what is copied.
- ``if positive.any():`` and ``boxes[image][positive], targets[image][positive]``: a mask. The loss of all anchors
  is computed, and ``torch.where`` keeps what counts.
- ``positives += positive.sum().item()``: stays on the GPU, which divides by it.
- ``loss.backward()`` waited for the masks of the forward pass, which are gone.
"""

from __future__ import annotations

import torch
from stepclock import Clock, Run, main
from torch import nn
from torch.nn import functional as F

NAMED = (
    "rows = torch.nonzero(positive).squeeze(1)",
    "wanted[rows, labels[image][rows]] = 1.0",
    "if positive.any():",
    "boxes[image][positive], targets[image][positive]",
    "positives += positive.sum().item()",
    "loss.backward()",
)
TOLERANCE = 1e-4
"""Sums over all anchors, of which most are zero, round in another order than sums over some."""
CLASSES, LOG_EVERY = 8, 20


class Detector(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        stem: list[nn.Module] = [nn.Conv2d(3, width, 3, stride=4, padding=1), nn.ReLU()]
        for _ in range(layers):
            stem += [nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU()]
        self.stem = nn.Sequential(*stem, nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU())
        self.scores, self.boxes = nn.Conv2d(width, CLASSES, 3, padding=1), nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, images):
        found = self.stem(images)
        return self.scores(found).flatten(2).transpose(1, 2), self.boxes(found).flatten(2).transpose(1, 2)


def loss_before(scores, boxes, labels, targets):
    """Image by image, over the anchors that count."""
    total_class = scores.new_zeros(())
    total_box = scores.new_zeros(())
    positives = 0
    for image in range(len(scores)):
        positive = labels[image] >= 0
        wanted = torch.zeros_like(scores[image])
        rows = torch.nonzero(positive).squeeze(1)
        wanted[rows, labels[image][rows]] = 1.0
        total_class = total_class + F.binary_cross_entropy_with_logits(scores[image], wanted, reduction="sum")
        if positive.any():
            total_box = total_box + F.smooth_l1_loss(boxes[image][positive], targets[image][positive], reduction="sum")
        positives += positive.sum().item()
    count = max(positives, 1)
    return total_class / count, total_box / count


def loss_after(scores, boxes, labels, targets):
    """All images at once, every anchor, those that do not count times zero."""
    positive = labels >= 0
    wanted = torch.zeros_like(scores).scatter_(2, labels.clamp(min=0)[..., None], positive[..., None].to(scores.dtype))
    count = positive.sum().clamp(min=1)
    box = F.smooth_l1_loss(boxes, targets, reduction="none").sum(2)
    total_class = F.binary_cross_entropy_with_logits(scores, wanted, reduction="sum")
    return total_class / count, torch.where(positive, box, 0.0).sum() / count


def train(run: Run) -> tuple[float, float]:
    torch.manual_seed(0)
    batch, size = run.sized(8, 2), run.sized(256, 32)
    net = Detector(run.sized(64, 8), run.sized(10, 1)).to(run.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    anchors = (size // 8) ** 2
    images = torch.rand(4, batch, 3, size, size).to(run.device)
    labels = torch.randint(-20, CLASSES, (4, batch, anchors)).clamp(min=-1).to(run.device)
    targets = torch.rand(4, batch, anchors, 4).to(run.device)
    clock, compute_loss = Clock(run), loss_before if run.before else loss_after
    for step in range(run.steps):
        which = step % 4
        scores, boxes = net(images[which])
        loss_class, loss_box = compute_loss(scores, boxes, labels[which], targets[which])
        loss = loss_class + loss_box
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % LOG_EVERY == 0:
            print(f"step {step}: class {loss_class.item():.4f}, box {loss_box.item():.4f}")
        clock.tick()
    return clock.step_ms, loss.item()


if __name__ == "__main__":
    main(train)
