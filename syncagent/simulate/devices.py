"""The simulated devices and their streams, which of them each thread is on, and the queueing of ops on a stream.

Python sees ``cuda:i``.  In C++ the tensors live on torch's ``lazy`` device, which is otherwise unused: it needs no
device guard and no runtime, and autograd runs its backward pass in the calling thread.
"""

from __future__ import annotations

import functools
import os
import threading
import time
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from syncagent.errors import SimulationError, SimulationWarning
from syncagent.events import SyncKind
from syncagent.simulate import modelled, standin, work
from syncagent.simulate.engine import Engine, refuse_if_forked
from syncagent.simulate.failures import (
    OpFailed,
    all_for_program,
    failure_of,
    is_out_of_memory,
    out_of_memory,
    program_line,
)
from syncagent.simulate.requirements import find
from syncagent.simulate.waits import reported

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Self  # mypy's own copy: nothing is installed for it

    from syncagent.attribution.callsite import Point
    from syncagent.simulate.memory import Placement
    from syncagent.simulate.timing import Work

STAND_IN = "lazy"
CPU = torch.device("cpu")
META = torch.device("meta")
POOL_SIZE = 32
"""Streams share that many queues a device, as they do in CUDA: a thread for each Stream would never be given back."""

shown: list[torch.device] = []
"""Each device as the program sees it."""
stand_ins: list[torch.device] = []
"""For each device the one that its tensors are on in C++."""
_count = 0
_blocks: bool | None = None
"""Whether each op runs at once (CUDA_LAUNCH_BLOCKING=1); as CUDA reads it, at the first use of a device."""
_default_streams: list[Stream] = []
_pools: list[deque[Engine]] = []
_hidden: list[list[Engine]] = []
"""By device: queues that no Stream of the program's names, those of process groups."""
_unused: list[list[Engine]] = []
"""By device: those of them that are free to be used again."""


class _ThreadState(threading.local):
    device = 0

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        """By device: the stream that this thread has chosen there."""


_thread = _ThreadState()


# --- devices -----------------------------------------------------------------------------------------------


def set_count(devices: int) -> None:
    """Set how many devices there are; without any, tensors made on one before can still be computed with."""
    global _count, _blocks
    _count, _blocks = devices, None
    for index in range(len(shown), devices):
        shown.append(torch.device("cuda", index))
        stand_ins.append(torch.device(STAND_IN, index))
        _pools.append(deque())
        _hidden.append([])
        _unused.append([])
        engine = Engine(f"cuda:{index} stream 0")
        engine.is_default = True
        _default_streams.append(Stream(index, default=engine))


def count() -> int:
    return _count


def leave_thread() -> None:
    """Forget the device and the streams that this thread has chosen."""
    _thread.device = 0
    _thread.streams.clear()


def current() -> int:
    return _thread.device


def exchange(index: int) -> int:
    """Make a device this thread's current one and return the one before; a negative index changes nothing."""
    before = _thread.device
    if index >= 0:
        _check(index)
        _thread.device = index
    return before


def is_simulated(device: torch.device) -> bool:
    """Whether this is a simulated device, under either name."""
    return device.type in {STAND_IN, "cuda"}


def _check(index: int) -> None:
    there = _count or len(shown)
    if not 0 <= index < there:
        raise torch.AcceleratorError(f"CUDA error: invalid device ordinal (cuda:{index} of {there} simulated)")


def index_of(device: Any) -> int:
    """Index of a device that is given in any of the ways torch takes; ``None`` and ``"cuda"`` mean the current one."""
    if device is None:
        return _thread.device
    if isinstance(device, int):
        index = device
    else:
        device = torch.device(device)
        if device.type not in {"cuda", STAND_IN}:
            raise ValueError(f"Expected a cuda device, but got: {device}")
        index = _thread.device if device.index is None else device.index
    _check(index)
    return index


def translate(device: Any) -> Any:
    """Turn ``cuda`` in any form into its stand-in and leave other devices, and no device, as they are."""
    if isinstance(device, torch.device):
        is_cuda = device.type == "cuda"
    elif isinstance(device, str):
        is_cuda = device.startswith("cuda")
    else:
        is_cuda = isinstance(device, int) and not isinstance(device, bool)
    return stand_ins[index_of(device)] if is_cuda else device


# --- streams and events --------------------------------------------------------------------------------------


