"""Which rank the others wait for, how long, and what it does meanwhile.

Each rank measures how long its GPU stands still for collectives in each step.  A collective ends on all ranks at about
the same time, so whoever stands still least has come last, and the job would be faster by the difference to the second
last.  That needs no common clock: steps are matched by their numbers.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean, median, stdev
from typing import NamedTuple

from syncagent.events import HostCause, SyncKind
from syncagent.report.model import (
    HOST_SYNC,
    UNKNOWN,
    CauseRow,
    HostRow,
    Lateness,
    LateRank,
    Report,
    RunInfo,
    SiteRow,
    StepRow,
)

_LEAST_STEPS = 10
_LEAST_SHARE = 0.01
"""A rank is named from this share of the step time on, and has come last in a step if it held up that share of it."""
_SURE = 3.0
"""And where chance would make it come last that often by so many standard errors only."""
_MOST_ALIKE = 0.95
"""The greatest correlation of neighbouring steps that a few dozen of them can show."""
_LEAST_EXPLAINED, _MOST_STEPS = 0.2, 0.8
"""A rank of whose lateness less than that is explained is named only where it comes last in so many of its steps: on a
busy machine whichever rank gets less of the processor is late, now one and now another."""
_MUCH_MORE = 2.0
"""It is explained by what the rank does for longer than half of the others do, by so many times their time."""
_WELL_EXPLAINED = 0.5
"""A rank of whose lateness that much is explained is named even if steps are like their neighbours."""
_HICCUPS, _LEAST_HICCUPS = 0.02, 2
"""Of the longest steps so large a part, and at least so many: where one rank stops, another may seem late after it."""
_LOOKS_SURE = 2.0
_LEAST_OF_CAUSES = 0.05
"""A cause that explains less of a rank's lateness is not worth a line."""


class LateStep(NamedTuple):
    """A step as seen from all ranks that know how long they stood still."""

    step: int
    rank: int
    """The one that came last."""
    held_ms: float
    """How much later than the second last."""
    step_ms: float
    """Mean duration on these ranks."""
    waited_ms: float
    """How long its own GPU stood still for collectives: 0 where its host sets the pace."""


def late_steps(rows: Iterable[StepRow]) -> list[LateStep]:
    """Compare the ranks in each step, in order; the first step, in which the job sets itself up, is left out."""
    steps: dict[int, dict[int, StepRow]] = defaultdict(dict)
    first: int | None = None
    for row in rows:
        first = row.step if first is None else min(first, row.step)
        if row.collective_ms is not None and row.rank is not None:
            steps[row.step][row.rank] = row
    late = []
    for step in sorted(steps):
        of_ranks = sorted(steps[step].values(), key=lambda row: row.collective_ms or 0.0)
        if len(of_ranks) > 1 and step != first:
            last, second = of_ranks[:2]
            held_ms = (second.collective_ms or 0.0) - (last.collective_ms or 0.0)
            mean_ms = fmean(row.end_ns - row.start_ns for row in of_ranks) / 1e6
            late.append(LateStep(step, last.rank or 0, held_ms, mean_ms, last.collective_ms or 0.0))
    return late


def lateness(report: Report, run_of: Mapping[int, RunInfo], late: Sequence[LateStep]) -> Lateness | None:
    """Say which ranks hold a job up, by the merged report of its ranks, what each of them was, and all steps.

    ``None`` where ranks cannot be compared.
    """
    whole_ms = sum(step.step_ms for step in late)
    if len(late) < _LEAST_STEPS or whole_ms <= 0:
        return None
    late = _without_hiccups(late)
    steps_of = {rank: run.steps for rank, run in run_of.items()}
    held: dict[int, list[float]] = {rank: [] for rank in steps_of}
    for each in late:
        held[each.rank].append(each.held_ms)
    suspects = _suspects(late, {rank: _last_step(late, _timed(steps)) for rank, steps in steps_of.items()})
    by_chance_ms = [sum(values) for rank, values in held.items() if rank not in suspects]
    named = []
    for rank in suspects:
        times = sum(each.rank == rank and each.held_ms >= _LEAST_SHARE * each.step_ms for each in late)
        held_ms = (sum(held[rank]) - (fmean(by_chance_ms) if by_chance_ms else 0.0)) / len(late)
        share = min(held_ms * len(late) / whole_ms, 1.0)
        if share < _LEAST_SHARE:
            continue
        causes = tuple(_causes(report, steps_of, rank, held_ms, share))
        explained_ms = sum(cause.held_ms for cause in causes if _is_its_own(cause, report.host, steps_of, rank))
        compared = min(_timed(steps_of[rank]), len(late))
        is_likely = explained_ms >= _LEAST_EXPLAINED * held_ms or times >= _MOST_STEPS * compared
        is_explained = explained_ms >= _WELL_EXPLAINED * held_ms
        if is_explained and _is_paced_by_host(late, rank, causes):
            most_ms = min(_more_in_all(report, steps_of, rank), held_ms)
            held_ms, share = most_ms, share * most_ms / held_ms
            causes = tuple(_causes(report, steps_of, rank, held_ms, share))
        if (is_likely and suspects[rank]) or is_explained:
            named.append(LateRank(rank, held_ms, share, times, causes, run_of[rank].host))
    named.sort(key=lambda each: -each.held_ms)
    return Lateness(steps=len(late), step_ms=whole_ms / len(late), ranks=tuple(named))


