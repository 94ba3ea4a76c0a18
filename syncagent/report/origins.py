"""Which process of which run a file of the agent is from, whatever its format."""

from __future__ import annotations

import dataclasses
import html
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from syncagent.attribution.processes import JOB
from syncagent.report.model import RunInfo
from syncagent.support import storage

KEY = "syncagent_origin"
"""The key of an origin in the formats that have no place for a whole ``RunInfo``."""

_MOST_BYTES = 64 * 1024 * 1024
_HEADER_BYTES = 64 * 1024
_APART_S = 60.0
"""Ranks of one run start and end together, but the clocks of several machines may differ."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The fields of ``RunInfo`` that tell one process's file from another's."""

    run_id: str = ""
    process: str = ""
    part: int = 0
    script: str = ""
    rank: int | None = None
    world_size: int | None = None
    started: str = ""
    duration_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)


def of_run(run: RunInfo) -> Origin:
    """The origin of a report."""
    return Origin(**{field.name: getattr(run, field.name) for field in dataclasses.fields(Origin)})


def same_run(one: Origin, other: Origin) -> bool:
    """Whether these files are of processes of the same run.

    Where the ranks of a job were not told which run they belong to, files that differ only in their rank and overlap in
    time are of the same run.
    """
    if one.run_id and one.run_id == other.run_id:
        return not one.run_id.startswith(JOB) or _overlap(one, other)
    return (
        None not in (one.rank, other.rank)
        and one.rank != other.rank
        and (one.world_size, one.script) == (other.world_size, other.script)
        and _overlap(one, other)
    )


def runs_of(all_of: Sequence[Origin]) -> list[int]:
    """For each file the number of its run: two have the same if they are of one run, be it by way of others.

    The time it takes grows with the number of files, not with that of their pairs.
    """
    above = list(range(len(all_of)))

    def top(number: int) -> int:
        while above[number] != number:
            above[number] = number = above[above[number]]
        return number

    def unite(one: int, other: int) -> None:
        first, second = sorted((top(one), top(other)))
        above[second] = first

    named: dict[str, list[int]] = defaultdict(list)
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for number, origin in enumerate(all_of):
        if origin.run_id:
            named[origin.run_id].append(number)
        if origin.rank is not None:
            alike[origin.world_size, origin.script].append(number)
    for run_id, numbers in named.items():
        for one, other in _overlapping(all_of, numbers) if run_id.startswith(JOB) else itertools.pairwise(numbers):
            unite(one, other)
    for numbers in alike.values():
        for one, other in _overlapping(all_of, numbers, differ=True):
            unite(one, other)
    return [top(number) for number in range(len(all_of))]


class _Together(NamedTuple):
    """Files of one run, as far as is known: the one that ended last, and the last one of another rank than its."""

    last: int
    last_of_another: int | None


def _overlapping(
    all_of: Sequence[Origin], numbers: Sequence[int], *, differ: bool = False
) -> Iterator[tuple[int, int]]:
    """Pairs that connect all files which overlap in time; with ``differ`` only files of different ranks do."""
    spans = {number: _span(all_of[number]) for number in numbers}
    groups: list[_Together] = []
    for number in sorted(numbers, key=lambda number: spans[number]):
        began, rank = spans[number][0] - _APART_S, all_of[number].rank
        going_on, members = [], [number]
        for group in groups:
            found = group.last if not differ or all_of[group.last].rank != rank else group.last_of_another
            if found is not None and spans[found][1] >= began:
                yield number, found
                members += [each for each in group if each is not None]
            elif spans[group.last][1] >= began:
                going_on.append(group)
        last = max(members, key=lambda each: spans[each][1])
        others = [each for each in members if all_of[each].rank != all_of[last].rank]
        going_on.append(_Together(last, max(others, key=lambda each: spans[each][1], default=None)))
        groups = going_on


def origin_of(file: Path) -> Origin | None:
    """The origin that a file says; ``None`` where there is no file, or one that the agent did not write."""
    content = storage.read(file, most=_MOST_BYTES if file.suffix != ".jsonl" else _HEADER_BYTES)
    if content is None:
        return None
    text = content.decode(errors="replace")
    for pattern in _PLACES:
        found = pattern.search(text)
        if found is None:
            continue
        try:
            values, _ = json.JSONDecoder().raw_decode(html.unescape(found[1]))
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict):
            return _origin(values)
    return None


def glance(file: Path) -> Origin | None:
    """The origin of a report's JSON or of a capture, from its beginning and end; ``None`` where it is not there."""
    text = (storage.read(file, most=_HEADER_BYTES) or b"").decode(errors="replace")
    is_capture = text.startswith('{"type":"header","capture":')
    found = (_PLACES[1] if is_capture else _PLACES[2]).search(text)
    if found is None:
        return None
    try:
        values, _ = json.JSONDecoder().raw_decode(found[1])
    except (ValueError, RecursionError):
        return None
    origin = _origin(values) if isinstance(values, dict) else None
    return replace(origin, duration_s=_newest_duration(file, origin)) if origin is not None and is_capture else origin


def _newest_duration(file: Path, origin: Origin) -> float:
    """How long the run of a capture had taken when it was last written; its beginning says how long until then."""
    for line in reversed(storage.read_end(file, most=_HEADER_BYTES).split(b"\n")):
        if line.startswith(b'{"type":"totals"'):
            try:
                lasted = json.loads(line)["duration_s"]
            except (ValueError, RecursionError, KeyError):
                continue
            return float(lasted) if type(lasted) in {int, float} and 0 <= lasted < _LONGEST_S else origin.duration_s
    return origin.duration_s


_LONGEST_S = 1e12


_PLACES = (
    re.compile(rf'<meta name="{KEY}" content="([^"]*)">'),
    re.compile(rf'"{KEY}":\s*(\{{.*)', re.DOTALL),
    re.compile(r'\A\s*\{\s*"schema":\s*\d+,\s*"run":\s*(\{.*)', re.DOTALL),
)
"""Where a file has its origin: HTML, all other formats, a report's JSON.  No text of the watched program can look like
these, since quotes are escaped in all of them."""


_KINDS = {"part": int, "rank": int | None, "world_size": int | None, "duration_s": int | float}
"""The types of the fields that are no text."""


def _origin(values: dict[str, Any]) -> Origin | None:
    found = {field.name: values.get(field.name, field.default) for field in dataclasses.fields(Origin)}
    if all(isinstance(value, _KINDS.get(name, str)) for name, value in found.items()):
        return Origin(**found)
    return None


def _overlap(one: Origin, other: Origin) -> bool:
    (began, ended), (other_began, other_ended) = _span(one), _span(other)
    return began - _APART_S <= other_ended and other_began - _APART_S <= ended


def _span(origin: Origin) -> tuple[float, float]:
    """When the run began and ended, in seconds since the Unix epoch; all of time where that is not known."""
    try:
        began = datetime.fromisoformat(origin.started.replace("Z", "+00:00"))
    except ValueError:
        return float("-inf"), float("inf")
    seconds = (began if began.tzinfo else began.replace(tzinfo=timezone.utc)).timestamp()
    return seconds, seconds + max(origin.duration_s, 0.0)
