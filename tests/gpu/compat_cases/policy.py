"""``policy="raise"``: the error comes out as it is, wherever the sync was, and training goes on."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

import syncagent
from tests.gpu.compat_cases import ITEM, Net, Run, batch, case, train

_RAISE = {"policy": "raise", "warmup_steps": 0}
raising = partial(case, settings=_RAISE)


def _begin(run: Run) -> tuple[Net, Any, torch.Tensor]:
    with syncagent.allow("setting up"):
        net = Net().to(run.device)
        return net, torch.optim.SGD(net.parameters(), lr=0.1), batch(run)


def _go_on(run: Run, net: Net, optimizer: Any) -> Any:
    """Train where syncs are wanted; nothing may be left of what was stopped."""
    optimizer.zero_grad(set_to_none=True)
    with syncagent.allow("goes on"), run.syncs({ITEM: 3}, at=".item()"):
        losses = train(run, net, optimizer)
    if run.sees:
        reasons = {event.allowed for event in run.events() if event.op == ITEM and not event.violation}
        run.check("goes on" in reasons and None not in reasons, f"allowed for {reasons}")
    return losses, net


@raising("raise: forward")
def forward(run: Run) -> Any:
    net, optimizer, x = _begin(run)
    tensors = list(net.parameters())
    with run.forbidden(ITEM, ".item()", tensors):
        net(x).sum().item()
    with run.forbidden("aten::nonzero", "nonzero", tensors):
        torch.nonzero(net(x) > 0)
    with run.forbidden("aten::index", "[x > 0]", [x]):
        x[x > 0]
    return _go_on(run, net, optimizer)


@raising("raise: no_grad and inference_mode")
def no_grad(run: Run) -> Any:
    net, optimizer, x = _begin(run)
    with torch.no_grad(), run.forbidden(ITEM, ".item()", list(net.parameters())):
        net(x).sum().item()
    with run.forbidden(ITEM, "bool(", [x]), torch.inference_mode():
        bool((x > 0).any())
    run.check(torch.is_grad_enabled(), "gradients are off afterwards")
    return _go_on(run, net, optimizer)


@raising("raise: index_put_ leaves its target")
def assignment(run: Run) -> Any:
    net, optimizer, x = _begin(run)
    with syncagent.allow("setting up"):
        mask = x > 0
        ones = torch.ones(int(mask.sum()), device=run.device)
    with run.forbidden("aten::index_put_", "x[mask]", [x]):
        x[mask] = ones
    return _go_on(run, net, optimizer), x


@raising("raise: a tensor's hook in backward")
def tensor_hook(run: Run) -> Any:
    net, optimizer, x = _begin(run)
    out = net(x)
    out.register_hook(lambda g: g * g.sum().item())
    with run.forbidden(ITEM, ".item()", list(net.parameters())):
        out.sum().backward()
    return _go_on(run, net, optimizer)


class InForward(torch.autograd.Function):
    """Reads a value in forward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * x.sum().item()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0]


class InBackward(torch.autograd.Function):
    """Reads a value in backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * gradients[0].sum().item()


@raising("raise: autograd.Function, forward and backward")
def functions(run: Run) -> Any:
    net, optimizer, x = _begin(run)
    with run.forbidden(ITEM, ".item()", list(net.parameters())):
        InForward.apply(net(x))  # type: ignore[no-untyped-call]  # torch's
    out: Any = InBackward.apply(net(x))  # type: ignore[no-untyped-call]  # torch's
    with run.forbidden(ITEM, ".item()", list(net.parameters())):
        out.sum().backward()
    return _go_on(run, net, optimizer)


@raising("raise: torch's own backward")
def native_backward(run: Run) -> Any:
    net, optimizer, x = _begin(run)
    with syncagent.allow("setting up"):
        out = net(x)
        chosen = out[out > 0]
    with run.forbidden("aten::index_put_|aten::nonzero", ".backward(", list(net.parameters())):
        chosen.sum().backward()
    return _go_on(run, net, optimizer)


class Wary(torch.optim.SGD):
    """Looks at a gradient before it steps."""

    def step(self, closure: Any = None) -> Any:
        grad = self.param_groups[0]["params"][0].grad
        if grad.abs().max().item() > 1e6:
            return None
        return super().step(closure)


@raising("raise: optimizer")
def optimizer(run: Run) -> Any:
    net, _, x = _begin(run)
    wary = Wary(net.parameters(), lr=0.1)
    net(x).sum().backward()
    with run.forbidden(ITEM, ".item()", list(net.parameters())):
        wary.step()
    wary.zero_grad(set_to_none=True)
    with syncagent.allow("goes on"), run.syncs({ITEM: 6}, at=".item()"):
        losses = train(run, net, wary)
    return losses, net


def _checkpointed(run: Run, *, use_reentrant: bool) -> Any:
    net, optimizer, x = _begin(run)
    x.requires_grad_()
    forbid: list[bool] = []

    def part(x: torch.Tensor) -> torch.Tensor:
        if forbid:  # at the start: what is computed again ends with the last tensor that backward needs
            x.sum().item()
        hidden: torch.Tensor = net(x)
        return hidden

    forbid.append(True)
    with run.forbidden(ITEM, ".item()", list(net.parameters())):  # going forward
        checkpoint(part, x, use_reentrant=use_reentrant)
    forbid.clear()
    out: Any = checkpoint(part, x, use_reentrant=use_reentrant)
    forbid.append(True)
    with run.forbidden(ITEM, ".item()", list(net.parameters())):  # computed again, in backward
        out.sum().backward()
    forbid.clear()
    return _go_on(run, net, optimizer)


@raising("raise: checkpoint, reentrant")
def checkpoint_reentrant(run: Run) -> Any:
    return _checkpointed(run, use_reentrant=True)


@raising("raise: checkpoint, not reentrant")
def checkpoint_other(run: Run) -> Any:
    return _checkpointed(run, use_reentrant=False)


class Rows(torch.utils.data.Dataset[Any]):
    """Made in a worker."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((8,), float(index)).cos()


