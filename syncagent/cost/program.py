"""A trace as a program that can be run again: what each host thread does between its calls, and what each call asks for.

Host times are taken as the profiler left them and scaled when the program is made ready to run, since a profiler lengthens
them; the GPU's times are as they were.  A run of launches on one stream is one instruction: with ``H`` the host's time for
all of it, ``G`` the GPU's, and ``C`` the GPU's end counted from the host's start if the GPU has nothing else to do, the
stream is done at ``max(ready + G, host + C)`` (max-plus algebra), whatever the number of launches.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncagent.cost.trace import Call, Trace

__all__ = ["Program", "Wait", "build"]

_PINNED_BYTES_PER_US = 25_000.0
"""A copy to or from pinned memory; PCIe 4 with 16 lanes.  An H100 with PCIe 5 did 50."""
_STAGED_BYTES = 64 * 1024
"""A smaller copy from pageable memory is staged by the driver, and the host goes on (CUDA's programming guide, API
synchronization behavior)."""
_SCALAR_BYTES = 64
_LAUNCH_US = 60.0
"""A launch that takes longer was held up by a full queue, which the replay does by itself."""
_RETURN_US = 150.0
_RUN = 32
"""Launches in one instruction at most, so that the queue's limit is met about where it lies."""

LAUNCH, HOST, WAIT, COPY, RECORD, AWAIT, MARK = range(7)


class Wait(NamedTuple):
    """A place in the program where the host waits."""

    call: Call
    copy: Call | None
    """The copy that the wait belongs to; the calls are one."""

    @property
    def start(self) -> float:
        return self.copy.start if self.copy is not None else self.call.start


class Program:
    """What :func:`build` makes of a trace; :meth:`ready` gives the instructions."""

    def __init__(
        self, raw: list[tuple[Any, ...]], waits: list[Wait], steps: int, latency_us: float, gap_us: float, groups: int
    ) -> None:
        self._raw = raw
        self.waits = waits
        self.steps = steps
        """How many steps it makes, the first of which only fills the pipeline."""
        self.latency_us = latency_us
        """From a launch's return to the kernel's start on an idle stream."""
        self.gap_us = gap_us
        """Between two kernels of a full stream."""
        self.groups = groups
        """How many host threads go their own way."""
        self.work: list[tuple[int, float]] = _work(raw)
        """Launches and GPU time (µs) of each step."""

    def ready(self, scale: float) -> list[tuple[Any, ...]]:
        """Return the instructions with the host's times multiplied by ``scale``."""
        items: list[tuple[Any, ...]] = []
        latency, gap = self.latency_us, self.gap_us
        run: list[Any] | None = None
        for raw in self._raw:
            code = raw[0]
            if code == LAUNCH:
                _, group, host, stream, dur = raw
                if run is not None and (run[2] != stream or run[1] != group or run[7] >= _RUN):
                    items.append(tuple(run))
                    run = None
                busy = dur + gap
                if run is None:
                    host *= scale
                    run = [LAUNCH, group, stream, host, busy, host + latency + dur, host + latency, 1]
                    continue
                run[3] += host * scale
                run[4] += busy
                late = run[3] + latency + dur
                run[5] = late if late > run[5] + busy else run[5] + busy
                run[7] += 1
                continue
            if run is not None:
                items.append(tuple(run))
                run = None
            if code == WAIT:
                _, group, host, back, target, site = raw
                items.append((WAIT, group, host * scale, back * scale, target, site))
            elif code == COPY:
                _, group, host, call, between, back, stream, dur, later, site, drops = raw
                times = (host * scale, call * scale, between * scale, back * scale)
                items.append((COPY, group, *times, stream, dur + gap, later + gap, site, drops))
            elif code in {HOST, MARK}:
                items.append((code, raw[1], raw[2] * scale))
            else:
                items.append(raw)
        if run is not None:
            items.append(tuple(run))
        return items


def _work(raw: list[tuple[Any, ...]]) -> list[tuple[int, float]]:
    found: list[tuple[int, float]] = []
    count, busy = 0, 0.0
    for entry in raw:
        if entry[0] == MARK:
            found.append((count, busy))
            count, busy = 0, 0.0
        elif entry[0] == LAUNCH:
            count, busy = count + 1, busy + entry[4]
        elif entry[0] == COPY:
            count, busy = count + 1, busy + entry[7]
    return found[1:]


class _Hiccups:
    """How long the profiler itself held the host up between two moments."""

    def __init__(self, spans: Sequence[tuple[float, float]]) -> None:
        self._spans = spans
        self._ends = [end for _, end in spans]

    def between(self, start: float, end: float) -> float:
        taken = 0.0
        for index in range(bisect_left(self._ends, start), len(self._spans)):
            began, ended = self._spans[index]
            if began >= end:
                break
            taken += max(min(ended, end) - max(began, start), 0.0)
        return taken


