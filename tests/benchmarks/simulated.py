"""How much longer a training step takes on the simulated device than on the CPU, for programs of several kinds.

    python tests/benchmarks/simulated.py [--programs lstm,gru] [--rounds 15] [--threads 1] [--out FILE]

One process, steps on the CPU and on the simulated device alternating, each with a read of its loss.  A program that
uses autocast is compared with itself in float32 on the CPU, whose own 16-bit kernels are much slower than that.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from syncagent import simulate

if TYPE_CHECKING:
    from collections.abc import Callable


def trainer(model: Any, device: str, dtype: torch.dtype | None, loss_of: Callable[[Any], Any]) -> Callable[[], Any]:
    """Return a function that makes one step; ``dtype`` is autocast's."""
    model = model.to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)

    def step() -> Any:
        optimizer.zero_grad()
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            loss = loss_of(model)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    return step


class Recurrent(nn.Module):
    """A recurrent layer between an embedding and a linear layer."""

    def __init__(self, layer: type[nn.RNNBase], words: int = 1000) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(words, 64), layer(64, 128, 2, batch_first=True)
        self.out = nn.Linear(128, words)

    def forward(self, words: Any) -> Any:
        return self.out(self.layer(self.embedding(words))[0])


def language_model(layer: type[nn.RNNBase], device: str, dtype: torch.dtype | None) -> Callable[[], Any]:
    words = torch.randint(0, 1000, (16, 36)).to(device)

    def loss_of(model: Any) -> Any:
        return F.cross_entropy(model(words[:, :-1]).flatten(0, 1).float(), words[:, 1:].flatten())

    return trainer(Recurrent(layer), device, dtype, loss_of)


def cells(device: str, dtype: torch.dtype | None) -> Callable[[], Any]:
    source = torch.randn(30, 16, 32).to(device)

    def loss_of(cell: Any) -> Any:
        states = None
        for each in source:
            states = cell(each, states)
        return states[0].square().mean()

    return trainer(nn.LSTMCell(32, 64), device, dtype, loss_of)


def convolutions(device: str, dtype: torch.dtype | None) -> Callable[[], Any]:
    def block(a: int, b: int) -> list[nn.Module]:
        first = [nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        return [*first, nn.Conv2d(b, b, 3, 1, 1, groups=4, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

    layers = [*block(3, 32), *block(32, 64), *block(64, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    images, labels = torch.randn(32, 3, 64, 64).to(device), torch.randint(0, 10, (32,)).to(device)
    return trainer(nn.Sequential(*layers), device, dtype, lambda model: F.cross_entropy(model(images).float(), labels))


def transformer(device: str, dtype: torch.dtype | None) -> Callable[[], Any]:
    layers = [nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True) for _ in range(3)]
    model = nn.Sequential(*layers, nn.Linear(128, 100))
    source, labels = torch.randn(8, 64, 128).to(device), torch.randint(0, 100, (512,)).to(device)
    return trainer(model, device, dtype, lambda each: F.cross_entropy(each(source).flatten(0, 1).float(), labels))


def policy_gradient(device: str, dtype: torch.dtype | None) -> Callable[[], Any]:
    """The update of PPO, which consists of small ops."""
    layers = [nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4)]
    source, advantage = torch.randn(64, 8).to(device), torch.randn(64).to(device)
    actions = torch.randint(0, 4, (64,)).to(device)

    def loss_of(model: Any) -> Any:
        chosen = torch.distributions.Categorical(logits=model(source))
        likely = chosen.log_prob(actions)
        ratio = (likely - likely.detach()).exp()
        gain = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
        return -gain - 0.01 * chosen.entropy().mean()

    return trainer(nn.Sequential(*layers), device, dtype, loss_of)


def value_learning(device: str, dtype: torch.dtype | None) -> Callable[[], Any]:
    """DQN: four steps of the environment, each of which reads an action, and an update."""
    layers = [nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 4)]

    def loss_of(model: Any) -> Any:
        for _ in range(4):
            with torch.no_grad():
                model(torch.randn(1, 8).to(device)).argmax(1).item()
        source, reward = torch.randn(128, 8).to(device), torch.randn(128).to(device)
        actions = torch.randint(0, 4, (128, 1)).to(device)
        with torch.no_grad():
            target = reward + 0.99 * model(source).max(1).values
        return F.smooth_l1_loss(model(source).gather(1, actions).squeeze(1), target)

    return trainer(nn.Sequential(*layers), device, dtype, loss_of)


PROGRAMS: dict[str, tuple[Callable[[str, torch.dtype | None], Callable[[], Any]], torch.dtype | None]] = {
    "lstm": (lambda *how: language_model(nn.LSTM, *how), None),
    "lstm_fp16": (lambda *how: language_model(nn.LSTM, *how), torch.float16),
    "gru": (lambda *how: language_model(nn.GRU, *how), None),
    "lstm_cells": (cells, None),
    "convolutions": (convolutions, None),
    "convolutions_fp16": (convolutions, torch.float16),
    "convolutions_bf16": (convolutions, torch.bfloat16),
    "transformer": (transformer, None),
    "transformer_fp16": (transformer, torch.float16),
    "transformer_bf16": (transformer, torch.bfloat16),
    "policy_gradient": (policy_gradient, None),
    "value_learning": (value_learning, None),
}


def measure(name: str, rounds: int) -> tuple[float, float]:
    """Milliseconds of a step on the CPU and on the simulated device: the medians."""
    program, dtype = PROGRAMS[name]
    steps = {}
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        steps[device] = program(device, dtype if device == "cuda" else None)
    taken: dict[str, list[float]] = {device: [] for device in steps}
    for turn in range(rounds + 3):
        for device, step in steps.items():
            start = time.perf_counter()
            step().item()
            if turn >= 3:
                taken[device].append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken["cpu"]), statistics.median(taken["cuda"])


def main() -> None:
    """Print a row for each program, and write all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", default=",".join(PROGRAMS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    simulate.install()
    torch.set_num_threads(options.threads)
    print("| program | CPU, fp32, ms | simulated device, ms | times |\n|---|---|---|---|")
    rows = {}
    for name in options.programs.split(","):
        on_cpu, on_device = measure(name, options.rounds)
        rows[name] = {"cpu_ms": round(on_cpu, 2), "simulated_ms": round(on_device, 2)}
        print(f"| {name} | {on_cpu:.1f} | {on_device:.1f} | {on_device / on_cpu:.2f} |", flush=True)
    if options.out:
        result = {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "threads": options.threads,
            "rounds": options.rounds,
            "programs": rows,
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
