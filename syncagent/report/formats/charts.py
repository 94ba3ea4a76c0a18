"""What the page's two charts draw: the stall of each step by line, and the time line of the newest waits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from syncagent.report import wording
from syncagent.report.model import EventRow, Report, SiteRow

COLORS = 7
"""How many lines have a colour of their own; all others share one."""
_STEPS = 1_000
_EVENTS = 10_000
_LANES = 32
_TABLE = 20


def lines_with_colors(report: Report) -> list[SiteRow]:
    """The lines with the longest stalls among the events that are kept, the longest first."""
    stalls: Counter[int] = Counter()
    for event in report.events:
        stalls[event.site] += event.stall_ns
    known = {site.id: site for site in report.sites}
    return [known[site] for site, _ in stalls.most_common() if site in known][:COLORS]


def label(site: SiteRow, cwd: str) -> str:
    """A line in a legend: in the backward pass that of the forward pass."""
    line = site.forward or site
    return wording.place(line.file, line.line, cwd) + (" (backward)" if site.forward else "")


def stall_per_step(report: Report) -> dict[str, Any] | None:
    """The stall of each step, stacked: ``steps`` are their numbers, ``ms`` a row for each line, the last of all others.

    Of several ranks it is the mean.  ``None`` where no step was marked, or no single wait is known.
    """
    marked = sorted({step.step for step in report.step_times})
    if not marked or not report.events:
        return None
    first = min(event.step for event in report.events)
    if sum(site.count for site in report.sites) > len(report.events):
        firsts: dict[int | None, int] = {}
        for event in report.events:
            firsts[event.rank] = min(event.step, firsts.get(event.rank, event.step))
        first = max(firsts.values()) + 1  # part of a rank's first waits may be among those that are no longer kept
    steps = [step for step in marked if step >= first][-_STEPS:]
    if not steps:
        return None
    ranks = max(len({event.rank for event in report.events}), 1)
    row_of = {site.id: row for row, site in enumerate(lines_with_colors(report))}
    column_of = {step: column for column, step in enumerate(steps)}
    sums = [[0.0] * len(steps) for _ in range(len(row_of) + 1)]
    for event in report.events:
        column = column_of.get(event.step)
        if column is not None:
            sums[row_of.get(event.site, len(row_of))][column] += event.stall_ns / 1e6 / ranks
    return {"steps": steps, "ms": [[round(ms, 4) for ms in row] for row in sums]}


def table_of(per_step: Mapping[str, Any]) -> list[tuple[int, list[str]]]:
    """The newest steps of that chart as a table: a step, and its stall by line."""
    newest = range(max(len(per_step["steps"]) - _TABLE, 0), len(per_step["steps"]))
    return [(per_step["steps"][column], [wording.duration(row[column]) for row in per_step["ms"]]) for column in newest]


def timeline(report: Report) -> dict[str, Any] | None:
    """The newest waits, steps and, where a cost window knows them, the times in which the GPU worked.

    ``lanes`` are their names, from above.  ``waits``, ``steps`` and ``busy`` are columns: times in µs since the first
    of all, lanes as numbers, sites by their ``id``.  ``None`` where no single wait is known.
    """
    events = sorted(report.events, key=lambda event: event.start_ns)[-_EVENTS:]
    if not events:
        return None
    since_ns = events[0].start_ns
    busy = report.cost.gpu_busy if report.cost is not None else ()
    steps = [step for step in report.step_times if step.end_ns > since_ns]
    zero_ns = min([since_ns, *(step.start_ns for step in steps)])
    busy = tuple(row for row in busy if row.end_ns > zero_ns)
    lanes = _lanes(report, events)
    waits = [(event, lanes[lane]) for event in events if (lane := (event.rank, _THREADS, event.thread)) in lanes]

    def us(ns: int) -> int:
        return round((ns - zero_ns) / 1e3)

    steps.sort(key=lambda step: step.start_ns)
    shown_steps = [(step, lanes[lane]) for step in steps if (lane := (step.rank, *_STEPS_LANE)) in lanes][-_EVENTS:]
    shown_busy = [(row, lanes[lane]) for row in busy if (lane := (row.rank, *_GPU_LANE)) in lanes]
    has_ranks = len({rank for rank, _, _ in lanes}) > 1
    named = [(rank, kind, name or "thread without a name") for rank, kind, name in lanes]
    return {
        "lanes": [f"rank {rank} · {name}" if has_ranks else name for rank, _, name in named],
        "left_out": len({(event.rank, event.thread) for event in events}) - len({lane for _, lane in waits}),
        "waits": {
            "site": [event.site for event, _ in waits],
            "lane": [lane for _, lane in waits],
            "start": [us(event.start_ns) for event, _ in waits],
            "us": [max(round(event.stall_ns / 1e3), 1) for event, _ in waits],
            "step": [event.step for event, _ in waits],
        },
        "steps": {
            "step": [step.step for step, _ in shown_steps],
            "lane": [lane for _, lane in shown_steps],
            "start": [us(step.start_ns) for step, _ in shown_steps],
            "us": [round((step.end_ns - step.start_ns) / 1e3) for step, _ in shown_steps],
        },
        "busy": {
            "lane": [lane for _, lane in shown_busy],
            "start": [us(row.start_ns) for row, _ in shown_busy],
            "us": [max(round((row.end_ns - row.start_ns) / 1e3), 1) for row, _ in shown_busy],
        },
    }


_STEPS_LANE, _THREADS, _GPU_LANE = (0, "steps"), 1, (2, "GPU")
_Lane = tuple["int | None", int, str]
"""A rank, what the lane is of, and its name: a thread may have any."""


def _lanes(report: Report, events: Sequence[EventRow]) -> dict[_Lane, int]:
    """The number of each lane: in each rank its steps, the threads by what they waited, its GPU."""
    waited: dict[int | None, Counter[str]] = defaultdict(Counter)
    for event in events:
        waited[event.rank][event.thread] += event.stall_ns
    marked = {step.rank for step in report.step_times}
    priced = {row.rank for row in report.cost.gpu_busy} if report.cost is not None else set()
    names: list[_Lane] = []
    for rank in sorted(waited, key=lambda rank: -1 if rank is None else rank):
        names += [(rank, *_STEPS_LANE)] if rank in marked else []
        names += [(rank, _THREADS, thread) for thread, _ in waited[rank].most_common()]
        names += [(rank, *_GPU_LANE)] if rank in priced else []
    return {name: number for number, name in enumerate(names[:_LANES])}


def distribution(stalls_ns: Sequence[int]) -> list[tuple[str, int]]:
    """How many of a line's waits took how long: a bar for each power of two between the shortest and the longest."""
    bins = Counter(max(ns, 1).bit_length() - 1 for ns in stalls_ns)
    first, last = min(bins, default=0), max(bins, default=-1)
    return [(f"{wording.duration(2**power / 1e6)} to {wording.duration(2 ** (power + 1) / 1e6)}", bins[power])
            for power in range(first, last + 1)]  # fmt: skip


def stalls_of(report: Report) -> dict[int, list[int]]:
    """The stalls (ns) of each site among the events that are kept."""
    found: dict[int, list[int]] = defaultdict(list)
    for event in report.events:
        found[event.site].append(event.stall_ns)
    return found


def in_words(report: Report, kept: int) -> str:
    """What a chart of so many waits is of."""
    all_of_them = sum(site.count for site in report.sites)
    of = f"the newest {kept:,} of {all_of_them:,} waits" if all_of_them > kept else wording.plural(kept, "wait")
    if report.run.detail == "auto":
        return f"Drawn from {of}. Between sampled steps only waits that take long are recorded one by one."
    return f"Drawn from {of}."