@all_for_program
class Stream:
    """A queue of device work."""

    def __init__(self, device: Any = None, priority: int = 0, *, default: Engine | None = None, **unknown: Any) -> None:
        if "stream_ptr" in unknown or "stream_id" in unknown:
            raise SimulationError("streams made from a raw pointer or id are not simulated")
        if default is None:  # a child may install the device, and is refused when it uses it
            refuse_if_forked()
        index = index_of(device)
        self.device_index = index
        self.device = shown[index]
        self.engine = default or _pooled_engine(index)
        self.priority = priority
        self.device_type = 1
        self.cuda_stream = self.stream_id = 0 if default else id(self.engine)
        self._before: list[tuple[int, Stream | None]] = []

    def synchronize(self) -> None:
        """Wait for all work of this stream."""
        wait = functools.partial(self.engine.wait, call=standin.STREAM_SYNCHRONIZE)
        reported("torch.cuda.Stream.synchronize", SyncKind.EXPLICIT, (self,), wait, is_idle=self.query())

    def query(self) -> bool:
        """Whether all work of this stream is done."""
        return self.engine.finished >= self.engine.submitted

    def wait_event(self, event: Event) -> None:
        """Let the work that comes next wait for an event, without the host."""
        event.wait(self)

    def wait_stream(self, stream: Stream) -> None:
        """Let the work that comes next wait for what another stream has so far, without the host."""
        self.engine.depend_on(stream.engine, stream.engine.submitted)

    def record_event(self, event: Event | None = None) -> Event:
        """Record an event, a new one if none is given."""
        event = event or Event()
        event.record(self)
        return event

    def is_capturing(self) -> bool:
        return False

    def __enter__(self) -> Self:
        self._before.append((current(), _thread.streams.get(self.device_index)))
        set_stream(self)
        return self

    def __exit__(self, *_: object) -> None:
        device, stream = self._before.pop()
        if stream is None:
            _thread.streams.pop(self.device_index, None)
        else:
            _thread.streams[self.device_index] = stream
        exchange(device)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.engine is self.engine

    def __hash__(self) -> int:
        return hash(self.engine)

    def __repr__(self) -> str:
        return f"<torch.cuda.Stream device={self.device} cuda_stream={self.cuda_stream:#x} (simulated)>"


_UNUSED = Engine("no stream")
"""Stands for the stream of an event that has not been recorded: nothing is ever queued here."""


@all_for_program
class Event:
    """A mark in a stream."""

    def __init__(
        self,
        enable_timing: bool = False,
        blocking: bool = False,  # noqa: ARG002 - a waiting host sleeps here in any case
        interprocess: bool = False,
        **_: Any,
    ) -> None:
        if interprocess:
            raise SimulationError("interprocess events are not simulated")
        self._timing = enable_timing
        self._engine, self._ticket = _UNUSED, 0
        self._stamp: list[float] = []
        self.modelled_ns: int | None = None

    def record(self, stream: Stream | None = None) -> None:
        """Put the mark behind all work that the stream has so far."""
        self._engine = (stream or current_stream()).engine
        stamp = self._stamp = []  # an earlier record may still be under way
        self._ticket = self._engine.submit(lambda: stamp.append(time.perf_counter()))
        clock = modelled.clock
        self.modelled_ns = None if clock is None else clock.marked(self._engine, self._ticket)

    def wait(self, stream: Stream | None = None) -> None:
        """Let the work that the stream gets next wait for the mark, without the host."""
        (stream or current_stream()).engine.depend_on(self._engine, self._ticket)

    def query(self) -> bool:
        """Whether the work before the mark is done."""
        return self._engine.finished >= self._ticket

    def synchronize(self) -> None:
        """Wait for the work before the mark."""
        wait = functools.partial(self._engine.wait, self._ticket, standin.EVENT_SYNCHRONIZE)
        reported(
            "torch.cuda.Event.synchronize",
            SyncKind.EXPLICIT,
            (self,),
            wait if self._ticket else lambda: None,
            is_idle=self.query(),
        )

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds from this mark to the other one; they are the CPU's, or modelled ones."""
        if not (self._timing and end._timing):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if not (self._ticket and end._ticket):
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        if not (self.query() and end.query()):
            raise RuntimeError("Both events must be completed before calculating elapsed time.")
        if self.modelled_ns is not None and end.modelled_ns is not None:
            return (end.modelled_ns - self.modelled_ns) / 1e6
        return (end._stamp[0] - self._stamp[0]) * 1e3

    def ipc_handle(self) -> bytes:
        """Not simulated."""
        raise SimulationError("CUDA IPC (sharing events between processes) is not simulated")

    def __repr__(self) -> str:
        return "<torch.cuda.Event (simulated)>"


def _pooled_engine(index: int) -> Engine:
    pool = _pools[index]
    if len(pool) < POOL_SIZE:
        pool.append(Engine(f"cuda:{index} stream {len(pool) + 1}"))
    else:
        pool.rotate(-1)
    return pool[-1]


