"""Which files may be merged: those of one run, each process once."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from syncagent.errors import SyncAgentError
from syncagent.report.merge import merge
from syncagent.report.model import Report
from syncagent.report.origins import Origin, of_run, runs_of, same_run

Found = tuple["Path", "Report"]
"""A report, and the file that it was read from."""
_NAMED = 8
"""So many ranks or files are named in a sentence; the others are counted."""


class Candidate(NamedTuple):
    """A file that may be merged."""

    file: Path
    origin: Origin
    is_whole: bool = True
    """False for a capture: the report of the same process is preferred."""


def add_up(found: Sequence[Found]) -> Report:
    """Merge the reports of the processes of one run.

    Raises :class:`SyncAgentError` where they are of several runs, since their sums would say nothing about any of them,
    and where one is itself such a sum: what each of its processes did is no longer known.
    """
    candidates = [Candidate(file, of_run(report.run), report.run.ended) for file, report in found]
    reports = {id(each): report for each, (_, report) in zip(candidates, found, strict=True)}
    once = of_one_run(candidates)
    refuse_sums([(each.file, reports[id(each)]) for each in once])
    return with_missing(merge([reports[id(each)] for each in once]))


def refuse_sums(found: Sequence[Found]) -> None:
    """Raise :class:`SyncAgentError` where one of several is itself the sum of several reports."""
    for file, report in found if len(found) > 1 else ():
        if report.run.ranks or report.run.processes:
            raise SyncAgentError(
                f"{os.fspath(file)!r} is already the sum of several processes' reports, to which no other can be "
                "added: give those reports instead of it"
            )


def of_one_run(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Leave out what is there twice; raise :class:`SyncAgentError` where the rest is of several runs."""
    once = each_process_once(candidates)
    groups = _runs(once)
    if len(groups) > 1:
        raise SyncAgentError(_refusal(groups[0][0], groups[1][0]))
    for one, other in _contradicting(once):
        raise SyncAgentError(_refusal(one, other))
    return once


def newest_run(candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[str]]:
    """What there is of the run that began last, and a sentence for each reason why some of the rest is left out."""
    groups = _runs(each_process_once(candidates))
    newest = max(groups, key=lambda group: (max(each.origin.started for each in group), len(group)))
    others = [each for group in groups if group is not newest for each in group]
    said = [f"of the newest run; {_files(others)} of other runs {_are(others)} left out"] if others else []
    kept, others = _of_newest_world(newest)
    if others:
        size, before = (group[0].origin.world_size or 0 for group in (_sized(kept), others))
        said.append(
            f"the run changed its size: {_files(others)} of when it had {_ranks(before)} {_are(others)} left out, and "
            f"these are of when it had {_ranks(size)}"
        )
    twice = {id(min(pair, key=lambda each: each.origin.started)): pair for pair in _contradicting(kept)}
    if twice:
        old = [each for each in kept if id(each) in twice]
        said.append(f"another process has a newer file of the same rank, so {_files(old)} {_are(old)} left out")
    return [each for each in kept if id(each) not in twice], said


def each_process_once(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Leave out files that are given twice, and the capture of a process that also has a complete report here."""
    kept: dict[str, Candidate] = {}
    for each in candidates:
        key = each.origin.process or os.path.realpath(each.file)
        if key not in kept or (not kept[key].is_whole and each.is_whole):
            kept[key] = each
    return list(kept.values())


def with_missing(merged: Report) -> Report:
    """The report with a note on the ranks of which nothing was merged."""
    size = merged.run.world_size
    missing = sorted(set(range(size or 0)) - set(merged.run.ranks))
    if not missing or merged.run.processes or not merged.run.ranks:
        return merged
    note = f"of the {size:,} ranks, {len(missing):,} have no report here: {some(missing)}"
    return replace(merged, notes=(*merged.notes, note))


def some(values: Iterable[object]) -> str:
    """The first few, and an ellipsis for the others."""
    shown = [*map(str, values)]
    return ", ".join(shown[:_NAMED]) + (", …" if len(shown) > _NAMED else "")


def _runs(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    groups: dict[int, list[Candidate]] = defaultdict(list)
    for each, run in zip(candidates, runs_of([each.origin for each in candidates]), strict=True):
        groups[run].append(each)
    return list(groups.values())


def _contradicting(candidates: Sequence[Candidate]) -> list[tuple[Candidate, Candidate]]:
    """Pairs of files of the same rank that cannot be of one run, although other ranks have files of both times."""
    first: dict[int | None, Candidate] = {}
    pairs = []
    for each in candidates:
        other = first.setdefault(each.origin.rank, each)
        if other is not each and not same_run(other.origin, each.origin):
            pairs.append((other, each))
            if other.origin.started < each.origin.started:
                first[each.origin.rank] = each
    return pairs


def _of_newest_world(group: Sequence[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
    """An elastic job may begin anew with fewer ranks or more, under the same name."""
    sized = _sized(group)
    if len({each.origin.world_size for each in sized}) < 2:
        return list(group), []
    newest = max(sized, key=lambda each: each.origin.started).origin.world_size
    kept = [each for each in group if each.origin.world_size in {None, newest}]
    return kept, [each for each in sized if each.origin.world_size != newest]


def _sized(group: Iterable[Candidate]) -> list[Candidate]:
    return [each for each in group if each.origin.world_size is not None]


def _refusal(one: Candidate, another: Candidate) -> str:
    (file, first), (other, second) = ((repr(os.fspath(each.file)), each.origin) for each in (one, another))
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


def _files(candidates: Sequence[Candidate]) -> str:
    names = some(each.file.name for each in candidates)
    return f"{len(candidates):,} file{'s' * (len(candidates) != 1)} ({names})"


def _are(candidates: Sequence[Candidate]) -> str:
    return "is" if len(candidates) == 1 else "are"
