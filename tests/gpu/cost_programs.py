"""Pairs of training steps that differ only in how they wait for the GPU: with the syncs, and without them.

Each is a function that builds a model and returns ``(with_syncs, without)``, two callables that make one training step
of the same model, plus a kernel-free ``drain`` where the fixed form still owes the host something at the end.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

Step = Callable[[], Any]


class Pair(NamedTuple):
    regime: str
    """What bounds the step without syncs: ``host``, ``balanced`` or ``gpu``; as intended, the result has what it is."""
    build: Callable[[str, bool], tuple[Step, Step]]
    """Takes the device and whether to be small (a try without a GPU)."""
    is_free: bool = False
    """Its syncs are expected to cost nothing."""


PAIRS: dict[str, Pair] = {}


def pair(name: str, regime: str, *, free: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(build: Callable[[str, bool], tuple[Step, Step]]) -> Callable[..., Any]:
        PAIRS[name] = Pair(regime, build, free)
        return build

    return register


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """A decoder without its tricks; ``after_layer`` is called with each layer's output."""

    def __init__(self, layers: int, width: int, vocabulary: int = 1000) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, max(width // 64, 1)) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: torch.Tensor, after_layer: Callable[[torch.Tensor], None] | None = None) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
            if after_layer is not None:
                after_layer(x)
        return self.head(x)


class Lab:
    """A transformer with its data and optimizer; ``step`` makes one training step of it."""

    def __init__(self, device: str, layers: int, width: int, batch: int, length: int, *, bf16: bool = False) -> None:
        torch.manual_seed(0)
        self.model = Transformer(layers, width).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4)
        self.tokens = torch.randint(0, 1000, (batch, length), device=device)
        self.targets = torch.randint(0, 1000, (batch * length,), device=device)
        self.device, self.bf16 = device, bf16
        self.seen: list[Any] = []

    def autocast(self) -> Any:
        return torch.autocast(self.device, dtype=torch.bfloat16) if self.bf16 else contextlib.nullcontext()

    def step(
        self,
        after_layer: Callable[[torch.Tensor], Any] | None = None,
        after_loss: Callable[[torch.Tensor], Any] | None = None,
        tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        self.optimizer.zero_grad()
        with self.autocast():
            logits = self.model(self.tokens if tokens is None else tokens, after_layer)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), self.targets)
        loss.backward()
        self.optimizer.step()
        if after_loss is not None:
            after_loss(loss)
        return loss


def keep(into: list[Any]) -> Callable[[torch.Tensor], None]:
    """The fixed logging: the number stays on the GPU."""

    def kept(value: torch.Tensor) -> None:
        into[:] = [value.detach()]

    return kept


def read(into: list[Any]) -> Callable[[torch.Tensor], None]:
    def read_it(value: torch.Tensor) -> None:
        into[:] = [value.detach().item()]

    return read_it


def per_step(lab: Lab) -> tuple[Step, Step]:
    return (lambda: lab.step(after_loss=read(lab.seen))), (lambda: lab.step(after_loss=keep(lab.seen)))


def per_layer(lab: Lab) -> tuple[Step, Step]:
    def norm_read(x: torch.Tensor) -> None:
        lab.seen[:] = [x.detach().norm().item()]

    def norm_kept(x: torch.Tensor) -> None:
        lab.seen[:] = [x.detach().norm()]

    return (lambda: lab.step(norm_read)), (lambda: lab.step(norm_kept))


def small_lab(device: str, small: bool) -> Lab:
    return Lab(device, 2 if small else 4, 32 if small else 256, 2 if small else 8, 8 if small else 128)


def middle_lab(device: str, small: bool, **more: Any) -> Lab:
    if small:
        return small_lab(device, small)
    return Lab(device, 6, 512, 16, 256, **more)


def large_lab(device: str, small: bool) -> Lab:
    return small_lab(device, small) if small else Lab(device, 12, 1024, 16, 512)


@pair("transformer_small_item_step", "host")
def _(device: str, small: bool) -> tuple[Step, Step]:
    return per_step(small_lab(device, small))


