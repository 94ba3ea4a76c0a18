"""How long a step takes without some of its waits: a discrete-event simulation of host threads and streams."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from syncagent.cost.program import AWAIT, COPY, HOST, LAUNCH, MARK, RECORD, WAIT, Program

_QUEUE = 1_000
"""How many launches may be outstanding before the next one blocks the host (commonly said to be 1,024)."""

_SCALE, _SCALE_SPREAD = 0.55, 0.12
"""Host time without the profiler, as a fraction of that under it: mean and spread over 21 programs on an H100.  What
came of it with this as a prior is ``host_scale`` in tests/gpu/results/cost_pairs.json."""
_STEP_SPREAD = 0.001


def run(  # noqa: PLR0915 - in one piece: it runs for every site and every order
    items: Sequence[tuple[Any, ...]],
    groups: int,
    without: frozenset[int] = frozenset(),
    idle_us: list[float] | None = None,
) -> float:
    """The milliseconds per step, first step excluded, if the waits numbered in ``without`` were not there.

    ``idle_us`` has one entry for each wait; where the host really waited, the time for which the GPU then had no work
    is added to it: from the end of the wait to the next launch, or to the end of the last step.
    """
    host = [0.0] * groups
    ready: dict[int, float] = {}
    events: dict[int, float] = {}
    queue: deque[tuple[int, float]] = deque()
    launched = 0
    marks: list[float] = []
    drained: tuple[int, float] | None = None  # the wait after which the GPU has had nothing yet, and since when
    for item in items:
        code = item[0]
        if code == LAUNCH:
            _, group, stream, takes, busy, alone, first, count = item
            now = host[group]
            launched += count
            while queue and queue[0][0] <= launched - _QUEUE:
                now = max(now, queue.popleft()[1])
            if drained is not None and idle_us is not None:
                idle_us[drained[0]] += max(now + first - drained[1], 0.0)
                drained = None
            full, fresh = ready.get(stream, 0.0) + busy, now + alone
            ready[stream] = done = max(fresh, full)
            queue.append((launched, done))
            host[group] = now + takes
        elif code == WAIT:
            _, group, before, back, target, number = item
            now = host[group] + before
            if number not in without:
                if target is None:
                    done = max(ready.values(), default=0.0)
                elif isinstance(target, tuple):
                    done = events.get(target[1], 0.0)
                else:
                    done = ready.get(target, 0.0)
                if done > now and done >= max(ready.values(), default=0.0):
                    drained = (number, done)
                now = (max(now, done)) + back
            host[group] = now
        elif code == COPY:
            _, group, before, call, between, back, stream, dur, later, number, drops, lead = item
            now = host[group] + before
            if number in without:
                if drops:
                    now -= lead
                else:
                    now += call
                    launched += 1
                    ready[stream] = max(ready.get(stream, 0.0), now) + later
                    queue.append((launched, ready[stream]))
            else:
                now += call
                launched += 1
                behind = ready.get(stream, 0.0)
                if drained is not None and idle_us is not None:
                    idle_us[drained[0]] += max(now - drained[1], 0.0)
                    drained = None
                ready[stream] = done = max(behind, now) + dur
                if behind > now:
                    drained = (number, done)
                now = max(now + between, done) + back
            host[group] = now
        elif code == MARK:
            host[0] += item[2]
            marks.append(max(host[0], max(ready.values(), default=0.0)))
        elif code == HOST:
            host[item[1]] += item[2]
        elif code == RECORD:
            _, stream, correlation, latest = item
            done = max(ready.values(), default=0.0) if stream is None else ready.get(stream, 0.0)
            events[correlation] = events[latest] = done
        elif code == AWAIT:
            _, stream, key = item
            ready[stream] = max(ready.get(stream, 0.0), events.get(key, 0.0))
    if drained is not None and idle_us is not None:
        idle_us[drained[0]] += max(marks[-1] - drained[1], 0.0)
    first = 1 if len(marks) > 2 else 0
    return (marks[-1] - marks[first]) / (len(marks) - 1 - first) / 1e3


class Fit(NamedTuple):
    """A program with the host as fast as it was without the profiler."""

    items: list[tuple[Any, ...]]
    scale: float
    step_ms: float
    """As replayed, with every wait in place."""


def fit(program: Program, step_ms: float | None) -> Fit:
    """Scale the host's times so that the replay takes ``step_ms`` per step; they are kept where that is ``None``.

    Where the step hardly depends on the host (a busy GPU), many scales would fit.  So the scale is found by least
    squares of two errors: of the step time, and of the scale from the usual one.
    """
    if step_ms is None:
        items = program.ready(1.0)
        return Fit(items, 1.0, run(items, program.groups))
    tried: dict[float, tuple[float, Fit]] = {}

    def miss(scale: float) -> float:
        scale = round(scale, 4)
        if scale not in tried:
            items = program.ready(scale)
            replayed = run(items, program.groups)
            off = (replayed - step_ms) / (_STEP_SPREAD * step_ms)
            usual = (scale - _SCALE) / _SCALE_SPREAD
            tried[scale] = (off * off + usual * usual, Fit(items, scale, replayed))
        return tried[scale][0]

    width = 0.2
    best = min((0.1, 0.3, 0.5, 0.7, 0.9, 1.1, 1.4), key=miss)
    while width > 0.004:
        width /= 2
        best = min((best - width, best, best + width), key=lambda scale: miss(max(scale, 0.02)))
    return tried[round(max(best, 0.02), 4)][1]
