from __future__ import annotations

import threading

import pytest
from training_run import BACKWARD, LOSS, MASK, NONZERO, backward_sync, report_of, run_info, step, sync

from syncagent.events import CallSite, OpCount, Phase, SyncKind, Weight
from syncagent.report.model import OpShare, PhaseShare, RunInfo
from syncagent.report.summary import Since, Summary


class TestSites:
    def test_syncs_of_one_line_are_one_row_with_exact_sums(self):
        (row,) = report_of(sync(ms=1), sync(ms=2), sync(ms=6)).sites
        assert (row.op, row.file, row.line, row.source) == ("aten::nonzero", LOSS, 41, "torch.nonzero(labels == 9)")
        assert (row.count, row.stall_ms, row.stall_ms_p50, row.stall_ms_max) == (3, 9, 2, 6)

    @pytest.mark.parametrize(
        "other",
        [
            {"kind": SyncKind.OTHER},
            {"conditional": True},
            {"site": MASK},
            {"forward_site": MASK},
            {"library_site": MASK},
        ],
        ids=lambda other: next(iter(other)),
    )
    def test_what_differs_makes_another_row(self, other):
        assert len(report_of(sync(), sync(**other)).sites) == 2

    def test_ops_calls_and_phases_of_a_line_are_one_row_named_by_those_that_stalled_longest(self):
        (row,) = report_of(
            sync(ms=1),
            sync(ms=3, op="aten::unique", api=None, phase=Phase.OPTIMIZER),
            sync(ms=1, api="torch.argwhere"),
            sync(ms=1),
        ).sites
        assert (row.op, row.api, row.phase, row.count, row.stall_ms) == ("aten::unique", None, "optimizer", 4, 6)
        assert row.ops == (
            OpShare("aten::unique", None, 1, 3.0),
            OpShare("aten::nonzero", "torch.nonzero", 2, 2.0),
            OpShare("aten::nonzero", "torch.argwhere", 1, 1.0),
        )

    def test_a_line_that_trains_and_is_evaluated_says_how_often_each(self):
        (row,) = report_of(sync(ms=1), sync(ms=2, phase=Phase.EVALUATION), sync(ms=4)).sites
        assert row.phase == "forward"
        assert row.phases == (PhaseShare("forward", 2, 5.0), PhaseShare("evaluation", 1, 2.0))

    def test_the_worst_comes_first(self):
        rows = report_of(sync(NONZERO, ms=1), sync(MASK, ms=5), sync(BACKWARD, ms=2)).sites
        assert [row.line for row in rows] == [57, 88, 41]

    def test_a_backward_sync_keeps_both_lines(self):
        (row,) = report_of(backward_sync()).sites
        assert (row.line, row.forward.line, row.forward.source) == (88, 57, "kept = logits[mask]")

    def test_a_sync_without_a_line_has_an_empty_file(self):
        (row,) = report_of(sync(None)).sites
        assert (row.file, row.line, row.function) == ("", 0, "")

    def test_it_is_allowed_only_if_every_sync_was(self):
        (row,) = report_of(sync(allowed="warm-up"), sync(allowed="warm-up")).sites
        assert (row.allowed, row.allowed_count) == ("warm-up", 2)
        (row,) = report_of(sync(allowed="warm-up"), sync()).sites
        assert (row.allowed, row.allowed_count) == (None, 1)

    @pytest.mark.parametrize(
        ("modules", "shown"),
        [
            (["head", "head"], "head"),
            (["layers.0.attn", "layers.1.attn", "layers.2.attn"], "layers.*.attn"),
            (["layers.0", "layers.0.attn"], "layers.0.*"),
            (["head", None], None),
        ],
    )
    def test_modules_that_share_a_line_share_a_path(self, modules, shown):
        (row,) = report_of(*(sync(module=module) for module in modules)).sites
        assert row.module == shown

    def test_ranges_are_those_that_all_its_syncs_share(self):
        (row,) = report_of(sync(ranges=("epoch", "step 1")), sync(ranges=("epoch", "step 2"))).sites
        assert row.ranges == ("epoch",)

    def test_sites_beyond_the_limit_are_one_row_and_a_note(self):
        summary = Summary(max_sites=2)
        summary.events([sync(CallSite("a.py", line, "f")) for line in (1, 2, 3, 4, 1)])
        report = summary.snapshot(run_info())
        assert {row.op: row.count for row in report.sites if not row.file} == {"other": 2}
        assert sum(row.count for row in report.sites) == report.totals.syncs == 5
        assert report.notes == ("2 syncs at sites beyond the first 2 are in one row, 'other'",)

    def test_the_median_of_many_comes_from_a_bounded_sample_and_repeats(self):
        events = [sync(ms=1 if index % 2 else 3) for index in range(5_000)] + [sync(ms=2) for _ in range(5_000)]
        (row,), (again,) = report_of(*events).sites, report_of(*events).sites
        assert row.count == 10_000
        assert row.stall_ms == 20_000
        assert row.stall_ms_p50 == 2
        assert row == again

    def test_a_scale_makes_counts_stand_for_more_and_says_so(self):
        weights = {SyncKind.COPY_D2H: Weight(10.0, 10.0)}
        summary = Summary(scale=lambda event: weights.get(event.kind, Weight()))
        summary.events([sync(ms=2, kind=SyncKind.COPY_D2H), sync(MASK, ms=2)])
        copies, mask = summary.snapshot(run_info()).sites
        assert (copies.count, copies.stall_ms, copies.stall_ms_p50, copies.sampled) == (10, 20, 2, True)
        assert (mask.count, mask.sampled) == (1, False)
        assert (copies.count_error, mask.count_error) == (None, None), "nobody counts the sampled steps"

    def test_where_stalls_are_exact_counts_alone_are_scaled(self):
        summary = Summary(scale=lambda _: Weight(16.0))
        summary.events([sync(ms=2)])
        (row,) = summary.snapshot(run_info()).sites
        assert (row.count, row.stall_ms, row.sampled) == (16, 2, True)

    @pytest.mark.parametrize(
        ("steps", "watched"),
        [
            (30, {1: 20}),  # none of the last ten was sampled
            (400, {1: 20, 32: 15}),  # these stand for 500
            (400, {1: 20, 32: 5}),  # and these for 180
        ],
    )
    def test_what_happens_in_each_step_is_counted_once_in_each_whichever_were_sampled(self, steps, watched):
        summary = Summary(
            scale=lambda event: Weight(32.0, 1.0, event.step) if event.step >= 20 else Weight(), sampled=lambda: watched
        )
        for number in range(20 + watched.get(32, 0)):
            summary.events([sync(step=number), sync(step=number, site=MASK, phase=Phase.BACKWARD)])
        summary.events([sync(step=0, site=BACKWARD)])  # the program's start
        for number in range(steps):
            summary.step(step(number, start_ms=100.0 * number, end_ms=100.0 * (number + 1)))
        in_each, also, at_start = sorted(summary.snapshot(run_info()).sites, key=lambda site: -site.count)
        assert (in_each.count, in_each.per_step, in_each.sampled) == (steps, 1.0, True)
        assert (also.ops[0].count, also.phases[0].count) == (steps, steps)
        assert (at_start.count, at_start.sampled) == (1, False)

    def test_steps_that_were_all_watched_are_not_scaled_by_the_one_that_has_begun(self):
        summary = Summary(sampled=lambda: {1: 6})
        for number in range(5):
            summary.events([sync(step=number)])
            summary.step(step(number, start_ms=100.0 * number, end_ms=100.0 * (number + 1)))
        (row,) = summary.snapshot(run_info()).sites
        assert (row.count, row.per_step, row.sampled) == (5, 1.0, False)

    def test_what_is_seen_in_every_step_is_not_scaled(self):
        """Calls that ask to wait, and what the driver alone has seen."""
        summary = Summary(sampled=lambda: {1: 20})
        for number in range(30):
            summary.events([sync(step=number, op="torch.cuda.synchronize", kind=SyncKind.EXPLICIT, sensor="explicit")])
            summary.events([sync(None, step=number, op="cudaStreamSynchronize", sensor="driver")])
            summary.step(step(number, start_ms=100.0 * number, end_ms=100.0 * (number + 1)))
        assert [row.count for row in summary.snapshot(run_info()).sites] == [30, 30]

    def test_a_count_that_was_scaled_up_has_its_standard_error(self):
        """From how the sampled steps differ; steps in which the site had no sync are among them."""

        def error(counts, sampled):
            units = [unit for unit, count in enumerate(counts) for _ in range(count)]
            summary = Summary(scale=lambda event: Weight(8.0, 1.0, event.start_ns), sampled=lambda: {8: sampled})
            summary.events([sync(at_ms=unit) for unit in units])
            (row,) = summary.snapshot(run_info()).sites
            assert row.count == 8 * sum(counts)
            return row.count_error

        assert error([3, 3, 3, 3], 4) == 0, "the same in each: in all others as well"
        assert error([2, 4], 2) == pytest.approx((8 * 7 * 2 * 2) ** 0.5)
        assert error([2, 4], 4) > error([2, 4], 2), "two had none"
        assert error([5], 1) == pytest.approx((8 * 7 * 5) ** 0.5), "of one step, as of a Poisson process"


