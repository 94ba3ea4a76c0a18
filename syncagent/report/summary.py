"""Keeps exact counts and sums of every site in bounded memory, and makes reports from them."""

from __future__ import annotations

import itertools
import random
import threading
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

from syncagent.events import CallSite, CollectiveRecord, OpCount, Phase, StepRecord, SyncEvent, Weight
from syncagent.report import cells
from syncagent.report.model import (
    EventRow,
    HostRow,
    OpRow,
    Overhead,
    Report,
    RunInfo,
    SensorStatus,
    SiteRow,
    StepRow,
    Totals,
)
from syncagent.report.site_sums import NOWHERE, OTHER, Site, stretch
from syncagent.support.pace import yield_gil

T = TypeVar("T")


_PENDING = 50_000
_ITSELF = Weight()


class Summary:
    """Adds up syncs and steps.  Any thread may ask for the sums while the draining thread delivers."""

    def __init__(
        self,
        *,
        newest: int = 10_000,
        max_sites: int = 2_000,
        max_ops: int = 1_000,
        scale: Callable[[SyncEvent], Weight] | None = None,
        sampled: Callable[[], Mapping[int, int]] = dict,
    ) -> None:
        """``scale`` says how many syncs an event stands for if only some were recorded; by default each is one.

        ``sampled`` says how many steps were sampled, by how many steps each of them stands for.
        """
        self._max_sites = max_sites
        self._max_ops = max_ops
        self._scale = scale
        self._sampled = sampled
        # Between the draining thread and readers; no training thread ever takes it.  A signal handler that makes a
        # report may have interrupted the very thread that holds it.
        self._lock = threading.RLock()
        self._random = random.Random(0)  # noqa: S311  (a sample, not a secret; seeded, so that reports are repeatable)
        self._sites: dict[Hashable, Site] = {}
        self._newest: deque[tuple[SyncEvent, int]] = deque(maxlen=newest)
        self._thread_ns: dict[str, float] = {}
        self._backward_ns = 0.0
        self._pending: deque[tuple[Site, int, float, float]] = deque()
        self._lost_ns = 0
        self._steps_exact = True
        self._steps = 0
        self._step_ns = 0
        self._step_times: deque[StepRow] = deque(maxlen=newest)
        self._late_steps: deque[StepRow] = deque(maxlen=newest)
        """Those of which more has become known after their end."""
        self._late = 0
        self.recorded = 0
        """How many events were added; only the newest are kept."""

    def events(self, batch: Sequence[SyncEvent]) -> None:
        """Add some syncs."""
        with self._lock:
            for event in batch:
                self._add(event)

    def step(self, record: StepRecord) -> None:
        """Count a step and add to it the stalls that began inside it.

        The first step is counted but not timed: it includes the program's start.
        """
        with self._lock:
            self._steps += 1
            is_first = self._steps == 1
            if not is_first:
                self._step_ns += record.end_ns - record.start_ns
            self._step_times.append(StepRow(record.step, record.start_ns, record.end_ns, record.rank))
            # More syncs in one step than are kept: no figure is better than a wrong one.
            self._steps_exact = self._steps_exact and self._lost_ns < record.start_ns
            later = []
            for waits in self._pending:
                site, start_ns, stall_ns, count = waits
                if start_ns >= record.end_ns:
                    later.append(waits)
                elif start_ns >= record.start_ns and not is_first:
                    site.step_ns += stall_ns
                    site.step_count += count
            self._pending.clear()
            self._pending.extend(later)

    def collectives(self, record: CollectiveRecord) -> None:
        """Add to a step how long the GPU stood still for collectives, if the step is still kept."""
        with self._lock:
            for at in range(-1, -len(self._step_times) - 1, -1):
                row = self._step_times[at]
                if row.start_ns <= record.start_ns:
                    if row.start_ns == record.start_ns:
                        row = replace(row, collective_ms=record.waited_ns / 1e6)
                        self._step_times[at] = row
                        self._late_steps.append(row)
                        self._late += 1
                    return

    def newest(self) -> tuple[SyncEvent, ...]:
        """Return the newest syncs, oldest first."""
        with self._lock:
            return tuple(event for event, _ in self._newest)

    def since(self, start_ns: int) -> tuple[tuple[SyncEvent, int], ...]:
        """Return the newest syncs from ``start_ns`` (since the Unix epoch) on, each with its row's ``id``."""
        with self._lock:
            return tuple(pair for pair in self._newest if pair[0].start_ns >= start_ns)

    def snapshot(
        self,
        run: RunInfo,
        sensors: Sequence[SensorStatus] = (),
        overhead: Overhead | None = None,
        dropped: int = 0,
        ops: Sequence[OpCount] = (),
        notes: Sequence[str] = (),
        problems: Sequence[str] = (),
        host: Sequence[HostRow] = (),
    ) -> Report:
        """Return a report of everything so far; ``run.steps`` is replaced by the steps counted here.

        ``problems`` are notes, too.

        ``totals.stall_share`` is the fraction of the run for which the training thread was stalled, 1 at most.  It adds
        the stalls of the one thread that waited longest outside the backward pass and all stalls in the backward pass,
        which autograd's threads run while that thread waits in ``backward()``.  Other threads wait at the same time as
        the training thread, so their stalls are in ``stall_ms`` but not in the share.
        """
        sites, now = self._changes(Since())
        op_rows = _op_rows(ops, sites, run.duration_s * 1e3)
        seen, steps, exact = sum(site.seen for site in sites), now.steps, now.steps_exact
        kept_events, kept_steps = len(now.events), len(now.step_times)
        folded = next((row.count for row in now.sites if row.op == OTHER), 0)
        left_out = [
            folded and f"{folded:,} syncs at sites beyond the first {self._max_sites:,} are in one row, {OTHER!r}",
            seen > kept_events and f"the time line has the newest {kept_events:,} of {seen:,} syncs; the sums have all",
            steps > kept_steps and f"the time line has the newest {kept_steps:,} of {steps:,} steps; the sums have all",
            len(op_rows) > self._max_ops
            and f"of {len(op_rows):,} ops, the {self._max_ops:,} that took most host time are kept",
            not exact and f"a step had more than {_PENDING:,} syncs, so no stall is given as a share of step time",
        ]
        return Report(
            run=replace(run, steps=steps),
            sensors=tuple(sensors),
            overhead=overhead or Overhead(None, None),
            dropped=dropped,
            totals=Totals(
                syncs=sum(row.count for row in now.sites),
                stall_ms=sum(row.stall_ms for row in now.sites),
                stall_share=min(now.stalled_ms / 1e3 / run.duration_s, 1.0) if run.duration_s > 0 else 0.0,
                step_ms=now.step_ms,
                step_stall_ms=now.step_stall_ms,
            ),
            sites=tuple(now.sites),
            ops=op_rows[: self._max_ops],
            notes=(*problems, *notes, *(note for note in left_out if note)),
            events=tuple(now.events),
            step_times=tuple(now.step_times),
            cells=cells.numbered(now.sites, op_rows, host),
            problems=tuple(problems),
            host=tuple(host),
        )

    @property
    def seen(self) -> tuple[int, int]:
        """How many events and steps were added."""
        return self.recorded, self._steps

    def changes(self, since: Since) -> Changes:
        """Return what is new since the last call; the caller keeps ``since``, which is brought up to date."""
        return self._changes(since)[1]

    def _changes(self, since: Since) -> tuple[list[Site], Changes]:
        """Return that, and copies of the sites that have changed."""
        with self._lock:
            sites = [site for site in self._sites.values() if since.sites.get(site.id) != site.sums()]
            since.sites.update((site.id, site.sums()) for site in sites)
            sites = [site.copy() for site in sites]
            newest = _last(self._newest, self.recorded - since.events)
            step_times = _last(self._step_times, self._steps - since.steps)
            late_steps = _last(self._late_steps, self._late - since.late)
            since.events, since.steps, since.late = self.recorded, self._steps, self._late
            steps, step_ns, exact = self._steps, self._step_ns, self._steps_exact
            in_steps = [(site.step_count, site.is_named) for site in self._sites.values()]
            stalled_ns = max(self._thread_ns.values(), default=0.0) + self._backward_ns
            step_stall_ns = sum(site.step_ns for site in self._sites.values())
        rows = []
        sampled = self._sampled()
        stretched = stretch(steps, sampled)
        for site in sites:
            rows.append(site.row(steps, exact, sampled))
            yield_gil()
        return sites, Changes(
            sites=rows,
            events=[EventRow(site, e.start_ns, e.stall_ns, e.step, e.thread, e.rank) for e, site in newest],
            step_times=step_times,
            late_steps=late_steps,
            steps=steps,
            steps_exact=exact,
            step_ms=step_ns / 1e6 if steps > 1 else None,
            step_stall_ms=step_stall_ns / 1e6 if steps > 1 and exact else None,
            step_syncs=sum(count * (stretched if is_named else 1.0) for count, is_named in in_steps),
            stalled_ms=stalled_ns / 1e6,
        )

    def _add(self, event: SyncEvent) -> None:
        weight = _ITSELF if self._scale is None else self._scale(event)
        site = self._site(event)
        site.add(event, weight, self._random)
        stall_ns = event.stall_ns * weight.stall
        if event.phase is Phase.BACKWARD:
            self._backward_ns += stall_ns
        elif event.thread in self._thread_ns or len(self._thread_ns) < self._max_sites:
            self._thread_ns[event.thread] = self._thread_ns.get(event.thread, 0.0) + stall_ns
        self._pending.append((site, event.start_ns, stall_ns, weight.syncs * event.repeats))
        if len(self._pending) > _PENDING:
            self._lost_ns = max(self._lost_ns, self._pending.popleft()[1])
        self._newest.append((event, site.id))
        self.recorded += 1

    def _site(self, event: SyncEvent) -> Site:
        # As syncagent.sites, but with the number of the line: a person wants to see each.
        lines = (_key(event.site), _key(event.forward_site), _key(event.library_site))
        key = (event.kind, event.conditional, lines)
        if key not in self._sites:
            if len(self._sites) < self._max_sites:
                self._sites[key] = Site(len(self._sites), event, event.module, event.ranges, event.allowed)
            else:
                return self._sites.setdefault(OTHER, Site(self._max_sites, None))
        return self._sites[key]


