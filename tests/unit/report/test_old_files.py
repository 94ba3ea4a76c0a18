"""Reports and captures of every version are read for ever; ``tests/fixtures/reports`` has one of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from syncagent.report.compare import compare
from syncagent.report.files import load_merged
from syncagent.report.formats import render, text
from syncagent.report.model import Report
from syncagent.support.report_formats import SUFFIXES

FOLDER = Path(__file__).resolve().parents[2] / "fixtures" / "reports"
FILES = sorted(path for path in FOLDER.iterdir() if path.suffix != ".md")

LINES = {
    4: "model = torch.nn.Linear(8, 8).to(device)",
    11: "loss = output[output > 0].sum()",
    12: "loss.backward()",
    14: "return loss.item()",
    18: "train(torch.rand(4, 8).to(device))",
}
"""Where the program of all of them waits."""


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def report(request):
    return Report.load(request.param)


def test_there_is_one_of_each_version():
    assert len(FILES) >= 5
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in readme for path in FILES)


def test_its_syncs_are_read(report):
    assert report.run.steps == 5
    assert {site.line: site.source for site in report.sites} == LINES
    assert report.totals.syncs == sum(site.count for site in report.sites) == 22
    assert len(report.events) == 22
    backward = next(site for site in report.sites if site.phase == "backward")
    assert backward.forward is not None
    assert backward.forward.source == LINES[11]


@pytest.mark.parametrize("name", SUFFIXES)
def test_it_can_be_written_in_every_format(report, name):
    assert render(report, name)


def test_what_it_does_not_know_is_not_invented(report):
    assert report.cost is None
    assert "gain" not in text.render(report)


def test_its_sites_are_those_of_the_newest_version(report):
    newest = Report.load(FOLDER / "2026-11-28-sites.json")
    assert not compare(report, newest).findings()
    assert {change.verdict for change in compare(report, newest).changes} == {"same"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_can_be_named_on_the_command_line(path):
    assert load_merged([path]).sites
