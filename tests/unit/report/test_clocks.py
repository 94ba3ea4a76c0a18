from __future__ import annotations

from dataclasses import replace

import pytest
from training_run import MS, report_of, sync

from syncagent.report.merge import merge


def rank_report(rank: int, ahead_s: float, steps=20):
    report = report_of(sync(at_ms=150), rank=rank, steps=steps)
    by_ns = round(ahead_s * 1e9)
    return replace(
        report,
        run=replace(report.run, host=f"node{rank}"),
        events=tuple(replace(event, start_ns=event.start_ns + by_ns) for event in report.events),
        step_times=tuple(
            replace(step, start_ns=step.start_ns + by_ns, end_ns=step.end_ns + by_ns) for step in report.step_times
        ),
    )


@pytest.mark.parametrize("ahead_s", [3.0, -7.5, 86_400.0])
def test_a_clock_that_is_apart_is_corrected_and_named(ahead_s):
    merged = merge([rank_report(0, 0.0), rank_report(1, ahead_s), rank_report(2, 0.0)])
    assert len({step.end_ns for step in merged.step_times if step.step == 4}) == 1
    assert len({event.start_ns for event in merged.events}) == 1
    (note,) = [note for note in merged.notes if "clock" in note]
    word = "ahead" if ahead_s > 0 else "behind"
    assert note.startswith("clocks are apart, as estimated from steps that end together: rank 1's by ")
    assert word in note
    assert note.endswith("times are shown by rank 0's clock")


@pytest.mark.parametrize("ahead_s", [0.0, 0.3, -0.7])
def test_hosts_that_are_a_few_steps_apart_keep_their_times(ahead_s):
    ranks = [rank_report(0, 0.0), rank_report(1, ahead_s)]
    merged = merge(ranks)
    assert {step.start_ns for step in merged.step_times} == {step.start_ns for r in ranks for step in r.step_times}
    assert not any("clock" in note for note in merged.notes)


def test_many_ranks_are_not_all_named():
    merged = merge([rank_report(rank, 10.0 * (rank > 0)) for rank in range(9)])
    (note,) = [note for note in merged.notes if "clock" in note]
    assert "rank 4's by 10.00 s ahead, and 4 more; times" in note


def test_few_steps_and_no_steps_say_nothing():
    assert not any("clock" in note for note in merge([rank_report(0, 0, 3), rank_report(1, 9, 3)]).notes)
    assert not any("clock" in note for note in merge([rank_report(0, 0, 0), rank_report(1, 9, 0)]).notes)


def test_the_length_of_a_step_decides_what_can_be_told():
    def slow(rank, ahead_s):
        report = rank_report(rank, ahead_s)
        return replace(
            report,
            step_times=tuple(
                replace(
                    step,
                    start_ns=step.start_ns + step.step * 900 * MS,
                    end_ns=step.end_ns + (step.step + 1) * 900 * MS,
                )
                for step in report.step_times
            ),
        )

    assert not any("clock" in note for note in merge([slow(0, 0), slow(1, 4)]).notes)
    assert any("clock" in note for note in merge([slow(0, 0), slow(1, 9)]).notes)


def test_ranks_of_one_machine_have_one_clock_however_far_ahead_of_its_gpu_a_host_may_be():
    ahead = rank_report(1, 3.0)
    one = [rank_report(0, 0.0), replace(ahead, run=replace(ahead.run, host="node0"))]
    merged = merge(one)
    assert {step.end_ns for step in merged.step_times} == {step.end_ns for r in one for step in r.step_times}
    assert not any("clock" in note for note in merged.notes)
