"""Ordinary training, eager."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from tests.gpu.compat_cases import ITEM, NONZERO, Net, Run, batch, case, train


@case("eager: SGD")
def sgd(run: Run) -> Any:
    net = Net().to(run.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    with run.syncs({ITEM: 3}, at=".item()"):
        losses = train(run, net, optimizer)
    return losses, net


@case("eager: AdamW, clipped gradients, a scheduler")
def adamw(run: Run) -> Any:
    net = Net().to(run.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        with run.syncs({}):
            loss = net(batch(run)).square().mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        with run.syncs({ITEM: 1}, at=".item()"):
            losses.append(loss.item())
    return losses, net


@case("eager: masks and where, forward and backward")
def masks(run: Run) -> Any:
    net = Net().to(run.device)
    x = batch(run)
    out = net(x)
    mask = out > 0
    with run.syncs({"aten::index": 1}, at="out[mask]"):
        chosen = out[mask]
    with run.syncs({NONZERO: 1}, at="nonzero"):
        rows = torch.nonzero(mask)
    chosen.sum().backward()
    return chosen, rows, [p.grad for p in net.parameters()]


def _checkpointed(run: Run, *, use_reentrant: bool) -> Any:
    net = Net().to(run.device)
    x = batch(run).requires_grad_()
    read = []

    def part(x: torch.Tensor) -> torch.Tensor:
        read.append(x.sum().item())
        out: torch.Tensor = torch.nn.functional.dropout(net(x), 0.5)
        return out

    with run.syncs({ITEM: 2}, others=True, at=".item()"):  # the second when it is computed again
        checkpoint(part, x, use_reentrant=use_reentrant).sum().backward()
    return read, x.grad, [p.grad for p in net.parameters()]


@case("checkpoint, reentrant")
def checkpoint_reentrant(run: Run) -> Any:
    return _checkpointed(run, use_reentrant=True)


@case("checkpoint, not reentrant")
def checkpoint_other(run: Run) -> Any:
    return _checkpointed(run, use_reentrant=False)


class Scaled(torch.autograd.Function):
    """Reads a value in both directions."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.factor = x.abs().max().item()
        ctx.save_for_backward(x)
        return x * ctx.factor

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] * ctx.factor + x.mean().item()


@case("autograd.Function")
def function(run: Run) -> Any:
    x = batch(run).requires_grad_()
    with run.syncs({ITEM: 1}, at=".item()"):
        out: Any = Scaled.apply(x)
    with run.syncs({ITEM: 1}, at=".item()"):
        out.sum().backward()
    return out, x.grad


@case("hooks of tensors, modules and optimizers")
def hooks(run: Run) -> Any:
    net = Net().to(run.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    called: list[str] = []
    net.first.weight.register_hook(lambda g: g * 2)
    net.last.weight.register_post_accumulate_grad_hook(lambda p: called.append("accumulated"))
    net.first.register_forward_pre_hook(lambda *_: called.append("before"))
    net.norm.register_forward_hook(lambda *_: called.append("after"))
    net.last.register_full_backward_hook(lambda *_: called.append("backward"))
    optimizer.register_step_pre_hook(lambda *_: called.append("step"))
    optimizer.register_step_post_hook(lambda *_: called.append("stepped"))
    losses = train(run, net, optimizer, 2)
    return losses, called, net


@case("autocast and GradScaler")
def amp(run: Run) -> Any:
    net = Net().to(run.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(run.device, init_scale=128.0)
    dtype = torch.float16 if run.device == "cuda" else torch.bfloat16
    kept = []
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast(run.device, dtype=dtype):
            loss = net(batch(run)).float().square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        with run.syncs({ITEM: 1}, others=True, at="scaler.step"):  # looks for infinities
            scaler.step(optimizer)
        scaler.update()
        kept.append(loss.detach())
    return kept, net, scaler.get_scale()


@case("inference_mode and no_grad")
def inference(run: Run) -> Any:
    net = Net().to(run.device).eval()
    x = batch(run)
    with torch.inference_mode(), run.syncs({ITEM: 1}, at=".item()"):
        first = net(x)
        value = first.sum().item()
        inference = first.is_inference()
    with torch.no_grad():
        second = net(x)
    return first.clone(), value, inference, second, second.requires_grad


@case("set_default_device")
def default_device(run: Run) -> Any:
    torch.set_default_device(run.device)
    try:
        net = Net()
        x = torch.randn(6, 8)
        with run.syncs({ITEM: 1}, at=".item()"):
            value = net(x).sum().item()
        where = str(x.device)
    finally:
        torch.set_default_device(None)
    return value, where, str(torch.ones(1).device), net


@case("default device set before the watch, taken back inside", watched=False)
def default_device_around(run: Run) -> Any:
    torch.set_default_device(run.device)
    try:
        with run.watching():
            x = torch.randn(6, 8).square()
            torch.set_default_device(None)
            y = torch.ones(2)
    finally:
        torch.set_default_device(None)
    return x, str(y.device)


@case("forward and backward in 4 threads")
def threads(run: Run) -> Any:
    nets = [Net().to(run.device) for _ in range(4)]
    inputs = [batch(run) for _ in nets]
    read: list[float] = [0.0] * len(nets)

    def work(index: int) -> None:
        out = nets[index](inputs[index]).square().mean()
        out.backward()
        read[index] = out.item()

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(nets))]
    with run.syncs({ITEM: 4}, others=True, at=".item()", threads=True):
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return read, [[p.grad for p in net.parameters()] for net in nets]


class Rows(torch.utils.data.Dataset[Any]):
    """Made in a worker."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((8,), float(index)).sin()


@case("DataLoader: 2 forked workers, pinned memory")
def loader(run: Run) -> Any:
    net = Net().to(run.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    on_gpu = run.device == "cuda"
    batches = torch.utils.data.DataLoader(
        Rows(), batch_size=4, num_workers=2, pin_memory=on_gpu, multiprocessing_context="fork"
    )
    kept = []
    each = iter(batches)
    with run.syncs({}):  # pinned and non_blocking: nothing waits
        for rows in each:
            optimizer.zero_grad()
            loss = net(rows.to(run.device, non_blocking=True)).square().mean()
            loss.backward()
            optimizer.step()
            kept.append(loss.detach())
    return kept, net


@case("copies to the host and back", settings={"copies": "all"})  # sampling gives way to torch.compile's earlier cases
def copies(run: Run) -> Any:
    x = batch(run)
    host = torch.ones(4)
    if run.device != "cuda":
        return [x.cpu(), x.tolist(), host.to(run.device)]
    with run.syncs({"aten::copy_": 3}):
        down = x.cpu()
        values = x.tolist()
        up = host.to(run.device)
    with run.syncs({}):
        pinned = host.pin_memory().to(run.device, non_blocking=True)
    return [down, values, up, pinned]
