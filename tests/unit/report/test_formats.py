"""Every format keeps the contract of ``report/formats/base.py``; a new one is a file and a line of the registry."""

from __future__ import annotations

import sys

import pytest
from training_run import report_of, sync, whole_report

from syncagent.cli import main
from syncagent.errors import ConfigError
from syncagent.report import formats, origins
from syncagent.settings.sources import load
from syncagent.support import report_formats
from syncagent.support.report_formats import SUFFIXES, TEXT
from tests import contributing


@pytest.fixture
def csv_format(tmp_path, monkeypatch):
    """The format of CONTRIBUTING.md: one file among the others, and one line in the registry."""
    (tmp_path / "csv.py").write_text(contributing.example("format"))
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    for name, suffix in contributing.entries("format", {}).items():
        monkeypatch.setitem(report_formats.SUFFIXES, name, suffix)
    yield
    sys.modules.pop(f"{formats.__name__}.csv", None)


@pytest.mark.usefixtures("csv_format")
class TestNewFormat:
    def test_a_report_is_saved_in_it(self, tmp_path):
        path = report_of(sync(ms=2)).save(tmp_path / "sites.csv")
        assert path.read_text() == "op,file,line,count,stall_ms\naten::nonzero,/home/ada/proj/loss.py,41,1,2.0\n"

    def test_a_run_can_save_it(self, tmp_path):
        assert load({"report": str(tmp_path / "sites.csv")}).report == str(tmp_path / "sites.csv")
        with pytest.raises(ConfigError, match=r"\.json, \.html, \.md, \.sarif, \.trace\.json or \.csv"):
            load({"report": "sites.xls"})

    def test_the_command_line_writes_it(self, tmp_path, capsys):
        saved = whole_report().save(tmp_path / "run.json")
        assert main(["report", str(saved), "--output", str(tmp_path / "sites.csv")]) == 0
        assert (tmp_path / "sites.csv").read_text().count("\n") == 5


@pytest.mark.parametrize("name", SUFFIXES)
class TestEachFormat:
    def test_its_module_renders_a_report(self, name):
        assert formats.render(whole_report(), name).endswith("\n")
        assert formats.render(report_of(), name)

    def test_it_gives_the_same_text_for_the_same_report(self, name):
        assert formats.render(whole_report(), name) == formats.render(whole_report(), name)

    def test_a_saved_one_says_which_process_wrote_it(self, name, tmp_path):
        report = whole_report(run_id="r", process="p")
        (tmp_path / f"x{SUFFIXES[name]}").write_text(formats.render(report, name), encoding="utf-8")
        origin = origins.origin_of(tmp_path / f"x{SUFFIXES[name]}")
        assert origin == (None if name == TEXT else origins.of_run(report.run))
