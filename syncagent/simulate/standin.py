"""CUDA's runtime, as far as the host waits in it: the simulated device lets it sleep in the C function that CUDA would.

Two small libraries stand in for it: torch's side, which calls ``cudaStreamSynchronize`` and its like, and the runtime's
side, which sleeps there until the device has done what it was handed.  So what watches these calls from outside, as the
agent does on a GPU, finds them here too.  Where the libraries are not, the host waits in Python.
"""

from __future__ import annotations

import ctypes
import functools
import os
from enum import IntEnum
from pathlib import Path
from typing import Any

from syncagent.rules.predicates import STAGED_BYTES

HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2
"""Directions of a copy: of ``cudaMemcpyKind``."""

Gate = ctypes.c_uint32
"""How much a thread waits for; at 0 it goes on.  Each wait has one of its own."""
OPEN = Gate(0)


class _Function(IntEnum):
    """What standin.c calls."""

    STREAM_SYNCHRONIZE = 0
    EVENT_SYNCHRONIZE = 1
    DEVICE_SYNCHRONIZE = 2
    COPY_PINNED = 3
    """A copy that returns at once, and then ``cudaStreamSynchronize``, which waits."""
    COPY_STAGED = 4
    """The same from memory that the driver does not know, which it copies before it returns."""
    COPY_PAGEABLE = 5
    """A copy that waits by itself, since the driver needs the memory until it is done, and then the same."""
    COPY_PAGEABLE_ASYNC = 6
    """Such a copy alone: the program has asked for it to be ``non_blocking``."""
    FREE = 7


PINNED = int(_Function.COPY_PINNED)


class Call(ctypes.Structure):
    """A function of CUDA's runtime in which the host waits, and what it is told there."""

    _fields_ = (("function", ctypes.c_int32), ("direction", ctypes.c_int32), ("bytes", ctypes.c_uint64))


STREAM_SYNCHRONIZE = Call(_Function.STREAM_SYNCHRONIZE)
EVENT_SYNCHRONIZE = Call(_Function.EVENT_SYNCHRONIZE)
DEVICE_SYNCHRONIZE = Call(_Function.DEVICE_SYNCHRONIZE)
FREE = Call(_Function.FREE)

_call = functools.lru_cache(maxsize=1024)(Call)


def read(nbytes: int = 8) -> Call:
    """Return how torch reads numbers of the device's: into pinned memory of its own."""
    return _call(_Function.COPY_PINNED, DEVICE_TO_HOST, nbytes)


def copy(direction: int, nbytes: int, *, direct: bool, blocking: bool) -> Call:
    """Return how a copy that waits does so; ``direct``: the host's memory is pinned, and the copy needs no other."""
    if direct:
        function = _Function.COPY_PINNED
    elif not blocking:
        function = _Function.COPY_PAGEABLE_ASYNC
    elif direction == HOST_TO_DEVICE and nbytes <= STAGED_BYTES:
        function = _Function.COPY_STAGED
    else:
        function = _Function.COPY_PAGEABLE
    return _call(function, direction, nbytes)


def rest_of(call: Call) -> Call:
    """Return what the host waits in when a signal has interrupted that call."""
    if call.function <= _Function.DEVICE_SYNCHRONIZE:
        return call
    return DEVICE_SYNCHRONIZE if call.function == _Function.FREE else STREAM_SYNCHRONIZE


# --- the libraries -----------------------------------------------------------------------------------------

_FILE = Path(__file__).parents[1] / "native" / "libsyncagent_standin.so"

_wait: Any = None
_open: Any = None
_why_not = ""


def load() -> None:
    """Load the libraries, if they are there."""
    global _wait, _open, _why_not
    if _wait is not None:
        return
    # Deep binding: torch makes the functions of a real runtime known to all libraries, if it has one.
    mode = os.RTLD_NOW | getattr(os, "RTLD_DEEPBIND", 0)
    try:
        # Without argument types: looking at those would take longer than the rest of the call.
        _open = ctypes.PyDLL(str(_FILE), mode=mode).syncagent_standin_open  # keeps the GIL, as it is over at once
        _open.restype = None
        _wait = ctypes.CDLL(str(_FILE), mode=mode).syncagent_standin_wait
    except (OSError, AttributeError) as error:
        _why_not = str(error)
        if not _FILE.exists():
            _why_not = f"{_FILE.name} was not built, which takes Linux, glibc and a C compiler"


def is_there() -> bool:
    """Whether the host can wait here."""
    return _wait is not None


def missing() -> str:
    """Return why it cannot; an empty string where it can, or where nobody has tried."""
    return _why_not


def sleep(gate: Gate, call: Call) -> bool:
    """Sleep until the gate is open, and return whether it is: signals end the sleep, too."""
    return not _wait(ctypes.byref(gate), ctypes.byref(call))


def open_by_one(gate: Gate) -> None:
    """Take one off what a thread waits for."""
    _open(ctypes.byref(gate))
