"""``torch.Stream`` and ``torch.Event``: the names for any accelerator, which is the simulated one while it is there."""

from __future__ import annotations

from typing import Any

import torch

from syncagent.simulate import devices, patches


class _ForAnyDevice(type):
    """The class of these names: a call makes the simulated kind, and ``isinstance`` knows both kinds."""

    simulated: type
    original: type

    def __call__(cls, device: Any = None, *args: Any, **kwargs: Any) -> Any:
        # A number is the first of the three that torch makes a stream of again: the device's part refuses those.
        is_ours = not args and "stream_id" not in kwargs and type(device) is not int
        if is_ours and device is not None:
            is_ours = devices.is_simulated(torch.device(device))
        if not devices.count() or not is_ours:
            return cls.original(*(() if device is None else (device,)), *args, **kwargs)
        return cls._made(device, **kwargs)

    def _made(cls, device: Any, **kwargs: Any) -> Any:
        return cls.simulated(device, **kwargs)

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, (cls.simulated, cls.original))

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, (cls.simulated, cls.original))


class _EventsForAnyDevice(_ForAnyDevice):
    def _made(cls, device: Any, **kwargs: Any) -> Any:
        devices.index_of(device)  # raises for one that is not there; an event belongs to a device once it is recorded
        return cls.simulated(**kwargs)


def install() -> None:
    """Replace both names."""
    for name, kind, simulated in (
        ("Stream", _ForAnyDevice, devices.Stream),
        ("Event", _EventsForAnyDevice, devices.Event),
    ):
        names = {"__module__": "torch", "simulated": simulated, "original": getattr(torch, name)}
        patches.put(torch, name, kind(name, (), names))