def _is_its_own(cause: CauseRow, rows: Iterable[HostRow], steps_of: Mapping[int, int], rank: int) -> bool:
    """Whether the rank does it for much longer than the others.

    Where a busy machine lets a rank wait for the processor, it takes somewhat longer than the others wherever it is.
    """
    if cause.cause in {UNKNOWN, HOST_SYNC}:
        return cause.cause != UNKNOWN
    of_line = {
        row.rank: row.ms
        for row in rows
        if row.rank is not None and (row.cause, row.file, row.line) == (cause.cause, cause.file, cause.line)
    }
    own_ms = of_line.get(rank, 0.0) / max(_timed(steps_of[rank]), 1)
    more_ms = _more_than_others(of_line, steps_of, rank)
    return more_ms >= _MUCH_MORE * (own_ms - more_ms)


def _is_paced_by_host(late: Iterable[LateStep], rank: int, causes: Iterable[CauseRow]) -> bool:
    """Whether a rank is late by what its host does: its GPU has waited for that, and not for work of its own."""
    if any(cause.cause == HOST_SYNC for cause in causes):
        return True
    return median(each.waited_ms for each in late if each.rank == rank) == 0


def _more_in_all(report: Report, steps_of: Mapping[int, int], rank: int) -> float:
    """How much longer than half of the others the host of a rank takes for a step, all its lines together, in ms.

    Its GPU stands still for more than the others' where their hosts, too, take longer for a step than their GPUs: a
    host that is ahead, as they are, hides that time, but the job would take it without the late rank as well.
    Without looks at the host it may be anything.
    """
    if not any(row.rank == rank and row.cause == HostCause.LINE for row in report.host):
        return math.inf
    hosts_ms = sum(
        _more_than_others({each: row.ms for each, row in of_ranks.items()}, steps_of, rank)
        for of_ranks in _by_place(report.host)
        if rank in of_ranks
    )
    return hosts_ms + sum(cause.held_ms for cause in _host_syncs(report.sites, steps_of, rank))


def _without_hiccups(late: Sequence[LateStep]) -> list[LateStep]:
    """The steps, the longest few cut to the length of the next: a machine that stops once says nothing of a rank."""
    few = max(math.ceil(_HICCUPS * len(late)), _LEAST_HICCUPS)
    most_ms = sorted((each.held_ms for each in late), reverse=True)[few]
    return [each._replace(held_ms=min(each.held_ms, most_ms)) for each in late]


def _last_step(late: Sequence[LateStep], steps: int) -> int:
    """The last step of a rank that made so many: one that died is judged by those that it lived to see."""
    return late[min(max(steps, 1), len(late)) - 1].step


def _suspects(late: Sequence[LateStep], last_of: Mapping[int, int]) -> dict[int, bool]:
    """The ranks that hold steps up for longer than chance would have them, the worst first; ``last_of``: their steps.

    With each, whether that holds also if neighbouring steps have one and the same reason.

    Where no rank is worse than another, each comes last in its share of the steps, and the difference to the others is
    0 in the mean.  The worst one's steps are then left out, since it would hide the next.
    """
    found: dict[int, bool] = {}
    ranks = len(last_of)
    while len(late) >= _LEAST_STEPS and ranks > 1:
        held: dict[int, float] = defaultdict(float)
        for each in late:
            held[each.rank] += each.held_ms
        worst = max(held, key=held.__getitem__)
        values = [
            each.held_ms if each.rank == worst else -each.held_ms / (ranks - 1)
            for each in late
            if each.step <= last_of[worst]
        ]
        if len(values) >= _LEAST_STEPS:
            independent = stdev(values) / math.sqrt(len(values))
            if fmean(values) <= _SURE * independent:
                break
            found[worst] = fmean(values) > _SURE * independent * _inflation(values)
        late = [each for each in late if each.rank != worst]
        ranks -= 1
    return found


def _inflation(values: Sequence[float]) -> float:
    """By what the standard error of their mean is greater since neighbours are alike.

    Another program that keeps a rank from the processor, say, does so for several steps on end, which tell no more than
    one of them.
    """
    count, mean = len(values), fmean(values)
    squares = sum((value - mean) ** 2 for value in values)
    alike = sum((one - mean) * (other - mean) for one, other in pairwise(values)) / squares if squares else 0.0
    alike = min(max((count * alike + 1) / max(count - 3, 1), 0.0), _MOST_ALIKE)  # as estimated, it is too low
    return math.sqrt((1 + alike) / (1 - alike))


