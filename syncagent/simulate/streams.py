"""``torch.cuda.Stream`` and ``torch.cuda.Event``."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from syncagent.events import SyncKind
from syncagent.simulate import devices
from syncagent.simulate.engine import refuse_if_forked
from syncagent.simulate.errors import SimulationError
from syncagent.simulate.waits import reported

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self  # mypy's own copy: nothing is installed for it

    from syncagent.simulate.engine import Engine

__all__ = ["Event", "Stream", "current_stream", "default_stream", "set_stream"]


class Stream:
    """A queue of device work."""

    def __init__(self, device: Any = None, priority: int = 0, **unknown: Any) -> None:
        if "stream_ptr" in unknown or "stream_id" in unknown:
            raise SimulationError("streams made from a raw pointer or id are not simulated")
        refuse_if_forked()
        self._set(devices.index_of(device), None, priority)

    def _set(self, index: int, engine: Engine | None, priority: int) -> None:
        self.device_index = index
        self.device = devices.shown(index)
        self.engine = devices.pooled_engine(index) if engine is None else engine
        self.priority = priority
        self.device_type = 1
        self.cuda_stream = 0 if self.engine is devices.default_engine(index) else id(self.engine)
        self.stream_id = self.cuda_stream
        self._before: list[tuple[int, Stream | None]] = []

    @classmethod
    def over(cls, index: int, engine: Engine) -> Stream:
        """The stream of an existing queue."""
        stream = cls.__new__(cls)
        stream._set(index, engine, 0)
        return stream

    def synchronize(self) -> None:
        """Wait for all work of this stream."""
        reported("torch.cuda.Stream.synchronize", SyncKind.EXPLICIT, (self,), self.engine.wait, is_idle=self.query())

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
        self._before.append((devices.current(), devices.state.streams.get(self.device_index)))
        devices.exchange(self.device_index)
        devices.state.streams[self.device_index] = self
        return self

    def __exit__(self, *_: object) -> None:
        device, stream = self._before.pop()
        _put(self.device_index, stream)
        devices.exchange(device)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.engine is self.engine

    def __hash__(self) -> int:
        return hash(self.engine)

    def __repr__(self) -> str:
        return f"<torch.cuda.Stream device={self.device} cuda_stream={self.cuda_stream:#x} (simulated)>"


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
        self._engine: Engine | None = None
        self._ticket = 0
        self._stamp: list[float] = []

    def record(self, stream: Stream | None = None) -> None:
        """Put the mark behind all work that the stream has so far."""
        self._engine = devices.current_engine(devices.current()) if stream is None else stream.engine
        stamp = self._stamp = []  # an earlier record may still be under way
        self._ticket = self._engine.submit(lambda: stamp.append(time.perf_counter()))

    def wait(self, stream: Stream | None = None) -> None:
        """Let the work that the stream gets next wait for the mark, without the host."""
        if self._engine is not None:
            waiting = devices.current_engine(devices.current()) if stream is None else stream.engine
            waiting.depend_on(self._engine, self._ticket)

    def query(self) -> bool:
        """Whether the work before the mark is done."""
        return self._engine is None or self._engine.finished >= self._ticket

    def synchronize(self) -> None:
        """Wait for the work before the mark."""
        engine, ticket = self._engine, self._ticket
        wait: Callable[[], None] = (lambda: None) if engine is None else (lambda: engine.wait(ticket))
        reported("torch.cuda.Event.synchronize", SyncKind.EXPLICIT, (self,), wait, is_idle=self.query())

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds from this mark to the other one; they are the CPU's."""
        if not (self._timing and end._timing):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if self._engine is None or end._engine is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        if not (self.query() and end.query()):
            raise RuntimeError("Both events must be completed before calculating elapsed time.")
        return (end._stamp[0] - self._stamp[0]) * 1e3

    def ipc_handle(self) -> bytes:
        """Not simulated."""
        raise SimulationError("CUDA IPC (sharing events between processes) is not simulated")

    def __repr__(self) -> str:
        return "<torch.cuda.Event (simulated)>"


_default_streams: dict[int, Stream] = {}
_lock = threading.Lock()


def default_stream(device: Any = None) -> Stream:
    index = devices.index_of(device)
    with _lock:
        if index not in _default_streams:
            _default_streams[index] = Stream.over(index, devices.default_engine(index))
        return _default_streams[index]


def current_stream(device: Any = None) -> Stream:
    index = devices.index_of(device)
    return devices.state.streams.get(index) or default_stream(index)


def set_stream(stream: Stream | None) -> None:
    """Make a stream this thread's current one."""
    if stream is not None:
        devices.exchange(stream.device_index)
        _put(stream.device_index, stream)


def _put(index: int, stream: Stream | None) -> None:
    if stream is None:
        devices.state.streams.pop(index, None)
    else:
        devices.state.streams[index] = stream
