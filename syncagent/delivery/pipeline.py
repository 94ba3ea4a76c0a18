"""The agent's own thread: takes what the training threads left, makes whole events of it, hands them to the sinks."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import replace
from threading import get_ident
from typing import TYPE_CHECKING, Any

from syncagent.attribution.apis import api_name
from syncagent.events import OpCount, Phase, StepRecord, SyncEvent, SyncKind
from syncagent.recording.recorder import span_in
from syncagent.support.pace import STRETCH_NS, breathe, keep_pace
from syncagent.support.threads import AgentThread
from syncagent.telemetry.randomness import drawing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from syncagent.delivery.sink import Sink
    from syncagent.recording.recorder import Recorder
    from syncagent.recording.records import Observation, ThreadState

__all__ = ["Pipeline"]

_INTERVAL_S = 0.25
_SELDOM_S = 1.0
_ENOUGH = 250
"""Syncs and steps for which a round is made at once; for fewer, one is made each second: the first few of a round take
longer than the rest, since their code and data have left the caches."""
_UNHURRIED_NS = 200_000
"""How long the agent's thread works at a stretch where little is waiting."""
_PATIENCE_S = 5.0
_CLOSING_S = 2.0
"""How long a sink that has failed may take to let go of what it holds."""
_FEW_THREADS = 1
_FEW = 8
"""Events that the sinks are given at once."""


