"""What torch's caching allocator does with a device's memory: blocks of segments, and the figures that it keeps."""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from typing import Any

# Sizes from c10/cuda/CUDACachingAllocator.h
_BLOCK = 512
SMALL = 1 << 20
_SMALL_SEGMENT = 2 << 20
_LARGE_SEGMENT = 20 << 20
_MIN_OF_ITS_OWN = 10 << 20
_GRAIN = 2 << 20


class _Figure:
    """How much there is of something, has been at most, and has come so far."""

    __slots__ = ("come", "current", "peak")

    def __init__(self) -> None:
        self.current = self.peak = self.come = 0

    def more(self, amount: int) -> None:
        self.come += amount
        self.current += amount
        self.peak = max(self.peak, self.current)

    def less(self, amount: int) -> None:
        self.current -= amount

    def as_torchs(self) -> dict[str, int]:
        freed = self.come - self.current
        return {"current": self.current, "peak": self.peak, "allocated": self.come, "freed": freed}


class _Figures:
    """Those of small allocations, of large ones, or of all."""

    def __init__(self) -> None:
        self.allocation, self.allocated_bytes, self.requested_bytes = _Figure(), _Figure(), _Figure()
        self.segment, self.reserved_bytes = _Figure(), _Figure()

    def take(self, size: int, requested: int) -> None:
        self.allocation.more(1)
        self.allocated_bytes.more(size)
        self.requested_bytes.more(requested)

    def give_back(self, size: int, requested: int) -> None:
        self.allocation.less(1)
        self.allocated_bytes.less(size)
        self.requested_bytes.less(requested)

    def reserve(self, size: int) -> None:
        self.segment.more(1)
        self.reserved_bytes.more(size)

    def release(self, size: int) -> None:
        self.segment.less(1)
        self.reserved_bytes.less(size)

    def reset(self, *, peak: bool) -> None:
        for figure in vars(self).values():
            if peak:
                figure.peak = figure.current
            else:
                figure.come = figure.current


class _Pool:
    """Segments for small or for large allocations on one device, as blocks that are free or taken."""

    def __init__(self, figures: tuple[_Figures, _Figures], *, small: bool) -> None:
        self._small = small
        self.figures = figures
        """Its own and those of the whole device."""
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
            for each in self.figures:
                each.reserve(whole)
        rest = whole - size
        if rest >= _BLOCK if self._small else rest > SMALL:
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
            for each in self.figures:
                each.release(size)
        return len(unused)

    def splits(self) -> tuple[int, int]:
        """How many blocks are free in segments that are in use, and their bytes."""
        sizes = [size for size, segment, _ in self._free if size != self._segments[segment]]
        return len(sizes), sum(sizes)

    def _add(self, size: int, segment: int, offset: int) -> None:
        insort(self._free, (size, segment, offset))
        self._begins[segment, offset] = size
        self._ends[segment, offset + size] = size

    def _forget(self, size: int, segment: int, offset: int) -> None:
        del self._free[bisect_left(self._free, (size, segment, offset))]
        del self._begins[segment, offset], self._ends[segment, offset + size]


class OfDevice:
    """All segments of a device."""

    def __init__(self) -> None:
        self.refused = 0
        """How often there was no room."""
        self._figures = {name: _Figures() for name in ("all", "small_pool", "large_pool")}
        self._pools = {
            small: _Pool((self._figures[name], self._figures["all"]), small=small)
            for small, name in ((True, "small_pool"), (False, "large_pool"))
        }
        self._taken: dict[int, tuple[_Pool, tuple[int, int, int], int]] = {}
        """By an allocation's number: the pool, the block, and the bytes that were asked for."""

    @property
    def in_use(self) -> int:
        """Bytes."""
        return self._figures["all"].allocated_bytes.current

    def refuse(self) -> None:
        """Note that there was no room for an allocation."""
        self.refused += 1

    def take(self, number: int, nbytes: int) -> None:
        size = -(-nbytes // _BLOCK) * _BLOCK
        pool = self._pools[size <= SMALL]
        block = pool.take(size)
        self._taken[number] = pool, block, nbytes
        for each in pool.figures:
            each.take(block[0], nbytes)

    def give_back(self, number: int) -> None:
        """Free an allocation; one of no bytes is not known here."""
        taken = self._taken.pop(number, None)
        if taken is None:
            return
        pool, block, nbytes = taken
        pool.give_back(*block)
        for each in pool.figures:
            each.give_back(block[0], nbytes)

    def release_unused(self) -> int:
        """Return the segments in which nothing is left to the driver; how many they were."""
        return sum(pool.release_unused() for pool in self._pools.values())

    def reset(self, *, peak: bool) -> None:
        for each in self._figures.values():
            each.reset(peak=peak)
        if not peak:
            self.refused = 0

    def figures(self) -> dict[str, Any]:
        """In the form of ``torch.cuda.memory_stats_as_nested_dict``.

        The peak of what is free in segments that are in use (``inactive_split``) is not kept: it is what there is now.
        """
        of = {
            name: {pool: getattr(each, name).as_torchs() for pool, each in self._figures.items()}
            for name in ("allocation", "segment", "allocated_bytes", "reserved_bytes", "requested_bytes")
        }
        of["active"], of["active_bytes"] = of["allocation"], of["allocated_bytes"]
        small, large = self._pools[True].splits(), self._pools[False].splits()
        for position, name in enumerate(("inactive_split", "inactive_split_bytes")):
            counts = {"small_pool": small[position], "large_pool": large[position]}
            counts["all"] = sum(counts.values())
            of[name] = {
                pool: {"current": count, "peak": count, "allocated": count, "freed": 0}
                for pool, count in counts.items()
            }
        segments = of["segment"]["all"]
        return {
            **of, "num_ooms": self.refused, "num_alloc_retries": 0, "num_sync_all_streams": 0, "max_split_size": -1,
            "num_device_alloc": segments["allocated"], "num_device_free": segments["freed"],
            "oversize_allocations": dict.fromkeys(segments, 0), "oversize_segments": dict.fromkeys(segments, 0),
        }  # fmt: skip
