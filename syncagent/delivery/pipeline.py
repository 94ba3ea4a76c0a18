"""The agent's own thread: takes what the training threads left and hands whole events to the sinks."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from threading import get_ident

from syncagent.delivery.buffers import BufferReader
from syncagent.delivery.sink import Sink, Source
from syncagent.events import SyncEvent
from syncagent.support.faults import Faults
from syncagent.support.pace import STRETCH_NS, keep_pace, yield_gil
from syncagent.support.threads import AgentThread, own_randomness

_ROUND_S = 0.25
_DRAIN_EVERY_S = 1.0
_BUSY = 250
"""With that many syncs and steps waiting they are delivered in this round, else once a second: the first few of a
delivery take longer than the rest, since their code and data have left the caches."""
_UNHURRIED_NS = 40_000
"""How long the agent's thread works at a stretch where little is waiting: no read of a paced program may notice it."""
_EVENTS_PER_CALL = 8
_PATIENCE_S = 5.0
_MOST_S = 60.0
"""How long the end waits for a delivery that is slow, but goes on."""
_CLOSE_TIMEOUT_S = 2.0
"""How long a sink that has failed may take to close."""


class Pipeline:
    """Delivers from the threads' buffers to the sinks: each second, earlier where much is waiting, and at the end.

    A sink that fails is switched off and closed, and the others go on.
    """

    def __init__(
        self,
        buffers: BufferReader,
        sinks: Iterable[Sink],
        faults: Faults,
        each_round: Callable[[], None] = lambda: None,
    ) -> None:
        """``each_round`` is called four times a second on the agent's thread."""
        self._buffers = buffers
        self._sinks = list(sinks)
        self._faults = faults
        self._each_round = each_round
        self._draining = threading.RLock()  # a signal handler may come in the middle of a delivery
        self._wake = threading.Event()
        self._drainer: int | None = None
        self._stopping = self._is_finished = self._hangs = False
        self._calls = 0
        """How many calls of sinks have come back, by which a slow delivery is distinguished from one that hangs."""
        self._taken: list[deque[SyncEvent]] = []
        """Syncs that are still to be handed over: a signal handler may deliver more in the middle."""
        self._thread: threading.Thread | None = None
        self.drained_ns = 0
        """What was recorded before that moment (``perf_counter_ns``) has been delivered."""

    def connect(self, source: Source) -> None:
        """Show the sinks the agent they belong to, before anything is delivered."""
        self._call("connect", source)

    def policy_changed(self, policy: str) -> None:
        """Tell the sinks which policy is in force from now on."""
        self._call("policy_changed", policy)

    # --- the agent's thread

    def start(self) -> None:
        """Begin to deliver; without a thread, if none can be started, only at the end."""
        self._thread = AgentThread(target=self._run, name="syncagent")
        try:
            self._thread.start()
        except RuntimeError as error:
            self._thread = None
            self._faults.add("the agent's thread", error, "could not be started; all is delivered at the end")

    def stop(self, timeout_s: float | None = None, *, most_s: float = _MOST_S) -> None:
        """Deliver the rest and close the sinks, on the agent's thread.

        A call that hangs is waited for 5 s, or ``timeout_s``; a slow delivery as long as it goes on, but at most
        ``most_s``.
        """
        timeout_s = _PATIENCE_S if timeout_s is None else timeout_s
        self._stopping = True
        self._wake.set()
        thread = self._thread
        if thread is None and self._drainer is None:
            thread = AgentThread(target=self._finish, name="syncagent")
            with suppress(RuntimeError):  # the interpreter is ending
                thread.start()
        if thread is None or thread.ident is None or get_ident() in (thread.ident, self._drainer):
            self._finish()  # in the middle of a delivery: a signal handler stops the agent
            return
        ending_s, calls = time.monotonic() + most_s, -1
        while thread.is_alive() and calls != self._calls and (left_s := ending_s - time.monotonic()) > 0:
            calls = self._calls
            thread.join(min(timeout_s, left_s))
        if thread.is_alive():
            self._hangs = True
            what = "a sink has not come back for" if calls == self._calls else "delivery was not over after"
            waited_s = timeout_s if calls == self._calls else most_s
            self._faults.add("delivery", TimeoutError(f"{what} {waited_s:g} s"), "failed")

    def _finish(self) -> None:
        if self._is_finished:
            return
        self._is_finished = True
        try:
            self.drain()
        except Exception as error:
            self._faults.add("draining", error)
        self._call("close")

    @property
    def undelivered(self) -> int:
        """How many syncs a sink that hangs keeps from being delivered."""
        if not self._hangs:
            return 0
        return self._buffers.left() + sum(event.repeats for taken in self._taken.copy() for event in taken.copy())

    def forget(self) -> None:
        """In a forked child: nothing is delivered from here, and locks may be held by threads that are gone."""
        self._draining = threading.RLock()
        self._wake = threading.Event()
        self._sinks = []
        self._thread = None
        self._stopping = self._is_finished = True

    def drain(self) -> None:
        """Deliver everything that is waiting; may be called from any thread.

        Nothing while a sink hangs: what is waiting stays where it is.
        """
        self._deliver(self._drain)

    def flush(self) -> None:
        """Deliver everything and have the sinks pass it on."""
        self._deliver(self._drain, partial(self._call, "flush"))

    def _deliver(self, *calls: Callable[[], None]) -> None:
        """Make these calls while no other thread delivers."""
        if self._hangs or not self._draining.acquire(timeout=_PATIENCE_S):
            return
        before, self._drainer = self._drainer, get_ident()
        try:
            with own_randomness():
                for call in calls:
                    call()
        finally:
            self._drainer = before
            self._draining.release()

    def _drain(self) -> None:
        began_ns = time.perf_counter_ns()
        # Steps first: the syncs of a step were recorded before its end, so they are in the buffers by now.
        steps = self._buffers.take_steps()
        events = deque(self._buffers.take_events())
        self._taken.append(events)
        try:
            for record in steps:
                self._give(events, record.step)
                self._call("step", record)
                yield_gil()
            self._give(events, math.inf)
            for known in self._buffers.take_collectives():
                self._call("collectives", known)
                yield_gil()
        finally:
            self._taken.remove(events)
        self.drained_ns = began_ns

    def _give(self, events: deque[SyncEvent], last_step: float) -> None:
        """Hand over the events up to a step, a few at a time, with pauses for the training threads."""
        while events and events[0].step <= last_step:
            batch = [events.popleft()]
            while events and events[0].step <= last_step and len(batch) < _EVENTS_PER_CALL:
                batch.append(events.popleft())
            self._call("events", batch)  # they count as delivered: the first sink, which counts, does not hang
            yield_gil()

    def _call(self, method: str, *args: object) -> None:
        """Call a method of every sink."""
        for sink in self._sinks:
            try:
                getattr(sink, method)(*args)
                self._calls += 1
            except Exception as error:
                self._sinks = [other for other in self._sinks if other is not sink]
                self._faults.add(f"sink {sink.name}", error)
                if method != "close":
                    _close_in_time(sink)

    def _run(self) -> None:
        due_s = time.monotonic() + _DRAIN_EVERY_S
        while not self._stopping:
            self._wake.wait(_ROUND_S)
            try:
                keep_pace(_UNHURRIED_NS)
                self._call("tick")
                yield_gil()
                self._each_round()
                yield_gil()
                is_due, is_much = time.monotonic() >= due_s, self._buffers.waiting() >= _BUSY
                if is_due or is_much:
                    keep_pace(STRETCH_NS if is_much else _UNHURRIED_NS)
                    self.drain()
                if is_due:
                    due_s = time.monotonic() + _DRAIN_EVERY_S
                    self._buffers.retire_threads()
            except Exception as error:
                self._faults.add("draining", error, "failed")
        self._finish()


def _close_in_time(sink: Sink) -> None:
    """Have a sink that has failed release its files, threads and ports; errors in doing so are not reported."""

    def close() -> None:
        with suppress(Exception):
            sink.close()

    thread = AgentThread(target=close, name="syncagent-close")
    with suppress(RuntimeError):  # the interpreter is ending
        thread.start()
        thread.join(_CLOSE_TIMEOUT_S)