class Pipeline:
    """Drains the threads' buffers into the sinks: each second, earlier where much is waiting, and at the end."""

    def __init__(
        self,
        recorder: Recorder,
        sinks: Iterable[Sink],
        rank: int | None,
        device_name: str = "cuda",
        each_round: Callable[[], None] = lambda: None,
    ) -> None:
        """``each_round`` is called four times a second on the agent's thread."""
        self._each_round = each_round
        self._recorder = recorder
        self.faults = recorder.faults
        self._sinks = list(sinks)
        self.rank = rank
        """Written into all records; may become known later."""
        self._device_name = device_name
        self.steps: deque[tuple[int, int, int, Any]] = deque()
        """Steps that have ended: number, start and end (``perf_counter_ns``), OpenTelemetry's context."""
        self._anchor_ns = time.time_ns() - time.perf_counter_ns()
        self._draining = threading.RLock()  # a signal handler may come in the middle of a delivery
        self._wake = threading.Event()
        self._drainer: int | None = None
        self._stopping = self._is_finished = self._hangs = False
        self._thread: threading.Thread | None = None
        self.lost: dict[str, int] = {}
        """What was dropped, by reason."""
        self.drained_ns = 0
        """What was recorded before that moment (``perf_counter_ns``) has been delivered."""
        self.policy_of: Callable[[tuple[int, ...]], str | None] = lambda _regions: None
        """Says which policy judged a sync that regions cover."""

    def epoch_ns(self, moment_ns: int) -> int:
        """Return a moment of ``perf_counter_ns`` as nanoseconds since the Unix epoch, as in the records."""
        return moment_ns + self._anchor_ns

    def policy_changed(self, policy: str) -> None:
        """Tell the sinks that write the policy in force into what they send."""
        for sink in self._sinks:
            if hasattr(sink, "policy"):
                sink.policy = policy

    # --- the agent's thread

    def start(self) -> None:
        """Begin to deliver; where no thread can be had, at the end only."""
        self._thread = AgentThread(target=self._run, name="syncagent")
        try:
            self._thread.start()
        except RuntimeError as error:
            self._thread = None
            self.faults.add("the agent's thread", error, "could not be started; all is delivered at the end")

    def stop(self, timeout_s: float = _PATIENCE_S) -> None:
        """Deliver the rest and close the sinks, on the agent's thread; a sink that hangs is waited for that long."""
        self._stopping = True
        self._wake.set()
        thread = self._thread
        if thread is None and self._drainer is None:
            thread = AgentThread(target=self._finish, name="syncagent")
            try:
                thread.start()
            except RuntimeError:  # the interpreter is ending
                thread = None
        if thread is None or get_ident() in (thread.ident, self._drainer):
            self._finish()  # in the middle of a delivery: a signal handler stops the agent
            return
        thread.join(timeout_s)
        if thread.is_alive():
            self._hangs = True
            self.faults.add("delivery", TimeoutError(f"a sink has not come back for {timeout_s:g} s"), "failed")

    def _finish(self) -> None:
        if self._is_finished:
            return
        self._is_finished = True
        try:
            self.drain()
        except Exception as error:
            self.faults.add("draining", error)
        self._each("close")

    def forget(self) -> None:
        """In a forked child: nothing is delivered from here, and locks may be held by threads that are gone."""
        self._draining = threading.RLock()
        self._wake = threading.Event()
        self._sinks = []
        self._thread = None
        self._stopping = self._is_finished = True

    def drain(self) -> None:
        """Deliver everything that is waiting; may be called from any thread."""
        if self._hangs or not self._draining.acquire(timeout=_PATIENCE_S):
            return  # a sink hangs; what is waiting stays where it is
        before, self._drainer = self._drainer, get_ident()
        began_ns = time.perf_counter_ns()
        try:
            with drawing():
                self._drain()
            self.drained_ns = began_ns
        finally:
            self._drainer = before
            self._draining.release()

    def _drain(self) -> None:
        # Steps first: what a step holds was recorded before its end was, so it is in the buffers by now.
        steps = [self._step(*self.steps.popleft()) for _ in range(len(self.steps))]
        events = self._collect()
        given = 0
        for record in steps:
            before = given
            while given < len(events) and events[given].step <= record.step:
                given += 1
            self._give(events[before:given])
            self._each("step", record)
        self._give(events[given:])

    def _step(self, step: int, start_ns: int, end_ns: int, context: Any) -> StepRecord:
        anchor = self._anchor_ns
        try:
            span = span_in(context)
        except Exception as error:
            span = None
            self.faults.add("reading the program's span", error, "failed")
        return StepRecord(step, start_ns + anchor, end_ns + anchor, self.rank, span, context or None)

    def flush(self) -> None:
        """Deliver everything and have the sinks pass it on."""
        self.drain()
        if not self._hangs and self._draining.acquire(timeout=_PATIENCE_S):
            try:
                self._each("flush")
            finally:
                self._draining.release()

    def ops(self) -> tuple[OpCount, ...]:
        """Return host time by op and line, over all threads."""
        resolve = self._recorder.locator.sites.resolve
        return tuple(
            OpCount(
                entry.op._schema.name,
                resolve(entry.point),
                Phase.BACKWARD if backward else Phase.OTHER,
                entry.count,
                entry.host_ns,
            )
            for (*_, backward), entry in self._recorder.op_sums().items()
        )

    def _run(self) -> None:
        keep_pace()
        due_s = time.monotonic() + _SELDOM_S
        while not self._stopping:
            self._wake.wait(_INTERVAL_S)
            try:
                self._each_round()
                is_due, is_much = time.monotonic() >= due_s, self._waiting() >= _ENOUGH
                if is_due or is_much:
                    keep_pace(STRETCH_NS if is_much else _UNHURRIED_NS)
                    self.drain()
                if is_due:
                    due_s = time.monotonic() + _SELDOM_S
                    if len(self._recorder.threads.all) > _FEW_THREADS:
                        self._recorder.threads.retire()
            except Exception as error:
                self.faults.add("draining", error, "failed")
        self._finish()

    def _waiting(self) -> int:
        return len(self.steps) + sum(len(state.buffer) for state in self._recorder.threads.all)

    def _collect(self) -> list[SyncEvent]:
        events: list[SyncEvent] = []
        for state in self._recorder.threads.all:
            buffer = state.buffer
            # Only this thread takes from the left; the owner may go on appending.
            for _ in range(len(buffer)):
                breathe()
                seen = buffer.popleft()
                try:
                    events.append(self._event(seen, state))
                except Exception as error:
                    # Counted, whatever it was.
                    self.lost["unreadable"] = self.lost.get("unreadable", 0) + 1
                    self.faults.add("reading what a thread left", error, "failed")
            if state.tallies or state.sums:
                events += self._sums(state)
            if state.dropped:
                self.lost["buffer full"] = self.lost.get("buffer full", 0) + state.dropped
                state.dropped = 0
        if len(events) > 1:
            events.sort(key=lambda event: event.start_ns)
        return events

    def _sums(self, state: ThreadState) -> list[SyncEvent]:
        """Make one event of the syncs of a line that were only added up since the last time."""
        events = []
        for tally in (*state.tallies.values(), *state.sums.values()):
            count, stall_ns = tally.count - tally.delivered_count, tally.stall_ns - tally.delivered_ns
            if count and tally.last is not None:
                tally.delivered_count += count
                tally.delivered_ns += stall_ns
                event = self._event(tally.last, state)
                events.append(replace(event, repeats=count, stall_ns=stall_ns, longest_ns=tally.max_ns))
        return events

    def _event(self, seen: Observation, state: ThreadState) -> SyncEvent:
        if not (isinstance(seen.kind, SyncKind) and isinstance(seen.start_ns, int) and isinstance(seen.stall_ns, int)):
            raise TypeError(f"{seen.context.op}: kind {seen.kind!r}, start {seen.start_ns!r}, stall {seen.stall_ns!r}")
        resolve = self._recorder.locator.sites.resolve
        context = seen.context
        user, library, _ = context.where
        forward = resolve(context.forward.user or context.forward.library) if context.forward is not None else None
        return SyncEvent(
            op=context.op,
            api=api_name(context.api),
            kind=seen.kind,
            start_ns=seen.start_ns + self._anchor_ns,
            stall_ns=seen.stall_ns,
            site=resolve(user or library),
            phase=context.phase,
            step=seen.step,
            rank=self.rank,
            device=f"{self._device_name}:{context.device}",
            stream=context.stream,
            thread=state.name,
            sensor=context.sensor,
            shapes=tuple(tuple(shape) for shape in context.shapes),
            allowed=context.allowed,
            ranges=context.ranges,
            module=context.module,
            forward_site=forward,
            stack=tuple(site for site in map(resolve, context.stack) if site is not None),
            library_site=resolve(library) if user is not None else None,
            user_span=span_in(seen.user_context),
            user_context=seen.user_context or None,
            violation=seen.violation,
            regions=seen.regions,
            policy=self.policy_of(seen.regions) if seen.regions else None,
            conditional=seen.conditional,
        )

    def _give(self, events: Sequence[SyncEvent]) -> None:
        for first in range(0, len(events), _FEW):
            self._each("events", events[first : first + _FEW])
            breathe()

    def _each(self, call: str, *args: object) -> None:
        """Call every sink; one that fails is switched off, and said so once."""
        for sink in tuple(self._sinks):
            try:
                getattr(sink, call)(*args)
            except Exception as error:
                if sink in self._sinks:
                    self._sinks.remove(sink)
                self.faults.add(f"sink {sink.name}", error)
                if call != "close":
                    _close_in_time(sink)


def _close_in_time(sink: Sink) -> None:
    """Have a sink that has failed let go of its files, threads and ports; whatever comes of that is no news."""

    def close() -> None:
        try:
            sink.close()
        except Exception:
            pass

    thread = AgentThread(target=close, name="syncagent-close")
    try:
        thread.start()
    except RuntimeError:  # the interpreter is ending
        return
    thread.join(_CLOSING_S)
