"""The cost in reports: what is shown, what two reports' difference says of it, and what becomes of it over ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests_of_reports import report_of, sync

from syncagent.cost import measurement
from syncagent.events import CallSite
from syncagent.report.compare import compare
from syncagent.report.compared import text as changes
from syncagent.report.formats import html, text
from syncagent.report.merge import merge
from syncagent.report.model import CostRow, OrderRow

LINES = [CallSite("loss.py", line, "loss", f"line {line}") for line in (10, 20, 30)]
GAINS = {10: 1.0, 20: 0.5, 30: 0.0}


def report(*sites, step_ms=20.0, everything=3.0, order=((10, 1.0), (20, 2.5), (30, 3.0)), abstained=None):
    """A report of these lines, with gains and an order."""
    made = report_of(*(sync(site) for site in sites))
    ids = {row.line: row.id for row in made.sites}
    known = tuple(OrderRow(ids[line], gain) for line, gain in order if line in ids)
    return replace(
        made,
        sites=tuple(replace(row, gain_ms=GAINS[row.line], idle_ms=0.1) for row in made.sites),
        cost=CostRow(5, step_ms, step_ms, None if abstained else everything, abstained, known),
    )


def test_the_columns_and_the_order_are_shown():
    shown = text.render(report(*LINES), width=140)
    assert "a step takes 20.0 ms and would gain 3.0 ms (15.0 %) if nothing waited" in shown
    assert "loss.py:10 1.0 ms, loss.py:20 2.5 ms, loss.py:30 3.0 ms" in shown
    page = html.render(report(*LINES))
    assert "<option selected>gain</option>" in page
    assert "<dt>gain</dt><dd>1.0 ms</dd>" in page
    assert "gain per step" in page
    assert "would gain 3.0 ms" in page


def test_syncs_that_cost_nothing_are_reported_as_such():
    shown = text.render(report(*LINES, everything=0.0), width=140)
    assert "cost: none; a step takes 20.0 ms, and would take as long if nothing waited" in shown


def test_a_cost_that_is_not_known_says_why():
    shown = text.render(measurement.not_known(report_of(sync()), "another profiler is running"), width=140)
    assert "cost: not known, another profiler is running" in shown


class TestCompare:
    def test_predicted_and_achieved_stand_side_by_side(self):
        comparison = compare(report(*LINES), report(LINES[2], step_ms=17.6))
        assert comparison.steps.predicted_ms == 2.5
        assert comparison.steps.saved_ms == pytest.approx(2.4)
        assert "time per step: 20.0 ms  →  17.6 ms, 2.4 ms saved; 2.5 ms was predicted" in changes.render(comparison)

    def test_all_gone_is_the_gain_of_all(self):
        assert compare(report(*LINES), report_without_sites()).steps.predicted_ms == 3.0

    def test_a_site_out_of_order_has_its_own_gain_only(self):
        assert compare(report(*LINES), report(LINES[0], LINES[2])).steps.predicted_ms == 0.5

    def test_nothing_gone_predicts_nothing(self):
        assert compare(report(*LINES), report(*LINES, step_ms=21.0)).steps.predicted_ms == 0.0
        rendered = changes.render(compare(report(*LINES), report(*LINES, step_ms=21.0)))
        assert "1.0 ms longer" in rendered
        assert "predicted" not in rendered

    def test_a_site_that_waits_less_often_was_to_gain_a_part(self):
        """Logging every tenth step, as the advice says, leaves the site where it is."""

        def logging_at(line_10):
            made = report(*LINES)
            rates = {10: line_10, 20: 1.0, 30: 1.0}
            return replace(made, sites=tuple(replace(row, per_step=rates[row.line]) for row in made.sites))

        comparison = compare(logging_at(1.0), logging_at(0.1))
        assert comparison.steps.predicted_ms == pytest.approx(0.9 * GAINS[10])
        assert "was predicted for the sites that are gone or wait less often" in changes.render(comparison)

    def test_without_a_cost_only_the_step_times_are_compared(self):
        steps = compare(report(*LINES, abstained="why"), report(LINES[0])).steps
        assert steps.predicted_ms is None

    def test_without_steps_nothing_is_reported(self):
        old = replace(report(*LINES), cost=None)
        old = replace(old, totals=replace(old.totals, step_ms=None))
        assert compare(old, old).steps is None

    def test_its_json_has_both(self):
        values = compare(report(*LINES), report(LINES[2], step_ms=17.6)).to_dict()
        assert values["steps"]["predicted_ms"] == 2.5


def report_without_sites():
    return replace(report(LINES[0]), sites=(), cost=CostRow(5, 17.0, 17.0, 0.0, None))


def test_ranks_have_the_mean_of_a_steps_gain_and_the_cost_of_the_one_that_gains_least():
    one, other = report(*LINES), report(*LINES, everything=2.0)
    other = replace(other, sites=tuple(replace(row, gain_ms=row.gain_ms + 1.0) for row in other.sites))
    merged = merge([one, other])
    assert merged.cost.gain_all_ms == 2.0
    assert {row.line: row.gain_ms for row in merged.sites} == {10: 1.5, 20: 1.0, 30: 0.5}
    lines = {row.id: row.line for row in merged.sites}
    assert [lines[entry.site] for entry in merged.cost.order] == [10, 20, 30]