def build(trace: Trace, bounds: Sequence[float]) -> Program:
    """Make a program of the calls between the first bound and the last (µs, on the trace's clock)."""
    groups = _groups(trace)
    hiccups = _Hiccups(trace.hiccups)
    calls = [call for call in trace.calls if bounds[0] <= call.start < bounds[-1]]
    following: dict[int, Call] = {}
    latest: dict[int, Call] = {}
    for call in calls:
        if call.thread in latest:
            following[id(latest[call.thread])] = call
        latest[call.thread] = call
    raw: list[tuple[Any, ...]] = []
    waits: list[Wait] = []
    until = defaultdict(lambda: bounds[0])  # what each group's time is accounted for
    owed: dict[int, float] = defaultdict(float)  # host time that no instruction has yet
    taken: set[int] = set()
    streams: list[int] = []  # latest used last
    next_bound = 0

    def host_until(group: int, moment: float) -> float:
        since = until[group]
        until[group] = max(since, moment)
        return max(moment - since - hiccups.between(since, moment), 0.0) if moment > since else 0.0

    def owed_by(group: int) -> float:
        return owed.pop(group, 0.0)

    for call in calls:
        while next_bound < len(bounds) - 1 and call.start >= bounds[next_bound]:
            raw.append((MARK, 0, owed_by(0) + host_until(0, bounds[next_bound])))
            next_bound += 1
        if id(call) in taken:
            continue
        group = groups[call.thread]
        before = owed_by(group) + host_until(group, call.start)
        took = host_until(group, call.end)
        op = call.op
        if op is not None and op.stream not in streams[-1:]:
            if op.stream in streams:
                streams.remove(op.stream)
            streams.append(op.stream)
        if op is not None:
            drain = _drain_after(call, following.get(id(call)))
            blocks = op.pageable and (op.to_host or op.bytes > _STAGED_BYTES) and call.end >= op.end - 5.0
            if drain is not None or blocks:
                between, back = 0.0, min(max(call.end - op.end, 1.0), _RETURN_US)
                if drain is not None:
                    taken.add(id(drain))
                    between = host_until(group, drain.start)
                    host_until(group, drain.end)
                    back = min(max(drain.end - max(op.end, drain.start), 1.0), _RETURN_US)
                dur = op.end - op.start
                later = min(op.bytes / _PINNED_BYTES_PER_US, dur) if op.pageable else dur
                drops = op.to_host and op.bytes <= _SCALAR_BYTES
                asks = min(took, _RETURN_US if not op.pageable else 12.0)
                raw.append((COPY, group, before, asks, between, back, op.stream, dur, later, len(waits), drops))
                waits.append(Wait(drain or call, call))
            else:
                raw.append((LAUNCH, group, before + min(took, _LAUNCH_US), op.stream, op.end - op.start))
        elif call.waits_for is not None:
            ended = _last_end(trace, call)
            back = min(max(call.end - max(ended, call.start), 1.0), _RETURN_US)
            target: Any = None
            if call.waits_for == "stream":
                target = call.stream
            elif call.waits_for == "event":
                target = ("event", call.record if call.record is not None else call.thread)
            raw.append((WAIT, group, before, back, target, len(waits)))
            waits.append(Wait(call, None))
        elif call.records:
            raw += [(HOST, group, before + took), (RECORD, _recorded(call, following, streams), call.correlation,
                                                   call.thread)]  # fmt: skip
        elif call.awaits and call.stream is not None:
            key = call.record if call.record is not None else call.thread
            raw += [(HOST, group, before + took), (AWAIT, call.stream, key)]
        else:
            owed[group] += before + took
    raw.append((MARK, 0, owed_by(0) + host_until(0, bounds[-1])))
    latency, gap = _gpu_times(trace)
    return Program(raw, waits, len(bounds) - 1, latency, gap, len(set(groups.values())))


def _drain_after(copy: Call, following: Call | None) -> Call | None:
    """The wait that torch puts right behind a copy that must not return early."""
    if following is None or copy.op is None or not copy.op.name.startswith("Memcpy"):
        return None
    near = following.waits_for == "stream" and following.start - copy.end < 50.0
    return following if near and following.stream in {None, copy.op.stream} else None


def _recorded(call: Call, following: dict[int, Call], streams: list[int]) -> int | None:
    """The stream that an event is recorded on, which Kineto does not say.

    ``a.wait_stream(b)`` records on ``b`` and then has ``a`` wait, so it is the one of the others that was used last.
    """
    waiter = following.get(id(call))
    if waiter is not None and waiter.awaits and waiter.stream is not None:
        return next((stream for stream in reversed(streams) if stream != waiter.stream), None)
    return streams[-1] if streams else None


def _last_end(trace: Trace, call: Call) -> float:
    """When the GPU had done what it was given before this call, of the work that the call may have waited for."""
    ends = trace.ends
    index = bisect_left(ends, call.end)
    return ends[index - 1] if index else call.start


def _groups(trace: Trace) -> dict[int, int]:
    """Which host threads make one line of work, by number.

    Autograd's threads work while the thread that called ``backward()`` stands still, so their calls and its never
    overlap.  A thread whose calls do overlap with the main thread's goes its own way.
    """
    main = trace.thread
    own = [(call.start, call.end) for call in trace.calls if call.thread == main]
    starts = [start for start, _ in own]
    found = {main: 0}
    overlaps: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for call in trace.calls:
        if call.thread == main:
            continue
        index = bisect_left(starts, call.end) - 1
        seen = overlaps[call.thread]
        seen[0] += 1
        seen[1] += index >= 0 and own[index][1] > call.start
    for thread, (count, overlapping) in overlaps.items():
        alone = overlapping > max(count * 0.02, 1) and not trace.thread_names.get(thread, "").startswith("pt_autograd")
        found[thread] = max(found.values()) + 1 if alone else 0
    return found


def _gpu_times(trace: Trace) -> tuple[float, float]:
    """The usual time from a launch's return to the start on an idle stream, and between two ops of a full one (µs)."""
    ready: dict[int, float] = {}
    latencies, gaps = [], []
    for call in trace.calls:
        op = call.op
        if op is None:
            continue
        last = ready.get(op.stream)
        if last is not None:
            if op.start > last + 30.0:
                latencies.append(op.start - call.end)
            elif call.end < last - 10.0:
                gaps.append(op.start - last)
        ready[op.stream] = max(op.end, last or 0.0)
    return (
        statistics.median(latencies) if latencies else 1.0,
        max(statistics.median(gaps), 0.0) if gaps else 1.0,
    )
