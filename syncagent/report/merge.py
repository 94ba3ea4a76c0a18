"""Reports of several ranks as one."""

from __future__ import annotations

import itertools
import math
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from syncagent.report.blame import LateStep, late_steps, lateness
from syncagent.report.clocks import on_one_clock
from syncagent.report.context import runs
from syncagent.report.model import (
    BusyRow,
    CostRow,
    EventRow,
    OpRow,
    OpShare,
    Overhead,
    PhaseShare,
    RankShare,
    Report,
    RunInfo,
    SensorStatus,
    SiteRow,
    SourceRow,
    StepRow,
    Totals,
)  # fmt: skip
from syncagent.sites import LineKey, naming

_Timed = TypeVar("_Timed", EventRow, StepRow, BusyRow)
Row = TypeVar("Row", RankShare, OpShare, OpRow, PhaseShare)
_Value = TypeVar("_Value", bound=Hashable)


def key_of_row(site: SiteRow, named: Callable[[Any], LineKey]) -> Hashable:
    """What makes two rows the same: the site's key, the number of its lines, and whether gates count it."""
    lines = (site.line, site.forward and site.forward.line, site.library and site.library.line)
    return (site.key(named), lines, site.conditional)


MOST_ON_TIME_LINE = 50_000
"""A merged report has so many of the newest syncs, steps and times in which a GPU worked; sums are of all of them."""
MOST_SHARES = 64
"""Where more ranks have a site, it has the shares of those that waited longest and least, half as many of each."""
_ALIKE = 3
_HOSTS = 8
_RANKS = 8


def merge(reports: Sequence[Report]) -> Report:
    """One report out of those of several ranks.

    Counts, stalls and drops are sums.  Costs, which are per step, are means over the ranks that know them; the cost of
    the whole is that of the rank whose step gains least.  ``per_step`` is the rate of one rank: the summed count over
    the summed steps.  Shares are of the summed durations, so they are averages over ranks.  A report without a rank
    counts as the rank of its place in the sequence, or as the first one that is free.
    """
    if not reports:
        raise ValueError("merge needs a report")
    if len(reports) == 1:
        return reports[0]
    ranked = [*zip(ranks_of(reports), reports, strict=True)]
    ids: dict[Hashable, int] = {}
    keys: dict[tuple[int, int], Hashable] = {}
    for part in reports:
        named, _ = naming(part.run.home, reports[0].run.home)
        for site in part.sites:
            keys[id(part), site.id] = key = key_of_row(site, named)
            ids.setdefault(key, len(ids))
    new_id = {row: ids[key] for row, key in keys.items()}
    events = newest(
        [
            replace(event, rank=rank, site=new_id.get((id(part), event.site), -1))
            for rank, part in ranked
            for event in part.events
        ]
    )
    steps = [replace(step, rank=rank) for rank, part in ranked for step in part.step_times]
    step_times = newest(steps)
    head = merge_heads(reports)
    merged = replace(
        head,
        sites=_merge_sites(ranked, keys, ids),
        ops=_merge_ops(reports),
        notes=(*head.notes, *left_out(reports, events=len(events), step_times=len(step_times))),
        events=events,
        step_times=step_times,
        cost=merge_costs(reports, lambda index, site: new_id.get((id(reports[index]), site), -1)),
        sources=merge_sources(row for part in reports for row in part.sources),
        host=tuple(
            replace(row, rank=rank if row.rank is None else row.rank) for rank, part in ranked for row in part.host
        ),
    )
    return compared(merged, {rank: part.run for rank, part in ranked}, late_steps(steps))


def compared(merged: Report, run_of: Mapping[int, RunInfo], late: Sequence[LateStep]) -> Report:
    """The merged report with what comparing its ranks says: which of them are late, and whose clock is apart."""
    machines = {rank: run.host for rank, run in run_of.items()}
    return on_one_clock(replace(merged, lateness=lateness(merged, run_of, late)), machines)


