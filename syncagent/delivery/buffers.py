"""Turns what the training threads left in their buffers into whole events and steps."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from syncagent.events import OpCount, Phase, StepRecord, SyncEvent, SyncKind
from syncagent.recording.recorder import Recorder, span_in
from syncagent.recording.records import Observation, ThreadState
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
    ) -> None:
        """``policy_of`` says which policy judged a sync that the regions with these numbers cover."""
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
        return [self._step(*self.ended_steps.popleft()) for _ in range(len(self.ended_steps))]

    def take_events(self) -> list[SyncEvent]:
        """Take the syncs of all threads, in order of their start."""
        events: list[SyncEvent] = []
        for state in self._recorder.threads.all:
            buffer = state.buffer
            # Only this thread takes from the left; the owner may go on appending.
            for _ in range(len(buffer)):
                yield_gil()
                seen = buffer.popleft()
                try:
                    events.append(self._event(seen, state))
                except Exception as error:
                    # Counted, whatever it was.
                    self.lost["unreadable"] += 1
                    self._recorder.faults.add("reading what a thread left", error, "failed")
            if state.tallies or state.sums:
                events += self._sums(state)
            if state.dropped:
                self.lost["buffer full"] += state.dropped
                state.dropped = 0
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
            device=f"cuda:{context.device}",
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
            policy=self._policy_of(seen.regions) if seen.regions else None,
            conditional=seen.conditional,
        )