@raising("raise: a loop over a DataLoader")
def loader(run: Run) -> Any:
    net, optimizer, _ = _begin(run)
    batches = torch.utils.data.DataLoader(
        Rows(), batch_size=3, num_workers=2, pin_memory=run.device == "cuda", multiprocessing_context="fork"
    )
    with syncagent.allow("setting up"):
        each = iter(batches)
    kept = []
    for rows in each:
        x = rows.to(run.device, non_blocking=True)
        with run.forbidden(ITEM, ".item()", list(net.parameters())):
            net(x).sum().item()
        with syncagent.allow("goes on"):
            kept.append(net(x).sum().item())
    return kept, _go_on(run, net, optimizer)


@raising("raise: compiled code", compiled=True, limit_s=60)
def compiled(run: Run) -> Any:
    import torch._dynamo.config

    net, optimizer, x = _begin(run)

    def step(x: torch.Tensor) -> torch.Tensor:
        return torch.nonzero(x * 2 > 0) + 1

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        fast = torch.compile(step, fullgraph=True)
        with run.forbidden("aten::nonzero", "", [x]):
            fast(x)
        with syncagent.allow("goes on"):
            first = fast(x)
        with run.forbidden("aten::nonzero", "", [x]):
            fast(x)
    return first, _go_on(run, net, optimizer)


@raising("raise: explicit synchronize", needs="cuda")
def explicit(run: Run) -> Any:
    net, optimizer, x = _begin(run)
    with run.forbidden("torch.cuda.synchronize", "synchronize", [x]):
        torch.cuda.synchronize()
    event = torch.cuda.Event()
    torch.cuda._sleep(50_000_000)
    event.record()
    with run.forbidden("torch.cuda.Event.synchronize", "synchronize"):
        event.synchronize()
    with syncagent.allow("goes on"):
        torch.cuda.synchronize()
    return _go_on(run, net, optimizer)


@raising("raise: copies", needs="cuda")
def copies(run: Run) -> Any:
    net, optimizer, x = _begin(run)
    with run.forbidden("aten::copy_", ".cpu()", [x]):
        x.cpu()
    host = torch.ones(6, 8)
    with run.forbidden("aten::copy_", ".to(", [host]):
        host.to(run.device)
    with run.forbidden("aten::copy_", "copy_(", [x]):
        x.copy_(host)
    return _go_on(run, net, optimizer)


@case("raise: 8 threads, one of them allowed", settings={**_RAISE, "judge_threads": "all"})
def threads(run: Run) -> Any:
    import threading

    with syncagent.allow("setting up"):
        values = [torch.full((4,), float(n), device=run.device) for n in range(8)]
    outcome: list[str] = [""] * len(values)

    def work(index: int) -> None:
        try:
            if index == 3:
                with syncagent.allow("thread 3"):
                    values[index].sum().item()
            else:
                values[index].sum().item()
            outcome[index] = "passed"
        except RuntimeError as error:
            outcome[index] = type(error).__name__

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(values))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if run.sees:
        run.check(outcome == ["HostSyncError"] * 3 + ["passed"] + ["HostSyncError"] * 4, f"threads ended: {outcome}")
    return values