def merge_heads(reports: Sequence[Report]) -> Report:
    """What the merged report has besides its rows, which are not looked at."""
    ranks = ranks_of(reports)
    processes = sum(part.run.processes or max(len(part.run.ranks), 1) for part in reports)
    is_one_a_rank = all(part.run.processes == 0 and (part.run.ranks or part.run.rank is not None) for part in reports)
    distinct = tuple(sorted(set(ranks)))
    return Report(
        run=replace(
            reports[0].run,
            started=min(part.run.started for part in reports),
            duration_s=max(part.run.duration_s for part in reports),
            host=_some(_distinct(part.run.host for part in reports)),
            device=", ".join(_distinct(part.run.device for part in reports if part.run.device)) or None,
            rank=None,
            pid=None,
            steps=max(part.run.steps for part in reports),
            simulated=any(part.run.simulated for part in reports),
            gpu_busy_s=_mean((part.run.gpu_busy_s, 1) for part in reports),
            ranks=distinct,
            part=0,
            process="",
            run_id=reports[0].run.run_id if len({part.run.run_id for part in reports}) == 1 else "",
            processes=0 if is_one_a_rank and processes == len(distinct) else processes,
            ended=all(part.run.ended for part in reports),
            gate=_merge_gates([part.run.gate for part in reports]),
        ),
        sensors=_merge_sensors(reports),
        overhead=Overhead(
            agent_ms_per_step=_mean((part.overhead.agent_ms_per_step, part.run.steps) for part in reports),
            share=_mean((part.overhead.share, part.run.duration_s) for part in reports),
            budget=max((part.overhead.budget for part in reports if part.overhead.budget is not None), default=None),
        ),
        dropped=sum(part.dropped for part in reports),
        totals=Totals(
            syncs=sum(part.totals.syncs for part in reports),
            stall_ms=sum(part.totals.stall_ms for part in reports),
            stall_share=_mean((part.totals.stall_share, part.run.duration_s) for part in reports) or 0.0,
            step_ms=_known_sum(part.totals.step_ms for part in reports),
            step_stall_ms=_known_sum(part.totals.step_stall_ms for part in reports),
        ),
        sites=(),
        notes=(*_fewer(note for part in reports for note in part.notes), *_killed(reports, ranks)),
        problems=_fewer(problem for part in reports for problem in part.problems),
        cells=tuple(_distinct(cell for part in reports for cell in part.cells)),
    )


def newest(rows: Sequence[_Timed]) -> tuple[_Timed, ...]:
    """The newest rows, as many as a merged report has, in the order that they are in."""
    if len(rows) <= MOST_ON_TIME_LINE:
        return tuple(rows)
    by_time = sorted(range(len(rows)), key=lambda number: (rows[number].start_ns, number))
    return tuple(rows[number] for number in sorted(by_time[-MOST_ON_TIME_LINE:]))


def left_out(
    reports: Sequence[Report], *, events: int, step_times: int, seen_events: int | None = None,
    seen_steps: int | None = None,
) -> list[str]:  # fmt: skip
    """Say what the time line lacks; ``reports`` hold what was seen where that is not given."""
    seen = sum(len(part.events) for part in reports) if seen_events is None else seen_events
    steps = sum(len(part.step_times) for part in reports) if seen_steps is None else seen_steps
    return [
        f"the time line has the newest {kept:,} of the {number:,} {what} in the ranks' reports; the sums have all"
        for kept, number, what in ((events, seen, "syncs"), (step_times, steps, "steps"))
        if number > kept
    ]


def ranks_of(reports: Sequence[Report]) -> list[int]:
    """The rank that each report counts as."""
    taken = {part.run.rank for part in reports}
    ranks = []
    free = itertools.count()
    for index, part in enumerate(reports):
        rank = part.run.rank
        if rank is None:
            rank = next(number for number in itertools.chain([index], free) if number not in taken)
            taken.add(rank)
        ranks.append(rank)
    return ranks


def _killed(reports: Sequence[Report], ranks: Sequence[int]) -> list[str]:
    killed = [rank for rank, part in zip(ranks, reports, strict=True) if not part.run.ended]
    if not killed or len(killed) == len(reports):  # each report says so itself
        return []
    shown = ", ".join(map(str, killed[:_RANKS])) + (", …" if len(killed) > _RANKS else "")
    return [f"of {len(reports):,} processes, {len(killed):,} did not end by themselves: those of rank {shown}"]


_DIGITS = re.compile(r"\d[\d,.]*")


