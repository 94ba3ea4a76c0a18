"""A training loop that does not wait for the GPU, but for one log line in ten steps.

The model is ``model.py`` or, with ``--model model_regressed``, the same with a change that a reviewer may well miss.
"""

from __future__ import annotations

import argparse
import importlib

import torch

import syncagent

BATCH, FEATURES, CLASSES = 32, 64, 10


def train(net: torch.nn.Module, steps: int, device: str) -> None:
    net.to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    data = torch.randn(steps, BATCH, FEATURES).to(device)
    labels = torch.randint(CLASSES, (steps, BATCH)).to(device)
    for step in range(steps):
        optimizer.zero_grad()
        loss = net.loss(data[step], labels[step])
        loss.backward()
        optimizer.step()
        if step % 10 == 9:
            with syncagent.allow("a log line every ten steps"):
                print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="model", help="the module that the model comes from")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    train(importlib.import_module(arguments.model).Classifier(64, CLASSES), arguments.steps, arguments.device)


if __name__ == "__main__":
    main()
