"""What traces a program's ops, and ops that take functions: torch looks at a tensor's exact class in both."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch

from syncagent.simulate import patches
from syncagent.simulate.requirements import ON_INSTANCES, find, note_loss
from syncagent.simulate.tensor import SimulatedTensor
from syncagent.support.import_hook import ImportHook

_TRACER = "torch.fx.experimental.proxy_tensor"
_CLASSES = "fx.experimental.proxy_tensor.HANDLED_TYPES"


def _let_tracers_handle_it() -> None:
    """``make_fx`` leaves ops on tensors of any other class to that class, and records what happens in there instead."""
    module: Any = sys.modules[_TRACER]
    classes = getattr(module, "HANDLED_TYPES", None)
    if classes is None:
        note_loss(f"torch.{_CLASSES}", ON_INSTANCES[_CLASSES])
        return
    patches.put(module, "HANDLED_TYPES", (*classes, SimulatedTensor))


def _run_ops_that_take_functions() -> None:
    """Let ``flex_attention`` and its kind run as the formula that torch has for every device."""
    higher_order: Any = find("_ops.HigherOrderOperator")
    if higher_order is None:
        return
    keys: Any = torch._C.DispatchKey
    original = higher_order.dispatch

    @functools.wraps(original)
    def dispatch(op: Any, key: Any, /, *args: Any, **kwargs: Any) -> Any:
        formula = op.py_kernels.get(keys.CompositeExplicitAutograd)
        if formula is not None and key == keys.AutogradLazy:
            # Recorded by autograd as what it consists of.  Torch's own rule traces the program's function, which may
            # hold tensors that torch.compile would have made arguments of.
            return formula(*args, **kwargs)
        if formula is not None and key == keys.Python:
            op.python_key_table.setdefault(SimulatedTensor, formula)
        return original(op, key, *args, **kwargs)

    patches.put(higher_order, "dispatch", dispatch)


def install() -> None:
    """Adapt both."""
    hook = ImportHook(_TRACER, _let_tracers_handle_it)
    hook.install()
    patches.also(lambda: None, hook.remove)
    _run_ops_that_take_functions()
