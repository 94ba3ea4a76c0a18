"""Classes of tensors that programs derive from torch.Tensor, for instance torchvision's, MONAI's and fastai's."""

from __future__ import annotations

import threading
import types
from typing import Any

import torch

from syncagent.simulate import patches
from syncagent.simulate.dispatch import runs
from syncagent.simulate.failures import for_program
from syncagent.simulate.requirements import aten, find
from syncagent.simulate.tensor import SimulatedTensor, TensorBase, make_view, replacement

_as_subclass = TensorBase.as_subclass
_rebuild = find("_tensor._rebuild_from_type_v2")
_torch_function: Any = torch.Tensor.__torch_function__.__func__  # type: ignore[attr-defined]  # a class method
_made: dict[type, type[SimulatedTensor]] = {}
"""By class of the program: the same for tensors on the device."""


class _Wanted(threading.local):
    kind: type[SimulatedTensor] = SimulatedTensor
    """What the next alias that this thread makes is an instance of."""


_wanted = _Wanted()


class OfProgram(SimulatedTensor):
    """What the classes for the device have in common: they ask ``__torch_function__``, as other subclasses do."""

    of: type
    """The program's own class."""

    @classmethod
    @for_program
    def __torch_function__(  # type: ignore[override]  # torch's stub has narrower types
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Do what torch.Tensor's does; a class that inherits ``__torch_dispatch__`` may not have that one itself."""
        return _torch_function(cls, func, types, args, kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        function, args = super().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]  # torch's
        return (function, args) if _rebuild is None else (_rebuild, (function, self.of, args, dict(self.__dict__)))


def _on_device(kind: type) -> type[SimulatedTensor] | None:
    """Return the class for tensors on the device; ``None`` if the program's class runs its ops itself."""
    if kind is torch.Tensor:
        return SimulatedTensor
    if issubclass(kind, SimulatedTensor):
        return kind
    if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:  # type: ignore[attr-defined]  # not in the stub
        return None
    if kind not in _made:
        # The slots: programs copy the __dict__ of one tensor to another, and the memory must not go with it.
        contents = {"__slots__": ("_sim", "_held"), "of": kind, "__module__": kind.__module__}
        made = types.new_class(kind.__name__, (kind, OfProgram), exec_body=lambda namespace: namespace.update(contents))
        made.__qualname__ = kind.__qualname__
        _made[kind] = made
    return _made[kind]


def _like(tensor: Any, cls: type) -> Any:
    """``Tensor.as_subclass``: an alias of a tensor that is an instance of the class, wherever the tensor is."""
    if not isinstance(tensor, SimulatedTensor):
        if issubclass(cls, SimulatedTensor):
            cls = getattr(cls, "of", torch.Tensor)
        return _as_subclass(tensor, cls)
    kind = _on_device(cls)
    if kind is None:
        return _as_subclass(tensor, cls)
    before, _wanted.kind = _wanted.kind, kind
    try:
        return _as_subclass(tensor, kind)
    finally:
        _wanted.kind = before


@runs(aten.alias.default)
def _alias(_facts: Any, args: Any, _kwargs: Any) -> Any:
    """Within as_subclass it is of the class that is asked for: torch would not give the object another one."""
    return make_view(args[0], args[0]._sim, _wanted.kind)


def install() -> None:
    """Replace ``Tensor.as_subclass``."""
    patches.put(torch.Tensor, "as_subclass", replacement(_like, torch.Tensor.as_subclass, is_method=True))
