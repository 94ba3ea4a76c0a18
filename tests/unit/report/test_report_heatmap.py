"""The picture of steps and ranks: which cell has which colour, and what is said of the largest."""

from __future__ import annotations

from dataclasses import replace

import pytest
from training_run import START_NS, report_of

from syncagent.report.formats import html
from syncagent.report.formats.heatmap import COLUMNS, ROWS, heat_map, longer_steps
from syncagent.report.model import StepRow

MS = 1_000_000


def drawn(ms, steps=None, ranks=None):
    return heat_map("A title", "what it is.", steps or range(len(ms)), ranks or range(len(ms[0])), ms)


def report_with(durations):
    """A report in which steps took so many ms: by rank, a dictionary of them by step."""
    rows = (
        StepRow(step, START_NS + step * 10**9, START_NS + step * 10**9 + round(ms * MS), rank)
        for rank, steps in durations.items()
        for step, ms in steps.items()
    )
    report = report_of(steps=1)
    return replace(report, step_times=tuple(rows), run=replace(report.run, ranks=tuple(durations)))


def test_a_colour_begins_at_round_times_and_a_cell_that_is_not_known_has_none():
    found = drawn([[0.0, 0.99, 1.0], [2.0, None, 19.9], [20.0, 5.0, 10.0]])
    assert found.cells == ["025", "0-3", "144"]
    assert found.colours == [
        "less than 1.0 ms", "1.0 ms to 2.0 ms", "2.0 ms to 5.0 ms", "5.0 ms to 10.0 ms", "10.0 ms to 20.0 ms",
        "20.0 ms or more",
    ]  # fmt: skip
    assert found.has_gaps


def test_a_few_that_are_far_beyond_do_not_make_all_others_alike():
    found = drawn([*([0.0, 1.0 + step % 9] for step in range(99)), [0.0, 60_000.0]])
    assert found.colours[-1] == "5.0 ms or more"
    assert set(found.cells[1]) == {"3", "4", "5"}


@pytest.mark.parametrize(("ms", "colours"), [(0.000001, 2), (0.003, 3), (3_600_000.0, 6)])
def test_each_colour_has_a_time_of_its_own_however_short_or_long_they_are(ms, colours):
    found = drawn([[0.0, ms]])
    assert len(set(found.colours)) == len(found.colours) == colours
    assert found.cells[0] == "0"


def test_the_largest_are_named_with_the_rank_that_has_most():
    found = drawn([[3.0, 0.0, 1.5], [3.0, 8.0, None]], steps=[10, 20], ranks=[4, 5, 9])
    assert found.worst == [(20, 5, "8.0 ms"), (10, 4, "3.0 ms"), (20, 4, "3.0 ms"), (10, 9, "1.5 ms")]
    assert found.said == "Rank 5 has most of it: 8.0 ms in 2 steps, 51.6 % of all."
    assert (found.columns, found.rows) == ([(10, 10), (20, 20)], [(4, 4), (5, 5), (9, 9)])


def test_of_many_a_cell_shows_the_largest_and_none_is_lost():
    ms = [[0.0] * 1_024 for _ in range(1_000)]
    ms[777][1_023] = 50.0
    ms[0][8] = 40.0
    ms[999][0] = None
    found = drawn(ms)
    assert (len(found.columns), len(found.rows)) == (COLUMNS, ROWS) == (200, 128)
    assert (found.columns[155], found.rows[127]) == ((775, 779), (1_016, 1_023))
    colours = {(row, column): cell for row, cells in enumerate(found.cells) for column, cell in enumerate(cells)}
    assert {place: cell for place, cell in colours.items() if cell != "0"} == {(127, 155): "5", (1, 0): "4"}
    assert found.worst == [(777, 1_023, "50.0 ms"), (0, 8, "40.0 ms")]
    assert found.said.endswith("A cell is of 5 steps and 8 ranks, and shows their largest.")
    assert sum(map(len, found.cells)) == 25_600


@pytest.mark.parametrize("ms", [[[0.0, 0.0]], [[5.0]], [[None, None]], [[-1.0, 0.0]]])
def test_there_is_none_of_one_rank_or_where_no_number_is_above_zero(ms):
    assert drawn(ms) is None


def test_a_step_is_compared_with_the_median_rank_and_of_two_with_the_faster():
    three = longer_steps(report_with({0: {7: 100.0, 8: 100.0}, 1: {7: 104.0, 8: 90.0}, 2: {7: 110.0, 8: 112.0}}))
    assert three.worst == [(8, 2, "12.0 ms"), (7, 2, "6.0 ms")]
    two = longer_steps(report_with({3: {1: 50.0}, 9: {1: 58.0}}))
    assert two.worst == [(1, 9, "8.0 ms")]


def test_a_step_of_one_rank_alone_is_left_out_and_one_that_a_rank_lacks_is_not_known():
    found = longer_steps(report_with({0: {1: 5.0, 2: 5.0, 3: 5.0}, 1: {1: 7.0, 2: 7.0}, 2: {1: 5.0}}))
    assert found.columns == [(1, 1), (2, 2)]
    assert [cells.replace("0", " ").strip() for cells in found.cells] == ["", f"{found.cells[1]}", "-"]
    assert found.worst == [(1, 1, "2.0 ms"), (2, 1, "2.0 ms")]
    assert longer_steps(report_with({0: {1: 5.0}, 1: {2: 5.0}})) is None
    assert longer_steps(report_of(steps=3)) is None


def test_of_more_steps_the_newest_thousand_are_drawn():
    found = longer_steps(report_with({rank: dict.fromkeys(range(1500), 5.0 + rank) for rank in (0, 1)}))
    assert (found.columns[0], found.columns[-1]) == ((500, 504), (1_495, 1_499))


def test_a_page_of_a_thousand_ranks_has_it_in_little_room_and_one_of_a_single_rank_has_none():
    many = report_with({rank: dict.fromkeys(range(20), 5.0 + rank % 7) for rank in range(1_024)})
    page = html.render(many)
    assert "Slower ranks, step by step" in page
    assert len(page) < 200_000
    assert "Slower ranks" not in html.render(report_with({0: {1: 5.0, 2: 9.0}}))
