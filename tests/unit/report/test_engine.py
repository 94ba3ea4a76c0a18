"""DuckDB adds up the same as our own merge does, field by field."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from training_run import KERNELS, report_of, sync, whole_report

from syncagent.report import captured
from syncagent.report.engine import adding
from syncagent.report.engine.tables import Tables
from syncagent.report.merge import merge
from syncagent.report.model import BusyRow, CostRow, OrderRow, Report, SourceRow
from tests import many_ranks

duckdb = pytest.importorskip("duckdb")
OLD = Path(__file__).resolve().parents[2] / "fixtures" / "reports"


def read(path):
    """As the ranks of a folder are read: what explains a capture is added to the whole."""
    content = path.read_bytes()
    return captured.read(path, content, explain=False) if captured.is_capture(content) else Report.load(path)


def by_engine(paths, folder):
    tables = Tables(duckdb, folder, load=read)
    try:
        tables.add(paths)
        assert tables.refused == {}
        return adding.add_up(tables, range(len(paths)))
    finally:
        tables.close()


def differences(one, other, where=""):
    """Where two reports differ; sums of floats may differ by their order."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in differences(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for index, pair in pairs for found in differences(*pair, f"{where}[{index}]")]
    if type(one) is float and type(other) is float and math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12):
        return []
    return [] if one == other and type(one) is type(other) else [f"{where}: {one!r}, {other!r}"[:300]]


def check_same(paths, folder):
    ours, theirs = merge([read(path) for path in paths]), by_engine(paths, folder)
    assert differences(ours.to_dict(), theirs.to_dict()) == []
    return theirs


def saved(reports, folder):
    return [report.save(folder / f"{number}.json") for number, report in enumerate(reports)]


@pytest.mark.parametrize("captures", [False, True])
def test_generated_ranks(tmp_path, captures):
    paths = many_ranks.write(tmp_path, 5, captures=captures, sites=60, events=300, steps=30)
    merged = check_same(paths, tmp_path)
    assert (len(merged.sites), len(merged.events), len(merged.step_times)) == (60, 1_500, 150)
    assert merged.run.ranks == (0, 1, 2, 3, 4)


def test_reports_and_captures_together(tmp_path):
    whole = many_ranks.write(tmp_path, 3, sites=20, events=50, steps=5)
    killed = many_ranks.write(tmp_path, 6, captures=True, sites=20, events=50, steps=5)[3:]
    assert not check_same([*whole, *killed], tmp_path).run.ended


def test_more_ranks_than_a_site_has_shares(tmp_path):
    paths = many_ranks.write(tmp_path, 70, sites=3, events=5, steps=2)
    merged = check_same(paths, tmp_path)
    assert {(len(site.ranks), site.rank_count) for site in merged.sites} == {(64, 70)}


def test_the_time_line_keeps_the_newest(tmp_path, monkeypatch):
    monkeypatch.setattr("syncagent.report.merge.MOST_ON_TIME_LINE", 40)
    for module in ("rows", "tables"):
        monkeypatch.setattr(f"syncagent.report.engine.{module}.MOST_ON_TIME_LINE", 40)
    merged = check_same(many_ranks.write(tmp_path, 3, sites=10, events=100, steps=20), tmp_path)
    assert len(merged.events) == len(merged.step_times) == 40
    assert min(event.start_ns for event in merged.events) > many_ranks.START_NS + 17 * many_ranks.STEP_NS
    assert merged.notes[-2:] == (
        "the time line has the newest 40 of the 300 syncs in the ranks' reports; the sums have all",
        "the time line has the newest 40 of the 60 steps in the ranks' reports; the sums have all",
    )


