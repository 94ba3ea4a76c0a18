"""Ten training programs of plain torch, of kinds that differ in what bounds them; see modelled.py.

Each is a function ``build(device, small)`` that returns a callable, which makes one training step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

Step = Callable[[], None]
PROGRAMS: dict[str, Callable[[str, bool], Step]] = {}


def program(build: Callable[[str, bool], Step]) -> Callable[[str, bool], Step]:
    PROGRAMS[build.__name__] = build
    return build


def trained(
    net: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], torch.Tensor], *, read_every: int = 1
) -> Step:
    """A step that reads its loss every so many steps, as programs that log do."""
    count = [0]

    def step() -> None:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        count[0] += 1
        if count[0] % read_every == 0:
            loss.item()

    net.train()
    return step


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.skip(x))


@program
def resnet50(device: str, small: bool) -> Step:
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(1 if small else count):
            layers.append(Bottleneck(inputs, width, stride if number == 0 else 1))
            inputs = 4 * width
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000)).to(device)
    images = torch.rand(2 if small else 32, 3, *(2 * [64 if small else 224]), device=device)
    labels = torch.randint(0, 1000, (len(images),), device=device)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    return trained(net, optimizer, lambda: F.cross_entropy(net(images), labels))


@program
def bert(device: str, small: bool) -> Step:
    width, depth, batch, length = (64, 2, 2, 16) if small else (768, 12, 16, 128)
    embed, head = nn.Embedding(30_000, width), nn.Linear(width, 2)
    layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, activation="gelu", batch_first=True)
    net = nn.ModuleList([embed, nn.TransformerEncoder(layer, depth, enable_nested_tensor=False), head]).to(device)
    tokens = torch.randint(0, 30_000, (batch, length), device=device)
    labels = torch.randint(0, 2, (batch,), device=device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5)
    return trained(net, optimizer, lambda: F.cross_entropy(head(net[1](embed(tokens))[:, 0]), labels))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(width // 64, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        query, key, value = self.qkv(self.norms[0](x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


def gpt(device: str, small: bool, dtype: torch.dtype | None) -> Step:
    width, depth, batch, length = (64, 2, 2, 16) if small else (768, 6, 8, 512)
    embed = nn.Embedding(8_000, width)
    net = nn.ModuleList([embed, nn.Sequential(*(Block(width) for _ in range(depth))), nn.Linear(width, 8_000)]).to(
        device
    )
    tokens = torch.randint(0, 8_000, (batch, length + 1), device=device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5)

    def loss_of() -> torch.Tensor:
        with torch.autocast(device, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            logits = net[2](net[1](embed(tokens[:, :-1])))
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    return trained(net, optimizer, loss_of)


@program
def gpt_fp32(device: str, small: bool) -> Step:
    return gpt(device, small, None)


@program
def gpt_bf16(device: str, small: bool) -> Step:
    return gpt(device, small, torch.bfloat16)


@program
def lstm(device: str, small: bool) -> Step:
    width, length, batch = (16, 5, 2) if small else (512, 64, 64)
    layer, head = nn.LSTM(width, width, 2), nn.Linear(width, 10)
    net = nn.ModuleList([layer, head]).to(device)
    x = torch.rand(length, batch, width, device=device)
    labels = torch.randint(0, 10, (batch,), device=device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    return trained(net, optimizer, lambda: F.cross_entropy(head(layer(x)[0][-1]), labels))


class UNet(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [3, width, 2 * width, 4 * width]
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(sizes))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in itertools.pairwise(sizes[1:]))
        self.join = nn.ModuleList(nn.Conv2d(2 * n, n, 3, padding=1) for n in sizes[1:-1])
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = []
        for number, layer in enumerate(self.down):
            x = torch.relu(layer(F.max_pool2d(x, 2) if number else x))
            kept.append(x)
        for number in reversed(range(len(self.up))):
            x = torch.relu(self.join[number](torch.cat([self.up[number](x), kept[number]], 1)))
        return self.head(x)


@program
def unet(device: str, small: bool) -> Step:
    net = UNet(8 if small else 64).to(device)
    images = torch.rand(2 if small else 8, 3, *(2 * [32 if small else 128]), device=device)
    targets = torch.randint(0, 2, (len(images), *images.shape[2:]), device=device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    return trained(net, optimizer, lambda: F.cross_entropy(net(images), targets))


@program
def small_ops(device: str, small: bool) -> Step:
    """Bound by the host."""
    net = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(4 if small else 30))).to(device)
    x = torch.rand(32, 64, device=device)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    return trained(net, optimizer, lambda: net(x).square().mean())


@program
def embeddings(device: str, small: bool) -> Step:
    tables = nn.ModuleList(nn.EmbeddingBag(1_000 if small else 100_000, 64) for _ in range(4 if small else 16))
    head = nn.Sequential(nn.Linear(64 * len(tables), 256), nn.ReLU(), nn.Linear(256, 1))
    net = nn.ModuleList([tables, head]).to(device)
    rows = [torch.randint(0, tables[0].num_embeddings, (64 if small else 4096, 8), device=device) for _ in tables]
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)

    def loss_of() -> torch.Tensor:
        return head(torch.cat([table(row) for table, row in zip(tables, rows, strict=True)], 1)).square().mean()

    return trained(net, optimizer, loss_of)


@program
def detection(device: str, small: bool) -> Step:
    """The positives of three levels are found by ``nonzero``, which waits."""
    net = UNet(8 if small else 32).to(device)
    images = torch.rand(2 if small else 8, 3, *(2 * [32 if small else 128]), device=device)
    masks = [torch.rand(len(images), size, size, device=device) < 0.05 for size in (16, 8, 4)]
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)

    def loss_of() -> torch.Tensor:
        found = net(images)
        loss = found.mean()
        for mask in masks:
            where = mask.nonzero()
            level = F.adaptive_avg_pool2d(found, mask.shape[-1]).permute(0, 2, 3, 1)
            loss = loss + level[where[:, 0], where[:, 1], where[:, 2]].square().mean()
        return loss

    return trained(net, optimizer, loss_of)


@program
def many_parameters(device: str, small: bool) -> Step:
    """Most of the step is the optimizer's."""
    width = 64 if small else 2048
    net = nn.Sequential(*(nn.Linear(width, width) for _ in range(4 if small else 24))).to(device)
    x = torch.rand(8, width, device=device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5)
    return trained(net, optimizer, lambda: net(x).square().mean(), read_every=5)
