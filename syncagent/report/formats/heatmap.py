"""A number for each step and rank as a picture: the colour of each cell, and its largest numbers in words."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any

from syncagent.report import blame, wording
from syncagent.report.model import Report

COLUMNS, ROWS = 200, 128
"""So many cells there are at most: more steps or ranks than these share one, which shows the largest of theirs."""
STEPS = 1_000
"""How many of the newest steps are looked at."""
_COLOURS = 6
_WORST = 12
_LEAST = 0.001
"""Shorter times than this, in ms, have one colour."""
_OUTLIERS = 0.02
"""The share of the cells that may be beyond where the last colour begins, so that a few do not make the rest alike."""

Matrix = Sequence[Sequence["float | None"]]
"""A row for each step and in it a number for each rank, in ms; ``None`` where it is not known."""


@dataclass(frozen=True, slots=True)
class HeatMap:
    """One picture.  Columns are steps and rows ranks, each a first and a last number."""

    title: str
    meaning: str
    """What the number of a cell is, as it follows on "Colour:"."""
    columns: list[tuple[int, int]]
    rows: list[tuple[int, int]]
    cells: list[str]
    """For each row a letter for each column: the number of its colour, or ``-`` where nothing is known."""
    colours: list[str]
    """The times that each colour stands for."""
    has_gaps: bool
    worst: list[tuple[int, int, str]]
    """The largest numbers of all: step, rank, time."""
    said: str
    """Which rank has most of it, and what share a cell."""

    def data(self) -> dict[str, Any]:
        """What is needed to draw it."""
        return {"columns": self.columns, "rows": self.rows, "cells": self.cells, "colours": self.colours}


def heat_map(
    title: str, meaning: str, steps: Sequence[int], ranks: Sequence[int], ms: Matrix, *, mark: str = ""
) -> HeatMap | None:
    """The picture of a matrix, whose rows are ``steps`` and whose columns are ``ranks``, both in their order.

    ``mark`` follows each time.  ``None`` where there are fewer than two ranks, or no number is above 0.
    """
    known = [(value, step, rank) for step, row in zip(steps, ms, strict=True)
             for rank, value in zip(ranks, row, strict=True) if value is not None]  # fmt: skip
    worst = sorted((cell for cell in known if cell[0] > 0), key=lambda cell: (-cell[0], cell[1], cell[2]))
    if len(ranks) < 2 or not worst:
        return None
    columns, rows = _shared(len(steps), COLUMNS), _shared(len(ranks), ROWS)
    binned = [[_largest(ms, column, row) for column in columns] for row in rows]
    bounds = _bounds([value for row in binned for value in row if value])
    cells = ["".join("-" if value is None else str(_colour(value, bounds)) for value in row) for row in binned]
    sums: dict[int, float] = defaultdict(float)
    for value, _, rank in known:
        sums[rank] += max(value, 0.0)
    most = max(sums, key=lambda rank: (sums[rank], -rank))
    share = [
        f"{len(numbers[0])} {what}" for numbers, what in ((columns, "steps"), (rows, "ranks")) if len(numbers[0]) > 1
    ]
    said = (
        f"Rank {most} has most of it: {wording.duration(sums[most])}{mark} in {wording.plural(len(steps), 'step')}, "
        f"{wording.share(sums[most] / sum(sums.values()))} of all."
    )
    if share:
        said += f" A cell is of {' and '.join(share)}, and shows their largest."
    return HeatMap(
        title,
        meaning,
        [(steps[column[0]], steps[column[-1]]) for column in columns],
        [(ranks[row[0]], ranks[row[-1]]) for row in rows],
        cells,
        _names(bounds, mark),
        any("-" in row for row in cells),
        [(step, rank, wording.duration(value) + mark) for value, step, rank in worst[:_WORST]],
        said,
    )


def longer_steps(report: Report) -> HeatMap | None:
    """How much longer each of the newest steps took in each rank than in the median one.

    Of an even number of ranks the median is the lower of the two in the middle, so that of two the slower stands out.
    ``None`` where no step is known of two ranks.
    """
    took: dict[int, dict[int, float]] = defaultdict(dict)
    for row in report.step_times:
        if row.rank is not None:
            took[row.step][row.rank] = max((row.end_ns - row.start_ns) / 1e6, took[row.step].get(row.rank, 0.0))
    steps = sorted(step for step, by_rank in took.items() if len(by_rank) > 1)[-STEPS:]
    ranks = sorted({rank for step in steps for rank in took[step]})
    ms: list[list[float | None]] = []
    for step in steps:
        middle = median_low(took[step].values())
        ms.append([max(took[step][rank] - middle, 0.0) if rank in took[step] else None for rank in ranks])
    meaning = "how much longer the step took in that rank than in the median rank."
    return heat_map("Slower ranks, step by step", meaning, steps, ranks, ms, mark=wording.mark(report))


def late_ranks(report: Report) -> HeatMap | None:
    """How long the others waited in each of the newest steps for the rank that came last.

    ``None`` where no two ranks know how long they stood still for collectives.
    """
    late = blame.late_steps(report.step_times)[-STEPS:]
    ranks = sorted({row.rank for row in report.step_times if row.rank is not None and row.collective_ms is not None})
    ms: list[list[float | None]] = [[each.held_ms if rank == each.rank else 0.0 for rank in ranks] for each in late]
    meaning = "how much later than all others that rank came to the step's collectives."
    steps = [each.step for each in late]
    return heat_map("Which rank the others waited for", meaning, steps, ranks, ms, mark=wording.mark(report))


def _shared(number: int, most: int) -> list[range]:
    """The places that share a cell, in at most so many cells."""
    size = max(math.ceil(number / most), 1)
    return [range(first, min(first + size, number)) for first in range(0, number, size)]


def _largest(ms: Matrix, steps: range, ranks: range) -> float | None:
    return max((value for step in steps for rank in ranks if (value := ms[step][rank]) is not None), default=None)


def _bounds(values: Sequence[float]) -> list[float]:
    """Where each colour but the first begins, in ms: 1, 2 or 5 times a power of ten."""
    positive = sorted(value for value in values if value > 0)
    high = positive[math.ceil((len(positive) - 1) * (1 - _OUTLIERS))]
    power = math.floor(math.log10(high))
    round_numbers = [times * 10.0**exponent for exponent in range(power - 2, power + 1) for times in (1, 2, 5)]
    found = [number for number in round_numbers if _LEAST <= number <= high * (1 + 1e-9)]
    return found[-(_COLOURS - 1) :] or [_LEAST]


def _colour(value: float, bounds: Sequence[float]) -> int:
    return sum(value >= bound for bound in bounds)


def _names(bounds: Sequence[float], mark: str) -> list[str]:
    texts = [wording.duration(bound) + mark for bound in bounds]
    between = [f"{low} to {high}" for low, high in itertools.pairwise(texts)]
    return [f"less than {texts[0]}", *between, f"{texts[-1]} or more"]
