"""Names of devices, and which device and stream each thread is on.

Python sees ``cuda:i``.  In C++ the tensors live on torch's ``lazy`` device, which is otherwise unused: it needs no
device guard and no runtime, and autograd runs its backward pass in the calling thread.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch

from syncagent.simulate.engine import Engine

if TYPE_CHECKING:
    from syncagent.simulate.streams import Stream

__all__ = [
    "CPU",
    "META",
    "STAND_IN",
    "count",
    "current",
    "current_engine",
    "exchange",
    "index_of",
    "leave_thread",
    "most",
    "set_count",
    "shown",
    "stand_in",
    "state",
    "translate",
]

STAND_IN = "lazy"
CPU = torch.device("cpu")
META = torch.device("meta")

_count = 0
_shown: list[torch.device] = []
_stand_ins: list[torch.device] = []
_default_engines: list[Engine] = []
# CUDA hands out streams from a pool, too; a thread for each Stream object would never be given back.
_pools: list[list[Engine]] = []
_next_in_pool: list[int] = []
POOL_SIZE = 32


class _ThreadState(threading.local):
    device = 0

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}


state = _ThreadState()


def set_count(devices: int) -> None:
    """Have that many devices; with none, tensors that were made on one before are still computed with."""
    global _count
    _count = devices
    for index in range(len(_shown), devices):
        _shown.append(torch.device("cuda", index))
        _stand_ins.append(torch.device(STAND_IN, index))
        _default_engines.append(Engine(f"cuda:{index} stream 0"))
        _pools.append([])
        _next_in_pool.append(0)


def count() -> int:
    return _count


def most() -> int:
    """How many there have been at most."""
    return len(_shown)


def leave_thread() -> None:
    """Have this thread be on no device or stream of its own choice."""
    state.device = 0
    state.streams.clear()


def current() -> int:
    return state.device


def exchange(index: int) -> int:
    """Make a device this thread's current one and return the one before; a negative index changes nothing."""
    before = state.device
    if index >= 0:
        _check(index)
        state.device = index
    return before


def shown(index: int) -> torch.device:
    return _shown[index]


def stand_in(index: int) -> torch.device:
    return _stand_ins[index]


def default_engine(index: int) -> Engine:
    return _default_engines[index]


def pooled_engine(index: int) -> Engine:
    pool, turn = _pools[index], _next_in_pool[index]
    _next_in_pool[index] = (turn + 1) % POOL_SIZE
    if turn >= len(pool):
        pool.append(Engine(f"cuda:{index} stream {turn + 1}"))
    return pool[turn]


def engines_of(index: int) -> list[Engine]:
    return [_default_engines[index], *_pools[index]]


def current_engine(index: int) -> Engine:
    """The queue of this thread's current stream on a device."""
    stream = state.streams.get(index)
    return _default_engines[index] if stream is None else stream.engine


def _check(index: int) -> None:
    there = _count or len(_shown)
    if not 0 <= index < there:
        raise torch.AcceleratorError(f"CUDA error: invalid device ordinal (cuda:{index} of {there} simulated)")


def index_of(device: Any) -> int:
    """Index of a device that is given in any of the ways torch takes; ``None`` and ``"cuda"`` mean the current one."""
    if device is None:
        return state.device
    if isinstance(device, int):
        index = device
    else:
        device = torch.device(device)
        if device.type not in {"cuda", STAND_IN}:
            raise ValueError(f"Expected a cuda device, but got: {device}")
        index = state.device if device.index is None else device.index
    _check(index)
    return index


def translate(device: Any) -> Any:
    """Turn ``cuda`` in any form into its stand-in and leave other devices, and no device, as they are."""
    if device is None or isinstance(device, bool) or (isinstance(device, str) and not device.startswith("cuda")):
        return device
    if isinstance(device, (str, int, torch.device)):
        if not isinstance(device, int) and torch.device(device).type != "cuda":
            return device
        return stand_in(index_of(device))
    return device
