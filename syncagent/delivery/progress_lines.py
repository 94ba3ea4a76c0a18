"""Logs a line every so many seconds about what has happened since the last one, also where nothing has."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from syncagent.delivery.sink import Sink, Source
from syncagent.events import Phase, StepRecord, SyncEvent, Weight
from syncagent.report import wording
from syncagent.report.model import RunInfo
from syncagent.support.log import get_logger, is_for_programs

_MOST_LINES = 2_000
"""How many lines of the program an interval keeps apart."""


@dataclass(slots=True)
class _Interval:
    """What has happened since the last line; times in nanoseconds."""

    began_s: float
    """By the clock of the run, in seconds since its start."""
    steps: int = 0
    syncs: float = 0.0
    is_estimated: bool = False
    """Whether some syncs stand for others, which were not recorded."""
    thread_ns: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """The stalls of each thread outside the backward pass."""
    backward_ns: float = 0.0
    line_ns: defaultdict[tuple[str, int], float] = field(default_factory=lambda: defaultdict(float))
    """The stall of each line of the program's."""

    def add(self, event: SyncEvent, weight: Weight) -> None:
        self.syncs += event.repeats * weight.syncs
        self.is_estimated |= weight.syncs != 1.0
        stall_ns = event.stall_ns * weight.stall
        if event.phase is Phase.BACKWARD:
            self.backward_ns += stall_ns
        else:
            self.thread_ns[event.thread] += stall_ns
        line = ("", 0) if event.site is None else (event.site.file, event.site.line)
        if line in self.line_ns or len(self.line_ns) < _MOST_LINES:
            self.line_ns[line] += stall_ns

    @property
    def stall_ns(self) -> float:
        """How long the training thread was stalled, as in a report's ``totals.stall_share``."""
        return max(self.thread_ns.values(), default=0.0) + self.backward_ns


class ProgressLines(Sink):
    """Logs a line each ``every_s`` seconds, in a process that has no rank and on rank 0."""

    name = "progress"

    def __init__(self, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._due_s = clock() + every_s
        self._source: Source | None = None
        self._steps = 0
        self._stepped_s = -math.inf
        """When the last step was delivered."""
        self._interval = _Interval(0.0)
        # A signal handler that asks for a report delivers in the middle of anything.
        self._lock = threading.RLock()

    def connect(self, source: Source) -> None:
        self._source = source

    def events(self, batch: Sequence[SyncEvent]) -> None:
        assert self._source is not None
        with self._lock:
            for event in batch:
                self._interval.add(event, self._source.scale(event))

    def step(self, record: StepRecord) -> None:  # noqa: ARG002 - it is only counted
        with self._lock:
            self._steps += 1
            self._interval.steps += 1
            self._stepped_s = self._clock()

    def tick(self) -> None:
        """Log a line if one is due; times that have been missed, as by a process that was stopped, get none."""
        now_s = self._clock()
        if now_s < self._due_s or self._source is None:
            return
        self._due_s += self._every_s
        if self._due_s <= now_s:
            self._due_s = now_s + self._every_s
        run = self._source.facts().run
        with self._lock:
            interval, self._interval = self._interval, _Interval(run.duration_s)
            steps, idle_s = self._steps, now_s - self._stepped_s
        if run.rank in (None, 0):
            _log(run, interval, steps, idle_s)


def _log(run: RunInfo, interval: _Interval, steps: int, idle_s: float) -> None:
    """Log what happened in an interval that ends now; the last step ended ``idle_s`` ago."""
    passed_s = run.duration_s - interval.began_s
    syncs = round(interval.syncs)
    per_step = interval.syncs / interval.steps if interval.steps else None
    share = min(interval.stall_ns / 1e9 / passed_s, 1.0) if passed_s > 0 else 0.0
    (file, number), line_ns = max(interval.line_ns.items(), key=lambda item: item[1], default=(("", 0), 0.0))
    line = wording.place(file, number, run.cwd) if line_ns > 0 else None
    line_share = min(line_ns / 1e9 / passed_s, 1.0) if passed_s > 0 else 0.0

    about = "about " if interval.is_estimated else ""
    parts = [duration(run.duration_s)]
    if interval.steps:
        parts.append(f"{wording.plural(steps, 'step')}, {interval.steps:,} in the last {duration(passed_s)}")
    else:
        parts.append(f"{wording.plural(steps, 'step')}, no step for {duration(idle_s)}" if steps else "no step yet")
    counted = f"{about}{wording.plural(syncs, 'sync')}" if interval.syncs else "no syncs"
    parts.append(counted + (f", {wording.per_step(per_step)} per step" if per_step else ""))
    if interval.syncs or line is not None:
        most = f", most at {line} ({wording.share(line_share)})" if line is not None else ""
        parts.append(f"{wording.share(share)} of the time in stalls{most}")
    if run.simulated and run.modelled is None:
        parts.append("on the simulated device")
    if (name := _process(run)) is not None:
        parts.insert(0, name)
    if not is_for_programs():
        get_logger().info(" · ".join(parts))
        return
    get_logger().info(
        " · ".join(parts),
        rank=run.rank,
        elapsed_s=run.duration_s,
        steps=steps,
        since_s=passed_s,
        steps_since=interval.steps,
        no_step_s=idle_s if steps else None,
        syncs_since=syncs,
        syncs_per_step=per_step,
        stall_share=share,
        line=line,
        line_stall_share=None if line is None else line_share,
    )


def _process(run: RunInfo) -> str | None:
    """Name the process where a job has several."""
    if run.rank is not None:
        return wording.processes(run, run.world_size) if (run.world_size or 1) > 1 else None
    multiprocessing = sys.modules.get("multiprocessing.process")
    if multiprocessing is not None and multiprocessing.parent_process() is not None:
        return f"process {os.getpid()}"
    return None


def duration(seconds: float) -> str:
    """``0.5 s``, ``60 s``, ``12 min``, ``3 h 5 min``, ``2 d 3 h``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
