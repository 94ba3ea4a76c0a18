"""Queues an op on its stream, after whatever other streams still write of its arguments."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from syncagent.simulate import devices
from syncagent.simulate.errors import SimulationWarning
from syncagent.simulate.requirements import find

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncagent.simulate.engine import Engine
    from syncagent.simulate.memory import Placement

__all__ = ["keeping_error", "order", "queue", "run_here"]

_in_backward = find("_C._current_graph_task_id") or (lambda: 0)
_races: set[str] = set()


def order(name: str, index: int, placements: list[Placement]) -> Engine:
    """Return the current stream's queue, made to wait for what other streams still write of the op's arguments."""
    engine = devices.current_engine(index)
    for placement in placements:
        box = placement.box
        writer = box.writer
        if writer is None or writer is engine or engine.is_ordered_after(writer, box.ticket):
            continue
        # Autograd itself orders backward ops after the forward op's stream.  Elsewhere this is a race on a GPU; here
        # the numbers are those that program order gives.
        if _in_backward() == -1 and name not in _races:
            _races.add(name)
            warnings.warn(
                f"{name} uses memory that another stream may still be writing: on a GPU this is a race. "
                "Use Stream.wait_stream or an event.",
                SimulationWarning,
                stacklevel=2,
            )
        engine.depend_on(writer, box.ticket)
    return engine


def queue(engine: Engine, kernel: Callable[[], object], written: list[Placement]) -> None:
    """Queue a kernel, and record it as the last writer of the boxes that it writes."""
    ticket = engine.submit(keeping_error(kernel, written))
    for placement in written:
        placement.box.writer = engine
        placement.box.ticket = ticket


def keeping_error(kernel: Callable[[], object], written: list[Placement]) -> Callable[[], None]:
    """The kernel, whose error stays with the memory that it writes: later readers get it instead of old numbers."""

    def run() -> None:
        try:
            kernel()
        except BaseException as error:
            for placement in written:
                placement.box.error = error
            raise

    return run


def run_here(engine: Engine, kernel: Callable[[], Any]) -> Any:
    """Queue a kernel, wait for it and return its result, or raise what it raised."""
    outcome: list[Any] = [None, None]

    def task() -> None:
        try:
            outcome[0] = kernel()
        except BaseException as error:
            outcome[1] = error

    engine.wait(engine.submit(task))
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
