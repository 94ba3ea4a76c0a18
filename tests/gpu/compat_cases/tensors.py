"""Other tensors, other modes, transforms and profilers, beside the agent."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
import warnings
from typing import Any

import torch
from torch.func import functional_call, grad, jacrev, vmap

from tests.gpu.compat_cases import ITEM, NONZERO, Net, Run, SkipCase, batch, case, train


@case("torch.func: grad, vmap, jacrev, functional_call")
def transforms(run: Run) -> Any:
    net = Net().to(run.device)
    x = batch(run)
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(parameters: dict[str, torch.Tensor], row: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = functional_call(net, parameters, (row,)).square().mean()
        return out

    with run.syncs({}):
        each = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    jacobian = jacrev(lambda row: net(row).tanh())(x[0])
    refused = "nothing"
    try:
        vmap(lambda row: row.sum().item())(x)
    except RuntimeError as error:
        refused = f"{type(error).__name__}: {error!s:.60}"
    return each, jacobian, refused


@case("FakeTensorMode inside")
def fake(run: Run) -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    seen: list[str] = []
    with run.syncs({}), FakeTensorMode():
        with torch.device(run.device):
            net = Net()
        out = net(torch.randn(6, 8, device=run.device))
        out.sum().backward()
        seen.append(f"{type(out).__name__} {tuple(out.shape)} {out.device.type}")
        for call in (lambda: out.sum().item(), out.nonzero):
            try:
                call()
            except Exception as error:
                seen.append(type(error).__name__)
    real = Net().to(run.device)(batch(run))
    return seen, real


@case("FlopCounterMode inside")
def flops_inside(run: Run) -> Any:
    from torch.utils.flop_counter import FlopCounterMode

    net = Net().to(run.device)
    x = batch(run)
    with FlopCounterMode(display=False) as counter:
        out = net(x).sum()
        out.backward()
        with run.syncs({ITEM: 1}, at=".item()"):
            value = out.item()
    return counter.get_total_flops(), value, net


@case("FlopCounterMode around", watched=False)
def flops_around(run: Run) -> Any:
    from torch.utils.flop_counter import FlopCounterMode

    net = Net().to(run.device)
    x = batch(run)
    with FlopCounterMode(display=False) as counter:
        with run.watching(), run.syncs({ITEM: 1}, others=True, at=".item()"):
            out = net(x).sum()
            out.backward()
            value = out.item()
        net(x)
    return counter.get_total_flops(), value


@case("DebugMode inside")
def debug_mode(run: Run) -> Any:
    try:
        found: Any = importlib.import_module("torch.utils._debug_mode").DebugMode
    except (ImportError, AttributeError):
        raise SkipCase("there is no DebugMode in this torch") from None
    net = Net().to(run.device)
    x = batch(run)
    with found() as mode:
        out = net(x).sum()
        out.backward()
    text = mode.debug_string()
    return text, out


def _profiled(run: Run) -> tuple[Any, dict[str, int]]:
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if run.device == "cuda" else [])]
    net = Net().to(run.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with profile(activities=activities) as profiler:
        losses = train(run, net, optimizer)
        rows = batch(run).nonzero()
    counts = {row.key: row.count for row in profiler.key_averages() if row.key.startswith("aten::")}
    return (losses, rows, net), counts


@case("torch.profiler inside")
def profiler_inside(run: Run) -> Any:
    with run.syncs({ITEM: 3, NONZERO: 1}, others=True):
        result, counts = _profiled(run)
    # Under detail="ops" the profiler sees each op twice, as under any dispatch mode.
    run.notes["ops that the profiler saw"] = counts
    return result


@case("torch.profiler around", watched=False)
def profiler_around(run: Run) -> Any:
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if run.device == "cuda" else [])]
    net = Net().to(run.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with profile(activities=activities, record_shapes=True):
        first = train(run, net, optimizer)
        with run.watching(), run.syncs({ITEM: 3}, at=".item()"):
            second = train(run, net, optimizer)
        third = train(run, net, optimizer)
    return first, second, third, net


@case("set_sync_debug_mode inside", needs="cuda")
def sync_debug_mode(run: Run) -> Any:
    x = batch(run)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with run.syncs({ITEM: 1, NONZERO: 1}):
                value = x.sum().item()
                rows = x.nonzero()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    # Not the one that setting the mode gives, once a process.
    found = [warning for warning in caught if "called a synchronizing" in str(warning.message)]
    run.notes["warned at"] = [f"{os.path.basename(warning.filename)}:{warning.lineno}" for warning in found]
    return value, rows, len(found)


@case("set_sync_debug_mode('error') inside", needs="cuda")
def sync_debug_error(run: Run) -> Any:
    x = batch(run)
    torch.cuda.set_sync_debug_mode("error")
    try:
        x.sum().item()
        refused = "nothing"
    except RuntimeError as error:
        refused = f"{type(error).__name__}: {error!s:.60}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with run.syncs({ITEM: 1}, at=".item()"):
        value = x.sum().item()
    return refused, value


@case("DTensor on a mesh of one", limit_s=60)
def dtensor(run: Run) -> Any:
    distributed = torch.distributed
    if not distributed.is_available():
        raise SkipCase("this torch has no distributed package")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor

    backend = "nccl" if run.device == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ends:
        ends.callback(setattr, sys, "excepthook", sys.excepthook)  # torch puts one of its own there, for good
        store = distributed.FileStore(os.path.join(folder, "store"), 1)
        distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        ends.callback(distributed.destroy_process_group)
        mesh = init_device_mesh(run.device, (1,))
        net = distribute_module(Net().to(run.device), mesh)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        losses = []
        for _ in range(2):
            optimizer.zero_grad()
            x = distribute_tensor(batch(run), mesh, [Replicate()])
            loss = net(x).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.full_tensor() if isinstance(loss, DTensor) else loss)
        with run.syncs({ITEM: 1}, others=True, at=".item()"):
            value = losses[-1].item()
        sharded = distribute_tensor(batch(run), mesh, [Shard(0)])
        return losses, value, (sharded * 2).full_tensor(), [p.full_tensor() for p in net.parameters()]


@case("quantised tensors")
def quantised(run: Run) -> Any:
    if not hasattr(torch, "quantize_per_tensor"):
        raise SkipCase("this torch has no quantize_per_tensor")
    x = torch.randn(6, 8)
    try:
        q = torch.quantize_per_tensor(x, 0.1, 10, torch.quint8)
        results: list[Any] = [q.int_repr(), q.dequantize(), q[x > 0].int_repr()]
    except RuntimeError as error:
        results = [type(error).__name__]
    quantize: Any = getattr(getattr(torch.ao, "quantization", None), "quantize_dynamic", None)
    if quantize is not None:
        net = quantize(Net().eval(), {torch.nn.Linear}, dtype=torch.qint8)
        results.append(net(x))
    return results


class Logging(torch.Tensor):
    """Notes what is called on it."""

    called: list[str] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.called.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]  # torch's


@case("subclass with __torch_function__, trained")
def function_subclass(run: Run) -> Any:
    Logging.called.clear()
    weight = torch.nn.Parameter(torch.randn(8, 4, device=run.device).as_subclass(Logging))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = (batch(run) @ weight).square().mean()
        loss.backward()
        optimizer.step()
        with run.syncs({ITEM: 1}, at="loss.item()"):
            losses.append(loss.item())
    return losses, list(Logging.called), type(weight).__name__, weight.as_subclass(torch.Tensor)


class Wrapped(torch.Tensor):
    """Holds a plain tensor, and counts the ops on it."""

    inner: torch.Tensor
    ops: list[str] = []

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Any:
        made: Any = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device=inner.device, requires_grad=inner.requires_grad
        )
        made.inner = inner.detach()
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Wrapped({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.utils._pytree import tree_map_only

        cls.ops.append(str(func))
        args, kwargs = tree_map_only(cls, lambda t: t.inner, (args, kwargs or {}))
        return tree_map_only(torch.Tensor, cls, func(*args, **kwargs))


@case("wrapper subclass with __torch_dispatch__, trained")
def dispatch_subclass(run: Run) -> Any:
    Wrapped.ops.clear()
    weight = Wrapped(torch.randn(8, 4, device=run.device)).requires_grad_()
    losses = []
    for _ in range(2):
        loss = (Wrapped(batch(run)) @ weight).square().mean()
        loss.backward()
        assert isinstance(weight.grad, Wrapped)
        with torch.no_grad():
            weight.inner.sub_(weight.grad.inner, alpha=0.1)
        weight.grad = None
        with run.syncs({ITEM: 1}, at="loss.item()"):
            losses.append(loss.item())
    return losses, list(Wrapped.ops), weight.inner


@case("a user's dispatch mode and function mode inside")
def user_modes(run: Run) -> Any:
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[str] = []

    class Ops(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    class Calls(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(getattr(func, "__name__", str(func)))
            return func(*args, **(kwargs or {}))

    net = Net().to(run.device)
    x = batch(run)
    with Ops(), Calls(), run.syncs({ITEM: 1}, at="out.item()"):  # type: ignore[no-untyped-call]  # torch's
        out = net(x).sum()
        out.backward()
        value = out.item()
    return seen, value


@case("nested tensors")
def nested(run: Run) -> Any:
    parts = [torch.randn(n, 8, device=run.device) for n in (3, 5)]
    net = torch.nn.Linear(8, 4, device=run.device)
    results: list[Any] = []
    for layout in (torch.strided, torch.jagged):
        whole = torch.nested.nested_tensor(parts, layout=layout, requires_grad=True)
        out = net(whole)
        values = list(out.unbind())
        torch.cat(values).sum().backward()
        results += [values, [p.grad for p in net.parameters()]]
        if layout is torch.strided:
            results.append(torch.nested.to_padded_tensor(out, 0.0))
    return results


@case("sparse tensors")
def sparse(run: Run) -> Any:
    places = torch.zeros(2, 4, dtype=torch.int64, device=run.device)
    places[1] += torch.arange(4, device=run.device) // 2
    values = torch.arange(1.0, 5.0, device=run.device).requires_grad_()
    matrix = torch.sparse_coo_tensor(places, values, (8, 8))
    if run.device == "cuda":
        with run.syncs({"aten::_coalesce": 1}):
            whole = matrix.coalesce()
    else:
        whole = matrix.coalesce()
    product = torch.sparse.mm(whole, torch.ones(8, 3, device=run.device))
    product.sum().backward()
    compressed = torch.eye(4, device=run.device).to_sparse_csr()
    return whole.indices(), whole.values(), product, values.grad, compressed.values(), compressed.to_dense()


@case("complex, double and integer tensors, views and in-place ops")
def dtypes(run: Run) -> Any:
    x = torch.randn(4, 4, device=run.device)
    z = torch.view_as_complex(x.reshape(8, 2))
    y = x.clone()
    y[1] = 1.0
    y[:, 2:3] += 2
    y.masked_fill_(x > 0, 3)
    whole = torch.arange(12, device=run.device)
    return torch.view_as_real(z * z.conj()), y, x.double() ** 2, whole % 5, whole[3:].float()
