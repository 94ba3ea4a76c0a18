from __future__ import annotations

import random
from dataclasses import replace

import pytest
from training_run import MS, NONZERO, START_NS, report_of, sync

from syncagent.events import SyncKind
from syncagent.report import files, wording
from syncagent.report.blame import late_steps
from syncagent.report.merge import merge
from syncagent.report.model import HostRow, Report, StepRow

STEP_MS = 50.0


def rank_report(rank: int, waits_ms, *, syncs=(), host=(), first=0) -> Report:
    """A rank whose GPU stood still for collectives so long in each step, ``None`` where that is not known."""
    report = report_of(*syncs, rank=rank, world_size=4)
    steps = tuple(
        StepRow(first + number, START_NS + round(number * STEP_MS * MS), START_NS + round((number + 1) * STEP_MS * MS),
                None, wait_ms)
        for number, wait_ms in enumerate(waits_ms)
    )  # fmt: skip
    return replace(
        report, run=replace(report.run, steps=len(steps)), step_times=steps,
        totals=replace(report.totals, step_ms=STEP_MS * (len(steps) - 1)), host=tuple(host),
    )  # fmt: skip


def with_stalls(report: Report, stall_ms: float) -> Report:
    """Its sites stalled so long in its steps."""
    return replace(
        report, sites=tuple(replace(site, stall_ms=stall_ms, step_stall_ms=stall_ms) for site in report.sites)
    )


def host_row(cause: str, ms: float, *, count=1000, line=12) -> HostRow:
    file = "" if cause == "garbage collection" else "/home/ada/proj/train.py"
    return HostRow(cause, file, line if file else 0, "main", "wait_for_disk()" if file else "", count, ms)


def noise(seed: int, steps=200, mean_ms=2.0) -> list[float]:
    return [abs(random.Random(1000 * seed + step).gauss(mean_ms, 1.0)) for step in range(steps)]


def test_the_rank_that_stands_still_least_is_late_by_the_difference_to_the_second():
    reports = [rank_report(0, [1, 9, 8]), rank_report(1, [1, 2, 3]), rank_report(2, [1, 7, 1])]
    steps = late_steps(row for row in merge(reports).step_times)
    assert [(step.step, step.rank, step.held_ms, step.step_ms) for step in steps] == [
        (1, 1, 5.0, STEP_MS),
        (2, 2, 2.0, STEP_MS),
    ]


def test_a_rank_that_is_always_late_is_blamed_by_its_line():
    reports = [rank_report(rank, [10.0 + 0.1 * (step % 3) for step in range(101)]) for rank in (0, 2, 3)]
    late = with_stalls(rank_report(1, [2.0] * 101, syncs=[sync()]), 900.0)
    lateness = merge([reports[0], late, *reports[1:]]).lateness
    assert lateness is not None
    (rank,) = lateness.ranks
    assert (rank.rank, rank.last_in, lateness.steps) == (1, 100, 100)
    assert rank.held_ms == pytest.approx(8.1, abs=0.01)
    (cause,) = rank.causes  # it waited 9 ms a step there: not more than its lateness is due to it
    assert (cause.cause, cause.line, cause.held_ms) == ("host sync", 41, pytest.approx(rank.held_ms))
    assert cause.site == merge([reports[0], late]).sites[0].id


def test_what_is_left_is_unknown():
    late = with_stalls(rank_report(1, [2.0] * 101, syncs=[sync()]), 300.0)
    report = merge([rank_report(0, [12.0] * 101), late])
    (rank,) = report.lateness.ranks
    assert [(cause.cause, cause.held_ms) for cause in rank.causes] == [
        ("host sync", pytest.approx(3.0)),
        ("unknown", pytest.approx(7.0)),
    ]
    assert sum(cause.share for cause in rank.causes) == pytest.approx(rank.share)
    assert wording.lateness(report) == [
        (
            "Rank 1 holds the job up 20.0 % of the time (10.0 ms per step): "
            "6.0 % `torch.nonzero(labels == 9)` at loss.py:41, 14.0 % unknown."
        )
    ]


def test_a_line_that_waits_in_two_ways_is_one_cause():
    kinds = [sync(), sync(kind=SyncKind.SCALAR_READ, op="aten::item")]
    there = HostRow("line", NONZERO.file, NONZERO.line, NONZERO.function, NONZERO.source, 1000, 100.0)
    late = with_stalls(rank_report(1, [2.0] * 101, syncs=kinds, host=[there]), 300.0)
    (rank,) = merge([rank_report(0, [12.0] * 101), late]).lateness.ranks
    assert [(each.cause, each.held_ms) for each in rank.causes] == [("host sync", pytest.approx(7.0))]