def engines_of(index: int) -> list[Engine]:
    return [_default_streams[index].engine, *_pools[index], *_hidden[index]]


def take_hidden_engine(index: int) -> Engine:
    """A queue that the program has no Stream for; synchronizing the device waits for it as well."""
    if not _unused[index]:
        engine = Engine(f"cuda:{index} group's queue {len(_hidden[index]) + 1}")
        _hidden[index].append(engine)
        return engine
    return _unused[index].pop()


def give_hidden_engine_back(index: int, engine: Engine) -> None:
    """Finish what is queued there; another may then be given it."""
    engine.retire()
    _unused[index].append(engine)


def current_engine(index: int) -> Engine:
    """The queue of this thread's current stream on a device."""
    return (_thread.streams.get(index) or _default_streams[index]).engine


def default_stream(device: Any = None) -> Stream:
    return _default_streams[index_of(device)]


def current_stream(device: Any = None) -> Stream:
    index = index_of(device)
    return _thread.streams.get(index) or _default_streams[index]


def set_stream(stream: Stream | None) -> None:
    """Make a stream, and its device, this thread's current one."""
    if stream is not None:
        exchange(stream.device_index)
        _thread.streams[stream.device_index] = stream


# --- ops on a stream --------------------------------------------------------------------------------------------

_in_backward = find("_C._current_graph_task_id") or (lambda: 0)
_races: set[str] = set()


@runtime_checkable
class Describes(Protocol):
    """A kernel that can tell what it gives a GPU to do."""

    def __call__(self) -> object: ...
    def work(self) -> Work:
        """Describe it; called where times are modelled, on the thread that queues it."""


def order(name: str, index: int, placements: list[Placement]) -> Engine:
    """Return the current stream's queue, made to wait for what other streams still write of the op's arguments."""
    engine = current_engine(index)
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


def queue(
    engine: Engine, name: str, kernel: Callable[[], object], written: list[Placement], read: Sequence[Placement] = ()
) -> int:
    """Queue an op's kernel, record it as the last writer of the boxes that it writes, and return its ticket.

    ``read``: what it reads, where the kernel cannot tell (:class:`Describes`); only modelled times need that.
    """
    global _blocks
    ticket = engine.submit(keeping_failure(name, kernel, written))
    if modelled.clock is not None and name not in work.NO_KERNEL:
        own = kernel.work() if isinstance(kernel, Describes) else work.of_named(name, read, written)
        modelled.clock.queued(engine, ticket, own)
    for placement in written:
        box = placement.box
        if box.writer is not engine or box.ticket < ticket:  # unless a signal's handler has written to it since
            box.writer = engine
            box.ticket = ticket
    if _blocks is None:
        _blocks = os.environ.get("CUDA_LAUNCH_BLOCKING", "0") not in {"", "0"}
    if _blocks:
        engine.finish_at_once(ticket)
        if modelled.clock is not None:
            modelled.clock.waited([(engine, ticket)])
    return ticket


def keeping_failure(name: str, kernel: Callable[[], object], written: list[Placement]) -> Callable[[], None]:
    """An op's kernel, whose failure stays with the memory that it writes: readers get it instead of old numbers."""
    return functools.partial(_keep_failure_of, kernel, written, name, program_line())


def _keep_failure_of(kernel: Callable[[], object], written: list[Placement], name: str, point: Point | None) -> None:
    try:
        kernel()
    except BaseException as error:
        failure = failure_of(error, name, point)
        for placement in written:
            placement.box.failure = failure
        raise OpFailed(failure) from None


def run_here(
    engine: Engine, kernel: Callable[[], Any], call: standin.Call | None = None, op: Describes | None = None
) -> Any:
    """Queue a kernel, wait for it as in :meth:`Engine.wait` and return its result, or raise what it raised.

    ``op`` describes the kernel, if it is more than the copy that is ``call``.
    """
    outcome: list[Any] = [None, None]

    def task() -> None:
        try:
            outcome[0] = kernel()
        except BaseException as error:
            outcome[1] = error

    ticket = engine.submit(task)
    if modelled.clock is not None:
        if op is not None:
            modelled.clock.queued(engine, ticket, op.work())
        if call is not None and call.bytes:
            modelled.clock.queued(engine, ticket, work.of_call(call))
    engine.wait(ticket, call)
    error = outcome[1]
    if isinstance(error, OpFailed):
        error.__traceback__ = None  # whose frames hold ``outcome``
        error.failure.reach_host()
    if error is not None:
        raise out_of_memory(error) if is_out_of_memory(error) else error
    return outcome[0]