class TestSteps:
    def test_without_steps_there_is_no_rate(self):
        report = report_of(sync())
        assert report.run.steps == 0
        assert report.sites[0].per_step is None
        assert report.totals.step_ms is None

    def test_a_rate_is_the_count_over_the_steps(self):
        report = report_of(sync(), sync(), sync(), steps=2)
        assert report.run.steps == 2
        assert report.sites[0].per_step == 1.5

    def test_only_stalls_that_began_in_a_step_are_a_share_of_step_time(self):
        report = report_of(
            sync(ms=30, at_ms=-50), sync(ms=10, at_ms=120), sync(ms=10, at_ms=250), sync(at_ms=900), steps=3
        )
        (row,) = report.sites
        assert row.step_stall_ms == report.totals.step_stall_ms == 20
        assert report.totals.step_ms == 200
        assert report.share(row) == pytest.approx(0.1)

    def test_the_first_step_is_counted_but_not_timed_since_it_holds_the_programs_start(self):
        report = report_of(sync(ms=30, at_ms=20), sync(ms=10, at_ms=150), steps=2)
        assert report.run.steps == 2
        assert report.totals.step_ms == 100
        assert report.totals.step_stall_ms == 10

    def test_a_sync_of_the_next_step_that_comes_early_counts_there(self):
        summary = Summary()
        summary.events([sync(ms=1, at_ms=10), sync(ms=4, at_ms=120)])
        summary.step(step(0, start_ms=0, end_ms=100))
        summary.step(step(1, start_ms=110, end_ms=200))
        assert summary.snapshot(run_info()).totals.step_stall_ms == 4

    def test_more_syncs_in_a_step_than_are_kept_give_no_figure_rather_than_a_wrong_one(self):
        event = sync(at_ms=5)
        summary = Summary()
        summary.events([event] * 50_001)
        summary.step(step())
        report = summary.snapshot(run_info())
        assert report.totals.step_stall_ms is None
        assert report.sites[0].step_stall_ms is None
        assert report.sites[0].count == 50_001


