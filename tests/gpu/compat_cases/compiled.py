"""Code that torch compiles, captures or exports."""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from tests.gpu.compat_cases import ITEM, NONZERO, Net, Run, batch, case

_FUSED = ("aten::gelu", "aten::native_layer_norm")


def _steps(run: Run, step: Any, net: Any, optimizer: Any, steps: int = 3, *, copied: bool = False) -> Any:
    """Run a compiled forward pass and an eager rest; the first time, where it compiles, nothing may be charged."""
    losses = []
    for _ in range(steps):
        x = batch(run)
        optimizer.zero_grad()
        with run.syncs({}):
            loss = step(x)
            loss.backward()
            optimizer.step()
        losses.append(loss.detach().clone() if copied else loss.detach())
    return losses, net


def _trained(run: Run, *, copied: bool = False, **how: Any) -> Any:
    net = Net().to(run.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def step(x: torch.Tensor) -> torch.Tensor:
        return net(x).square().mean()

    return _steps(run, torch.compile(step, fullgraph=True, **how), net, optimizer, copied=copied)


@case("compile: inductor, fullgraph", compiled=True, fresh=True, fused=_FUSED, limit_s=60)
def inductor(run: Run) -> Any:
    return _trained(run)


@case("compile: backend eager", compiled=True)
def backend_eager(run: Run) -> Any:
    return _trained(run, backend="eager")


@case("compile: backend aot_eager", compiled=True)
def backend_aot_eager(run: Run) -> Any:
    return _trained(run, backend="aot_eager")


@case("compile: the optimizer too", compiled=True, limit_s=60)
def compiled_optimizer(run: Run) -> Any:
    net = Net().to(run.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    forward = torch.compile(net, fullgraph=True)
    update = torch.compile(optimizer.step, backend="aot_eager")
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = forward(batch(run)).square().mean()
        loss.backward()
        update()
        losses.append(loss.detach())
    return losses, net


@case("compile: item() breaks the graph", compiled=True, limit_s=60)
def graph_break(run: Run) -> Any:
    def step(x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.gelu(x).sum()
        z: torch.Tensor = x * y.item()
        return z.tanh()

    compiled = torch.compile(step)
    results = []
    for _ in range(3):
        x = batch(run)
        with run.syncs({ITEM: 1}):
            results.append(compiled(x))
    return results


@case("compile: a cache folder of the user's own", compiled=True, limit_s=60)
def own_cache(run: Run) -> Any:
    """Generated code is no user's line, wherever it is kept."""
    import torch._dynamo.config
    import torch._inductor.utils

    fresh: Any = getattr(torch._inductor.utils, "fresh_cache", None) or torch._inductor.utils.fresh_inductor_cache
    x = batch(run)
    with (
        tempfile.TemporaryDirectory(prefix="compiled_") as folder,
        fresh(dir=folder),
        torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True),
    ):
        compiled = torch.compile(lambda x: torch.nonzero(x * 3 > 0), fullgraph=True)
        with run.syncs({NONZERO: 1}):
            return compiled(x)


@case("compile: dynamic shapes", compiled=True, fused=("aten::gelu",), limit_s=60)
def dynamic(run: Run) -> Any:
    def step(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x).tanh() * x.shape[0]

    compiled = torch.compile(step, fullgraph=True)
    inputs = [batch(run, rows) for rows in (4, 6, 9, 12)]
    with run.syncs({}):
        return [compiled(x) for x in inputs]


@case("compile: item() in the compiled code", compiled=True, fused=("aten::gelu",), limit_s=60)
def scalar_inside(run: Run) -> Any:
    import torch._dynamo.config

    def step(x: torch.Tensor) -> torch.Tensor:
        n = (x > 0).sum().item()
        return torch.nn.functional.gelu(x) * n

    results = []
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        compiled = torch.compile(step, fullgraph=True)
        for _ in range(3):
            x = batch(run)
            with run.syncs({ITEM: 1}):
                results.append(compiled(x))
    return results


@case("compile: nonzero in the compiled code", compiled=True, fused=("aten::gelu",), limit_s=60)
def nonzero_inside(run: Run) -> Any:
    import torch._dynamo.config

    def step(x: torch.Tensor) -> torch.Tensor:
        return torch.nonzero(torch.nn.functional.gelu(x) > 0) * 2

    results = []
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(step, fullgraph=True)
        for _ in range(3):
            x = batch(run)
            with run.syncs({NONZERO: 1}):
                results.append(compiled(x))
    return results


@case("compile: a mask in the compiled code", compiled=True, limit_s=60)
def mask_inside(run: Run) -> Any:
    import torch._dynamo.config

    def step(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        return y[y > 0].cos()

    results = []
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(step, fullgraph=True)
        for _ in range(3):
            x = batch(run)
            with run.syncs({"aten::nonzero|aten::index|aten::masked_select": 1}):
                results.append(compiled(x))
    return results


@case("compile: reduce-overhead (CUDA graphs)", needs="cuda", compiled=True, fresh=True, fused=_FUSED, limit_s=60)
def reduce_overhead(run: Run) -> Any:
    net = Net().to(run.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def step(x: torch.Tensor) -> torch.Tensor:
        return net(x).square().mean()

    compiled = torch.compile(step, fullgraph=True, mode="reduce-overhead")

    def marked(x: torch.Tensor) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(x)

    # Compiled, warmed up, recorded, replayed: none of which is a sync of the program's own.
    return _steps(run, marked, net, optimizer, steps=5, copied=True)


@case("compile: max-autotune", needs="cuda", compiled=True, fresh=True, deterministic=False, limit_s=60)
def max_autotune(run: Run) -> Any:
    # Of whole numbers, so that whichever kernel wins computes the same.
    left, right = (torch.randint(-4, 5, (128, 128), device=run.device).float() for _ in range(2))
    # Of pointwise kernels only: those of matrix products take half a minute to build.
    compiled = torch.compile(
        lambda a, b: (a * b).relu().sum(0), fullgraph=True, options={"max_autotune_pointwise": True}
    )
    with run.syncs({}):
        first = compiled(left, right)
    with run.syncs({}):
        second = compiled(left, right)
    return first, second


@case("cuda.graph: capture and replay", needs="cuda")
def cuda_graph(run: Run) -> Any:
    net = Net().to(run.device)
    x = batch(run)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(3):
            net(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with run.syncs({}), torch.no_grad(), torch.cuda.graph(graph):
        out = net(x)
    results = []
    for _ in range(3):
        with run.syncs({}):
            x.copy_(batch(run))
            graph.replay()
            results.append(out.clone())
    with run.syncs({ITEM: 1}, at=".item()"):
        results.append(out.sum().item())
    return results


@case("cuda.make_graphed_callables", needs="cuda")
def graphed_callables(run: Run) -> Any:
    net = Net().to(run.device)
    sample = batch(run).requires_grad_()
    with run.syncs({}):
        graphed: Any = torch.cuda.make_graphed_callables(net, (sample,))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad(set_to_none=False)
        with run.syncs({}):
            loss = graphed(batch(run).requires_grad_()).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.detach().clone())
    return losses, [p.detach().clone() for p in net.parameters()]


@case("export", compiled=True)
def exported(run: Run) -> Any:
    net = Net().to(run.device).eval()
    x = batch(run)
    with run.syncs({}):
        program = torch.export.export(net, (x,))
        out = program.module()(x)
    ops = [str(node.target) for node in program.graph.nodes]
    return out, ops


@case("jit.trace and jit.script")
def jit(run: Run) -> Any:
    net = Net().to(run.device).eval()
    x = batch(run)
    with torch.no_grad():
        traced: Any = torch.jit.trace(net, (x,), check_trace=False)
        with run.syncs({}):
            return [traced(x) for _ in range(3)]


@case("make_fx")
def make_fx(run: Run) -> Any:
    from torch.fx.experimental.proxy_tensor import make_fx

    net = Net().to(run.device)
    x = batch(run)
    graph = make_fx(lambda x: net(x).square().mean(), tracing_mode="real")(x)
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