def _causes(
    report: Report, steps_of: Mapping[int, int], rank: int, late_ms: float, late_share: float
) -> Iterator[CauseRow]:
    """What the rank did more of than the others in a step, as shares of its lateness; the longest first."""
    found = _by_line([*_host_syncs(report.sites, steps_of, rank), *_host_time(report.host, steps_of, rank)])
    found = [cause for cause in found if cause.held_ms > _LEAST_OF_CAUSES * late_ms]
    explained_ms = sum(cause.held_ms for cause in found)
    # It need not be late by all that it does more: part of a sync is work that its GPU has to do anyway.
    part = min(late_ms / explained_ms, 1.0) if explained_ms else 0.0
    for cause in sorted(found, key=lambda cause: -cause.held_ms):
        held_ms = cause.held_ms * part
        if held_ms < _LEAST_OF_CAUSES * late_ms:
            continue
        yield replace(cause, held_ms=held_ms, share=held_ms / late_ms * late_share)
    rest_ms = late_ms - explained_ms * part
    if rest_ms > _LEAST_OF_CAUSES * late_ms:
        yield CauseRow(UNKNOWN, rest_ms, rest_ms / late_ms * late_share)


def _by_line(causes: Iterable[CauseRow]) -> list[CauseRow]:
    """One row for each line, even if it waits in several ways, and takes time besides: named by what takes longest."""
    found: dict[tuple[str, str, int], CauseRow] = {}
    for cause in sorted(causes, key=lambda cause: -cause.held_ms):
        key = ("" if cause.cause in {HOST_SYNC, HostCause.LINE} else cause.cause, cause.file, cause.line)
        known = found.get(key)
        found[key] = cause if known is None else replace(known, held_ms=known.held_ms + cause.held_ms)
    return [*found.values()]


def _host_syncs(sites: Iterable[SiteRow], steps_of: Mapping[int, int], rank: int) -> Iterator[CauseRow]:
    for site in sites:
        shares = {share.rank: share.step_stall_ms or 0.0 for share in site.ranks}
        if rank in shares and site.kind != SyncKind.COLLECTIVE.value:
            more_ms = _more_than_others(shares | _not_listed(site, shares, steps_of), steps_of, rank)
            yield CauseRow(HOST_SYNC, more_ms, 0.0, site.file, site.line, site.function, site.source, site.id)


def _not_listed(site: SiteRow, shares: Mapping[int, float], steps_of: Mapping[int, int]) -> dict[int, float]:
    """The mean of the ranks that have no share of their own, for as many ranks as they are."""
    count = max(site.rank_count - len(shares), 0)
    rest_ms = max((site.step_stall_ms or 0.0) - sum(shares.values()), 0.0)
    others = [rank for rank in steps_of if rank not in shares][:count]
    return dict.fromkeys(others, rest_ms / count) if count else {}


def _host_time(rows: Collection[HostRow], steps_of: Mapping[int, int], rank: int) -> Iterator[CauseRow]:
    for of_ranks in _by_place(rows):
        own = of_ranks.get(rank)
        if own is None or (own.cause == HostCause.LINE and not own.file):
            continue
        more_ms = _more_than_others({rank: row.ms for rank, row in of_ranks.items()}, steps_of, rank)
        is_looks = own.cause != HostCause.GARBAGE_COLLECTION
        scatter_ms = own.ms / math.sqrt(max(own.count, 1)) / max(_timed(steps_of[rank]), 1) if is_looks else 0.0
        if more_ms > _LOOKS_SURE * scatter_ms:
            yield CauseRow(own.cause, more_ms, 0.0, own.file, own.line, own.function, own.source)


def _by_place(rows: Iterable[HostRow]) -> Collection[dict[int, HostRow]]:
    """The rows of one cause and line together, by rank."""
    places: dict[tuple[str, str, int], dict[int, HostRow]] = defaultdict(dict)
    for row in rows:
        if row.rank is not None:
            places[row.cause, row.file, row.line][row.rank] = row
    return places.values()


def _more_than_others(ms: Mapping[int, float], steps_of: Mapping[int, int], rank: int) -> float:
    """How much more of it a rank has in a step than half of the others, in ms."""
    per_step = {each: ms.get(each, 0.0) / max(_timed(steps), 1) for each, steps in steps_of.items()}
    own = per_step.pop(rank)
    return max(own - median(per_step.values()), 0.0) if per_step else 0.0


def _timed(steps: int) -> int:
    """The first step is not timed."""
    return steps - 1
