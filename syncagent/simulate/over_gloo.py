"""What each collective does with the numbers: gloo carries them between the ranks, and computes what NCCL would.

All tensors here are on the CPU, dense and flat.  Each function returns when this rank is done.
"""

from __future__ import annotations

from typing import Any

import torch

from syncagent.errors import SimulationError

ReduceOp: Any = getattr(torch.distributed, "ReduceOp", None)

_SUMMED_BY_GLOO = frozenset({
    torch.float32, torch.float64, torch.float16, torch.int8, torch.uint8, torch.int32, torch.int64,
})  # fmt: skip


def _options(name: str, **values: Any) -> Any:
    options = getattr(torch._C._distributed_c10d, name)()
    for key, value in values.items():
        setattr(options, key, value)
    return options


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as bytes: gloo does not know every type, and need not where it only moves numbers."""
    return tensor.view(torch.uint8)


# --- sums and other reductions -----------------------------------------------------------------------------


def all_reduce(backend: Any, tensor: torch.Tensor, op: Any) -> None:
    """Reduce into ``tensor``."""
    if not tensor.numel():
        return
    kind, values = getattr(op, "op", op), tensor
    kinds = ReduceOp.RedOpType
    if tensor.dtype == torch.bool:  # NCCL adds these as "or", so that no byte overflows
        values = tensor.to(torch.uint8)
        kind = {kinds.SUM: kinds.MAX, kinds.PRODUCT: kinds.MIN}.get(kind, kind)
    elif tensor.dtype not in _SUMMED_BY_GLOO:
        values = tensor.float()
    is_mean, is_scaled = kind == kinds.AVG, kind == kinds.PREMUL_SUM
    if is_scaled:
        values = values * _factor_of(op)
    if is_mean or is_scaled:
        kind = kinds.SUM
    backend.allreduce([values], _options("AllreduceOptions", reduceOp=ReduceOp(kind))).wait()
    if is_mean:
        values.div_(backend.size(), rounding_mode=None if values.is_floating_point() else "trunc")
    if values is not tensor:
        tensor.copy_(values)


def _factor_of(op: Any) -> Any:
    factor = getattr(op, "factor", None)
    if factor is None:
        raise SimulationError(f"ReduceOp.PREMUL_SUM is not simulated with torch {torch.__version__}; scale the tensor")
    return factor.cpu() if isinstance(factor, torch.Tensor) else factor


def reduce(backend: Any, tensor: torch.Tensor, op: Any, root: int) -> None:
    """Reduce into the root's tensor; the others keep what they have."""
    values = tensor.clone()
    all_reduce(backend, values, op)
    if backend.rank() == root:
        tensor.copy_(values)


def reduce_scatter(backend: Any, output: torch.Tensor, inputs: list[torch.Tensor], op: Any) -> None:
    """Reduce all inputs, of which each rank gets the one with its number."""
    whole = torch.cat(inputs)
    all_reduce(backend, whole, op)
    output.copy_(whole.split([part.numel() for part in inputs])[backend.rank()])


# --- numbers that only move --------------------------------------------------------------------------------


def broadcast(backend: Any, tensor: torch.Tensor, root: int) -> None:
    """Send the root's numbers to all."""
    if tensor.numel():
        backend.broadcast([as_bytes(tensor)], _options("BroadcastOptions", rootRank=root)).wait()


def all_gather(backend: Any, outputs: list[torch.Tensor], source: torch.Tensor) -> None:
    """Fill one output for each rank; they may differ in size."""
    if len({output.numel() for output in outputs}) > 1:
        for root, output in enumerate(outputs):
            if root == backend.rank():
                output.copy_(source)
            broadcast(backend, output, root)
    elif source.numel():
        backend.allgather([[as_bytes(output) for output in outputs]], [as_bytes(source)]).wait()


def gather(backend: Any, outputs: list[torch.Tensor], source: torch.Tensor, root: int) -> None:
    """Fill the root's outputs, one for each rank."""
    if source.numel():
        into = [[as_bytes(output) for output in outputs]] if outputs else []
        backend.gather(into, [as_bytes(source)], _options("GatherOptions", rootRank=root)).wait()


def scatter(backend: Any, output: torch.Tensor, inputs: list[torch.Tensor], root: int) -> None:
    """Send each rank one of the root's inputs."""
    if output.numel():
        of = [[as_bytes(part) for part in inputs]] if inputs else []
        backend.scatter([as_bytes(output)], of, _options("ScatterOptions", rootRank=root)).wait()


def all_to_all(backend: Any, outputs: list[torch.Tensor], inputs: list[torch.Tensor]) -> None:
    """Send each rank the input with its number, and fill one output for each rank."""
    sent = as_bytes(torch.cat(inputs))
    sizes = [part.nbytes for part in outputs]
    received = torch.empty(sum(sizes), dtype=torch.uint8)
    backend.alltoall_base(received, sent, sizes, [part.nbytes for part in inputs]).wait()
    for output, values in zip(outputs, received.split(sizes), strict=True):
        as_bytes(output).copy_(values)