@dataclass(slots=True)
class Since:
    """What a reader of :meth:`Summary.changes` has already."""

    sites: dict[int, Hashable] = field(default_factory=dict)
    events: int = 0
    steps: int = 0
    late: int = 0


class Facts(NamedTuple):
    """What a report has besides the sums."""

    run: RunInfo
    sensors: tuple[SensorStatus, ...]
    dropped: int
    notes: Sequence[str]
    host: tuple[HostRow, ...] = ()


class Changes(NamedTuple):
    """What has changed in a summary: rows of sites in full, and the events and steps that are new and still kept."""

    sites: list[SiteRow]
    events: list[EventRow]
    step_times: list[StepRow]
    late_steps: list[StepRow]
    """Steps of which more has become known after their end; some of them may be among ``step_times``, too."""
    steps: int
    steps_exact: bool
    """Whether the stalls of each step are known; see ``step``."""
    step_ms: float | None
    step_stall_ms: float | None
    step_syncs: float
    """How many syncs began inside a step; of the first step, which is not timed, none."""
    stalled_ms: float
    """How long the training thread was stalled; see ``totals.stall_share`` in :meth:`Summary.snapshot`."""


def _op_rows(ops: Sequence[OpCount], sites: Sequence[Site], duration_ms: float) -> tuple[OpRow, ...]:
    """Return ops by their host time without the stalls of the same op at the same line."""
    stalls: dict[Hashable, float] = {}
    for site in sites:
        where = (site.first and site.first.site) or NOWHERE
        for (name, _, phase), (_, stall_ns) in site.parts.items():
            key = (name, where.file, where.line, phase is Phase.BACKWARD)
            stalls[key] = stalls.get(key, 0.0) + stall_ns / 1e6
    rows = []
    for op in ops:
        line = op.site or NOWHERE
        host_ms = op.host_ns / 1e6
        stall_ms = min(stalls.get((op.op, line.file, line.line, op.phase is Phase.BACKWARD), 0.0), host_ms)
        rows.append(
            OpRow(
                op=op.op,
                file=line.file,
                line=line.line,
                function=line.function,
                source=line.source,
                phase=op.phase.value,
                count=op.count,
                host_ms=host_ms,
                stall_ms=stall_ms,
                share=(host_ms - stall_ms) / duration_ms if duration_ms > 0 else None,
            )
        )
    return tuple(sorted(rows, key=lambda row: -row.busy_ms))


def _last(values: deque[T], count: int) -> list[T]:
    """Return the last ``count`` values, as far as they are still there."""
    return list(itertools.islice(values, max(len(values) - count, 0), None))


def _key(site: CallSite | None) -> Hashable:
    return site and (site.file, site.line)
