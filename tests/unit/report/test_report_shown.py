"""What a program, a notebook and a pull request show of a report: text, a table, Markdown."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from training_run import CWD, backward_sync, report_of, run_info, sync, whole_report

from syncagent.events import CallSite
from syncagent.report.formats import text
from syncagent.report.model import CellRow, Report, SensorStatus
from syncagent.report.wording import place

HOSTILE = '<script>alert(1)</script> | `x` "&" \x1b[31m @everyone'
KERNEL_CELL = "/tmp/ipykernel_4711/2842213497.py"


class Tags(HTMLParser):
    """The elements of a piece of HTML, and its text."""

    def __init__(self, source):
        super().__init__()
        self.opened, self.closed, self.text, self.attributes = [], [], [], set()
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.opened.append(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_endtag(self, tag):
        self.closed.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def rows_of(markdown):
    """The cells of each table row."""
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]


class TestText:
    def test_printing_a_report_gives_the_answer_and_not_its_fields(self, capsys):
        report = whole_report()
        print(report)
        assert capsys.readouterr().out == f"{report.to_text()}\n" == f"{report}\n"
        assert str(report).startswith("train.py")
        assert "start with loss.py:41" in str(report)
        assert len(str(report).splitlines()) <= 25

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
    def test_it_can_be_printed_whatever_standard_output_can_write(self, encoding, monkeypatch):
        """A training must not fail when all is done."""
        written = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding))
        print(report_of(sync(CallSite(f"{CWD}/train.py", 3, "main", "größe = x.item()  # \u6f22"))), flush=True)
        assert ".item()" in written.getvalue().decode(encoding)

    def test_verbose_gives_the_rest_and_the_answer_says_how_to_get_it(self):
        report = whole_report()
        assert "the rest: report.to_text(verbose=True)" in report.to_text()
        assert "train.py:93" not in report.to_text()
        assert "train.py:93" in report.to_text(verbose=True)
        assert report.to_text(verbose=True) == text.render(report).strip("\n")

    def test_its_tables_are_no_wider_than_asked(self):
        report = replace(whole_report(), sensors=(SensorStatus("kernels", live=True, cannot_see="much of it " * 20),))
        narrow, wide = (
            max(len(line) for line in report.to_text(verbose=True, width=width).splitlines() if "much of it" in line)
            for width in (75, 200)
        )
        assert narrow <= 75
        assert 150 < wide <= 200

    def test_repr_is_one_short_line(self):
        assert repr(whole_report()) == "Report(4 sites, 4 syncs, 53 ms stalled)"
        assert repr(report_of(sync(ms=0.25))) == "Report(1 site, 1 sync, 0.25 ms stalled)"
        assert repr(report_of()) == "Report(0 sites, 0 syncs, 0 ms stalled)"


class TestNotebook:
    def test_it_is_a_table_of_the_worst_sites_that_needs_nothing_else(self):
        """No script, no style sheet and nothing from elsewhere: a notebook shows none of them before it is trusted."""
        shown = Tags(whole_report()._repr_html_())
        assert {"table", "details"} <= set(shown.opened)
        assert not {"script", "style", "link", "img", "html", "head", "body"} & set(shown.opened)
        assert shown.attributes <= {"style", "class", "open"}
        assert sorted(tag for tag in shown.opened if tag != "br") == sorted(shown.closed)
        assert "loss.py:41" in shown.text
        assert any("start with loss.py:41" in part for part in shown.text)

    def test_text_of_the_program_is_escaped(self):
        hostile = CallSite(f"{CWD}/{HOSTILE}.py", 3, HOSTILE, HOSTILE)
        report = report_of(
            sync(hostile, op=HOSTILE, api=None, library_site=hostile, allowed=HOSTILE), notes=[HOSTILE], script=HOSTILE
        )
        shown = Tags(report._repr_html_())
        assert "script" not in shown.opened
        assert "\x1b" not in report._repr_html_()
        assert "".join(shown.text).count("<script>alert(1)</script>") >= 6

    def test_sites_beyond_the_worst_are_folded(self):
        sites = [sync(CallSite(f"{CWD}/a.py", line, "f", f"x{line}.item()"), ms=line) for line in range(1, 9)]
        html = report_of(*sites)._repr_html_()
        folded = html[html.index("<details>") :]
        assert "3 more sites" in folded
        assert "a.py:8<" in html[: html.index("<details>")]
        assert "a.py:3<" in folded

    def test_what_went_wrong_is_not_folded(self):
        html = whole_report()._repr_html_()
        assert "3 syncs noticed but not recorded" in html[: html.index("<details>")]

    def test_a_run_without_syncs_says_so(self):
        assert "No host sync was seen: nothing made the host wait" in report_of()._repr_html_()

    def test_it_ends_with_a_link_to_the_whole_page_once_that_has_been_saved(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        report = whole_report(process="a", started="2025-11-23T02:50:01Z")
        assert "<a " not in report._repr_html_()
        assert "report.save(" in report._repr_html_()
        report.save("of the run.html")
        later = replace(report, notes=("one more",))
        assert '<a href="of%20the%20run.html" target="_blank"' in later._repr_html_()
        assert "<a " not in whole_report(process="b")._repr_html_(), "that is another run"
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert f"All of it is in {tmp_path}/of the run.html" in report._repr_html_()


class TestMarkdown:
    def test_the_headline_the_worst_sites_and_the_rest_folded(self):
        markdown = whole_report().to_markdown()
        assert "**4 host syncs; the host waited 53.0 ms for the GPU, 53.0 % of step time. 2 lines cause" in markdown
        head, first, *_ = rows_of(markdown)
        assert [cell.strip() for cell in head] == ["share", "syncs", "stall", "where", "what waits"]
        assert "`loss.py:41` in `masked_loss`" in first[3]
        assert "`torch.nonzero(labels == 9)`" in first[4]
        assert markdown.count("<details>") == markdown.count("</details>") == 2
        assert markdown.index("<details>") > markdown.index("3 syncs noticed but not recorded")

    def test_text_of_the_program_cannot_break_out_of_its_cell(self):
        """Neither a bar nor a backtick nor markup of its own."""
        hostile = CallSite(f"{CWD}/{HOSTILE}.py", 3, HOSTILE, HOSTILE)
        markdown = report_of(sync(hostile, allowed=HOSTILE), script=HOSTILE, notes=[HOSTILE]).to_markdown()
        assert {len(row) for row in rows_of(markdown)[:2]} == {5}
        outside = re.sub(r"(`+)[^`].*?(?<!`)\1(?!`)", "", markdown.partition("-->")[2])
        assert not re.search(r"(?<!\\)<script", outside)
        assert "@everyone" not in outside
        assert "\x1b" not in markdown

    def test_a_bar_behind_a_backslash_does_not_end_the_cell(self):
        """GitHub takes two backslashes for one, and then the bar for the end of the cell, between backticks as well."""
        line = CallSite(f"{CWD}/train.py", 3, "main", r"parts = re.split(r'\|', str(x))")
        markdown = report_of(sync(line)).to_markdown()
        (cells,) = [line for line in markdown.splitlines() if "re.split" in line]
        bars = [bar for bar in re.findall(r"\\.|\|", cells) if bar == "|"]
        assert len(bars) == 6
        assert "<code>parts = re.split(r'" in cells

    def test_a_simulated_run_is_marked_at_each_figure(self):
        markdown = report_of(sync(ms=2), simulated=True).to_markdown()
        assert "2.0 ms\\*" in rows_of(markdown)[1][2]
        assert "- \\* Simulated device: every time is this CPU's" in markdown

    def test_a_backward_pass_has_the_line_of_the_forward_pass_first(self):
        row = rows_of(report_of(backward_sync()).to_markdown())[1]
        assert row[3].strip().startswith("`loss.py:57` in `masked_loss`<br>backward pass, called at train.py:88")

    def test_it_is_a_format_like_the_others(self, tmp_path):
        report = whole_report()
        assert report.save(tmp_path / "comment.md").read_text(encoding="utf-8") == report.to_markdown()


class TestCells:
    """A line in a notebook's cell: the file that Python names tells a reader nothing."""

    def report(self):
        typed = CallSite("<ipython-input-3-0f1e2d3c4b5a>", 7, "<module>", "loss.item()")
        kernel = CallSite(KERNEL_CELL, 2, "step", "mask.nonzero()")
        unknown = CallSite("/tmp/ipykernel_4711/99.py", 4, "<module>", "x.cpu()")
        report = report_of(
            sync(typed, ms=9), sync(kernel, ms=5), sync(unknown, ms=3),
            backward_sync(forward_site=kernel, site=typed, ms=2),
        )  # fmt: skip
        values = report.to_dict()
        values["cells"] = [{"file": KERNEL_CELL, "number": 12}]
        return Report.from_dict(values)

    @pytest.mark.parametrize("form", ["text", "markdown", "html", "notebook"])
    def test_a_cell_is_shown_by_its_number_wherever_a_person_reads(self, form, tmp_path):
        report = self.report()
        shown = {
            "text": report.to_text(verbose=True),
            "markdown": report.to_markdown(),
            "html": report.save(tmp_path / "x.html").read_text(encoding="utf-8"),
            "notebook": report._repr_html_(),
        }[form]
        for name in ("In [3], line 7", "In [12], line 2", "cell, line 4"):
            assert name in shown
        assert "ipykernel" not in shown
        assert "ipython-input" not in shown

    def test_the_files_of_the_report_stay_what_python_says(self):
        report = self.report()
        assert report.to_dict()["sites"][0]["file"] == "<ipython-input-3-0f1e2d3c4b5a>"
        assert Report.from_dict(report.to_dict()) == report
        assert report.cells == (CellRow(KERNEL_CELL, 12),)

    def test_other_names_are_as_they_were(self):
        assert place("<stdin>", 1) == "<stdin>:1"
        assert place("<string>", 2) == "<string>:2"
        assert place("/home/ada/ipykernel_notes/1.py", 2) == "/home/ada/ipykernel_notes/1.py:2"
        assert place("", 0) == "(line unknown)"
        assert run_info().script
