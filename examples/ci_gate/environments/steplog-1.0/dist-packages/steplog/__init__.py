"""Logs the mean of a value every few steps: version 1.0."""

from __future__ import annotations

import torch


class Log:
    def __init__(self, every: int) -> None:
        self.every = every
        self.values: list[torch.Tensor] = []

    def add(self, name: str, value: torch.Tensor) -> None:
        self.values.append(value)
        if len(self.values) == self.every:
            mean = torch.stack(self.values).mean().item()
            print(f"{name} {mean:.3f}", flush=True)
            self.values.clear()
