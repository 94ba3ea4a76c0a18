"""How a kernel of ours passes a call on to the kernels below it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncagent.sensors.rules import Rule

    Call = Callable[..., Any]

__all__ = ["original"]


def original(rule: Rule) -> tuple[Call, Any]:
    """Return what runs an op as if it were not hooked, and the op; takes the keys left to dispatch to, then arguments.

    Undoes what boxing does to a Python number that stands for a tensor: a 0-dim tensor made from a number
    (``x[3] = 1.0``) reaches a Python kernel as that number, which no kernel takes.  Only ops with a second tensor
    argument can meet one.
    """
    import torch

    name, _, overload = rule.op.removeprefix("aten::").partition(".")
    op = getattr(getattr(torch.ops.aten, name), overload or "default")
    call: Call = getattr(getattr(op, "_handle", None), "redispatch_boxed", op.redispatch)
    places = [i for i, a in enumerate(op._schema.arguments) if i and isinstance(a.type, torch.TensorType)]
    if not places:
        return call, op
    dtypes = {bool: torch.bool, int: torch.int64, float: torch.float64, complex: torch.complex128}

    def call_with_tensors(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        for place in places:
            if place < len(args) and type(args[place]) in dtypes:
                number = args[place]
                tensor = torch.scalar_tensor(number, dtype=dtypes[type(number)], device="cpu")
                args = (*args[:place], tensor, *args[place + 1 :])
        return call(keyset, *args, **kwargs)

    return call_with_tensors, op
