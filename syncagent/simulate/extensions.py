"""Ops that torch did not bring: what runs them, and whether the host has to wait for the size of their results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from syncagent.events import SyncKind
from syncagent.rules.rule import Rule
from syncagent.simulate.lookups import find
from syncagent.simulate.memory import Placement

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from syncagent.simulate.facts import OpFacts

__all__ = ["is_one", "python_body", "wait_found", "wait_known"]

_TORCHS_OWN = frozenset({"aten", "prims", "prim"})
_custom_ops = find("_library.custom_ops.OPDEFS")
_LIMIT = 1024
_told_by_sizes: set[Any] = set()
"""Calls, by op and layouts, of which a trial has shown that values do not decide the sizes."""


def is_one(op: Any) -> bool:
    """Whether somebody else than torch brings this op."""
    return op.namespace not in _TORCHS_OWN


def python_body(op: Any) -> Callable[..., Any] | None:
    """The Python function that runs a custom op on CUDA tensors: its own ops are then simulated one by one."""
    definition = None if _custom_ops is None else _custom_ops.get(op._schema.name)
    bodies = getattr(definition, "_backend_fns", {})
    return bodies.get("cuda", bodies.get(None))


def wait_known(op: Any) -> Rule | None:
    """What the author has said of it by torch's own tags."""
    if torch.Tag.dynamic_output_shape in op.tags:
        return _rule(op, SyncKind.DYNAMIC_SHAPE)
    if torch.Tag.data_dependent_output in op.tags:
        return _rule(op, SyncKind.SCALAR_READ)
    return None


def wait_found(
    facts: OpFacts, error: BaseException | None, kept: Sequence[Any], named: Mapping[str, Any], result: Any
) -> SyncKind | None:
    """Find out, from a call that has run, whether it had to wait: did values decide what its results look like?

    Nothing announces their shapes: there is no meta kernel, or it refused with ``error``.  One says itself that the
    shapes depend on values; of all others the op is tried out on zeros of the same layouts.
    """
    sizes = [_look(value) for value in (result if isinstance(result, (list, tuple)) else [result])]
    if not any(size is not None for size in sizes) or not _anything(kept):
        return None
    key = (facts.op, _key([*kept, *named.values()]))
    if key in _told_by_sizes:
        return None
    if not _says_so(error):
        try:
            trial = facts.op(*[_zeros(x) for x in kept], **{name: _zeros(x) for name, x in named.items()})
        except Exception:
            return None  # it does not take zeros: nothing is known, and nothing is made up
        if [_look(value) for value in (trial if isinstance(trial, (list, tuple)) else [trial])] == sizes:
            if len(_told_by_sizes) < _LIMIT:
                _told_by_sizes.add(key)
            return None
    number = not isinstance(sizes[0], tuple)
    facts.rule = _rule(facts.op, SyncKind.SCALAR_READ if number else SyncKind.DYNAMIC_SHAPE)
    return facts.rule.waits(kept, named)


def _rule(op: Any, kind: SyncKind) -> Rule:
    def waits(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
        return kind if _anything([*args, *kwargs.values()]) else None

    return Rule(op.name(), waits, waits, "values decide what its results look like", keys=())


def _anything(values: Any) -> bool:
    """Is there a number in any of these tensors?  Without one such an op returns at once."""
    for value in values:
        if isinstance(value, (list, tuple)):
            if _anything(value):
                return True
        elif isinstance(value, Placement):
            if 0 not in value.layout.size:
                return True
        elif isinstance(value, torch.Tensor) and value.numel():
            return True
    return False


def _says_so(error: BaseException | None) -> bool:
    """A kernel that asks for the context of symbolic shapes has a result of unknown size (torch.library)."""
    while error is not None:
        if "get_ctx()" in str(error) or type(error).__name__ in {
            "DynamicOutputShapeException",
            "DataDependentOutputException",
        }:
            return True
        error = error.__cause__
    return False


def _look(value: Any) -> Any:
    """What of a result the host has to know: a tensor's shape, a number itself."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, (list, tuple)):
        return [_look(x) for x in value]
    return value


def _key(values: Sequence[Any]) -> Any:
    return tuple(repr(x.layout) if isinstance(x, Placement) else repr(_look(x)) for x in values)


def _zeros(value: Any) -> Any:
    if isinstance(value, Placement):
        return torch.zeros(value.layout.size, dtype=value.layout.dtype)
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, (list, tuple)):
        return [_zeros(x) for x in value]
    return value
