"""Which reports may be merged: those of one run, each process once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from syncagent.errors import SyncAgentError
from syncagent.report.merge import merge
from syncagent.report.model import Report
from syncagent.report.origins import of_run, same_run

Found = tuple["Path", "Report"]
"""A report, and the file that it was read from."""


def add_up(found: Sequence[Found]) -> Report:
    """Merge the reports of the processes of one run.

    Raises :class:`SyncAgentError` where they are of several runs, since their sums would say nothing about any of them,
    and where one is itself such a sum: what each of its processes did is no longer known.
    """
    once = _each_process_once(found)
    for file, report in once if len(once) > 1 else ():
        if report.run.ranks or report.run.processes:
            raise SyncAgentError(
                f"{os.fspath(file)!r} is already the sum of several processes' reports, to which no other can be "
                "added: give those reports instead of it"
            )
    groups = _runs(once)
    if len(groups) > 1:
        raise SyncAgentError(_refusal(groups[0][0], groups[1][0]))
    for index, (file, report) in enumerate(once):
        for other_file, other in once[:index]:
            if report.run.rank == other.run.rank and not same_run(of_run(other.run), of_run(report.run)):
                raise SyncAgentError(_refusal((other_file, other), (file, report)))
    merged = merge([report for _, report in once])
    missing = _missing_ranks(merged) if len(once) > 1 else ""
    return replace(merged, notes=(*merged.notes, missing)) if missing else merged


def newest_run(found: Sequence[Found]) -> tuple[list[Found], int]:
    """The reports of the run that began last, and the number of the others."""
    groups = _runs(_each_process_once(found))
    newest = max(groups, key=lambda group: max(report.run.started for _, report in group))
    return newest, sum(map(len, groups)) - len(newest)


def _each_process_once(found: Sequence[Found]) -> list[Found]:
    """Leave out files that are given twice, and the capture of a process that also has a complete report here."""
    kept: dict[str, Found] = {}
    for file, report in found:
        key = report.run.process or os.path.realpath(file)
        if key not in kept or (not kept[key][1].run.ended and report.run.ended):
            kept[key] = (file, report)
    return list(kept.values())


def _runs(found: Sequence[Found]) -> list[list[Found]]:
    groups: list[list[Found]] = []
    for item in found:
        origin = of_run(item[1].run)
        ours = [group for group in groups if any(same_run(of_run(other.run), origin) for _, other in group)]
        groups = [group for group in groups if group not in ours]
        groups.append([*(member for group in ours for member in group), item])
    return groups


def _refusal(*found: Found) -> str:
    (file, first), (other, second) = ((repr(os.fspath(path)), report.run) for path, report in found)
    if first.script != second.script:
        differs = f"{file} is of {first.script!r}, {other} of {second.script!r}"
    elif first.world_size != second.world_size:
        differs = f"{file} is of a run of {_ranks(first.world_size)}, {other} of one of {_ranks(second.world_size)}"
    else:
        rank = "without a rank" if first.rank is None else f"of rank {first.rank}"
        ranks = f", and both are {rank}" if first.rank == second.rank else ""
        began, other_began = (run.started or "an unknown time" for run in (first, second))
        differs = f"{file} began at {began}, {other} at {other_began}{ranks}"
    return (
        f"only reports of one run can be added up, and these are of two: {differs} (`syncagent compare` compares runs)"
    )


def _ranks(size: int | None) -> str:
    return "unknown size" if size is None else f"{size:,} rank{'s' * (size != 1)}"


def _missing_ranks(report: Report) -> str:
    size = report.run.world_size
    missing = sorted(set(range(size or 0)) - set(report.run.ranks))
    if not missing or report.run.processes:
        return ""
    shown = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
    return f"of the {size:,} ranks, {len(missing):,} have no report here: {shown}"