class TestStallShare:
    def test_it_is_the_training_threads_wait_over_the_run(self):
        report = report_of(sync(ms=300), backward_sync(ms=200), duration_s=1.0)
        assert report.totals.stall_share == pytest.approx(0.5)

    def test_other_threads_wait_meanwhile_and_do_not_add_to_it(self):
        report = report_of(sync(ms=300), sync(ms=200, thread="logger"), duration_s=1.0)
        assert report.totals.stall_share == pytest.approx(0.3)
        assert report.totals.stall_ms == 500

    def test_it_is_one_at_most(self):
        assert report_of(sync(ms=3_000), duration_s=1.0).totals.stall_share == 1

    def test_a_run_of_no_time_has_none(self):
        assert report_of(sync(), duration_s=0.0).totals.stall_share == 0


class TestOps:
    def test_ops_are_sorted_by_the_host_time_that_was_not_waiting(self):
        waits = OpCount("aten::nonzero", NONZERO, Phase.FORWARD, 1, 50_000_000)
        works = OpCount("aten::conv2d", MASK, Phase.FORWARD, 9, 20_000_000)
        report = report_of(sync(NONZERO, ms=45), ops=[waits, works], duration_s=1.0)
        assert [(op.op, op.host_ms, op.stall_ms) for op in report.ops] == [
            ("aten::conv2d", 20, 0),
            ("aten::nonzero", 50, 45),
        ]
        assert [op.share for op in report.ops] == [pytest.approx(0.02), pytest.approx(0.005)]


