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


def word_model(device: str, dtype: torch.dtype | None) -> Callable[[], Any]:
    """A language model of words: two recurrent layers of 650, as in PyTorch's example."""
    words = torch.randint(0, 10_000, (20, 36)).to(device)
    layers = nn.ModuleDict({"in": nn.Embedding(10_000, 650), "lstm": nn.LSTM(650, 650, 2, batch_first=True)})
    layers["out"] = nn.Linear(650, 10_000)

    def loss_of(model: Any) -> Any:
        states, _ = model["lstm"](model["in"](words[:, :-1]))
        return F.cross_entropy(model["out"](states).flatten(0, 1).float(), words[:, 1:].flatten())

    return trainer(layers, device, dtype, loss_of)


class Block(nn.Module):
    """A block of a GPT."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.first, self.second = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Any) -> Any:
        parts = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.first(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.mlp(self.second(x))


def gpt(device: str, dtype: torch.dtype | None) -> Callable[[], Any]:
    """Six layers of 384, the size of nanoGPT's model of characters."""
    model = nn.Sequential(nn.Embedding(65, 384), *(Block(384, 6) for _ in range(6)), nn.Linear(384, 65))
    words = torch.randint(0, 65, (4, 257)).to(device)

    def loss_of(model: Any) -> Any:
        return F.cross_entropy(model(words[:, :-1]).flatten(0, 1).float(), words[:, 1:].flatten())

    return trainer(model, device, dtype, loss_of)


class Residual(nn.Module):
    """The block of a ResNet-18."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width))
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))
        self.beside = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Any) -> Any:
        return F.relu(self.second(F.relu(self.first(x))) + self.beside(x))


def resnet(device: str, dtype: torch.dtype | None) -> Callable[[], Any]:
    """A ResNet-18 on four images of 160 pixels."""
    sizes = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
    begin = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)]
    model = nn.Sequential(*begin, *(Residual(*size) for size in sizes), *end)
    images, labels = torch.randn(4, 3, 160, 160).to(device), torch.randint(0, 1000, (4,)).to(device)
    return trainer(model, device, dtype, lambda each: F.cross_entropy(each(images).float(), labels))


OF_REAL_SIZE = ("word_model", "gpt", "gpt_bf16", "resnet", "resnet_fp16")
"""The others are small, so that most of their ops are."""

PROGRAMS: dict[str, tuple[Callable[[str, torch.dtype | None], Callable[[], Any]], torch.dtype | None]] = {
    "word_model": (word_model, None),
    "gpt": (gpt, None),
    "gpt_bf16": (gpt, torch.bfloat16),
    "resnet": (resnet, None),
    "resnet_fp16": (resnet, torch.float16),
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
        times = {"cpu_ms": round(on_cpu, 2), "simulated_ms": round(on_device, 2)}
        rows[name] = {**times, "is_of_real_size": name in OF_REAL_SIZE}
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
