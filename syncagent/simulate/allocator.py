"""A model of torch's caching allocator: what is allocated, and does ``empty_cache`` have anything to return?

Memory that a program has freed stays with the allocator, in segments that it has from the driver.  ``empty_cache``
returns the segments that are entirely free, and the driver waits for the device before it takes one.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from syncagent.simulate.engine import Engine, is_forked
from syncagent.simulate.memory import Box, Layout, nbytes_of
from syncagent.simulate.segments import SMALL, OfDevice

Answer = TypeVar("Answer")

_GIB = 1 << 30
_UNREAD = 2000
"""How many events may be pending: reading them costs more than noting them, so it is done in batches."""

_numbers = itertools.count()
_events: deque[tuple[int, int, Layout | int | None] | _Allocation] = deque()
"""What has not been read yet: number and device of an allocation, and its layout, or size in bytes, or ``None`` where
it is another one from now on; or an allocation that was freed."""
_reader = Engine("the model of the allocator", is_of_device=False)
"""Reads the events, and answers what is asked about them, on a thread of its own: there no signal's handler can come in
between two of its lines, neither to ask something else nor to leave with an exception."""


class Held:
    """Lives as long as the program has a tensor over an allocation, whether or not queued kernels still use it.

    torch's allocator does not wait for them either: it reuses memory in stream order.
    """

    __slots__ = ("__weakref__",)


class _Allocation(weakref.ref[Held]):
    """What is noted of an allocation, itself an event once it is freed.

    Python runs no code of ours then: what a signal's handler raises in a destructor would be lost.
    """

    __slots__ = ("index", "number")

    number: int
    index: int


_alive: dict[int, _Allocation] = {}
"""By their ids; nothing else may keep them."""


def hold(box: Box, index: int) -> Held:
    """Return the object that all tensors over this box share."""
    known = box.held
    held: Held | None = None if known is None else known()
    if held is None:
        held = Held()
        allocation = box.held = _Allocation(held, _events.append)
        allocation.number, allocation.index = next(_numbers), index
        _alive[id(allocation)] = allocation
        _events.append((allocation.number, index, box.layout))
        if len(_events) > _UNREAD and _reader.finished == _reader.submitted and not is_forked():
            _reader.submit(_read_all)
    return held


def _resize(allocation: _Allocation, nbytes: int) -> None:
    """The storage has that size from now on; for torch this is another allocation."""
    _events.append((allocation.number, allocation.index, None))
    allocation.number = next(_numbers)
    _events.append((allocation.number, allocation.index, nbytes))


def resize_allocation(box: Box, nbytes: int) -> None:
    """The host gives a box another size."""
    box.nbytes = nbytes
    if box.held is not None and box.held() is not None:
        _resize(box.held, nbytes)


@functools.cache
def capacity() -> int:
    """Bytes of memory that each device has: as many as the host."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def claim(layout: Layout, index: int) -> None:
    """Raise what CUDA raises where a device has no room for another allocation.

    Small ones are not looked at, but count as soon as their events are read.
    """
    if math.prod(layout.size) * layout.dtype.itemsize > SMALL:
        claim_bytes(nbytes_of(layout), index)


def claim_bytes(nbytes: int, index: int) -> None:
    """Do as :func:`claim` for that many bytes."""
    room = _room.get(index, 0)
    if nbytes > room:
        room = _answer(lambda: capacity() - of_device(index).in_use)
        if nbytes > room:
            _answer(of_device(index).refuse)
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {nbytes / _GIB:,.2f} GiB. GPU {index} has a total capacity of "
                f"{capacity() / _GIB:,.2f} GiB of which {room / _GIB:,.2f} GiB is free. (The memory of a simulated "
                "device is as large as the host's.)"
            )
    _room[index] = room - nbytes


def release_unused() -> bool:
    """Return free segments to the driver; ``False`` if there were none."""
    return bool(_answer(lambda: sum([device.release_unused() for device in _devices.values()])))


def figures(index: int) -> dict[str, Any]:
    """What ``torch.cuda.memory_stats_as_nested_dict`` returns, of tensors: libraries' own memory is not known."""
    return _answer(lambda: of_device(index).figures())


def reset_figures(index: int, *, peak: bool) -> None:
    """Start over with the peaks, or with what has been allocated and freed so far."""
    _answer(lambda: of_device(index).reset(peak=peak))


def _answer(question: Callable[[], Answer]) -> Answer:
    """Ask the model, once it knows of all that has happened to the tensors."""
    if is_forked() or _reader.runs_here():  # there in a finalizer: it is told what the model knows by now
        return question()
    answers: list[Answer] = []

    def read() -> None:
        _read_all()
        answers.append(question())

    _reader.wait(_reader.submit(read))
    return answers[0]


_devices: dict[int, OfDevice] = {}
_room: dict[int, int] = {}
"""How much of a device is free at least, but for small allocations: as if none had been freed since it was counted."""


def of_device(index: int) -> OfDevice:
    """The segments of a device."""
    known = _devices.get(index)
    return _devices.setdefault(index, OfDevice()) if known is None else known


def _read_all() -> None:
    for _ in range(len(_events)):
        event = _events.popleft()
        if isinstance(event, _Allocation):
            if _alive.pop(id(event), None) is not None:  # a signal's handler may have kept it from being noted
                of_device(event.index).give_back(event.number)
            continue
        number, index, layout = event
        if layout is None:
            of_device(index).give_back(number)
            continue
        nbytes = layout if isinstance(layout, int) else nbytes_of(layout)
        if nbytes:
            of_device(index).take(number, nbytes)