@pair("transformer_small_item_layer", "host")
def _(device: str, small: bool) -> tuple[Step, Step]:
    return per_layer(small_lab(device, small))


@pair("transformer_middle_item_step", "balanced")
def _(device: str, small: bool) -> tuple[Step, Step]:
    return per_step(middle_lab(device, small))


@pair("transformer_middle_item_layer", "balanced")
def _(device: str, small: bool) -> tuple[Step, Step]:
    return per_layer(middle_lab(device, small))


@pair("transformer_bf16_item_layer", "host")
def _(device: str, small: bool) -> tuple[Step, Step]:
    return per_layer(middle_lab(device, small, bf16=True))


@pair("transformer_large_item_step", "gpu")
def _(device: str, small: bool) -> tuple[Step, Step]:
    return per_step(large_lab(device, small))


@pair("transformer_large_item_layer", "gpu")
def _(device: str, small: bool) -> tuple[Step, Step]:
    return per_layer(large_lab(device, small))


@pair("transformer_large_late_item", "gpu")
def _(device: str, small: bool) -> tuple[Step, Step]:
    """The loss of two steps ago, long computed; but its copy stands in the queue behind the whole step."""
    lab = large_lab(device, small)
    losses: list[torch.Tensor] = []

    def late_read() -> None:
        losses.append(lab.step().detach())
        if len(losses) > 2:
            lab.seen[:] = [losses.pop(0).item()]

    def kept() -> None:
        losses.append(lab.step().detach())
        if len(losses) > 2:
            lab.seen[:] = [losses.pop(0)]

    return late_read, kept


@pair("log_eight_scalars", "balanced")
def _(device: str, small: bool) -> tuple[Step, Step]:
    lab = middle_lab(device, small)
    parameters = list(lab.model.parameters())[:7]

    def log(value: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], None]:
        def logged(loss: torch.Tensor) -> None:
            lab.seen[:] = [value(loss.detach()), *(value(p.grad.norm()) for p in parameters)]

        return logged

    return (lambda: lab.step(after_loss=log(lambda x: x.item()))), (lambda: lab.step(after_loss=log(lambda x: x)))


@pair("second_item", "balanced", free=True)
def _(device: str, small: bool) -> tuple[Step, Step]:
    """Both read the loss; one reads a second number right after, when the GPU has nothing left to do."""
    lab = middle_lab(device, small)
    count = torch.zeros((), device=device)

    def twice(loss: torch.Tensor) -> None:
        lab.seen[:] = [loss.detach().item(), count.item()]

    def once(loss: torch.Tensor) -> None:
        lab.seen[:] = [loss.detach().item(), count]

    return (lambda: lab.step(after_loss=twice)), (lambda: lab.step(after_loss=once))


@pair("isnan_check", "balanced")
def _(device: str, small: bool) -> tuple[Step, Step]:
    """``if loss.isnan()`` before the backward pass against a check that stays on the device."""
    lab = middle_lab(device, small)

    def step(check: Callable[[torch.Tensor], Any]) -> None:
        lab.optimizer.zero_grad()
        loss = F.cross_entropy(lab.model(lab.tokens).flatten(0, 1), lab.targets)
        check(loss.detach().isnan())
        loss.backward()
        lab.optimizer.step()

    def stop_if(bad: torch.Tensor) -> None:
        if bad:
            raise RuntimeError

    return (lambda: step(stop_if)), (lambda: step(keep(lab.seen)))


class ConvNet(nn.Module):
    """Residual blocks over a stem, 3 → 10 classes."""

    def __init__(self, width: int = 64, blocks: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
            )
            for _ in range(blocks)
        )  # fmt: skip
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.head(x.mean((2, 3)))


