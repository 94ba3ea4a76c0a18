"""Kernels of the simulated device's own for ops that torch composes of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from syncagent.simulate import dispatch
from syncagent.simulate.facts import OpFacts
from syncagent.simulate.requirements import MissingOp


def register(library: Any, op: Any, run: Callable[..., Any]) -> None:
    """Have a function run a composite op on simulated tensors; what it calls is recorded by autograd as usual."""
    if isinstance(op, MissingOp):
        return
    library.impl(op.name().removeprefix("aten::"), run, "AutogradLazy")

    def below_autograd(_facts: OpFacts, args: Any, kwargs: Any) -> Any:
        """In ``inference_mode`` there is no autograd, and the op comes to Python whole."""
        with dispatch.as_called():
            return run(*args, **kwargs)

    dispatch.SPECIAL[op] = below_autograd
