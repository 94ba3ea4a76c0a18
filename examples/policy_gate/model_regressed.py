"""The classifier of model.py after a change: what the loss weighs was to follow its own mean."""

from __future__ import annotations

import torch
from model import Classifier as Before
from torch import nn


class Classifier(Before):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.mean = 1.0

    def loss(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self(inputs), labels)
        self.mean = 0.9 * self.mean + 0.1 * loss.item()
        return loss / self.mean
