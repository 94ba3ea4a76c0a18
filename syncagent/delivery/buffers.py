"""Turns what the training threads left in their buffers into whole events and steps."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from syncagent.attribution.callsite import MODULE_CALL, NOWHERE
from syncagent.attribution.threads import thread_name
from syncagent.delivery.known_lines import KnownLines
from syncagent.events import CollectiveRecord, OpCount, Phase, StepRecord, SyncEvent, SyncKind
from syncagent.recording.recorder import Recorder, span_in
from syncagent.recording.records import Observation, SyncContext, ThreadState
from syncagent.recording.waits import SeenWait
from syncagent.support.pace import yield_gil
from syncagent.torchbridge.api_names import api_name
from syncagent.torchbridge.internals import op_name


class BufferReader:
    """Takes from the buffers of all threads; one thread at a time may read."""

    def __init__(
        self,
        recorder: Recorder,
        rank: int | None,
        policy_of: Callable[[tuple[int, ...]], str | None] = lambda _regions: None,
        is_named: Callable[[SyncEvent], bool] | None = None,
    ) -> None:
        """``policy_of`` says which policy judged a sync that the regions with these numbers cover.

        Where some steps alone are watched whole, ``is_named`` says whether an event is of such a step.
        """
        self._lines = KnownLines(is_named) if is_named is not None else None
        self._recorder = recorder
        self.rank = rank
        """Written into all records; may become known later."""
        self._policy_of = policy_of
        self.ended_steps: deque[tuple[int, int, int, Any]] = deque()
        """Steps that have ended: number, start and end (``perf_counter_ns``), OpenTelemetry's context."""
        self._anchor_ns = time.time_ns() - time.perf_counter_ns()
        self.lost: Counter[str] = Counter()
        """How many syncs were dropped, by reason."""

    def epoch_ns(self, moment_ns: int) -> int:
        """Return a moment of ``perf_counter_ns`` as nanoseconds since the Unix epoch, as in the records."""
        return moment_ns + self._anchor_ns

    def waiting(self) -> int:
        """Return how many syncs and steps are in the buffers."""
        return len(self.ended_steps) + sum(len(state.buffer) for state in self._recorder.threads.all)

    def left(self) -> int:
        """Return how many syncs have not been delivered, or were dropped since the last delivery."""
        return sum(state.undelivered() for state in self._recorder.threads.all)

    def take_steps(self) -> list[StepRecord]:
        """Take the steps that have ended, in their order."""
        steps = []
        for _ in range(len(self.ended_steps)):
            ended = self.ended_steps.popleft()
            self._recorder.collectives.step_ended(*ended[:3])
            steps.append(self._step(*ended))
            yield_gil()
        return steps

    def take_collectives(self) -> list[CollectiveRecord]:
        """Take what is known by now of the waits for collectives, by steps that were taken before."""
        return [
            CollectiveRecord(wait.step, self.epoch_ns(wait.start_ns), wait.waited_ns, self.rank)
            for wait in self._recorder.collectives.take()
        ]

    def take_events(self) -> list[SyncEvent]:
        """Take the syncs of all threads, in order of their start."""
        events: list[SyncEvent] = []
        waits = list(self._recorder.waits.take())  # first: what a sensor says of a wait comes when it is over
        for state in self._recorder.threads.all:
            buffer = state.buffer
            # Only this thread takes from the left; the owner may go on appending.
            for _ in range(len(buffer)):
                yield_gil()
                seen = buffer.popleft()
                try:
                    events.append(self._event(seen, state.name))
                except Exception as error:
                    # Counted, whatever it was.
                    self.lost["unreadable"] += 1
                    self._recorder.faults.add("reading what a thread left", error, "failed")
            yield_gil()
            if state.tallies or state.sums:
                events += self._sums(state)
            if state.dropped:
                self.lost["buffer full"] += state.dropped
                state.dropped = 0
        if self._lines is not None:
            for event in events:
                self._lines.learn(event)
        events += self._driver_events(waits)
        events.sort(key=lambda event: event.start_ns)
        return events

    def retire_threads(self) -> None:
        """Drop threads that have ended; a single thread needs no check."""
        if len(self._recorder.threads.all) > 1:
            self._recorder.threads.retire()

    def ops(self) -> tuple[OpCount, ...]:
        """Return host time by op and line, over all threads."""
        resolve = self._recorder.locator.sites.resolve
        return tuple(
            OpCount(
                op_name(entry.op),
                resolve(entry.point),
                Phase.BACKWARD if backward else Phase.OTHER,
                entry.count,
                entry.host_ns,
            )
            for (*_, backward), entry in self._recorder.op_sums().items()
        )

    def _step(self, step: int, start_ns: int, end_ns: int, context: Any) -> StepRecord:
        span = self._recorder.faults.guard("reading the program's span", lambda: span_in(context), None)
        return StepRecord(step, self.epoch_ns(start_ns), self.epoch_ns(end_ns), self.rank, span, context or None)

    def _sums(self, state: ThreadState) -> list[SyncEvent]:
        """Make one event of the syncs of a line that were only added up since the last time."""
        events = []
        for tally in (*state.tallies.values(), *state.sums.values()):
            count, stall_ns = tally.count - tally.delivered_count, tally.stall_ns - tally.delivered_ns
            if count and tally.last is not None:
                tally.delivered_count += count
                tally.delivered_ns += stall_ns
                event = self._event(tally.last, state.name)
                events.append(replace(event, repeats=count, stall_ns=stall_ns, longest_ns=tally.max_ns))
        return events

    def _driver_events(self, waits: list[SeenWait]) -> list[SyncEvent]:
        """Make events of the waits that only the driver saw."""
        names = {state.native_id: state.name for state in self._recorder.threads.all}
        events = []
        for wait in waits:
            yield_gil()
            if wait.look.is_set_up:
                self._recorder.set_up_in_driver += 1
                continue
            event = self._of_driver(wait, names.get(wait.tid) or wait.look.thread or thread_name(wait.tid))
            if self._lines is not None:
                event = self._lines.known(event, in_module=bool(wait.look.where.marks & MODULE_CALL))
            if wait.is_copy:
                event = replace(event, repeats=0)
            events.append(event)
        for short in self._recorder.waits.take_short():
            yield_gil()
            now_ns = time.perf_counter_ns()
            context, step = _of_driver(short.function), self._recorder.current_step()
            seen = Observation(context, SyncKind.OTHER, step, now_ns, short.stall_ns, None, violation=False)
            event = replace(self._event(seen, ""), repeats=short.calls, longest_ns=0)
            events += self._lines.shares(event) if self._lines is not None else [event]
        return events

    def _of_driver(self, wait: SeenWait, thread: str) -> SyncEvent:
        look, regions = wait.look, wait.look.regions
        allowed, violation = self._recorder.judge_ended(wait)
        context = _of_driver(wait.op)._replace(api=wait.api, where=look.where, phase=look.phase, allowed=allowed)
        seen = Observation(
            context, wait.kind, wait.step, wait.start_ns, wait.stall_ns, None, violation=violation, regions=regions
        )
        return self._event(seen, thread)

    def _event(self, seen: Observation, thread: str) -> SyncEvent:
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
            device=f"cuda:{context.device}" if context.device >= 0 else "cuda",
            stream=context.stream,
            thread=thread,
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
            policy=self._policy_of(seen.regions) if seen.regions else None,
            conditional=seen.conditional,
        )


def _of_driver(op: str) -> SyncContext:
    """Describe a wait that only the driver saw, as far as nothing is known of it."""
    return SyncContext(op, None, NOWHERE, Phase.OTHER, -1, 0, "driver", (), None, (), None, None, ())
