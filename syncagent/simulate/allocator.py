"""A model of torch's caching allocator: does ``empty_cache`` have any memory to return to the driver?

Memory that a program has freed stays with the allocator, in segments that it has from the driver.  ``empty_cache``
returns the segments that are entirely free, and the driver waits for the device before it takes one.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import threading
import weakref
from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import torch

from syncagent.simulate.memory import Box, Layout, nbytes_of

# Sizes from c10/cuda/CUDACachingAllocator.h
_BLOCK = 512
_SMALL = 1 << 20
_GIB = 1 << 30
_SMALL_SEGMENT = 2 << 20
_LARGE_SEGMENT = 20 << 20
_MIN_OF_ITS_OWN = 10 << 20
_GRAIN = 2 << 20

_UNREAD = 2000
"""How many events may be pending: reading them costs more than noting them, so it is done in batches."""

_numbers = itertools.count()
_events: deque[tuple[int, int, Any]] = deque()
"""What has not been read yet: number and device of an allocation, and its layout, or ``None`` when it was freed."""
_reading = threading.Lock()


class Held:
    """Lives as long as the program has a tensor over an allocation, whether or not queued kernels still use it.

    torch's allocator does not wait for them either: it reuses memory in stream order.
    """

    __slots__ = ("__weakref__", "_index", "_number")

    def __init__(self, layout: Layout, index: int) -> None:
        self._number = next(_numbers)
        self._index = index
        _events.append((self._number, index, layout))
        if len(_events) > _UNREAD:
            _read()

    def __del__(self, _note: Callable[[Any], None] = _events.append) -> None:
        _note((self._number, self._index, None))


def hold(box: Box, index: int) -> Held:
    """Return the object that all tensors over this box share."""
    known = box.held
    held: Held | None = None if known is None else known()
    if held is None:
        held = Held(box.layout, index)
        box.held = weakref.ref(held)
    return held


@functools.cache
def capacity() -> int:
    """Bytes of memory that each device has: as many as the host."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def claim(layout: Layout, index: int) -> None:
    """Raise what CUDA raises where a device has no room for another allocation.

    Small ones are not looked at, but count as soon as their events are read.
    """
    if math.prod(layout.size) * layout.dtype.itemsize > _SMALL:
        claim_bytes(nbytes_of(layout), index)


def claim_bytes(nbytes: int, index: int) -> None:
    """Do as :func:`claim` for that many bytes."""
    room = _room.get(index, 0)
    if nbytes > room:
        _read()
        room = capacity() - _in_use[index]
        if nbytes > room:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {nbytes / _GIB:,.2f} GiB. GPU {index} has a total capacity of "
                f"{capacity() / _GIB:,.2f} GiB of which {room / _GIB:,.2f} GiB is free. (The memory of a simulated "
                "device is as large as the host's.)"
            )
    _room[index] = room - nbytes


def release_unused() -> bool:
    """Return free segments to the driver; ``False`` if there were none."""
    _read()
    with _reading:
        return sum(pool.release_unused() for pool in _pools.values()) > 0


class _Pool:
    """Segments for small or for large allocations on one device, as blocks that are free or taken."""

    def __init__(self, *, small: bool) -> None:
        self._small = small
        self._free: list[tuple[int, int, int]] = []  # size, segment, offset: best fit first
        self._begins: dict[tuple[int, int], int] = {}
        self._ends: dict[tuple[int, int], int] = {}
        self._segments: dict[int, int] = {}
        self._made = itertools.count()

    def take(self, size: int) -> tuple[int, int, int]:
        at = bisect_left(self._free, (size, -1, -1))
        if at < len(self._free):
            whole, segment, offset = self._free[at]
            self._forget(whole, segment, offset)
        else:
            segment, offset = next(self._made), 0
            whole = _LARGE_SEGMENT if size < _MIN_OF_ITS_OWN else -(-size // _GRAIN) * _GRAIN
            whole = self._segments[segment] = _SMALL_SEGMENT if self._small else whole
        rest = whole - size
        if rest >= _BLOCK if self._small else rest > _SMALL:
            self._add(rest, segment, offset + size)
            return size, segment, offset
        return whole, segment, offset

    def give_back(self, size: int, segment: int, offset: int) -> None:
        before, after = self._ends.get((segment, offset), 0), self._begins.get((segment, offset + size), 0)
        if before:
            self._forget(before, segment, offset - before)
        if after:
            self._forget(after, segment, offset + size)
        self._add(before + size + after, segment, offset - before)

    def release_unused(self) -> int:
        unused = [block for block in self._free if block[0] == self._segments[block[1]]]
        for size, segment, offset in unused:
            self._forget(size, segment, offset)
            del self._segments[segment]
        return len(unused)

    def _add(self, size: int, segment: int, offset: int) -> None:
        insort(self._free, (size, segment, offset))
        self._begins[segment, offset] = size
        self._ends[segment, offset + size] = size

    def _forget(self, size: int, segment: int, offset: int) -> None:
        del self._free[bisect_left(self._free, (size, segment, offset))]
        del self._begins[segment, offset], self._ends[segment, offset + size]


_pools: dict[tuple[int, bool], _Pool] = {}
_taken: dict[int, tuple[_Pool, tuple[int, int, int]]] = {}
_in_use: Counter[int] = Counter()
"""Bytes by device, as of the events that have been read."""
_room: dict[int, int] = {}
"""How much of a device is free at least, but for small allocations: as if none had been freed since it was counted."""


def _read() -> None:
    """Update the segments with what has happened to the tensors."""
    if not _reading.acquire(blocking=False):
        return  # another thread is doing it
    try:
        for _ in range(len(_events)):
            number, index, layout = _events.popleft()
            size = 0 if layout is None else -(-nbytes_of(layout) // _BLOCK) * _BLOCK
            if size:
                small = size <= _SMALL
                pool = _pools.setdefault((index, small), _Pool(small=small))
                block = pool.take(size)
                _taken[number] = pool, block
                _in_use[index] += block[0]
            elif number in _taken:
                pool, block = _taken.pop(number)
                pool.give_back(*block)
                _in_use[index] -= block[0]
    finally:
        _reading.release()
