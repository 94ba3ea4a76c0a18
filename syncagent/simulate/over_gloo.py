"""What each collective does with the numbers: gloo carries them between the ranks, and computes what NCCL would.

All tensors here are on the CPU, dense and flat.  Each function returns when this rank is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from syncagent.errors import SimulationError
from syncagent.simulate.requirements import ON_INSTANCES, look_up, note_loss

ReduceOp: Any = getattr(torch.distributed, "ReduceOp", None)
_LETS_GO_WITHIN_S = 1.0
_POLL_S = 20e-6

_use_count: Any = look_up("Tensor._use_count")
if _use_count is None:
    note_loss("torch.Tensor._use_count", ON_INSTANCES["Tensor._use_count"])

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


def _carry(call: Callable[[], Any], *tensors: torch.Tensor) -> None:
    """Have gloo do what ``call`` asks for with these tensors, and wait until it is done with them.

    A thread of gloo's says that a collective is done, and lets go of its tensors a moment later.  If Python has let go
    of them by then, that thread asks for the interpreter; where that is about to end, the process is aborted
    ("terminate called without an active exception").  So the tensors are kept until then.
    """
    before = [_use_count(tensor) for tensor in tensors] if _use_count else []
    try:
        call().wait()
    finally:  # also where another rank has ended, and the program goes on without it
        limit = time.monotonic() + _LETS_GO_WITHIN_S
        for tensor, count in zip(tensors, before, strict=False):
            while _use_count(tensor) > count and time.monotonic() < limit:
                time.sleep(_POLL_S)


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
    options = _options("AllreduceOptions", reduceOp=ReduceOp(kind))
    _carry(lambda: backend.allreduce([values], options), values)
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
        values, options = as_bytes(tensor), _options("BroadcastOptions", rootRank=root)
        _carry(lambda: backend.broadcast([values], options), values)


def all_gather(backend: Any, outputs: list[torch.Tensor], source: torch.Tensor) -> None:
    """Fill one output for each rank; they may differ in size."""
    if len({output.numel() for output in outputs}) > 1:
        for root, output in enumerate(outputs):
            if root == backend.rank():
                output.copy_(source)
            broadcast(backend, output, root)
    elif source.numel():
        into, values = [as_bytes(output) for output in outputs], as_bytes(source)
        _carry(lambda: backend.allgather([into], [values]), *into, values)


def gather(backend: Any, outputs: list[torch.Tensor], source: torch.Tensor, root: int) -> None:
    """Fill the root's outputs, one for each rank."""
    if source.numel():
        into, values = [as_bytes(output) for output in outputs], as_bytes(source)
        options = _options("GatherOptions", rootRank=root)
        _carry(lambda: backend.gather([into] if into else [], [values], options), *into, values)


def scatter(backend: Any, output: torch.Tensor, inputs: list[torch.Tensor], root: int) -> None:
    """Send each rank one of the root's inputs."""
    if output.numel():
        values, of = as_bytes(output), [as_bytes(part) for part in inputs]
        options = _options("ScatterOptions", rootRank=root)
        _carry(lambda: backend.scatter([values], [of] if of else [], options), values, *of)


def all_to_all(backend: Any, outputs: list[torch.Tensor], inputs: list[torch.Tensor]) -> None:
    """Send each rank the input with its number, and fill one output for each rank."""
    sent = as_bytes(torch.cat(inputs))
    sizes = [part.nbytes for part in outputs]
    received = torch.empty(sum(sizes), dtype=torch.uint8)
    _carry(lambda: backend.alltoall_base(received, sent, sizes, [part.nbytes for part in inputs]), received, sent)
    for output, values in zip(outputs, received.split(sizes), strict=True):
        as_bytes(output).copy_(values)
