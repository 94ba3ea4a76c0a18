"""Shapes of an op's results, found on the meta device and remembered."""

from __future__ import annotations

from typing import Any

import torch

from syncagent.simulate.devices import META
from syncagent.simulate.memory import Placement, layout_of
from syncagent.simulate.requirements import aten

__all__ = ["MetaError", "NoMetaKernelError", "infer", "on_meta", "zeros"]

_LIMIT = 8192
_known: dict[Any, Any] = {}


class NoMetaKernelError(Exception):
    """The op has no meta kernel: its shapes are not known before it has run."""


class MetaError(Exception):
    """The meta kernel refused the arguments."""


def infer(op: Any, args: Any, kwargs: Any) -> Any:
    """Return the layout of what the op returns, a list of them, or the value itself if it is not a tensor.

    Arguments are placements, CPU tensors and plain values.
    """
    try:
        key = (op, _key(args, top=True), tuple((name, _key(value)) for name, value in kwargs.items()))
        found = _known.get(key, _known)
    except TypeError:  # an argument that cannot be hashed
        key, found = None, _known
    if found is _known:  # the one value that it cannot hold
        try:
            stand_in = zeros if op in _DIFFERENT_ON_META else on_meta
            found = _layouts(
                op(*[stand_in(x) for x in args], **{name: stand_in(value) for name, value in kwargs.items()})
            )
        except NotImplementedError:
            found = NoMetaKernelError
        except Exception as error:
            # Not remembered: most likely the program's own mistake, for which the CPU's kernel has a message.
            raise MetaError from error
        if key is not None:
            if len(_known) >= _LIMIT:
                _known.clear()
            _known[key] = found
    if found is NoMetaKernelError:
        raise NoMetaKernelError(str(op))
    return found


def on_meta(value: Any) -> Any:
    if isinstance(value, Placement):
        layout = value.layout
        return torch.empty_strided(layout.size, layout.stride, dtype=layout.dtype, device=META)
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=META)
    if isinstance(value, (list, tuple)):
        return [on_meta(x) for x in value]
    return META if isinstance(value, torch.device) else None if isinstance(value, torch.Generator) else value


_DIFFERENT_ON_META = frozenset(
    # The meta kernel gives the shapes of CUDA's auxiliary results; the CPU's kernels, forward and backward, use others.
    (aten._embedding_bag.default, aten._embedding_bag_forward_only.default)
)


def zeros(value: Any) -> Any:
    """Zeros in place of a tensor, and copies of those on the host, to try an op out on the CPU."""
    if isinstance(value, Placement):
        return torch.zeros(value.layout.size, dtype=value.layout.dtype)
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, (list, tuple)):
        return [zeros(x) for x in value]
    return value


def _layouts(result: Any) -> Any:
    if isinstance(result, torch.Tensor):
        return layout_of(result)
    if isinstance(result, (list, tuple)):
        return [_layouts(x) for x in result]
    return result


def _key(value: Any, *, top: bool = False) -> Any:
    if isinstance(value, Placement):
        return value.layout
    if isinstance(value, (list, tuple)):
        # A number beside tensors scales values, never sizes, and may differ in every step: its type is enough.
        scalars = top and any(isinstance(x, Placement) for x in value)
        return tuple(float if scalars and type(x) is float else _key(x) for x in value)
    if isinstance(value, torch.Tensor):
        return (value.dtype, tuple(value.shape), value.stride())
    if isinstance(value, torch.Generator):
        return None
    return (type(value), value)
