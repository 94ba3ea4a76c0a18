"""The queue of a stream that an op goes to, in order after what it reads and writes."""

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

__all__ = ["order", "queue", "run_here"]

_in_backward = find("_C._current_graph_task_id") or (lambda: 0)
_races: set[str] = set()


def order(name: str, index: int, placements: list[Placement]) -> Engine:
    """The queue that the op goes to, made to wait for what other streams still write of its arguments."""
    engine = devices.current_engine(index)
    for placement in placements:
        box = placement.box
        writer = box.writer
        if writer is None or writer is engine or engine.is_ordered_after(writer, box.ticket):
            continue
        # Autograd itself orders backward ops after the forward op's stream.  Elsewhere this is a race on a GPU; the
        # numbers here are those of the order that the program was written in.
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
    """Queue a kernel and note in the boxes that it writes who does so and when."""
    ticket = engine.submit(kernel)
    for placement in written:
        placement.box.writer = engine
        placement.box.ticket = ticket


def run_here(engine: Engine, kernel: Callable[[], Any]) -> Any:
    """Queue a kernel, wait for it, return what it returned; what it raises is raised here with its own type."""
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