def _fewer(notes: Iterable[str]) -> tuple[str, ...]:
    """Each note once; of many that differ in their numbers alone, the first, and how many there are like it."""
    forms: dict[str, list[str]] = defaultdict(list)
    for note in _distinct(notes):
        forms[_DIGITS.sub("0", note)].append(note)
    fewer: list[str] = []
    for alike in forms.values():
        if len(alike) > _ALIKE:
            fewer.append(f"{alike[0]} (and {len(alike) - 1:,} more notes that differ in their numbers)")
        else:
            fewer += alike
    return tuple(fewer)


def _some(hosts: Sequence[str]) -> str:
    more = f" and {len(hosts) - _HOSTS:,} more" if len(hosts) > _HOSTS else ""
    return ", ".join(hosts[:_HOSTS]) + more


def _merge_gates(gates: Sequence[str | None]) -> str | None:
    """A gate holds only where it held in every rank."""
    asked = {gate for gate in gates if gate is not None}
    return "failed" if asked - {"held"} else "held" if asked else None


def _merge_sites(
    ranked: Sequence[tuple[int, Report]], keys: Mapping[tuple[int, int], Hashable], ids: Mapping[Hashable, int]
) -> tuple[SiteRow, ...]:
    groups: dict[Hashable, list[tuple[int, SiteRow]]] = defaultdict(list)
    for rank, part in ranked:
        for site in part.sites:
            groups[keys[id(part), site.id]].append((rank, site))
    steps_of = {rank: part.run.steps for rank, part in ranked}

    def steps(rows: Sequence[tuple[int, SiteRow]]) -> int:
        return sum(steps_of[rank] for rank in {rank for rank, _ in rows})

    return tuple(_merge_site(rows, steps(rows), ids[key]) for key, rows in groups.items())


def _merge_site(rows: Sequence[tuple[int, SiteRow]], steps: int, row_id: int) -> SiteRow:
    sites = [site for _, site in rows]
    count = sum(site.count for site in sites)
    shares = _summed(
        (RankShare(rank, site.count, site.stall_ms, site.step_stall_ms) for rank, site in rows),
        lambda share: share.rank,
    )
    return replace(
        joined(sites, max(sites, key=lambda site: site.stall_ms)),
        id=row_id,
        per_step=count / steps if steps else None,
        idle_ms=_mean((site.idle_ms, 1) for site in sites),
        gain_ms=_mean((site.gain_ms, 1) for site in sites),
        ranks=telling(shares),
        rank_count=len(shares) if len(shares) > MOST_SHARES else 0,
    )


def telling(shares: Sequence[RankShare]) -> tuple[RankShare, ...]:
    """The shares that a site has of those of all ranks, in the order of ranks."""
    kept = sorted(shares, key=lambda share: (share.stall_ms, share.rank))
    if len(kept) > MOST_SHARES:
        half = MOST_SHARES // 2
        kept = [*kept[:half], *kept[-half:]]
    return tuple(sorted(kept, key=lambda share: share.rank))


def joined(sites: Sequence[SiteRow], like: SiteRow) -> SiteRow:
    """One row with the sums of several, otherwise like one of them; what is per step or per rank is left as it is."""
    ops = _merge_shares(sites)
    return replace(
        like,
        op=ops[0].op,
        api=ops[0].api,
        ops=ops,
        phases=_merge_phases(sites),
        count=sum(site.count for site in sites),
        stall_ms=sum(site.stall_ms for site in sites),
        stall_ms_p50=_weighted_median([(site.stall_ms_p50, site.count) for site in sites]),
        stall_ms_max=max(site.stall_ms_max for site in sites),
        sampled=any(site.sampled for site in sites),
        count_error=_common_error(sites),
        allowed=sites[0].allowed if all(site.allowed for site in sites) else None,
        allowed_count=sum(site.allowed_count for site in sites),
        violations=sum(site.violations for site in sites),
        advice=next((site.advice for site in sites if site.advice), None),
        threads=tuple(_distinct(thread for site in sites for thread in site.threads)),
        step_stall_ms=_known_sum(site.step_stall_ms for site in sites),
        sensors=tuple(_distinct(sensor for site in sites for sensor in site.sensors)),
        estimated_ms=sum(site.estimated_ms for site in sites),
        stack=max(sites, key=lambda site: (bool(site.stack), site.stall_ms_max)).stack,
    )


def _merge_shares(sites: Sequence[SiteRow]) -> tuple[OpShare, ...]:
    """The part of each op; a report of an earlier version has one op in a row."""
    parts = (part for site in sites for part in site.ops or (OpShare(site.op, site.api, site.count, site.stall_ms),))
    shares = _summed(parts, lambda part: (part.op, part.api))
    return tuple(sorted(shares, key=lambda share: (-share.stall_ms, -share.count)))


