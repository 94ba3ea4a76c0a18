"""Where stacks are kept, every form of the report has that of each site's longest sync."""

from __future__ import annotations

import json

from training_run import NONZERO, report_of, sync

from syncagent.events import CallSite
from syncagent.report.formats import text
from syncagent.report.merge import merge
from syncagent.report.model import Report

OUTER = CallSite("/home/ada/proj/main.py", 3, "main", "train()")


def _report():
    return report_of(
        sync(ms=1, stack=(NONZERO,)), sync(ms=9, at_ms=2, stack=(NONZERO, OUTER)), sync(ms=5, at_ms=20), steps=1
    )


def test_a_site_has_the_stack_of_its_longest_sync():
    [site] = _report().sites
    assert [(line.file, line.line, line.function) for line in site.stack] == [
        (NONZERO.file, NONZERO.line, NONZERO.function),
        (OUTER.file, 3, "main"),
    ]


def test_every_format_has_it(tmp_path):
    report = _report()
    assert Report.load(report.save(tmp_path / "x.json")) == report
    page = report.save(tmp_path / "x.html").read_text()
    assert "Stack of the longest wait" in page
    assert "main.py:3" in page
    [result] = json.loads(report.save(tmp_path / "x.sarif").read_text())["runs"][0]["results"]
    uris = [frame["location"]["physicalLocation"]["artifactLocation"]["uri"] for frame in result["stacks"][0]["frames"]]
    assert uris == ["loss.py", "main.py"]
    drawn = json.loads(report.save(tmp_path / "x.trace.json").read_text())["traceEvents"]
    assert [slice_["args"]["stack of the longest"] for slice_ in drawn if slice_["name"] == "aten::nonzero"] == [
        ["loss.py:41 masked_loss", "main.py:3 main"]
    ] * 3
    assert "stack loss.py:41 masked_loss ← main.py:3 main" in text.render(report, width=100)


def test_of_several_ranks_it_is_that_of_the_longest_sync_of_all():
    one = report_of(sync(ms=50), rank=0)
    two = report_of(sync(ms=2, stack=(NONZERO,)), rank=1)
    three = report_of(sync(ms=4, stack=(NONZERO, OUTER)), rank=2)
    assert len(merge([one, two, three]).sites[0].stack) == 2


def test_without_it_no_format_says_anything_of_stacks(tmp_path):
    report = report_of(sync())
    for name in ("x.html", "x.sarif", "x.trace.json"):
        assert "stack of the longest" not in report.save(tmp_path / name).read_text().lower()
    assert "stack" not in text.render(report)
