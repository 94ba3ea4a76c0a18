"""How a kernel of ours passes a call on to the kernels below it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from syncagent.torchbridge import numbers

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncagent.rules.rule import Rule

    Call = Callable[..., Any]

__all__ = ["original"]


def original(rule: Rule) -> tuple[Call, Any]:
    """Return what runs an op as if it were not hooked, and the op; takes the keys left to dispatch to, then arguments.

    An op of one tensor and nothing else has a kernel that looks at the tensor before it calls this.
    """
    import torch

    name, _, overload = rule.op.removeprefix("aten::").partition(".")
    op = getattr(getattr(torch.ops.aten, name), overload or "default")
    call: Call = getattr(getattr(op, "_handle", None), "redispatch_boxed", op.redispatch)
    return call if len(op._schema.arguments) == 1 else numbers.exactly(call, op), op
