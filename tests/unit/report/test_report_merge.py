from __future__ import annotations

from dataclasses import replace

import pytest
from training_run import KERNELS, MASK, NONZERO, backward_sync, report_of, sync, whole_report

from syncagent.events import CallSite
from syncagent.report.merge import merge
from syncagent.report.model import HostRow, RankShare, Report


def test_one_report_is_itself():
    report = whole_report()
    assert merge([report]) is report


def test_sites_are_summed_and_keep_each_ranks_part():
    merged = merge([report_of(sync(ms=1), rank=0), report_of(sync(ms=4), sync(ms=6), rank=1)])
    (row,) = merged.sites
    assert (row.count, row.stall_ms, row.stall_ms_max) == (3, 11, 6)
    assert row.ranks == (RankShare(0, 1, 1.0), RankShare(1, 2, 10.0))
    assert merged.run.ranks == (0, 1)
    assert merged.run.rank is None


def test_a_site_of_one_rank_only_stays():
    merged = merge([report_of(sync(), rank=0), report_of(sync(MASK), rank=1)])
    assert {row.line: row.ranks[0].rank for row in merged.sites} == {41: 0, 57: 1}


def test_backward_syncs_of_different_forward_lines_stay_apart():
    merged = merge([report_of(backward_sync(forward_site=site), rank=0) for site in (MASK, NONZERO)])
    assert len(merged.sites) == 2


def test_a_rate_is_that_of_one_rank():
    merged = merge([report_of(sync(), sync(), steps=2, rank=rank) for rank in range(4)])
    assert merged.sites[0].per_step == 1
    assert merged.run.steps == 2


def test_shares_are_averages_over_ranks():
    merged = merge([report_of(sync(ms=100), rank=0), report_of(sync(ms=300), rank=1)])
    assert merged.totals.stall_share == pytest.approx(0.2)
    assert merged.share(merged.sites[0]) == pytest.approx(0.2)


def test_costs_and_drops_are_summed_where_known():
    one, two = (report_of(sync(), rank=rank, dropped=2) for rank in (0, 1))
    one = replace(one, sites=(replace(one.sites[0], gain_ms=1.5),))
    merged = merge([one, two])
    assert (merged.sites[0].gain_ms, merged.sites[0].idle_ms, merged.dropped) == (1.5, None, 4)


def test_it_is_allowed_only_if_it_was_in_every_rank():
    merged = merge([report_of(sync(allowed="known"), rank=0), report_of(sync(), rank=1)])
    assert merged.sites[0].allowed is None


def test_a_sensor_that_one_rank_lacked_is_not_live():
    dead = replace(KERNELS, live=False, detail="torch too old")
    merged = merge([report_of(rank=0), replace(report_of(rank=1), sensors=(dead,))])
    assert [sensor.live for sensor in merged.sensors if sensor.name == "kernels"] == [False]


def test_events_still_refer_to_their_rows():
    merged = merge([report_of(sync(MASK, ms=9), sync(NONZERO), rank=0), report_of(sync(NONZERO, ms=99), rank=1)])
    lines = {row.id: row.line for row in merged.sites}
    assert [(event.rank, lines[event.site]) for event in merged.events] == [(0, 57), (0, 41), (1, 41)]


def test_reports_without_a_rank_count_as_the_rank_of_their_place():
    assert merge([report_of(sync()), report_of(sync())]).run.ranks == (0, 1)


def test_what_each_rank_did_besides_waiting_has_its_rank():
    """A report that was merged already keeps the ranks that it has."""
    row = HostRow("line", "/proj/train.py", 7, "main", "work()", 3, 12.0)
    ranks = [replace(report_of(sync(), rank=rank), host=(row,)) for rank in (3, 5)]
    merged = merge(ranks)
    assert merged.host == (replace(row, rank=3), replace(row, rank=5))
    again = merge([merged, replace(report_of(sync(), rank=7), host=(row,))])
    assert [found.rank for found in again.host] == [3, 5, 7]
    assert Report.from_dict(merged.to_dict()).host == merged.host


def test_one_simulated_rank_makes_it_simulated():
    assert merge([report_of(rank=0), report_of(rank=1, simulated=True)]).run.simulated


def test_a_merged_report_can_be_saved_and_merged_again(tmp_path):
    merged = merge([whole_report(rank=rank) for rank in range(3)])
    assert Report.load(merged.save(tmp_path / "x.json")) == merged


@pytest.mark.parametrize(
    ("gates", "merged"),
    [((None, None), None), (("held", "held"), "held"), (("held", "failed"), "failed"), ((None, "held"), "held")],
)
def test_a_gate_held_only_if_it_did_in_every_rank(gates, merged):
    parts = [report_of(rank=rank, gate=gate) for rank, gate in enumerate(gates)]
    assert merge(parts).run.gate == merged


def test_a_row_is_named_by_the_op_that_stalled_longest_in_all_ranks():
    parts = [report_of(sync(ms=3), sync(op="aten::unique", ms=2), rank=rank) for rank in (0, 1)]
    parts.append(report_of(sync(op="aten::unique", ms=5), rank=2))
    (row,) = merge(parts).sites
    assert (row.op, [(share.op, share.count, share.stall_ms) for share in row.ops]) == (
        "aten::unique",
        [("aten::unique", 3, 9.0), ("aten::nonzero", 2, 6.0)],
    )


def test_ranks_in_different_folders_share_their_rows():
    there = CallSite("/node7/job/loss.py", NONZERO.line, NONZERO.function, NONZERO.source)
    merged = merge([report_of(sync(), rank=0), report_of(sync(there), rank=1, cwd="/node7/job")])
    assert [row.count for row in merged.sites] == [2]


def test_nothing_cannot_be_merged():
    with pytest.raises(ValueError, match="needs a report"):
        merge([])
