"""Where a tensor's numbers are: boxes that a worker fills, seen through layouts; pinned host memory."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from syncagent.simulate.engine import Engine, refuse_if_forked
from syncagent.simulate.failures import Failure, OpFailed

_storage_of: Any = torch._C.TensorBase.untyped_storage


class Layout(NamedTuple):
    """Size, stride, offset (in elements) and type: all that makes a tensor of a box."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype


def layout_of(tensor: torch.Tensor) -> Layout:
    return Layout(tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), tensor.dtype)


def stride_for(size: tuple[int, ...], memory_format: torch.memory_format | None = None) -> tuple[int, ...]:
    """The strides of a new tensor of that size and format."""
    if memory_format not in {None, torch.contiguous_format, torch.preserve_format}:
        return torch.empty(size, device="meta", memory_format=memory_format).stride()
    strides = itertools.accumulate((max(n, 1) for n in reversed(size[1:])), int.__mul__, initial=1)
    return tuple(reversed(list(strides))) if size else ()


@functools.lru_cache(maxsize=4096)  # asked for each allocation, and a program has few layouts
def nbytes_of(layout: Layout) -> int:
    """The bytes of storage from its beginning to the last element of a layout."""
    if 0 in layout.size:
        return 0
    last = layout.offset + sum((n - 1) * s for n, s in zip(layout.size, layout.stride, strict=True))
    return (last + 1) * layout.dtype.itemsize


_next_address = 0x7F00_0000_0000
"""Device addresses are never given out twice, and are aligned as CUDA's are."""


class Box:
    """One device allocation.  Views share it."""

    __slots__ = (
        "__weakref__", "_address", "_nbytes", "failure", "held", "layout", "own_form", "ticket", "values", "writer",
    )  # fmt: skip

    def __init__(self, layout: Layout, values: torch.Tensor | None = None) -> None:
        self.values = values
        """A CPU tensor over the whole storage; ``None`` until the kernel that makes it has run."""
        self.failure: Failure | None = None
        """Of the kernel that should have filled the box, or wrote to it last."""
        self.held: Any = None
        """A weak reference to the object that the program's tensors over it share: see allocator.py."""
        self.own_form: Any = None
        """The CPU kernel's result where CUDA's has another form; only the CPU's backward kernel reads it."""
        self.writer: Engine | None = None
        """The queue of the last kernel that writes to it, whose ticket comes next."""
        self.ticket = 0
        self.layout = layout
        self._nbytes = -1
        self._address = 0

    @property
    def nbytes(self) -> int:
        """The size that the host knows; the worker may be behind."""
        if self._nbytes < 0:
            whole = self.values
            self._nbytes = nbytes_of(self.layout) if whole is None else _storage_of(whole).nbytes()
        return self._nbytes

    @nbytes.setter
    def nbytes(self, nbytes: int) -> None:
        self._nbytes = nbytes

    @property
    def address(self) -> int:
        global _next_address
        if not self._address:
            size = (self.nbytes + 511) // 512 * 512 or 512
            address, _next_address = _next_address, _next_address + size  # in one go: threads and handlers ask as well
            self._address = self._address or address
        return self._address


@dataclass(slots=True, eq=False)
class Placement:
    """A box seen through a layout, on a device: a simulated tensor has it in place of data.  Immutable."""

    box: Box
    layout: Layout
    index: int
    view: torch.Tensor | None = None
    """The CPU tensor over the same memory, once it has been needed."""

    def resolve(self) -> torch.Tensor:
        """Return the CPU tensor over the same memory; only for kernels, on the worker, in their turn."""
        box = self.box
        if box.failure is not None:
            raise OpFailed(box.failure)
        if self.view is None:
            self.view = self._look()
        return self.view

    def shifted(self, layout: Layout) -> Placement:
        """The same box through a layout that counts from where this one begins."""
        own = self.layout
        if own.offset:
            offset = layout.offset + own.offset * own.dtype.itemsize // layout.dtype.itemsize
            layout = layout._replace(offset=offset)
        return Placement(self.box, layout, self.index)

    def _look(self) -> torch.Tensor:
        values = self.box.values
        if values is None:
            refuse_if_forked()
            raise RuntimeError("CUDA error: the kernel that should have written this memory did not run")
        size, stride, offset, dtype = self.layout
        if values.dtype == dtype:
            if values.shape == size and values.stride() == stride and values.storage_offset() == offset:
                return values
            return values.as_strided(size, stride, offset)
        whole = torch.empty(0, dtype=dtype)
        whole.set_(values.untyped_storage(), offset, size, stride)
        return whole


# Pinned memory is ordinary memory with a mark on its storage.  torch keeps a storage's Python object, and so the mark,
# as long as the storage lives.


def mark_pinned(tensor: torch.Tensor) -> torch.Tensor:
    _storage_of(tensor)._syncagent_pinned = True
    return tensor


def is_pinned(tensor: torch.Tensor) -> bool:
    """Whether a CPU tensor lies in memory that :func:`mark_pinned` has marked."""
    return tensor.layout == torch.strided and getattr(_storage_of(tensor), "_syncagent_pinned", False)


_to = torch._C.TensorBase.to
"""Torch's own: the one that the program calls looks for devices first."""


def in_type(values: torch.Tensor, dtype: torch.dtype, *, copy: bool = False) -> torch.Tensor:
    """A CPU tensor in that type; itself if it has it, unless there is to be a copy."""
    if values.dtype == dtype and not copy:
        return values
    converted: torch.Tensor = _to(values, dtype, copy=copy)
    return converted


# --- arguments and results, which may be lists of tensors, or lists of lists ---------------------------------------


def on_each(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to a value, or to each one in a list; tuples become lists, too."""
    if isinstance(value, (list, tuple)):
        return [on_each(function, x) for x in value]
    return function(value)


def flatten(values: Iterable[Any], into: list[Any] | None = None) -> list[Any]:
    """All values, those in lists included, in one list."""
    found: list[Any] = [] if into is None else into
    for x in values:
        if isinstance(x, (list, tuple)) and not isinstance(x, Layout):
            flatten(x, found)
        else:
            found.append(x)
    return found
