"""A training loop whose logging makes the CPU wait for the GPU at every layer and step, and its fixed form.

As people write it: the norm of each layer's output, the loss and the accuracy are read with ``item()`` in every step.
``--fixed`` logs the same numbers: they stay on the GPU, go to pinned memory with ``non_blocking=True`` and are read
one step later, when the GPU has a whole step left to do.  Nothing in this file knows of syncagent.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import nn
from torch.nn import functional

VOCABULARY = 512


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Conv1d(width, width, 3, padding=1, groups=max(width // 64, 1))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = self.mix(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.down(functional.gelu(self.up(mixed)))


class Reader(nn.Module):
    """Predicts the next token; ``layer_done`` is given each layer's output."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: torch.Tensor, layer_done) -> torch.Tensor:
        x = self.embed(tokens)
        for number, layer in enumerate(self.layers):
            x = layer(x)
            layer_done(number, x)
        return self.head(x)


class ReadAtOnce:
    """Logs as most loops do."""

    def __init__(self, layers: int, device: str) -> None:  # noqa: ARG002 - as ReadLater's
        self.norms = [0.0] * layers
        self.lines: list[tuple[float, ...]] = []

    def layer(self, number: int, output: torch.Tensor) -> None:
        self.norms[number] = output.detach().norm().item()

    def step(self, loss: torch.Tensor, correct: torch.Tensor) -> None:
        accuracy = correct.float().mean().item()
        self.lines.append((*self.norms, loss.item(), accuracy))

    def close(self) -> None:
        pass


class ReadLater:
    """Logs the same numbers one step later."""

    def __init__(self, layers: int, device: str) -> None:
        self.device = device
        self.values = torch.zeros(layers + 2, device=device)
        self.hosts = [torch.zeros(layers + 2, pin_memory=device == "cuda") for _ in range(2)]
        self.written = [torch.cuda.Event() if device == "cuda" else None for _ in range(2)]
        self.steps = 0
        self.lines: list[tuple[float, ...]] = []

    def layer(self, number: int, output: torch.Tensor) -> None:
        self.values[number].copy_(output.detach().norm())

    def step(self, loss: torch.Tensor, correct: torch.Tensor) -> None:
        self.values[-2].copy_(loss.detach())
        self.values[-1].copy_(correct.float().mean())
        self.hosts[self.steps % 2].copy_(self.values, non_blocking=True)
        if self.device == "cuda":
            self.written[self.steps % 2].record()
        if self.steps:
            self.read((self.steps - 1) % 2)
        self.steps += 1

    def read(self, which: int) -> None:
        if self.device == "cuda":
            self.written[which].synchronize()  # if the host waits here, the GPU has all of the next step to do
        self.lines.append(tuple(self.hosts[which].tolist()))

    def close(self) -> None:
        self.read((self.steps - 1) % 2)


def trainer(layers: int, width: int, batch: int, length: int, device: str):
    """One training step as a function of the logger."""
    torch.manual_seed(0)
    model = Reader(layers, width).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    tokens = torch.randint(0, VOCABULARY, (batch, length + 1)).to(device)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step(logger) -> None:
        optimizer.zero_grad()
        logits = model(inputs, logger.layer)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        logger.step(loss, logits.detach().argmax(-1) == targets)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fixed", action="store_true", help="log one step later")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    logger = (ReadLater if arguments.fixed else ReadAtOnce)(arguments.layers, arguments.device)
    step = trainer(arguments.layers, arguments.width, arguments.batch, arguments.length, arguments.device)
    began = time.perf_counter()
    for _ in range(arguments.steps):
        step(logger)
    logger.close()
    *_, loss, accuracy = logger.lines[-1]
    print(f"{'fixed' if arguments.fixed else 'as written'}: {len(logger.lines)} lines, last loss {loss:.6f}, "
          f"accuracy {accuracy:.4f}, {time.perf_counter() - began:.2f} s")  # fmt: skip


if __name__ == "__main__":
    main()
