"""The article's step: a small convolutional net and a loss that masks, in its four variants."""

from __future__ import annotations

import torch
from torch import nn


class MaskedLoss(nn.Module):
    """0 as found; 1 where instead of nonzero; 2 sort and count instead of unique; 3 ignore_index instead of a mask."""

    def __init__(self, variant):
        super().__init__()
        self.variant = variant
        self.loss = nn.CrossEntropyLoss(ignore_index=-1) if variant == 3 else nn.CrossEntropyLoss()

    def forward(self, prediction, target):
        if self.variant == 0:
            target[torch.nonzero(target == 9, as_tuple=True)] = -1
        else:
            target = torch.where(target == 9, -1 * torch.ones_like(target), target)
        if self.variant < 2:
            too_few = torch.unique(target).numel() < 2
        else:
            flat, _ = torch.sort(target.reshape(-1))
            labels = torch.count_nonzero(flat[1:] != flat[:-1]) + 1
        if self.variant < 3:
            mask = target != -1
            pixels = prediction.permute(0, 2, 3, 1)
            chosen = pixels[mask.unsqueeze(-1).expand(-1, -1, -1, 10)].reshape(-1, 10)
            loss = self.loss(chosen, target[mask])
        else:
            loss = self.loss(prediction, target)
        if self.variant < 2:
            return 0.0 * loss if too_few else loss
        return torch.where(labels < 2, 0.0 * loss, loss)


def net(hidden=3):
    layers = [nn.Conv2d(3, 10, 3, padding="same")]
    for _ in range(hidden):
        layers += [nn.Conv2d(10, 10, 3, padding="same"), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(10, 10, 1))


def train(device, variant, steps=3, size=16):
    torch.manual_seed(0)
    model, criterion = net().to(device), MaskedLoss(variant)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for _ in range(steps):
        images = torch.rand(2, 3, size, size)
        labels = torch.randint(0, 10, (2, size, size))
        optimizer.zero_grad()
        loss = criterion(model(images.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [float(x) for x in losses], model
