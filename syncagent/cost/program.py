"""A trace as a program that can be replayed: what each host thread does between its calls, and what these ask for.

Host times are taken from the profiler and scaled when the program is made ready to run, since a profiler lengthens
them; the GPU's times are kept.  A run of launches on one stream is one instruction: with ``H`` the
host's time for all of it, ``G`` the GPU's, and ``C`` the GPU's end counted from the host's start if the GPU has nothing
else to do, the stream is done at ``max(ready + G, host + C)`` (max-plus algebra), whatever the number of launches.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections import defaultdict
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncagent.cost.trace import Call, Op, Trace

_PINNED_BYTES_PER_US = 25_000.0
"""A copy to or from pinned memory; PCIe 4 with 16 lanes.  An H100 with PCIe 5 did 50."""
_STAGED_BYTES = 64 * 1024
"""A smaller copy from pageable memory is staged by the driver, and the host goes on (CUDA's programming guide, API
synchronization behavior)."""
_SCALAR_BYTES = 64
_LAUNCH_US = 60.0
"""A launch that takes longer was blocked by a full queue, which the replay models itself."""
_RETURN_US = 150.0
"""The host continues this long after what it waited for at most; the rest was the profiler's."""
_STAGING_US = 12.0
"""The call of a copy from pageable memory, without the copying that it does itself."""
_RUN = 32
"""The most launches in one instruction, so that the queue's limit is met about where it is."""
_READS = frozenset({"aten::item", "aten::is_nonzero", "aten::_local_scalar_dense"})

Span = tuple[float, float]

LAUNCH, HOST, WAIT, COPY, RECORD, AWAIT, MARK = range(7)


class Wait(NamedTuple):
    """A place in the program where the host waits."""

    call: Call
    copy: Call | None
    """The copy that the wait belongs to, if any."""

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
        """How many groups of host threads run independently."""
        self.work: list[tuple[int, float]] = _work(raw)
        """Launches and GPU time (µs) of each step."""

    def ready(self, scale: float) -> list[tuple[Any, ...]]:
        """Return the instructions with the host's times multiplied by ``scale``."""
        items: list[tuple[Any, ...]] = []
        latency, gap = self.latency_us, self.gap_us
        for raw in self._raw:
            code = raw[0]
            if code == LAUNCH:
                _, group, host, stream, dur = raw
                takes, busy = host * scale, dur + gap
                if items and items[-1][:3] == (LAUNCH, group, stream) and items[-1][7] < _RUN:
                    _, _, _, before, queued, alone, first, count = items.pop()
                    takes += before
                    alone = max(alone + busy, takes + latency + dur)
                    items.append((LAUNCH, group, stream, takes, queued + busy, alone, first, count + 1))
                else:
                    items.append((LAUNCH, group, stream, takes, busy, takes + latency + dur, takes + latency, 1))
            elif code == WAIT:
                _, group, host, back, target, site = raw
                items.append((WAIT, group, host * scale, back * scale, target, site))
            elif code == COPY:
                _, group, host, call, between, back, stream, dur, later, site, drops, lead = raw
                times = (host * scale, call * scale, between * scale, back * scale)
                items.append((COPY, group, *times, stream, dur + gap, later + gap, site, drops, lead * scale))
            elif code in {HOST, MARK}:
                items.append((code, raw[1], raw[2] * scale))
            else:
                items.append(raw)
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


def _paused(pauses: Sequence[Span], since: float, until: float) -> float:
    """How long the profiler itself blocked the host between two moments."""
    first, last = bisect_left(pauses, since, key=itemgetter(1)), bisect_left(pauses, (until,))
    return sum(max(min(ended, until) - max(began, since), 0.0) for began, ended in pauses[first:last])


def _reads(trace: Trace) -> dict[int, list[Span]]:
    """When each thread was reading numbers: all of that time goes away if the number is not read."""
    found: dict[int, list[Span]] = defaultdict(list)
    for start, end, thread, category, name in trace.spans:
        own = found[thread]
        if category == "cpu_op" and name in _READS and not (own and own[-1][1] >= end):
            own.append((start, end))
    return found


def build(trace: Trace, bounds: Sequence[float]) -> Program:
    """Make a program of the calls between the first bound and the last (µs, on the trace's clock)."""
    return _Builder(trace, bounds).program()


