"""Composite ops that run as one kernel, in which the CPU's own op computes, with the CPU's own autograd.

torch composes such an op of many others for every device but those that it has a fused kernel for, as it has for CUDA.
Here it is one kernel for the device, and one node of the program's graph.  The host pays for one op, and the numbers,
the gradients' too, are those of the CPU's op, bit for bit in 32 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from syncagent.simulate import devices, dispatch
from syncagent.simulate.engine import with_autograd
from syncagent.simulate.facts import OpFacts
from syncagent.simulate.memory import Layout, Placement, in_type, stride_for
from syncagent.simulate.tensor import SimulatedTensor, new_output

WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
"""What is computed in for these types: results are rounded once, and the CPU's kernels for them are slow."""


@dataclass(frozen=True)
class Call:
    """One call of an op: everything but its floating-point tensors, which are passed along in one list."""

    facts: OpFacts
    compute: Callable[[Callable[..., Any], Sequence[Any]], Any]
    """Makes the results from that list; calls the op, or whatever function is given in its place."""
    results: list[Layout]
    saved: int = 0
    """How many of the results CUDA's backward pass reads: to write to one of these in between is an error."""
    no_backward: str = ""
    """The error that a backward pass of this call gives on CUDA."""
    no_second_backward: str = ""
    """The error that a backward pass through the backward pass gives on CUDA."""


def run(call: Call, tensors: Sequence[SimulatedTensor]) -> list[Any]:
    """Queue the op and return its results."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return list(_Forward.apply(call, *tensors))  # type: ignore[no-untyped-call]  # torch's
    return _queue_forward(call, tensors, ())[0]


class _Forward(torch.autograd.Function):
    """The op as one node of the program's graph."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: SimulatedTensor) -> Any:
        needed = ctx.needs_input_grad[1:]
        results, graph = _queue_forward(call, tensors, needed)
        ctx.call, ctx.needed = call, needed
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(graph, *results[: call.saved], *tensors)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        call: Call = ctx.call
        if call.no_backward:
            raise RuntimeError(call.no_backward)
        graph, *rest = ctx.saved_tensors
        tensors = rest[call.saved :]
        if not torch.is_grad_enabled():
            return None, *_queue_backward(call, ctx.needed, graph, gradients, tensors)
        if call.no_second_backward:
            return None, *_Backward.apply(call, ctx.needed, graph, len(gradients), *gradients, *tensors)  # type: ignore[no-untyped-call]  # torch's
        return None, *_differentiable(call, tensors, gradients, ctx.needed)


class _Backward(torch.autograd.Function):
    """The backward pass as one node, which has no backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, call: Call, needed: Any, graph: SimulatedTensor, count: int, *tensors: Any) -> Any:
        ctx.call = call
        return tuple(_queue_backward(call, needed, graph, tensors[:count], tensors[count:]))

    @staticmethod
    def backward(ctx: Any, *_gradients: Any) -> Any:
        raise RuntimeError(ctx.call.no_second_backward)


def _differentiable(call: Call, tensors: Sequence[Any], gradients: Sequence[Any], needed: Sequence[bool]) -> list[Any]:
    """Gradients that have a graph themselves: from the op's parts, run again one by one."""
    with torch.enable_grad(), torch.autocast("cuda", enabled=False):
        own = [x.view_as(x) for x in tensors]  # one may have been computed from another
        results = as_list(call.compute(call.facts.op.decompose, own))
    pairs = [(x, gradient) for x, gradient in zip(results, gradients, strict=True) if gradient is not None]
    wanted = [x for x, is_needed in zip(own, needed, strict=True) if is_needed]
    found = iter(
        torch.autograd.grad([x for x, _ in pairs], wanted, [g for _, g in pairs], create_graph=True, allow_unused=True)
    )
    return [next(found) if is_needed else None for is_needed in needed]


def _placements(tensors: Iterable[Any]) -> list[Placement]:
    return [x._sim for x in tensors if x is not None]


