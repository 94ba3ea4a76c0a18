"""A clock that says when a named GPU would have done what the program has queued, and its host would have gone on.

The simulated device computes on the CPU, and its own waits last as long as that takes.  With a clock in
:data:`clock` each op also gets a time by its work (:mod:`syncagent.simulate.timing`), each stream a modelled end, and
the host a modelled now.  The host's time is modelled as well: so much for each op and each kernel, since an op that
comes to Python here costs the program many times what it costs with CUDA.  Only where the program does something else
for long is that measured, on this machine's processor: the least that it has taken between the same two calls so far,
since a machine that is busy with other things makes any of them look long.

One clock serves all threads: what several of them use adds up, as under one interpreter lock.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from syncagent.simulate import timing
from syncagent.simulate.timing import Work

if TYPE_CHECKING:
    from syncagent.simulate.datasheets import Datasheet


class Queue(Protocol):
    """What the clock needs of a stream's queue: its name, which begins with the device's, and to be a key."""

    name: str


clock: Clock | None = None
"""The one in force; ``None`` where times are the CPU's, which is so unless the program asks for a GPU's."""


_PLACES = 16_384


class _Thread(threading.local):
    """What the clock knows of a thread."""

    depth = 0
    """How many calls into the simulation it is in."""
    place: object = None
    """The line that called an op last."""
    asked = 0
    """How often the clock was read since."""
    left_ns: int | None = None
    """Processor time of the thread when it left the simulation last; ``None`` before it has been there."""
    stalled_ns = 0
    """How long it has waited for the GPU."""


class _Stream:
    """The end of each kernel in one stream."""

    def __init__(self) -> None:
        self.end_ns = 0
        self.after_ns = 0
        """What comes next starts no sooner."""
        self.kernels: deque[tuple[int, int]] = deque(maxlen=timing.QUEUE_LIMIT)
        """Ticket and end of the newest ones."""

    def end_of(self, ticket: int) -> int:
        """Return the end of a kernel, or of the last one before it."""
        for other, end_ns in reversed(self.kernels):
            if other <= ticket:
                return end_ns
        return 0


class _Device:
    """When a device was busy, as far as it is known: its streams are taken to be beside each other."""

    def __init__(self) -> None:
        self.busy_ns = 0
        self.until_ns = 0


class Clock:
    """The modelled time of the host and of all streams, in nanoseconds; it begins at ``time.perf_counter_ns()``."""

    def __init__(
        self,
        gpu: Datasheet,
        key: str,
        *,
        processor_ns: Callable[[], int] = time.thread_time_ns,
        is_in_backward: Callable[[], bool] = lambda: False,
    ) -> None:
        """``processor_ns`` returns how long the calling thread has used the processor.

        ``is_in_backward`` says whether autograd calls the op, and no Python.
        """
        self.gpu = gpu
        self.key = key
        """The GPU's name in settings and reports."""
        self.processor_ns = processor_ns
        self._is_in_backward = is_in_backward
        self._lock = threading.RLock()
        self._threads = _Thread()
        self._streams: weakref.WeakKeyDictionary[Queue, _Stream] = weakref.WeakKeyDictionary()
        self._devices: dict[str, _Device] = {}
        self._now_ns = time.perf_counter_ns()
        self._own_work: dict[object, int] = {}
        """The least processor time between two calls of ops, by the lines that called them."""

    # --- the host

    def now(self) -> int:
        """Return the host's modelled time."""
        with self._lock:
            thread = self._threads
            if not thread.depth and thread.left_ns is not None:
                self._catch_up(thread)
            return self._now_ns

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Make of the function that runs ops one that counts what each op costs the host, and not its own time."""

        def timed(*args: Any) -> Any:
            thread = self._threads
            if thread.depth:
                return call(*args)
            with self._lock:
                caller = sys._getframe(2)
                self._catch_up(thread, (caller.f_code, caller.f_lasti))
                self._now_ns += timing.BACKWARD_CALL_NS if self._is_in_backward() else timing.CALL_NS
            thread.depth = 1
            try:
                return call(*args)
            finally:
                thread.depth = 0
                thread.left_ns = self.processor_ns()

        return timed

    def _catch_up(self, thread: _Thread, place: object = None) -> None:
        """Add what this thread has used outside of the simulation, if it is more than calls of ops take."""
        key = (thread.place, thread.asked, place)
        if place is None:
            thread.asked += 1
        else:
            thread.place, thread.asked = place, 0
        at_ns = self.processor_ns()
        if thread.left_ns is None:
            thread.left_ns = at_ns
            return
        used_ns = at_ns - thread.left_ns
        if used_ns <= timing.LONG_NS:
            used_ns = 0
        least_ns = self._own_work.get(key)
        if least_ns is None or used_ns < least_ns:
            if len(self._own_work) < _PLACES:
                self._own_work[key] = used_ns
            least_ns = used_ns
        self._now_ns += least_ns
        if used_ns:
            thread.left_ns = at_ns

    @property
    def stalled_ns(self) -> int:
        """How long this thread has waited for the GPU so far."""
        return self._threads.stalled_ns

    # --- streams

    def queued(self, engine: Queue, ticket: int, work: Work) -> None:
        """Put work behind what a stream has."""
        with self._lock:
            thread = self._threads
            if not thread.depth:
                self._catch_up(thread)
            stream = self.stream(engine)
            if len(stream.kernels) == timing.QUEUE_LIMIT:
                self._now_ns = max(self._now_ns, stream.kernels[0][1])
            launched_ns = self._now_ns
            self._now_ns += timing.launch_ns(work)
            start_ns = max(launched_ns + timing.LATENCY_NS, stream.end_ns, stream.after_ns)
            stream.end_ns = start_ns + timing.duration_ns(work, self.gpu)
            stream.kernels.append((ticket, stream.end_ns))
            device = self._devices.setdefault(engine.name.partition(" ")[0], _Device())
            device.busy_ns += max(stream.end_ns - max(start_ns, device.until_ns), 0)
            device.until_ns = max(device.until_ns, stream.end_ns)

    def marked(self, engine: Queue, ticket: int) -> int:
        """Put an event behind what a stream has, and return when it will be reached."""
        with self._lock:
            stream = self.stream(engine)
            reached_ns = max(self.now() + timing.LATENCY_NS, stream.end_ns, stream.after_ns)
            stream.kernels.append((ticket, reached_ns))
            return reached_ns

    def ordered(self, engine: Queue, before: Queue, ticket: int) -> None:
        """Have what comes next in a stream wait for a kernel of another one."""
        with self._lock:
            stream = self.stream(engine)
            stream.after_ns = max(stream.after_ns, self.stream(before).end_of(ticket))

    def waited(self, marks: Iterable[tuple[Queue, int]]) -> None:
        """Let the host go on when those kernels have ended: what it has to wait for that is its stall."""
        with self._lock:
            now_ns = self.now()
            end_ns = max((self.stream(engine).end_of(ticket) for engine, ticket in marks), default=0)
            if end_ns > now_ns:
                self._now_ns = end_ns + timing.RETURN_NS
                self._threads.stalled_ns += self._now_ns - now_ns

    def stream(self, engine: Queue) -> _Stream:
        found = self._streams.get(engine)
        if found is None:
            found = self._streams[engine] = _Stream()
        return found

    # --- for a report

    def busy_ns(self) -> int:
        """Return how long the devices were busy up to now, in all."""
        with self._lock:
            now_ns = self.now()
            return sum(device.busy_ns - max(device.until_ns - now_ns, 0) for device in self._devices.values())


_last: Clock | None = None
"""The one that was in force last: what a program has done by it may be asked about once it is gone."""


def put(new: Clock | None) -> None:
    """Have that clock count from now on, or none."""
    global clock, _last
    clock, _last = new, new or _last


def now_ns() -> int:
    """Return the host's modelled time; once there is no clock any more, that of the last one."""
    return time.perf_counter_ns() if _last is None else _last.now()


def gpu_busy_ns() -> int:
    """Return how long the modelled GPUs of this process were busy up to now, in all."""
    return 0 if _last is None else _last.busy_ns()