@pytest.mark.parametrize(
    ("waited_ms", "is_looked_at", "held_ms"),
    [
        (0.0, True, 8.0),
        pytest.param(1.0, True, 9.0, id="its GPU is the slow one, perhaps"),
        pytest.param(0.0, False, 10.0, id="nobody looked at the hosts"),
    ],
)
def test_a_rank_that_its_host_makes_late_costs_no_more_than_its_host_takes_longer(waited_ms, is_looked_at, held_ms):
    """The others' hosts are ahead, and would need the rest of the time for themselves."""
    cause = "line" if is_looked_at else "garbage collection"
    everybody, own = host_row(cause, 1000.0, line=7) if is_looked_at else None, host_row(cause, 800.0)
    ranks = [
        rank_report(rank, [waits_ms] * 101, host=[row for row in rows if row])
        for rank, waits_ms, rows in ((0, 10.0, [everybody]), (1, waited_ms, [everybody, own]))
    ]
    (rank,) = merge(ranks).lateness.ranks
    assert (rank.rank, rank.held_ms, rank.share) == (1, pytest.approx(held_ms), pytest.approx(held_ms / STEP_MS))
    assert rank.causes[0].held_ms == pytest.approx(8.0)
    assert sum(each.held_ms for each in rank.causes) == pytest.approx(held_ms)


def test_a_line_that_waits_in_the_first_step_alone_is_named_by_the_time_that_it_takes_later():
    there = HostRow("line", NONZERO.file, NONZERO.line, NONZERO.function, NONZERO.source, 1000, 1000.0)
    late = with_stalls(rank_report(1, [2.0] * 101, syncs=[sync()], host=[there]), 0.0)
    (rank,) = merge([rank_report(0, [12.0] * 101), late]).lateness.ranks
    assert [(each.cause, each.site, each.held_ms) for each in rank.causes] == [("line", None, pytest.approx(10.0))]


def test_a_sync_that_all_ranks_have_explains_nothing():
    ranks = [with_stalls(rank_report(rank, [9.0 - 8.0 * rank] * 51, syncs=[sync()]), 400.0) for rank in (0, 1)]
    (rank,) = merge(ranks).lateness.ranks
    assert [cause.cause for cause in rank.causes] == ["unknown"]


@pytest.mark.parametrize("cause", ["line", "data loader", "garbage collection"])
def test_time_on_the_host_that_only_the_late_rank_spends_explains_it(cause):
    late = rank_report(1, [1.0] * 101, host=[host_row(cause, 700.0)])
    other = rank_report(0, [8.0] * 101, host=[host_row("line", 50.0, line=99)])
    report = merge([other, late])
    (rank,) = report.lateness.ranks
    assert [(each.cause, each.held_ms) for each in rank.causes] == [(cause, pytest.approx(7.0))]
    (sentence,) = wording.lateness(report)
    assert sentence.startswith("Rank 1 holds the job up 14.0 % of the time (7.0 ms per step): 14.0 %")


def test_a_line_seen_a_few_times_more_by_chance_explains_nothing():
    late = rank_report(1, [1.0] * 101, host=[host_row("line", 360.0, count=9)])
    other = rank_report(0, [8.0] * 101, host=[host_row("line", 200.0, count=5)])
    (rank,) = merge([other, late]).lateness.ranks
    assert [each.cause for each in rank.causes] == ["unknown"]


@pytest.mark.parametrize("ranks", [2, 4, 16])
@pytest.mark.parametrize("seed", range(20))
def test_nobody_is_blamed_where_nobody_is_late(ranks, seed):
    report = merge([rank_report(rank, noise(100 * seed + rank)) for rank in range(ranks)])
    assert report.lateness.ranks == ()
    assert wording.lateness(report) == ["No rank holds the others up: compared in 199 steps."]


@pytest.mark.parametrize("seed", range(40))
def test_nobody_is_blamed_where_other_programs_take_the_processor_from_one_rank_and_then_from_another(seed):
    """Each time for some steps on end."""
    drawn = random.Random(seed)
    lead, late = 0.0, [[], []]
    for _ in range(100):
        lead = 0.6 * lead + drawn.gauss(0, 10)
        late[0].append(max(lead, 0.0))
        late[1].append(max(-lead, 0.0))
    assert merge([rank_report(rank, waits) for rank, waits in enumerate(late)]).lateness.ranks == ()


@pytest.mark.parametrize(("more_ms", "named"), [(0.5, []), (2.5, [1])])
def test_a_rank_that_is_somewhat_slower_wherever_it_is_has_no_line_to_blame(more_ms, named):
    """As where it gets less of the processor: named only if it comes last in nearly all steps, or if it is far more."""
    late = [0.0] * 101
    others = [10.0 * (step % 2) for step in range(101)]
    own, theirs = (host_row("line", ms * 100) for ms in (40.0 * (1 + more_ms), 40.0))
    report = merge([rank_report(0, others, host=[theirs]), rank_report(1, late, host=[own])])
    assert [rank.rank for rank in report.lateness.ranks] == named


def test_a_pause_every_tenth_step_is_found_in_the_noise():
    late = [0.5 if step % 10 == 3 else wait for step, wait in enumerate(noise(1))]
    others = [[wait + 40 * (step % 10 == 3) for step, wait in enumerate(noise(rank))] for rank in (2, 3, 4)]
    reports = [rank_report(rank, waits) for rank, waits in enumerate(others)]
    report = merge([*reports, rank_report(3, late, host=[host_row("garbage collection", 20 * 40.0, count=20)])])
    (rank,) = report.lateness.ranks
    assert rank.rank == 3
    assert rank.held_ms == pytest.approx(4.0, rel=0.2)
    assert rank.causes[0].cause == "garbage collection"


