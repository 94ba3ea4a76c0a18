"""Makes a tensor that exists a view of other memory, or of the same memory in another way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from syncagent.simulate.lookups import aten
from syncagent.simulate.memory import Layout, Placement, nbytes_of
from syncagent.simulate.queues import order, queue
from syncagent.simulate.tensor import adopt, make_view

if TYPE_CHECKING:
    from syncagent.simulate.memory import Box
    from syncagent.simulate.tensor import SimulatedTensor

__all__ = ["assume", "behind", "replace", "resize", "set_placement"]

_NATIVE = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


def set_placement(target: SimulatedTensor, placement: Placement) -> None:
    """Make a tensor another view of the memory that it has."""
    layout = placement.layout
    # The CPU kernel of as_strided_ changes nothing but size, stride and offset of the tensor it is given.
    aten.as_strided_.default.redispatch(_NATIVE, target, layout.size, layout.stride, layout.offset)
    target._sim = placement


def resize(target: SimulatedTensor, layout: Layout) -> None:
    """Give a tensor another size; its storage grows, in stream order, if it has to."""
    placement = target._sim
    box = placement.box
    needed = nbytes_of(layout)
    if needed > box.nbytes:
        box.nbytes = needed
        queue(order("aten::resize_", placement.index, [placement]), lambda: _grow(placement, needed), [placement])
    replace(target, Placement(box, layout, placement.index))


_set_base_data = torch._C.TensorBase.data.__set__  # type: ignore[attr-defined]


def replace(target: SimulatedTensor, placement: Placement) -> None:
    """Make a tensor a view of any memory."""
    view = make_view(target, placement)
    _set_base_data(target, view)
    target._sim, target._held = placement, view._held


def _grow(placement: Placement, nbytes: int) -> None:
    placement.resolve().untyped_storage().resize_(nbytes)


def assume(target: SimulatedTensor, values: torch.Tensor) -> None:
    """An ``out=`` tensor that a kernel has resized: take its new shape."""
    box: Box = target._sim.box
    fresh = adopt(values, target._sim.index)._sim
    box.values, box.nbytes = values, fresh.box.nbytes
    replace(target, Placement(box, fresh.layout, fresh.index))


def behind(base: Placement, layout: Layout) -> Placement:
    """A layout that counts from where ``base`` begins, in ``base``'s box."""
    old = base.layout
    offset = layout.offset
    if old.offset:
        offset += old.offset * old.dtype.itemsize // layout.dtype.itemsize
    return Placement(base.box, layout._replace(offset=offset), base.index)
