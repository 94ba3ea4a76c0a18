"""Training loops whose waits are on known lines, for the question whether the agent gives them to these lines.

Each function prepares a program on the device and returns its step, which is the same work each time.
"""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PROGRAMS"]

_TOY = Path(__file__).resolve().parents[2] / "examples/masked_loss/train.py"


def transformer(device: str, small: bool) -> Callable[[], None]:
    width = 64 if small else 1024
    layers = nn.ModuleList(
        nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, dropout=0.0) for _ in range(2 if small else 8)
    ).to(device)
    optimizer = torch.optim.SGD(layers.parameters(), lr=1e-4)
    tokens = torch.rand(2 if small else 16, 8 if small else 256, width, device=device)

    def step() -> None:
        x, seen = tokens, 0.0
        for layer in layers:
            x = layer(x)
            seen += x.mean().item()
        loss = x.square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(layers.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        if loss > 1e9:
            raise ValueError(seen)

    return step


def toy(device: str, small: bool) -> Callable[[], None]:
    spec = importlib.util.spec_from_file_location("masked_loss_train", _TOY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net = module.Net().to(device)
    criterion = module.MaskedLoss(0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    shape = (2, 3, 16, 16) if small else (64, 3, 256, 256)
    images = torch.rand(shape, device=device)
    labels = torch.randint(-1, module.CLASSES, (shape[0], *shape[2:]), device=device)

    def step() -> None:
        optimizer.zero_grad()
        loss = criterion(net(images), labels)
        loss.backward()
        optimizer.step()

    return step


def boolean_backward(device: str, small: bool) -> Callable[[], None]:
    width = 64 if small else 4096
    first, second = (torch.rand(width, width, device=device, requires_grad=True) for _ in range(2))
    mask = torch.rand(width, width, device=device) > 0.5
    optimizer = torch.optim.SGD([first, second], lr=1e-9)

    def step() -> None:
        optimizer.zero_grad()
        hidden = first @ second
        chosen = hidden[mask]
        other = (hidden @ second)[mask]
        loss = chosen.sum() + other.square().sum()
        loss.backward()
        optimizer.step()

    return step


class Counted(nn.Module):
    """A net that reads a value in its forward pass, which breaks its graph."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(4):
            x = self.first(x).relu()
        scale = x.abs().max().item()
        for _ in range(4):
            x = self.second(x).relu()
        return x / (scale + 1.0)


def compiled(device: str, small: bool) -> Callable[[], None]:
    width = 64 if small else 4096
    net = Counted(width).to(device)
    run = torch.compile(net, backend="eager" if small else "inductor")
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6)
    rows = torch.rand(width, width, device=device)

    def step() -> None:
        optimizer.zero_grad()
        loss = run(rows).square().mean()
        loss.backward()
        optimizer.step()
        found = torch.nonzero(rows[0] > 0.5)
        loss.item()
        del found

    return step


def host_bound(device: str, small: bool) -> Callable[[], None]:
    net = nn.Sequential(*(layer for _ in range(40) for layer in (nn.Linear(64, 64), nn.ReLU()))).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    rows = torch.rand(8 if small else 32, 64, device=device)

    def step() -> None:
        optimizer.zero_grad()
        loss = net(rows).square().mean()
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def copies(device: str, small: bool) -> Callable[[], None]:
    width = 64 if small else 4096
    weight = torch.rand(width, width, device=device)
    batch = torch.rand(width, width)
    host = torch.empty(width, width)

    def step() -> None:
        rows = batch.to(device)
        result = rows @ weight @ weight
        host.copy_(result)
        again = batch.to(device, non_blocking=True)
        most = (again @ weight).amax()
        shown = f"{most.cpu()}"
        values = most.reshape(1).tolist()
        del shown, values

    return step


def helpers(device: str, small: bool) -> Callable[[], None]:
    """Waits in small functions that are called one after another, and on lines of one statement."""
    width = 64 if small else 3072
    weight = torch.rand(width, width, device=device)

    def work() -> torch.Tensor:
        return (weight @ weight @ weight).mean()

    def read(value: torch.Tensor) -> float:
        return value.item()

    def positive(value: torch.Tensor) -> bool:
        return bool(value > 0)

    def step() -> None:
        read(work())
        positive(work())
        pair = [
            read(work()),
            work().item(),
        ]
        best = max(work(), work())
        total = sum(float(work()) for _ in range(2))
        del pair, best, total

    return step


def threads(device: str, small: bool) -> Callable[[], None]:
    """Another thread reads values while the main thread trains."""
    width = 64 if small else 3072
    weight = torch.rand(width, width, device=device)

    def beside() -> None:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                (weight @ weight @ weight).sum().item()

    def step() -> None:
        other = threading.Thread(target=beside)
        other.start()
        for _ in range(3):
            (weight @ weight @ weight).mean().item()
        other.join()

    return step


def _extension(device: str, small: bool, *, hold_gil: bool) -> Callable[[], None]:
    from tests.gpu.extension import load

    extension = load(hold_gil=hold_gil)
    width = 64 if small else 4096
    weight = torch.rand(width, width, device=device)

    def step() -> None:
        x = weight @ weight
        extension.wait_device()
        x = x @ weight
        extension.wait_stream(None)
        x = x @ weight
        x.mean().item()

    return step


def with_gil(device: str, small: bool) -> Callable[[], None]:
    return _extension(device, small, hold_gil=True)


def without_gil(device: str, small: bool) -> Callable[[], None]:
    return _extension(device, small, hold_gil=False)


PROGRAMS: dict[str, Callable[[str, bool], Callable[[], None]]] = {
    "transformer, .item() a layer": transformer,
    "the article's toy": toy,
    "boolean index, backward": boolean_backward,
    "compiled": compiled,
    "MLP, host-bound": host_bound,
    "copies": copies,
    "helpers": helpers,
    "two threads": threads,
    "extension that holds the GIL": with_gil,
    "extension without the GIL": without_gil,
}