class _Builder:
    """Goes through the calls in order of time; all host time between the bounds becomes part of some instruction."""

    def __init__(self, trace: Trace, bounds: Sequence[float]) -> None:
        self._trace = trace
        self._bounds = bounds
        self._groups = _groups(trace)
        self._calls = [call for call in trace.calls if bounds[0] <= call.start < bounds[-1]]
        self._following: dict[int, Call] = {}
        latest: dict[int, Call] = {}
        for call in self._calls:
            if call.thread in latest:
                self._following[id(latest[call.thread])] = call
            latest[call.thread] = call
        self._raw: list[tuple[Any, ...]] = []
        self._waits: list[Wait] = []
        self._until: dict[int, float] = {}  # until when each group's time is accounted for
        self._owed: dict[int, float] = defaultdict(float)  # host time that no instruction has yet
        self._taken: set[int] = set()
        self._streams: list[int] = []  # latest used last
        self._reads = _reads(trace)

    def program(self) -> Program:
        passed = 0
        for call in self._calls:
            while passed < len(self._bounds) - 1 and call.start >= self._bounds[passed]:
                self._mark(self._bounds[passed])
                passed += 1
            if id(call) not in self._taken:
                self._take(call)
        for bound in self._bounds[passed:]:
            self._mark(bound)
        latency, gap = _gpu_times(self._trace)
        groups = len(set(self._groups.values()))
        return Program(self._raw, self._waits, len(self._bounds) - 1, latency, gap, groups)

    def _mark(self, bound: float) -> None:
        self._raw.append((MARK, 0, self._owed.pop(0, 0.0) + self._spend(0, bound)))

    def _spend(self, group: int, until: float) -> float:
        """Account for a group's time until then, and return how much that was."""
        since = self._until.get(group, self._bounds[0])
        if until <= since:
            return 0.0
        self._until[group] = until
        return max(until - since - _paused(self._trace.profiler_pauses, since, until), 0.0)

    def _take(self, call: Call) -> None:
        group = self._groups[call.thread]
        before = self._owed.pop(group, 0.0) + self._spend(group, call.start)
        took = self._spend(group, call.end)
        if call.op is not None:
            self._work(call, call.op, group, before, took)
        elif call.waits_for is not None:
            back = min(max(call.end - max(_last_end(self._trace, call), call.start), 1.0), _RETURN_US)
            target: Any = call.stream if call.waits_for == "stream" else None
            if call.waits_for == "event":
                target = ("event", _record(call))
            self._raw.append((WAIT, group, before, back, target, len(self._waits)))
            self._waits.append(Wait(call, None))
        elif call.records:
            stream = _recorded(call, self._following, self._streams)
            self._raw += [(HOST, group, before + took), (RECORD, stream, call.correlation, _latest(call))]
        elif call.awaits and call.stream is not None:
            self._raw += [(HOST, group, before + took), (AWAIT, call.stream, _record(call))]
        else:
            self._owed[group] += before + took

    def _work(self, call: Call, op: Op, group: int, before: float, took: float) -> None:
        if op.stream not in self._streams[-1:]:
            self._streams = [*(stream for stream in self._streams if stream != op.stream), op.stream]
        drain = _drain_after(call, self._following.get(id(call)))
        staged = op.pageable and (op.to_host or op.bytes > _STAGED_BYTES) and call.end >= op.end - 5.0
        if drain is None and not staged and call.name != "cudaMemcpy":
            self._raw.append((LAUNCH, group, before + min(took, _LAUNCH_US), op.stream, op.end - op.start))
            return
        between, back = 0.0, min(max(call.end - op.end, 1.0), _RETURN_US)
        if drain is not None:
            self._taken.add(id(drain))
            between = self._spend(group, drain.start)
            self._spend(group, drain.end)
            back = min(max(drain.end - max(op.end, drain.start), 1.0), _RETURN_US)
        dur = op.end - op.start
        later = min(op.bytes / _PINNED_BYTES_PER_US, dur) if op.pageable else dur
        drops = op.to_host and op.bytes <= _SCALAR_BYTES
        lead = 0.0
        own = self._reads[call.thread]
        read = bisect_left(own, (call.start, float("inf"))) - 1  # the outermost one, if the call belongs to one
        if drops and read >= 0 and own[read][1] >= call.end:
            lead = min(max(call.start - own[read][0], 0.0), before)
            back += self._spend(group, own[read][1])
        asks = _STAGING_US if op.pageable else min(took, _RETURN_US)
        times = (before, asks, between, back)
        self._raw.append((COPY, group, *times, op.stream, dur, later, len(self._waits), drops, lead))
        self._waits.append(Wait(drain or call, call))


def _latest(call: Call) -> int:
    """The key of the event that a thread recorded last: never a correlation, which is positive."""
    return -1 - call.thread


def _record(call: Call) -> int:
    """The key of the event that is waited for: the thread's latest where the trace does not say."""
    return call.record if call.record is not None else _latest(call)


def _drain_after(copy: Call, following: Call | None) -> Call | None:
    """The wait that torch puts right after a copy that must not return early."""
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
    """When the GPU had finished the work that this call may have waited for."""
    ends = trace.ends
    index = bisect_left(ends, call.end)
    return ends[index - 1] if index else call.start


def _groups(trace: Trace) -> dict[int, int]:
    """The group of each host thread: the threads of a group take turns, groups run independently.

    Autograd's threads work while the thread that called ``backward()`` waits, so their calls never overlap.  A thread
    with calls that do overlap with those of the main thread has a group of its own.
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
            if op.start > max(ready.values()) + 30.0:  # else it may have waited for another stream
                latencies.append(op.start - call.end)
            elif call.end < last - 10.0:
                gaps.append(op.start - last)
        ready[op.stream] = max(op.end, last or 0.0)
    return (
        statistics.median(latencies) if latencies else 1.0,
        max(statistics.median(gaps), 0.0) if gaps else 1.0,
    )