def _merge_phases(sites: Sequence[SiteRow]) -> tuple[PhaseShare, ...]:
    """The part of each phase; a report of an earlier version has one phase in a row."""
    parts = (p for site in sites for p in site.phases or (PhaseShare(site.phase, site.count, site.stall_ms),))
    shares = _summed(parts, lambda part: part.phase)
    return tuple(sorted(shares, key=lambda share: (-share.stall_ms, -share.count)))


def _merge_ops(reports: Sequence[Report]) -> tuple[OpRow, ...]:
    duration_ms = sum(part.run.duration_s for part in reports) * 1e3
    ops = _summed((op for part in reports for op in part.ops), lambda op: (op.op, op.file, op.line, op.phase))
    merged = (replace(op, share=op.busy_ms / duration_ms if duration_ms else None) for op in ops)
    return tuple(sorted(merged, key=lambda op: -op.busy_ms))


def _summed(rows: Iterable[Row], key_of: Callable[[Row], Hashable]) -> list[Row]:
    """One row for each key, with the sums of what adds up."""
    found: dict[Hashable, Row] = {}
    for row in rows:
        key = key_of(row)
        if key in found:
            seen: Any = found[key]
            names = [name for name in ("count", "stall_ms", "step_stall_ms", "host_ms") if hasattr(row, name)]
            found[key] = replace(
                seen, **{name: _known_sum((getattr(seen, name), getattr(row, name))) for name in names}
            )
        else:
            found[key] = row
    return list(found.values())


def _merge_sensors(reports: Sequence[Report]) -> tuple[SensorStatus, ...]:
    """A sensor is live only if it was live in every rank that has it: a hole in one rank is a hole."""
    found: dict[str, SensorStatus] = {}
    for sensor in (sensor for part in reports for sensor in part.sensors):
        if sensor.name not in found or (found[sensor.name].live and not sensor.live):
            found[sensor.name] = sensor
    return tuple(found.values())


def merge_sources(rows: Iterable[SourceRow]) -> tuple[SourceRow, ...]:
    """Each line as the first row has it that has that line: no two rows overlap then."""
    lines: dict[str, dict[int, str]] = defaultdict(dict)
    for row in rows:
        for number, text in enumerate(row.lines, row.first):
            lines[row.file].setdefault(number, text)
    return tuple(
        SourceRow(file, run[0], tuple(texts[number] for number in run))
        for file, texts in sorted(lines.items())
        for run in runs(sorted(texts))
    )


def _common_error(sites: Sequence[SiteRow]) -> float | None:
    """The standard error of the sum of their counts: each rank's count scatters for itself."""
    errors = [site.count_error for site in sites if site.sampled]
    known = [error for error in errors if error is not None]
    return math.sqrt(sum(error**2 for error in known)) if known and len(known) == len(errors) else None


def _weighted_median(values: Sequence[tuple[float, int]]) -> float:
    ordered = sorted(values)
    passed = list(itertools.accumulate(weight for _, weight in ordered))
    return ordered[bisect_left(passed, passed[-1] / 2)][0]


def _mean(weighted: Iterable[tuple[float | None, float]]) -> float | None:
    """The mean of the values that are known, by their weights."""
    known = [(value, weight) for value, weight in weighted if value is not None]
    whole = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / whole if whole else None


def _known_sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def merge_costs(reports: Sequence[Report], new_id: Callable[[int, int], int]) -> CostRow | None:
    """The cost of the whole; ``new_id`` says which row a site of one of the reports is in."""
    costs = [
        (index, rank, part.cost)
        for index, (rank, part) in enumerate(zip(ranks_of(reports), reports, strict=True))
        if part.cost is not None
    ]
    if not costs:
        return None
    index, _, least = min(costs, key=lambda one: math.inf if one[2].gain_all_ms is None else one[2].gain_all_ms)
    order = tuple(replace(row, site=new_id(index, row.site)) for row in least.order)
    busy = newest([replace(row, rank=rank) for _, rank, cost in costs for row in cost.gpu_busy])
    return replace(least, order=order, gpu_busy=busy)


def _distinct(values: Iterable[_Value]) -> list[_Value]:
    return list(dict.fromkeys(values))
