"""One line is one row for who reads a table, whichever calls wait there."""

from __future__ import annotations

from dataclasses import replace

from training_run import BACKWARD, CWD, MASK, NONZERO, backward_sync, report_of, sync

from syncagent.events import CallSite, Phase, SyncKind
from syncagent.report import wording
from syncagent.report.compare import compare
from syncagent.report.formats import html, sarif, text
from syncagent.report.lines import by_line
from syncagent.report.merge import merge
from syncagent.report.model import CostRow, OpShare, OrderRow

READ = {"op": "aten::_local_scalar_dense", "api": "torch.Tensor.item", "kind": SyncKind.SCALAR_READ}


def both(**changed):
    """``logits[mask].max().item()``: two kinds of sync on one line."""
    return sync(MASK, ms=1, **changed), sync(MASK, ms=3, **(READ | changed))


def test_kinds_of_a_line_are_one_row_named_by_the_worst():
    report = report_of(*both(), sync(NONZERO, ms=2), sync(MASK, ms=0.5, **READ))
    assert len(report.sites) == 3
    line, other = by_line(report).sites
    assert (line.line, line.op, line.kind, line.count, line.stall_ms) == (57, READ["op"], "scalar_read", 3, 4.5)
    assert (line.stall_ms_p50, line.stall_ms_max) == (1.75, 3.0)
    assert line.ops == (OpShare(READ["op"], READ["api"], 2, 3.5), OpShare("aten::nonzero", "torch.nonzero", 1, 1.0))
    assert other == next(site for site in report.sites if site.line == 41)


def test_other_lines_of_the_same_call_stay_apart():
    """The library's and, in the backward pass, the forward line: those are what to look at."""
    library = CallSite(f"{CWD}/site-packages/lib.py", 3, "fit", "x.item()")
    report = report_of(
        sync(BACKWARD), sync(BACKWARD, library_site=library), backward_sync(), backward_sync(forward_site=NONZERO),
        sync(None), sync(None, kind=SyncKind.OTHER),
    )  # fmt: skip
    assert by_line(report) is report


def test_a_line_is_allowed_only_where_all_of_it_is():
    allowed = {"allowed": "wanted"}
    (row,) = by_line(report_of(*both(**allowed))).sites
    assert row.allowed == "wanted"
    (row,) = by_line(report_of(sync(MASK, **allowed), sync(MASK, **READ))).sites
    assert (row.allowed, row.allowed_count) == (None, 1)


def test_a_line_depends_on_the_drivers_state_only_where_all_of_it_does():
    (row,) = by_line(report_of(sync(MASK, conditional=True), sync(MASK))).sites
    assert not row.conditional


def test_the_parts_of_the_ranks_add_up():
    reports = [report_of(*both(), rank=rank, world_size=2) for rank in (0, 1)]
    (row,) = by_line(merge(reports)).sites
    assert [(part.rank, part.count, part.stall_ms) for part in row.ranks] == [(0, 2, 4.0), (1, 2, 4.0)]
    assert row.count == 4


def test_a_line_gains_at_least_what_its_best_part_gains_and_stands_once_in_the_order():
    report = report_of(*both(), sync(NONZERO))
    gains = {READ["op"]: (2.0, 1.0), "aten::nonzero": (0.5, 0.25)}
    sites = [
        replace(site, gain_ms=gains[site.op][0], idle_ms=gains[site.op][1]) if site.line == 57 else site
        for site in report.sites
    ]
    read, mask, other = sites[0].id, next(site.id for site in sites[1:] if site.line == 57), 1
    other = next(site.id for site in sites if site.line == 41)
    order = (OrderRow(read, 2.0), OrderRow(mask, 2.4), OrderRow(other, 2.5))
    report = replace(report, sites=tuple(sites), cost=CostRow(3, 10.0, 10.0, 2.5, None, order))
    folded = by_line(report)
    assert (folded.sites[0].gain_ms, folded.sites[0].idle_ms) == (2.0, 1.25)
    assert [(entry.site, entry.gain_ms) for entry in folded.cost.order] == [(read, 2.4), (other, 2.5)]


def test_the_terminal_and_the_page_show_a_line_once():
    report = report_of(*both())
    terminal, page = text.render(report, width=100), html.render(report)
    assert terminal.count("loss.py:57 in") == page.count("<h3><span") == 1
    assert "aten::nonzero 1" in terminal
    assert "aten::nonzero 1" in page


def test_waits_on_the_time_line_are_of_the_lines_row():
    report = report_of(*both(), sync(NONZERO))
    folded = by_line(report)
    line = next(site for site in folded.sites if site.line == 57)
    assert [event.site == line.id for event in folded.events] == [True, True, False]


def test_phases_of_a_line_are_told_where_there_are_several():
    """Also merged, as sums; a report of an earlier version has one phase in a row."""
    report = report_of(sync(MASK, ms=2), sync(MASK, ms=1, phase=Phase.EVALUATION))
    old = replace(report, sites=(replace(report.sites[0], phases=()),))
    assert [wording.phases(each.sites[0]) for each in (report, old)] == ["forward 1, evaluation 1", "forward"]
    (row,) = merge([report, old]).sites
    assert [(part.phase, part.count, part.stall_ms) for part in row.phases] == [
        ("forward", 3, 5.0),
        ("evaluation", 1, 1.0),
    ]
    assert "forward 1, evaluation 1" in html.render(report)
    assert "(forward 1, evaluation 1)." in sarif.render(report)


def test_whichever_call_waits_there_a_line_is_one_site_of_one_kind():
    """In the report, merged and compared: by op, API and phase it is not told apart."""
    calls = [
        sync(MASK, **READ), sync(MASK, **(READ | {"op": "aten::is_nonzero", "api": "torch.Tensor.__bool__"})),
        sync(MASK, **(READ | {"phase": Phase.EVALUATION})),
    ]  # fmt: skip
    report = report_of(*calls)
    assert len(report.sites) == 1
    assert len(merge([report_of(call, rank=rank, world_size=3) for rank, call in enumerate(calls)]).sites) == 1
    assert [change.verdict for change in compare(report_of(calls[0]), report_of(calls[1])).changes] == ["same"]