def test_reports_of_every_kind_of_row(tmp_path):
    dead = replace(KERNELS, live=False, detail="torch too old")
    cost = CostRow(5, 90.0, 91.0, 3.0, None, (OrderRow(1, 2.0), OrderRow(0, 3.0)), ("a note",), (BusyRow(1, 2),))
    reports = [
        replace(whole_report(rank=0, gate="held", simulated=True), cost=cost),
        replace(whole_report(rank=1, gate="failed"), sensors=(dead,), cost=replace(cost, gain_all_ms=2.0)),
        report_of(sync(ms=3, allowed="known"), sync(op="aten::unique", ms=2), rank=2, steps=3, problems=["it's 'odd'"]),
        replace(whole_report(rank=3, host="node8", device=None), sources=(SourceRow("a'b\n.py", 3, ("x", "y")),)),
        report_of(rank=4),
    ]
    check_same(saved(reports, tmp_path), tmp_path)


def test_ranks_in_different_folders_and_without_a_rank(tmp_path):
    there = replace(sync(), site=replace(sync().site, file="/node7/job/loss.py"))
    reports = [report_of(sync(), rank=0), report_of(there, cwd="/node7/job"), report_of(sync(), steps=2)]
    (row,) = check_same(saved(reports, tmp_path), tmp_path).sites
    assert row.count == 3


def test_files_of_every_version(tmp_path):
    """One that the engine reads with defaults, since what is in the newest is not in the first."""
    check_same(sorted(path for path in OLD.iterdir() if path.suffix != ".md"), tmp_path)


def test_a_report_of_another_layout(tmp_path):
    paths = many_ranks.write(tmp_path, 2, sites=5, events=5, steps=2)
    values = json.loads(paths[1].read_text())
    paths[1].write_text(json.dumps(dict(sorted(values.items())), indent=4))
    check_same(paths, tmp_path)


def test_names_of_files_are_only_names(tmp_path):
    paths = many_ranks.write(tmp_path, 3, sites=5, events=5, steps=2)
    names = ["it's; DROP TABLE sites; --.json", "*.json", 'a\nb"[x].json']
    check_same([path.rename(tmp_path / name) for path, name in zip(paths, names, strict=True)], tmp_path)


def test_a_capture_with_lines_that_are_cut_or_come_too_early(tmp_path):
    paths = many_ranks.write(tmp_path, 2, captures=True, sites=5, events=9, steps=4)
    lines = paths[0].read_text().splitlines()
    sums = next(line for line in lines if '"sums"' in line)
    event = next(line for line in lines if '"event"' in line)
    odd = [
        lines[0],
        sums,
        "nonsense",
        "[1]",
        *lines[1:],
        event[:30],
        event.replace(":", ": ").replace('"event"', ' "event"'),
    ]
    paths[0].write_text("\r\n".join(odd) + '\n{"type":"totals","t')
    merged = check_same(paths, tmp_path)
    assert any("5 lines are not whole" in note for note in merged.notes)


@pytest.mark.parametrize("captures", [False, True])
def test_the_late_rank_and_what_it_does_meanwhile(tmp_path, captures):
    paths = many_ranks.write(tmp_path, 5, captures=captures, sites=5, events=20, steps=40)
    merged = check_same(paths, tmp_path)
    (late,) = merged.lateness.ranks
    assert (late.rank, merged.lateness.steps) == (1, 38)
    assert late.held_ms == pytest.approx(2.7, abs=0.1)
    assert "garbage collection" in [cause.cause for cause in late.causes]
    assert len(merged.host) == 6
    assert len(merged.step_times) == 200


def test_a_clock_that_is_apart(tmp_path):
    reports = [report_of(sync(at_ms=150), rank=rank, steps=20) for rank in range(3)]
    by_ns = 7_000_000_000
    steps = tuple(replace(row, start_ns=row.start_ns + by_ns, end_ns=row.end_ns + by_ns)
                  for row in reports[2].step_times)  # fmt: skip
    apart = replace(reports[2], step_times=steps, run=replace(reports[2].run, host="another"))
    merged = check_same(saved([*reports[:2], apart], tmp_path), tmp_path)
    assert any("clocks are apart" in note for note in merged.notes)