class ConvLab:
    def __init__(self, device: str, small: bool, batch: int = 128, size: int = 32, width: int = 64) -> None:
        torch.manual_seed(0)
        batch, size, width = (2, 8, 8) if small else (batch, size, width)
        self.net = ConvNet(width, 2 if small else 6).to(device)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3, momentum=0.9)
        self.host_images = [torch.rand(batch, 3, size, size) for _ in range(2)]
        self.images = self.host_images[0].to(device)
        self.labels = torch.randint(0, 10, (batch,), device=device)
        self.device = device
        self.seen: list[Any] = []

    def step(self, images: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        self.optimizer.zero_grad()
        logits = self.net(self.images if images is None else images)
        loss = F.cross_entropy(logits, self.labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach(), logits.detach()


@pair("convnet_item_step", "gpu")
def _(device: str, small: bool) -> tuple[Step, Step]:
    lab = ConvLab(device, small)
    return (lambda: lab.seen.__setitem__(slice(None), [lab.step()[0].item()])), (
        lambda: lab.seen.__setitem__(slice(None), [lab.step()[0]])
    )


@pair("convnet_small_synchronize", "host")
def _(device: str, small: bool) -> tuple[Step, Step]:
    lab = ConvLab(device, small, batch=16)

    def synchronized() -> None:
        lab.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return synchronized, lambda: lab.step()


def batches(lab: ConvLab, *, pinned: bool) -> list[torch.Tensor]:
    return [x.pin_memory() if pinned and lab.device == "cuda" else x.clone() for x in lab.host_images]


@pair("copy_pageable", "balanced")
def _(device: str, small: bool) -> tuple[Step, Step]:
    """One batch per step (6 MB) from pageable memory, against pinned memory and ``non_blocking``."""
    lab = ConvLab(device, small, batch=128, size=64, width=32)
    pageable, pinned = batches(lab, pinned=False), batches(lab, pinned=True)
    turn = [0]

    def step(source: list[torch.Tensor], **how: Any) -> None:
        turn[0] += 1
        lab.step(source[turn[0] % 2].to(device, **how))

    return (lambda: step(pageable)), (lambda: step(pinned, non_blocking=True))


@pair("copy_pinned_blocking", "balanced")
def _(device: str, small: bool) -> tuple[Step, Step]:
    lab = ConvLab(device, small, batch=128, size=64, width=32)
    pinned = batches(lab, pinned=True)
    turn = [0]

    def step(**how: Any) -> None:
        turn[0] += 1
        lab.step(pinned[turn[0] % 2].to(device, **how))

    return step, (lambda: step(non_blocking=True))


@pair("metrics_on_cpu", "balanced")
def _(device: str, small: bool) -> tuple[Step, Step]:
    """Predictions copied to the host for a confusion matrix, at once or one step later through pinned memory."""
    lab = ConvLab(device, small)
    confusion = torch.zeros(10, 10, dtype=torch.int64)
    labels = lab.labels.cpu()

    def count(predicted: torch.Tensor) -> None:
        confusion.view(-1).add_(torch.bincount(labels * 10 + predicted, minlength=100))

    def at_once() -> None:
        _, logits = lab.step()
        count(logits.argmax(1).cpu())

    buffers = [torch.zeros(len(labels), dtype=torch.int64) for _ in range(2)]
    if device == "cuda":
        buffers = [x.pin_memory() for x in buffers]
    events: list[Any] = [None, None]
    turn = [0]

    def one_later() -> None:
        _, logits = lab.step()
        now, before = turn[0] % 2, (turn[0] + 1) % 2
        turn[0] += 1
        buffers[now].copy_(logits.argmax(1), non_blocking=True)
        if device == "cuda":
            events[now] = torch.cuda.Event()
            events[now].record()
            if events[before] is not None:
                events[before].synchronize()
        count(buffers[before])

    return at_once, one_later


class _NoLook(torch.amp.GradScaler):
    """Steps without looking whether infinities were found; the same GPU work."""

    def _maybe_opt_step(self, optimizer: Any, _state: Any, *args: Any, **kwargs: Any) -> Any:
        return optimizer.step(*args, **kwargs)


@pair("gradscaler", "balanced")
def _(device: str, small: bool) -> tuple[Step, Step]:
    lab = middle_lab(device, small)

    def stepper(scaler: torch.amp.GradScaler) -> Step:
        def step() -> None:
            lab.optimizer.zero_grad()
            with torch.autocast(device, dtype=torch.float16 if device == "cuda" else torch.bfloat16):
                loss = F.cross_entropy(lab.model(lab.tokens).flatten(0, 1).float(), lab.targets)
            scaler.scale(loss).backward()
            scaler.step(lab.optimizer)
            scaler.update()

        return step

    return stepper(torch.amp.GradScaler(device, init_scale=64.0)), stepper(_NoLook(device, init_scale=64.0))


@pair("detection_loss", "balanced")
def _(device: str, small: bool) -> tuple[Step, Step]:
    """Five levels of a detection-like head: positives found by ``nonzero``, against ``nonzero_static``."""
    torch.manual_seed(0)
    lab = ConvLab(device, small, batch=32, size=64, width=64)
    levels = [64, 32, 16, 8, 4] if not small else [8, 4]
    heads = nn.ModuleList(nn.Conv2d(3, 5, 3, padding=1) for _ in levels).to(device)
    optimizer = torch.optim.SGD([*heads.parameters(), *lab.net.parameters()], lr=1e-4)
    masks = [torch.rand(len(lab.labels), size, size, device=device) < 0.05 for size in levels]
    sizes = [int(mask.sum()) for mask in masks]

    def step(find: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(lab.net(lab.images), lab.labels)
        for head, mask, size, level in zip(heads, masks, sizes, levels, strict=True):
            out = head(F.adaptive_avg_pool2d(lab.images, level)).permute(0, 2, 3, 1)
            where = find(mask, size)
            chosen = out[where[:, 0], where[:, 1], where[:, 2]]
            loss = loss + F.smooth_l1_loss(chosen, torch.zeros_like(chosen))
        loss.backward()
        optimizer.step()

    static = (lambda m, n: torch.nonzero_static(m, size=n)) if device == "cuda" else (lambda m, n: m.nonzero()[:n])
    return (lambda: step(lambda m, n: m.nonzero())), (lambda: step(static))


@pair("two_streams", "balanced")
def _(device: str, small: bool) -> tuple[Step, Step]:
    """The next batch is copied on a stream of its own; the host waits for it, or only the other stream does."""
    lab = ConvLab(device, small, batch=128, size=64, width=32)
    pinned = batches(lab, pinned=True)
    if device != "cuda":
        return (lambda: lab.step()), (lambda: lab.step())
    side, turn = torch.cuda.Stream(), [0]
    targets = [x.to(device) for x in pinned]

    def step(*, host: bool) -> None:
        turn[0] += 1
        now = turn[0] % 2
        main = torch.cuda.current_stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            targets[now].copy_(pinned[now], non_blocking=True)
            ready = targets[now].sub(0.5).div_(0.25)
        if host:
            side.synchronize()
        else:
            main.wait_stream(side)
        ready.record_stream(main)
        lab.step(ready)

    return (lambda: step(host=True)), (lambda: step(host=False))


@pair("two_models", "host")
def _(device: str, small: bool) -> tuple[Step, Step]:
    """A generator and a discriminator in turn, both losses read."""
    torch.manual_seed(0)
    width, batch = (16, 4) if small else (1024, 256)

    def mlp(outputs: int) -> nn.Module:
        layers: list[nn.Module] = []
        for _ in range(6):
            layers += [nn.Linear(width, width), nn.LeakyReLU(0.2)]
        return nn.Sequential(*layers, nn.Linear(width, outputs)).to(device)

    maker, judge = mlp(width), mlp(1)
    optimizers = [torch.optim.Adam(net.parameters(), lr=1e-4) for net in (maker, judge)]
    real = torch.rand(batch, width, device=device)
    ones, zeros = torch.ones(batch, 1, device=device), torch.zeros(batch, 1, device=device)
    loss_of = F.binary_cross_entropy_with_logits
    seen: list[Any] = []

    def step(log: Callable[[torch.Tensor], Any]) -> None:
        noise = torch.randn(batch, width, device=device)
        made = maker(noise)
        optimizers[1].zero_grad()
        loss_d = loss_of(judge(real), ones) + loss_of(judge(made.detach()), zeros)
        loss_d.backward()
        optimizers[1].step()
        seen[:] = [log(loss_d.detach())]
        optimizers[0].zero_grad()
        loss_g = loss_of(judge(made), ones)
        loss_g.backward()
        optimizers[0].step()
        seen.append(log(loss_g.detach()))

    return (lambda: step(lambda x: x.item())), (lambda: step(lambda x: x))


@pair("tiny_mlp_item_step", "host")
def _(device: str, small: bool) -> tuple[Step, Step]:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8))).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    x = torch.rand(32, 64, device=device)
    seen: list[Any] = []

    def step(log: Callable[[torch.Tensor], Any]) -> None:
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        optimizer.step()
        seen[:] = [log(loss.detach())]

    return (lambda: step(lambda v: v.item())), (lambda: step(lambda v: v))