class TestEvents:
    def test_the_newest_are_kept(self):
        summary = Summary(newest=3)
        events = [sync(ms=index) for index in range(1, 6)]
        summary.events(events[:2])
        summary.events(events[2:])
        assert summary.newest() == tuple(events[2:])
        assert summary.snapshot(run_info()).totals.syncs == 5

    def test_an_event_on_the_time_line_refers_to_its_row(self):
        report = report_of(sync(NONZERO), sync(MASK, ms=7))
        lines = {row.id: row.line for row in report.sites}
        assert [lines[event.site] for event in report.events] == [41, 57]


def test_a_report_can_be_read_while_events_arrive():
    """Every snapshot is whole: its total is the sum of its rows, and it never shrinks."""
    summary, done = Summary(newest=100), threading.Event()
    sites = [CallSite("a.py", line, "f") for line in range(1, 50)]

    def deliver():
        for _ in range(200):
            summary.events([sync(site) for site in sites])
            summary.step(step())
        done.set()

    thread = threading.Thread(target=deliver)
    thread.start()
    seen = []
    while not done.is_set():
        report = summary.snapshot(run_info())
        assert report.totals.syncs == sum(row.count for row in report.sites)
        assert report.totals.syncs % len(sites) == 0
        seen.append(report.totals.syncs)
        assert len(summary.newest()) <= 100
    thread.join()
    assert seen == sorted(seen)
    assert summary.snapshot(run_info()).totals.syncs == 200 * len(sites)


def test_an_empty_summary_gives_an_empty_report():
    report = Summary().snapshot(run_info())
    assert isinstance(report.run, RunInfo)
    assert (report.sites, report.totals.syncs, report.dropped) == ((), 0, 0)


class TestWhatIsLeftOut:
    """Every list has its limit, and says so where it is reached."""

    def notes(self, summary, ops=()):
        return summary.snapshot(run_info(), ops=ops).notes

    def test_nothing_is_reported_below_the_limits(self):
        summary = Summary(newest=2, max_sites=2, max_ops=1)
        summary.events([sync(), sync(MASK)])
        summary.step(step())
        assert self.notes(summary, [OpCount("aten::add", NONZERO, Phase.FORWARD, 1, 1)]) == ()

    def test_each_limit_that_is_reached_is_reported(self, monkeypatch):
        monkeypatch.setattr("syncagent.report.summary._PENDING", 5)
        summary = Summary(newest=2, max_sites=1, max_ops=1)
        for number in range(3):
            summary.events([sync(MASK, at_ms=100 * number + 1)] * 3 + [sync(at_ms=100 * number + 2)] * 3)
            summary.step(step(number, start_ms=100 * number, end_ms=100 * number + 100))
        ops = [OpCount(name, NONZERO, Phase.FORWARD, 1, 1) for name in ("aten::add", "aten::mul")]
        assert self.notes(summary, ops) == (
            "9 syncs at sites beyond the first 1 are in one row, 'other'",
            "the time line has the newest 2 of 18 syncs; the sums have all",
            "the time line has the newest 2 of 3 steps; the sums have all",
            "of 2 ops, the 1 that took most host time are kept",
            "a step had more than 5 syncs, so no stall is given as a share of step time",
        )


class TestChanges:
    def test_syncs_in_steps_are_those_after_the_first_step_and_in_no_pause(self):
        """Of eight: three are in the first step, two in a pause between two steps, and one is after the last."""
        summary = Summary()
        summary.events([sync(at_ms=start) for start in (1, 2, 3, 11, 12, 21, 22, 31)])
        for number, (start, end) in enumerate([(0, 10), (20, 30)]):
            summary.step(step(number, start_ms=start, end_ms=end))
        changes = summary.changes(Since())
        assert (changes.steps, changes.step_syncs) == (2, 2.0)

    def test_a_sync_of_a_sampled_step_is_as_many_as_it_stands_for(self):
        summary = Summary(scale=lambda _: Weight(4.0))
        summary.events([sync(at_ms=11)])
        for number in range(2):
            summary.step(step(number, start_ms=10 * number, end_ms=10 * number + 10))
        assert summary.changes(Since()).step_syncs == 4.0

    def test_they_are_scaled_to_all_steps_as_the_count_of_a_site_is(self):
        """Two steps were watched of the five that ended."""
        summary = Summary(sampled=lambda: {1: 2})
        summary.events([sync(at_ms=11, step=1)])
        for number in range(5):
            summary.step(step(number, start_ms=10 * number, end_ms=10 * number + 10))
        changes = summary.changes(Since())
        assert (changes.step_syncs, changes.sites[0].count) == (4.0, 4)