def test_a_rank_that_held_nothing_up_in_a_step_has_not_come_last_in_it():
    """Where the host sets the pace, no rank stands still: then the lowest one is no later than the others."""
    others = [40.0 if step % 5 == 2 else 0.0 for step in range(101)]
    late = [0.0] * 101
    assert merge([rank_report(0, late), rank_report(1, others)]).lateness.ranks == ()  # unexplained, in few steps
    explained = rank_report(0, late, host=[host_row("line", 20 * 40.0)])
    (rank,) = merge([explained, rank_report(1, others)]).lateness.ranks
    assert (rank.rank, rank.last_in) == (0, 20)


def test_a_stop_of_one_rank_that_makes_the_other_late_after_it_hides_nothing():
    others, late = [40.0] * 29, [0.0] * 29
    others[12], late[13], others[13] = 1000.0, 900.0, 0.0
    (rank,) = merge([rank_report(0, others), rank_report(1, late)]).lateness.ranks
    assert (rank.rank, rank.last_in) == (1, 27)
    assert rank.held_ms == pytest.approx(40.0 * 26 / 28)


def test_a_machine_that_stops_once_hides_nothing_and_names_nobody():
    others, late = [10.0] * 100, [2.0] * 100
    others[50], late[60] = 700.0, 900.0
    others[60] = 0.0
    (rank,) = merge([rank_report(0, others), rank_report(1, late)]).lateness.ranks
    assert (rank.rank, rank.held_ms) == (1, pytest.approx(8.0, rel=0.05))
    once = [3.0] * 100
    once[50] = 900.0
    assert merge([rank_report(0, once), rank_report(1, [3.0] * 100)]).lateness.ranks == ()


def test_two_late_ranks_are_both_named():
    waits = {0: [30.0] * 200, 1: [30.0] * 200, 2: [30.0] * 200, 3: [30.0] * 200}
    for step in range(0, 200, 5):
        waits[1][step] = 1.0
        waits[2][step + 1] = 11.0
    host = {1: [host_row("data loader", 40 * 29.0)], 2: [host_row("line", 40 * 19.0)]}
    report = merge([rank_report(rank, waits[rank], host=host.get(rank, ())) for rank in range(4)])
    assert [(rank.rank, rank.held_ms) for rank in report.lateness.ranks] == [
        (1, pytest.approx(29 * 39 / 199)),  # of the first step nothing is said
        (2, pytest.approx(19 * 40 / 199)),
    ]


def test_one_that_is_late_now_and_then_without_a_known_reason_is_not_named():
    busy = [[abs(random.Random(step).gauss(8, 4)) for step in range(200)] for _ in range(2)]
    late = [max(wait - 4, 0) if step % 3 else wait + 5 for step, wait in enumerate(busy[1])]
    assert merge([rank_report(0, busy[0]), rank_report(1, late)]).lateness.ranks == ()


def test_too_few_steps_and_unknown_waits_say_nothing():
    assert merge([rank_report(0, [9.0] * 8), rank_report(1, [1.0] * 8)]).lateness is None
    assert merge([rank_report(0, [None] * 50), rank_report(1, [1.0] * 50)]).lateness is None
    assert wording.lateness(merge([rank_report(0, [None] * 50), rank_report(1, [None] * 50)])) == []


def test_a_rank_that_died_counts_as_long_as_it_lived():
    report = merge([rank_report(0, [9.0] * 100), rank_report(1, [1.0] * 30), rank_report(2, [9.0] * 100)])
    assert report.lateness.steps == 99
    assert [(rank.rank, rank.last_in) for rank in report.lateness.ranks] == [(1, 29)]


def test_steps_are_matched_by_their_numbers():
    late = rank_report(1, [1.0] * 60, first=40)
    report = merge([rank_report(0, [9.0] * 100), late])
    assert report.lateness.steps == 60
    assert report.lateness.ranks[0].rank == 1


def test_it_survives_being_written_and_read():
    report = merge([rank_report(0, [12.0] * 40), with_stalls(rank_report(1, [2.0] * 40, syncs=[sync()]), 300.0)])
    assert Report.from_dict(report.to_dict()) == report


def test_every_form_says_it():
    late = with_stalls(rank_report(1, [2.0] * 101, syncs=[sync()]), 900.0)
    report = merge([with_stalls(rank_report(0, [12.0] * 101, syncs=[sync()]), 0.0), late])
    beginning = "Rank 1 holds the job up 20.0 % of the time"
    assert beginning in report.to_text()
    assert beginning in report.to_text(verbose=True)
    assert beginning in report.to_markdown()
    page = files.rendered(report, "html")
    assert f'<p class="late">{beginning}' in page
    assert "Which rank the others waited for" in page


def test_a_report_of_one_process_says_nothing_of_ranks():
    report = rank_report(0, [12.0] * 101)
    assert "holds" not in report.to_text(verbose=True)
    assert "waited for" not in files.rendered(report, "html")
