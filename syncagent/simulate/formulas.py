"""Waits of autograd's formulas that look at the numbers, but not at those of tensors that are a subclass in Python.

The backward passes of ``prod`` and ``cumprod`` count the zeros on the host, to choose the shorter of two formulas.  For
a subclass of ``torch.Tensor``, as the tensors of this device are, they take the longer one without looking
(``isTensorSubclassLike`` in torch's FunctionsManual.cpp).  A GPU waits there, and so does this device.
"""

from __future__ import annotations

from typing import Any

from syncagent.events import SyncKind
from syncagent.simulate import devices, dispatch, standin, waits
from syncagent.simulate.dispatch import runs
from syncagent.simulate.facts import OpFacts
from syncagent.simulate.requirements import aten, find

_READS = ("aten::_local_scalar_dense", SyncKind.SCALAR_READ)
_FORMULAS = {
    "ProdBackward0": ("aten::nonzero", SyncKind.DYNAMIC_SHAPE),
    "ProdBackward1": _READS,
    "CumprodBackward0": _READS,
}
"""By the node of the graph, what waits in it on a GPU."""
_node_now = find("_C._current_autograd_node") or (lambda: None)
_task_now = find("_C._current_graph_task_id") or (lambda: 0)
_counted: tuple[int, int] | None = None
"""The backward pass and the node that was last waited in: the longer formula calls ``cumprod`` many times."""


@runs(aten.cumprod.default)
def _cumprod(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """Wait first, where a formula of the backward pass calls it for one that would have looked at the numbers."""
    node = _node_now()
    waiting = _FORMULAS.get(node.name()) if node is not None else None
    if waiting is not None:
        _wait_once(node, waiting, args)
    return dispatch.run_generic(facts, args, kwargs)


def _wait_once(node: Any, waiting: tuple[str, SyncKind], args: Any) -> None:
    global _counted
    number = getattr(node, "_sequence_nr", int)()
    this = (_task_now(), number)
    if this == _counted:
        return
    _counted = this
    op, kind = waiting
    engine = devices.order(op, args[0]._sim.index, [args[0]._sim])
    waits.reported(op, kind, args, lambda: devices.run_here(engine, lambda: None, standin.read()))
