"""The agent's own thread: takes what the training threads left, makes whole events of it, hands them to the sinks."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from syncagent.attribution.apis import api_name
from syncagent.event import OpCount, Phase, StepRecord, SyncEvent
from syncagent.log import log_once
from syncagent.recorder import phase_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from syncagent.recorder import Observation, Recorder, ThreadState
    from syncagent.sinks import Sink

__all__ = ["Pipeline"]

_INTERVAL_S = 0.1
_PATIENCE_S = 5.0
_FEW_THREADS = 1


class Pipeline:
    """Drains the threads' buffers into the sinks, ten times a second and at the end."""

    def __init__(self, recorder: Recorder, sinks: Iterable[Sink], rank: int | None, device_name: str = "cuda") -> None:
        self._recorder = recorder
        self._sinks = list(sinks)
        self._rank = rank
        self._device_name = device_name
        self._steps: deque[StepRecord] = deque()
        self._anchor_ns = time.time_ns() - time.perf_counter_ns()
        self._draining = threading.RLock()  # a signal handler may come in the middle of a delivery
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.lost: dict[str, int] = {}
        """What was dropped, by reason."""
        self.faults: list[str] = []

    # --- on the training threads

    def step_ended(self, step: int, start_ns: int, end_ns: int, user_span: object | None) -> None:
        """Take note of a step's end; times are ``perf_counter_ns``."""
        anchor = self._anchor_ns
        self._steps.append(StepRecord(step, start_ns + anchor, end_ns + anchor, self._rank, user_span))

    # --- the agent's thread

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="syncagent", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the thread, deliver the rest, close the sinks."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
        if self._draining.acquire(timeout=timeout_s):
            try:
                self.drain()
                self._each("close")
            finally:
                self._draining.release()
        else:
            self._fault("delivery", TimeoutError(f"a sink has not come back for {timeout_s:g} s"))

    def forget(self) -> None:
        """In a forked child: nothing is delivered from here, and locks may be held by threads that are gone."""
        self._draining = threading.RLock()  # a signal handler may come in the middle of a delivery
        self._sinks = []
        self._thread = None
        self._stopping = True

    def drain(self) -> None:
        """Deliver everything that is waiting; may be called from any thread."""
        if not self._draining.acquire(timeout=_PATIENCE_S):
            return  # a sink hangs; what is waiting stays where it is
        try:
            self._drain()
        finally:
            self._draining.release()

    def _drain(self) -> None:
        # Steps first: what a step holds was recorded before its end was, so it is in the buffers by now.
        steps = [self._steps.popleft() for _ in range(len(self._steps))]
        events = self._collect()
        given = 0
        for record in steps:
            before = given
            while given < len(events) and events[given].step <= record.step:
                given += 1
            self._give(events[before:given])
            self._each("step", record)
        self._give(events[given:])
        if len(self._recorder.states) > _FEW_THREADS:
            self._recorder.retire_threads()

    def flush(self) -> None:
        """Deliver everything and have the sinks pass it on."""
        self.drain()
        if self._draining.acquire(timeout=_PATIENCE_S):
            try:
                self._each("flush")
            finally:
                self._draining.release()

    def ops(self) -> tuple[OpCount, ...]:
        """Return host time by op and line, over all threads."""
        resolve = self._recorder.sites.resolve
        return tuple(
            OpCount(
                op._schema.name,
                resolve(entry.point),
                Phase.BACKWARD if backward else Phase.OTHER,
                entry.count,
                entry.host_ns,
            )
            for (op, _, backward), entry in self._recorder.op_sums().items()
        )

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(_INTERVAL_S)
            try:
                self.drain()
            except Exception as error:
                self._fault("draining", error)

    def _collect(self) -> list[SyncEvent]:
        events: list[SyncEvent] = []
        for state in self._recorder.states:
            buffer = state.buffer
            # Only this thread takes from the left; the owner may go on appending.
            for _ in range(len(buffer)):
                seen = buffer.popleft()
                try:
                    events.append(self._event(seen, state))
                except Exception as error:
                    self.lost["unreadable"] = self.lost.get("unreadable", 0) + 1
                    self._fault("attribution", error)
            if state.dropped:
                self.lost["buffer full"] = self.lost.get("buffer full", 0) + state.dropped
                state.dropped = 0
        if len(events) > 1:
            events.sort(key=lambda event: event.start_ns)
        return events

    def _event(self, seen: Observation, state: ThreadState) -> SyncEvent:
        resolve = self._recorder.sites.resolve
        user, library, _ = seen.where
        forward = resolve(seen.forward.user or seen.forward.library) if seen.forward is not None else None
        return SyncEvent(
            op=seen.op,
            api=api_name(seen.api),
            kind=seen.kind,
            start_ns=seen.start_ns + self._anchor_ns,
            stall_ns=seen.stall_ns,
            site=resolve(user or library),
            phase=phase_of(seen),
            step=seen.step,
            rank=self._rank,
            device=f"{self._device_name}:{seen.device}",
            stream=seen.stream,
            thread=state.name,
            sensor=seen.sensor,
            shapes=seen.shapes,
            allowed=seen.allowed,
            ranges=seen.ranges,
            module=seen.module,
            forward_site=forward,
            stack=tuple(site for site in map(resolve, seen.stack) if site is not None),
            library_site=resolve(library) if user is not None else None,
            user_span=seen.user_span,
        )

    def _give(self, events: Sequence[SyncEvent]) -> None:
        if events:
            self._each("events", events)

    def _each(self, call: str, *args: object) -> None:
        """Call every sink; one that fails is switched off, and said so once."""
        for sink in tuple(self._sinks):
            try:
                getattr(sink, call)(*args)
            except Exception as error:
                self._sinks.remove(sink)
                self._fault(f"sink {sink.name}", error)

    def _fault(self, part: str, error: Exception) -> None:
        text = f"{part} failed and is off: {type(error).__name__}: {error}"
        if text not in self.faults:
            self.faults.append(text)
        log_once(part, "a part of the agent failed and is off", part=part, error=repr(error))
