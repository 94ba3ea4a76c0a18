"""``syncagent cost`` prints the cost as text or JSON, of a trace or of a report that has it."""

from __future__ import annotations

import json
from dataclasses import replace

from tests_of_reports import sync, whole_report
from traced import training

from syncagent.cli import main
from syncagent.report.model import CostRow, OrderRow
from syncagent.report.summary import Summary


def written(tmp_path, traced):
    file = tmp_path / "t.json"
    file.write_text(json.dumps(traced.file))
    return str(file)


def test_text_has_the_total_and_each_site(tmp_path, capsys):
    assert main(["cost", written(tmp_path, training())]) == 0
    printed = capsys.readouterr().out
    assert "5 steps" in printed
    assert "if nothing waited a step would gain" in printed
    assert "aten::item" in printed
    assert "keep the value on the GPU" in printed


def test_what_is_not_shown_of_many_sites_is_counted(tmp_path, capsys):
    traced = training(kernels=30, items=30)
    for number, event in enumerate([event for event in traced.events if event["name"] == "aten::item"]):
        traced.event("user_annotation", f"layer {number % 30}", event["ts"], event["dur"])
    assert main(["cost", written(tmp_path, traced)]) == 0
    printed = capsys.readouterr().out
    assert "… and 10 more sites" in printed
    assert " with 10 more\n" in printed


def test_a_function_whose_line_is_not_known_is_named(tmp_path, capsys):
    traced = training()
    traced.event("python_function", "nowhere/train.py(88): train", 900.0, 1e7)
    assert main(["cost", written(tmp_path, traced)]) == 0
    assert "nowhere/train.py, in train from line 88" in capsys.readouterr().out


def test_json_is_the_documented_object(tmp_path, capsys):
    assert main(["cost", written(tmp_path, training()), "--format", "json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["steps"] == 5
    assert values["abstained"] is None
    assert values["order"][0]["gain_ms"] == values["gain_all_ms"] == values["sites"][0]["gain_ms"]


def test_a_step_time_without_the_profiler_scales_the_host(tmp_path, capsys):
    file = written(tmp_path, training(kernel_us=10.0, host_us=100.0))
    assert main(["cost", file, "--step-ms", "1.2", "--format", "json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["unprofiled"]
    assert abs(values["step_ms"] - 1.2) < 0.02


def test_a_report_shows_the_cost_it_has(tmp_path, capsys):
    report = whole_report()
    report = replace(report, cost=CostRow(5, 10.0, 10.1, 1.5, None, (OrderRow(report.sites[0].id, 1.5),)))
    report = replace(report, sites=(replace(report.sites[0], gain_ms=1.5, idle_ms=1.0), *report.sites[1:]))
    file = report.save(tmp_path / "r.json")
    assert main(["cost", str(file), "--format", "json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["gain_all_ms"] == 1.5
    assert len(values["sites"]) == len(values["order"]) == 1
    assert values["sites"][values["order"][0]["site"]]["gain_ms"] == 1.5
    assert main(["cost", str(file)]) == 0
    assert "would gain 1.5 ms" in capsys.readouterr().out


def test_the_order_of_a_report_points_at_its_sites(tmp_path, capsys):
    """The site that gains most by itself need not be the first to fix, nor the only one without a row before it."""
    report = whole_report()
    first, second = report.sites[:2]
    rows = (replace(first, gain_ms=2.0), replace(second, gain_ms=1.0))
    order = (OrderRow(-1, 1.5), OrderRow(second.id, 2.5), OrderRow(first.id, 3.0))
    cost = CostRow(5, 10.0, 10.1, 3.0, None, order)
    file = replace(report, cost=cost, sites=(*rows, *report.sites[2:])).save(tmp_path / "r.json")
    assert main(["cost", str(file), "--format", "json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [(values["sites"][entry["site"]]["op"], entry["gain_ms"]) for entry in values["order"]] == [
        (second.op, 2.5), (first.op, 3.0),
    ]  # fmt: skip


def test_a_report_without_a_cost_says_how_to_get_one(tmp_path, capsys):
    file = whole_report().save(tmp_path / "r.json")
    assert main(["cost", str(file)]) == 2
    assert "run it with SYNCAGENT_COST=1" in capsys.readouterr().err


def test_the_events_of_a_window_come_with_the_ids_of_their_rows():
    summary = Summary()
    summary.events([sync(at_ms=0), sync(at_ms=5)])
    assert [(event.start_ns, row) for event, row in summary.since(sync(at_ms=3).start_ns)] == [
        (sync(at_ms=5).start_ns, 0)
    ]