def _queue_forward(
    call: Call, tensors: Sequence[SimulatedTensor], needed: Sequence[bool]
) -> tuple[list[SimulatedTensor], SimulatedTensor]:
    """Return the results, and a tensor whose memory stands for what the backward pass needs of this one."""
    index = tensors[0]._sim.index
    made = [new_output(layout, index) for layout in call.results]
    graph = new_output(Layout((1,), (1,), 0, torch.uint8), index)
    sources, targets, box = _placements(tensors), _placements(made), graph._sim.box

    def kernel() -> None:
        box.values = torch.zeros(1, dtype=torch.uint8)
        values = [x.resolve() for x in sources]
        computed = _Graph(call, values, needed)
        for position, (target, result) in enumerate(zip(targets, computed.results, strict=True)):
            # What CUDA's backward pass does not read, the program may write to before it: the graph keeps its own.
            is_shared = computed.leaves and position >= call.saved
            own = in_type(result.detach(), target.layout.dtype, copy=bool(is_shared))
            dispatch.deliver(call.facts, target, own, values)
        box.own_form = computed if computed.leaves else None

    engine = devices.order(call.facts.name, index, sources)
    devices.queue(engine, call.facts.name, kernel, [*targets, graph._sim], sources)
    return made, graph


def _queue_backward(
    call: Call, needed: Sequence[bool], graph: SimulatedTensor, gradients: Sequence[Any], tensors: Sequence[Any]
) -> list[Any]:
    index = tensors[0]._sim.index
    made = [
        new_output(Layout(tuple(x.shape), stride_for(tuple(x.shape)), 0, x.dtype), index) if is_needed else None
        for x, is_needed in zip(tensors, needed, strict=True)
    ]
    sources, targets = _placements(tensors), _placements(made)
    given = [None if gradient is None else gradient._sim for gradient in gradients]
    saved = graph._sim

    def kernel() -> None:
        # A hook may have put the saved tensors elsewhere and back (save_on_cpu): then the graph is made again.
        computed = saved.box.own_form or _Graph(call, [x.resolve() for x in sources], needed)
        found = computed.backward([None if x is None else x.resolve() for x in given])
        for target, values in zip(targets, found, strict=True):
            dispatch.deliver(call.facts, target, in_type(values, target.layout.dtype), [])

    read = [*sources, *_placements(gradients), saved]
    name = f"{call.facts.name}_backward"
    devices.queue(devices.order(name, index, read), name, kernel, targets, sources)
    return made


def as_list(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (list, tuple)) else [result]


# --- on the worker -----------------------------------------------------------------------------------------


class _Graph:
    """The results of a call on CPU tensors, with the CPU's own autograd graph behind them if a gradient is needed."""

    def __init__(self, call: Call, values: Sequence[torch.Tensor], needed: Sequence[bool]) -> None:
        wider = WIDER.get(values[0].dtype, values[0].dtype)
        values = [in_type(x, wider) for x in values]
        if not any(needed):
            self.leaves: list[torch.Tensor] = []
            self.results = as_list(call.compute(call.facts.op, values))
            return
        with with_autograd():
            values = [
                x.detach().requires_grad_(is_needed) if not x.is_inference() else x.clone().requires_grad_(is_needed)
                for x, is_needed in zip(values, needed, strict=True)
            ]
            self.leaves = [x for x, is_needed in zip(values, needed, strict=True) if is_needed]
            self.results = as_list(call.compute(call.facts.op, values))

    def backward(self, gradients: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
        """One gradient for each leaf."""
        pairs = [(x, in_type(g, x.dtype)) for x, g in zip(self.results, gradients, strict=True) if g is not None]
        with with_autograd():
            found = torch.autograd.grad(
                [x for x, _ in pairs],
                self.leaves,
                [g for _, g in pairs],
                retain_graph=True,  # the graph ends with the tensor that keeps it
                allow_unused=True,
            )
        return [torch.zeros_like(x) if g is None else g for x, g in zip(self.leaves, found, strict=True)]
