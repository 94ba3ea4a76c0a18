"""Process groups that a program asks NCCL for: gloo stands in, and says so once.

The program sees what it has asked for: ``get_backend()`` is ``"nccl"``, and tensors on the CPU are refused.
"""

from __future__ import annotations

import functools
import sys
from types import SimpleNamespace
from typing import Any

import torch
from torch import distributed

from syncagent.errors import SimulationError
from syncagent.simulate import devices, patches
from syncagent.simulate.engine import Engine
from syncagent.simulate.requirements import find
from syncagent.support.log import log_once

_ON_DEVICE = torch.device("cuda")
_alive: list[StandIn] = []
"""Those of the groups that are not shut down: C++ holds a backend, but not what Python has added to it."""


class _Options(SimpleNamespace):
    """What ``ProcessGroupNCCL.Options`` is in a torch without NCCL."""

    def __init__(self, is_high_priority_stream: bool = False, **values: Any) -> None:
        super().__init__(is_high_priority_stream=is_high_priority_stream, config=SimpleNamespace(), **values)


_Gloo: Any = getattr(distributed, "ProcessGroupGloo", object)


class StandIn(_Gloo):  # type: ignore[misc]  # its base is Any
    """A backend of gloo's with a queue for each device, as NCCL has a stream."""

    Options = getattr(getattr(distributed, "ProcessGroupNCCL", None), "Options", _Options)
    supports_splitting = False
    supports_coalescing = False

    def __init__(self, store: Any, rank: int, size: int, options: Any = None) -> None:
        timeout = getattr(options, "_timeout", None)
        super().__init__(store, rank, size, **({} if timeout is None else {"timeout": timeout}))
        self._queues: dict[tuple[str, int], Engine] = {}
        _alive.append(self)
        log_once(
            "gloo-for-nccl",
            "gloo stands in for NCCL on the simulated device: the numbers are right, and the times are the CPU's",
            level="info",
        )

    def queue(self, index: int) -> Engine:
        """The queue of the collectives on a device."""
        return self._queue("collectives", index)

    def transfers(self, index: int) -> Engine:
        """The queue that waits until what was sent or is to be received is there."""
        return self._queue("transfers", index)

    def _queue(self, what: str, index: int) -> Engine:
        engine = self._queues.get((what, index))
        if engine is None:
            engine = self._queues[what, index] = devices.take_hidden_engine(index)
            engine.carries_collectives = True
        return engine

    def retire(self) -> None:
        """Finish what is queued."""
        while self._queues:
            (_, index), engine = self._queues.popitem()
            devices.give_hidden_engine_back(index, engine)
        if self in _alive:
            _alive.remove(self)


def backend_for(group: Any, *, or_none: bool = False) -> Any:
    """What carries a group's numbers for simulated devices: a :class:`StandIn`, or gloo where it was asked for."""
    backend: Any = None
    try:
        backend = group._get_backend(_ON_DEVICE)
    except RuntimeError:
        if not or_none:
            raise
    while hasattr(backend, "wrapped_pg"):  # TORCH_DISTRIBUTED_DEBUG=DETAIL
        backend = backend.wrapped_pg
    if backend is None or isinstance(backend, (StandIn, _Gloo)):
        return backend
    if or_none:
        return None
    raise SimulationError(
        f"torch.distributed over {group.name()} is not simulated on CUDA; ask for the backend nccl or gloo"
    )


def _ending(original: Any) -> Any:
    @functools.wraps(original)
    def end(self: Any) -> Any:
        backend = backend_for(self, or_none=True)
        if isinstance(backend, StandIn):
            backend.retire()
        return original(self)

    return end


def _splitting(original: Any) -> Any:
    """NCCL makes a group by splitting another one; here it is a new group, of the same ranks."""

    @functools.wraps(original)
    def split_group(parent_pg: Any = None, split_ranks: Any = None, *args: Any, **given: Any) -> Any:
        parent: Any = parent_pg or distributed.group.WORLD
        if split_ranks is None or not isinstance(backend_for(parent, or_none=True), StandIn):
            return original(parent_pg, split_ranks, *args, **given)
        ranks = distributed.get_process_group_ranks(parent)
        own = next((members for members in split_ranks if parent.rank() in members), None)
        if own is None:
            return None
        options = {name: given[name] for name in ("timeout", "pg_options", "group_desc") if name in given}
        if args:
            options["timeout"] = args[0]
        members = [ranks[member] for member in sorted(own)]
        return distributed.new_group(members, use_local_synchronization=True, **options)

    return split_group


def _put_everywhere(name: str, value: Any, original: Any) -> None:
    """Other modules of torch have imported it by name."""
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("torch.") and vars(module).get(name) is original:
            patches.put(module, name, value)


def _make(options: Any, _of_backend: Any) -> StandIn:
    return StandIn(options.store, options.group_rank, options.group_size, SimpleNamespace(_timeout=options.timeout))


def _put_into_table(backends: Any) -> None:
    table, ours = backends._plugins, backends._BackendPlugin(_make, True)
    before = table.get("NCCL")

    def restore() -> None:
        if before is None:
            table.pop("NCCL", None)
        else:
            table["NCCL"] = before

    patches.also(lambda: table.update(NCCL=ours), restore)


def install() -> None:
    """Put the stand-in where torch looks for NCCL."""
    module: Any = find("distributed.distributed_c10d")
    for holder in (module, distributed):
        patches.put(holder, "ProcessGroupNCCL", StandIn)
    patches.put(module, "_NCCL_AVAILABLE", True)
    patches.put(distributed.ProcessGroup, "shutdown", _ending(distributed.ProcessGroup.shutdown))
    if hasattr(module, "_create_nccl_process_group"):  # since 2.15, with a table of what makes each backend
        _put_into_table(distributed.Backend)
    split_group = getattr(module, "split_group", None)
    if split_group is not None:
        _put_everywhere("split_group", _splitting(split_group), split_group)