@pair("gradient_norm_per_parameter", "balanced")
def _(device: str, small: bool) -> tuple[Step, Step]:
    """A hand-written clip: each parameter's norm is read to be compared with a limit, against staying on the GPU."""
    lab = middle_lab(device, small)
    parameters = list(lab.model.parameters())

    def step(log: Callable[[torch.Tensor], Any]) -> None:
        lab.optimizer.zero_grad()
        F.cross_entropy(lab.model(lab.tokens).flatten(0, 1), lab.targets).backward()
        lab.seen[:] = [log(p.grad.norm()) for p in parameters]
        lab.optimizer.step()

    return (lambda: step(lambda x: x.item())), (lambda: step(lambda x: x))


def example(name: str) -> Any:
    """An example's own file."""
    here = Path(__file__).resolve()
    for folder in (here.parents[2], here.parent):
        file = folder / "examples" / name / "train.py"
        if file.exists():
            spec = importlib.util.spec_from_file_location(f"{name}_train", file)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise FileNotFoundError(f"examples/{name}/train.py")


@pair("example_logging_item", "balanced")
def _(device: str, small: bool) -> tuple[Step, Step]:
    """The example's loop, as written and fixed."""
    module = example("logging_item")
    layers, width, batch, length = (2, 64, 2, 16) if small else (6, 512, 24, 256)
    step = module.trainer(layers, width, batch, length, device)
    loggers = module.ReadAtOnce(layers, device), module.ReadLater(layers, device)
    return (lambda: step(loggers[0])), (lambda: step(loggers[1]))


