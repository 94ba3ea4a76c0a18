"""Functional collectives, those of DTensor: ops of their own, each made of the collective of the same name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from syncagent.simulate import collectives, dispatch, over_gloo


def _group_named(name: str) -> Any:
    c10d: Any = torch._C._distributed_c10d
    return c10d._resolve_process_group(name)


def _named(op: str) -> Any:
    kinds = over_gloo.ReduceOp.RedOpType
    return over_gloo.ReduceOp(getattr(kinds, op.upper()))


def _functional_all_reduce(_facts: Any, args: Any, _kwargs: Any) -> Any:
    source, op, group = args
    return _functional_all_reduce_in_place(None, (source.clone(memory_format=torch.contiguous_format), op, group), {})


def _functional_all_reduce_in_place(_facts: Any, args: Any, _kwargs: Any) -> Any:
    target, op, group = args
    collectives.all_reduce(_group_named(group), [target], op=_named(op)).wait()
    return target


def _functional_all_gather(_facts: Any, args: Any, _kwargs: Any) -> Any:
    source, size, group = args
    output = source.new_empty((source.shape[0] * size, *source.shape[1:]))
    collectives.all_gather_single(_group_named(group), output, source.contiguous()).wait()
    return output


def _functional_reduce_scatter(_facts: Any, args: Any, _kwargs: Any) -> Any:
    source, op, size, group = args
    output = source.new_empty((source.shape[0] // size, *source.shape[1:]))
    collectives.reduce_scatter_singles(_group_named(group), [output], [source.contiguous()], _named(op)).wait()
    return output


def _functional_all_to_all(_facts: Any, args: Any, _kwargs: Any) -> Any:
    source, into, of, group = args
    output = source.new_empty((sum(into), *source.shape[1:]))
    collectives.all_to_all_single(_group_named(group), output, source.contiguous(), into, of).wait()
    return output


def _functional_broadcast(_facts: Any, args: Any, _kwargs: Any) -> Any:
    source, root, group = args
    output = source.clone(memory_format=torch.contiguous_format)
    collectives.broadcast(_group_named(group), [output], root=root).wait()
    return output


def _shard_another_dimension(_facts: Any, args: Any, _kwargs: Any) -> Any:
    """Each rank has all of one dimension afterwards, and a part of another one."""
    source, gathered, sharded, name = args
    group = _group_named(name)
    parts = [part.contiguous() for part in source.chunk(group.size(), sharded)]
    received = [torch.empty_like(part) for part in parts]
    collectives.all_to_all(group, received, parts).wait()
    return torch.cat(received, gathered)


_FUNCTIONAL: dict[str, Callable[..., Any]] = {
    "all_reduce": _functional_all_reduce, "all_reduce_": _functional_all_reduce_in_place,
    "all_gather_into_tensor": _functional_all_gather, "reduce_scatter_tensor": _functional_reduce_scatter,
    "all_to_all_single": _functional_all_to_all, "broadcast": _functional_broadcast,
    "wait_tensor": lambda _facts, args, _kwargs: args[0],
}  # fmt: skip
for _namespace, _handlers in {
    "_c10d_functional": _FUNCTIONAL, "_dtensor": {"shard_dim_alltoall": _shard_another_dimension},
}.items():  # fmt: skip
    for _name, _handler in _handlers.items():
        _op_named = getattr(getattr(torch.ops, _namespace), _name, None)
        if _op_named is not None:
            dispatch.SPECIAL[_op_named.default] = _handler
