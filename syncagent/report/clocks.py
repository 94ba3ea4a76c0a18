"""Machines whose clocks are apart: the ranks' times on one clock, by the steps that they end together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from statistics import median

from syncagent.report.model import Report, StepRow
from syncagent.report.wording import duration

_LEAST_STEPS = 5
_LEAST_NS = 1_000_000_000
_STEPS_AHEAD = 8
"""A host may queue work so many steps before another one does: less than that says nothing of its clock."""
_SHOWN = 4


def on_one_clock(report: Report, machines: Mapping[int, str]) -> Report:
    """The merged report with all times by the clock of the lowest rank, and a note where that changes any.

    Ranks of a job end each step at about the same time, since each waits for the others' gradients.  Those of one of
    the ``machines`` have one clock, however far ahead of its GPU the host of a pipeline's stage may be.
    """
    offsets = _offsets_ns(report, machines)
    if not offsets:
        return report
    return replace(
        report,
        events=tuple(
            replace(event, start_ns=event.start_ns - offsets.get(_rank(event.rank), 0)) for event in report.events
        ),
        step_times=tuple(_moved(step, offsets.get(_rank(step.rank), 0)) for step in report.step_times),
        notes=(*report.notes, _note(offsets, min(report.run.ranks))),
    )


def _rank(rank: int | None) -> int:
    return -1 if rank is None else rank


def _moved(step: StepRow, offset_ns: int) -> StepRow:
    return replace(step, start_ns=step.start_ns - offset_ns, end_ns=step.end_ns - offset_ns) if offset_ns else step


def _offsets_ns(report: Report, machines: Mapping[int, str]) -> dict[int, int]:
    """How far each rank's clock is ahead of the lowest rank's, where that is more than steps can tell apart."""
    ends: dict[int, dict[int, int]] = defaultdict(dict)
    lengths = []
    for row in report.step_times:
        if row.rank is not None:
            ends[row.rank][row.step] = row.end_ns
            lengths.append(row.end_ns - row.start_ns)
    if len(ends) < 2:
        return {}
    least_ns = max(_LEAST_NS, _STEPS_AHEAD * median(lengths))
    lowest = min(ends)
    reference = ends.pop(lowest)
    offsets = {}
    for rank, own in ends.items():
        if machines.get(rank) and machines[rank] == machines.get(lowest):
            continue
        apart = [end_ns - reference[step] for step, end_ns in own.items() if step in reference]
        if len(apart) >= _LEAST_STEPS and abs(median(apart)) > least_ns:
            offsets[rank] = round(median(apart))
    return offsets


def _note(offsets_ns: dict[int, int], reference: int) -> str:
    shown = [
        f"rank {rank}'s by {duration(abs(ns) / 1e6)} {'ahead' if ns > 0 else 'behind'}"
        for rank, ns in sorted(offsets_ns.items())[:_SHOWN]
    ]
    more = f", and {len(offsets_ns) - _SHOWN:,} more" if len(offsets_ns) > _SHOWN else ""
    return (
        f"clocks are apart, as estimated from steps that end together: {', '.join(shown)}{more}; "
        f"times are shown by rank {reference}'s clock"
    )
