"""Python numbers that stand for tensors, turned back into tensors.

torch hands a 0-dim tensor that it made of a number (the 2 in ``x * 2``, the constants of a traced graph) to Python
kernels and modes as that number.  Few ops take it back in place of a tensor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from syncagent.torchbridge.frames import StandIns, ops_warn_at_once

Call = Callable[..., Any]

_NUMBERS = (bool, int, float, complex)
_REFUSED = "Expected a value of type"
"""In every error that torch raises where an argument does not fit the schema, which is before the op runs."""


def as_tensor(number: complex) -> Any:
    """Return the tensor on the host that torch had before it handed over a number."""
    make, host, dtypes, cpu = _maker()
    return make(host, number, dtype=dtypes[type(number)], device=cpu)


@functools.cache
def _maker() -> tuple[Call, Any, dict[type, Any], Any]:
    """What makes one: the CPU's kernel itself, bypassing the program's modes and whatever is recording a graph."""
    import torch

    op = torch.ops.aten.scalar_tensor.default
    make: Call = getattr(getattr(op, "_handle", None), "redispatch_boxed", op.redispatch)
    dtypes = {bool: torch.bool, int: torch.int64, float: torch.float64, complex: torch.complex128}
    return make, torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), dtypes, torch.device("cpu")


def restored(
    op: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None, error: BaseException
) -> tuple[list[Any], dict[str, Any]] | None:
    """Return arguments that the op takes, if numbers in place of tensors are why it refused them; else ``None``."""
    if not isinstance(error, RuntimeError) or _REFUSED not in str(error):
        return None
    try:
        arguments = op._schema.arguments
    except AttributeError:  # no op of the dispatcher
        return None
    takes_tensors = {argument.name: "Tensor" in str(argument.type) for argument in arguments}
    found = [
        _with_tensors(value) if takes else value
        for value, takes in zip(args, takes_tensors.values(), strict=False)
    ]  # fmt: skip
    named = {name: _with_tensors(value) if takes_tensors.get(name) else value for name, value in (kwargs or {}).items()}
    before, after = [*args, *(kwargs or {}).values()], [*found, *named.values()]
    return None if all(new is old for new, old in zip(after, before, strict=True)) else (found, named)


def _with_tensors(value: Any) -> Any:
    if type(value) in _NUMBERS:
        return as_tensor(value)
    if isinstance(value, (list, tuple)) and any(type(inner) in _NUMBERS for inner in value):
        return [as_tensor(inner) if type(inner) in _NUMBERS else inner for inner in value]
    return value


def exactly(call: Call, op: Any) -> Call:
    """Wrap what redispatches an op, so that it also takes the numbers that stand for tensors.

    As later arguments they are common (the copy that ``x + 1`` makes of the 1) and are looked for in every call; as the
    first one they are rare, and are replaced once the op has refused the call.
    """
    import torch

    if ops_warn_at_once():
        below, stand_ins = call, StandIns()

        def call(*args: Any, **kwargs: Any) -> Any:
            return stand_ins.call(below, args, kwargs)

    places = [i for i, a in enumerate(op._schema.arguments) if i and isinstance(a.type, torch.TensorType)]

    def with_tensors(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        for place in places:
            if place < len(args) and type(args[place]) in _NUMBERS:
                args = (*args[:place], as_tensor(args[place]), *args[place + 1 :])
        try:
            return call(keyset, *args, **kwargs)
        except RuntimeError as error:
            again = restored(op, args, kwargs, error)
            if again is None:
                raise
        return call(keyset, *again[0], **again[1])

    return with_tensors