def toy(device: str, batch: int, size: int) -> tuple[Step, Step]:
    """The article's loss against one with the same kernels whose sizes are known beforehand."""
    module = example("masked_loss")
    torch.manual_seed(0)
    net = module.Net().to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    images = torch.rand(batch, 3, size, size).to(device)
    labels = torch.randint(-1, module.CLASSES, (batch, size, size)).to(device)
    criterion = module.MaskedLoss(0)
    background = int((labels == module.BACKGROUND).sum())
    kept = int(((labels != module.BACKGROUND) & (labels != module.IGNORED)).sum())
    ignored = torch.tensor(module.IGNORED, device=device)

    def static(mask: torch.Tensor, n: int) -> tuple[torch.Tensor, ...]:
        found = torch.nonzero_static(mask, size=n) if device == "cuda" else mask.nonzero()
        return found.unbind(1)

    def without(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        where = static(target == module.BACKGROUND, background)
        target = target.clone()
        target[where] = ignored
        in_order, _ = torch.sort(target.flatten())
        enough = torch.count_nonzero(torch.diff(in_order)) + 1 >= 2
        labelled = static(target != module.IGNORED, kept)
        loss = criterion.cross_entropy(prediction.permute(0, 2, 3, 1)[labelled], target[labelled])
        return torch.where(enough, loss, 0.0 * loss)

    def step(loss_of: Callable[..., torch.Tensor]) -> None:
        optimizer.zero_grad()
        loss_of(net(images), labels).backward()
        optimizer.step()

    return (lambda: step(criterion)), (lambda: step(without))


@pair("article_batch_256", "gpu", free=True)
def _(device: str, small: bool) -> tuple[Step, Step]:
    return toy(device, 2 if small else 256, 16 if small else 256)


@pair("article_batch_8", "gpu")
def _(device: str, small: bool) -> tuple[Step, Step]:
    return toy(device, 2 if small else 8, 16 if small else 256)
