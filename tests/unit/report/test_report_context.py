"""The source around the worst lines: what is kept of it, and what is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from training_run import report_of, sync

from syncagent.events import CallSite, Span
from syncagent.report.context import AROUND, SITES, with_context
from syncagent.report.merge import merge
from syncagent.report.model import Report, SourceRow


@pytest.fixture
def written(tmp_path):
    """Writes a file of source, and gives the line of that number in it."""

    def write(text, name="train.py"):
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        lines = text.splitlines()

        def line(number, source=None):
            return CallSite(str(file), number, "f", lines[number - 1].strip() if source is None else source)

        return line

    return write


NUMBERED = "".join(f"    line_{number}()\n" for number in range(1, 31))


def test_lines_before_and_after_are_kept_with_their_blanks_and_none_twice(written):
    line = written(NUMBERED)
    report = with_context(report_of(sync(line(10)), sync(line(12)), sync(line(1)), sync(line(29))))
    assert [(row.first, len(row.lines)) for row in report.sources] == [(1, 4), (7, 9), (26, 5)]
    assert report.sources[1].lines[0] == "    line_7()"
    assert AROUND == 3


def test_a_file_that_has_changed_since_or_is_gone_has_none(written, tmp_path):
    line = written(NUMBERED)
    gone = CallSite(str(tmp_path / "gone.py"), 3, "f", "x.item()")
    assert with_context(report_of(sync(line(10, "another()")), sync(gone), sync(None))).sources == ()


def test_the_librarys_and_the_forward_line_have_theirs(written):
    line, library, forward = (written(NUMBERED, f"{name}.py") for name in ("a", "b", "c"))
    report = with_context(report_of(sync(line(5), library_site=library(6), forward_site=forward(7))))
    assert sorted((row.file.rpartition("/")[2], row.first) for row in report.sources) == [
        ("a.py", 2), ("b.py", 3), ("c.py", 4),
    ]  # fmt: skip


def test_only_the_worst_have_it(written):
    line = written("".join(f"x{number}.item()\n" for number in range(1, 1_001)))
    report = with_context(report_of(*(sync(line(7 * number), ms=number) for number in range(1, 140))))
    assert sum(len(row.lines) for row in report.sources) == 7 * SITES
    assert min(row.first for row in report.sources) == 7 * 40 - AROUND


def test_secrets_beside_the_line_are_left_out(written):
    line = written(
        'API_KEY = "abcdef123"\n'
        "os.environ['HF_TOKEN'] = 'abcdef123'\n"
        'client(url="https://user:abcdef123@host/path", password=b"abcdef123")\n'
        "token = next(tokens); loss.item()\n"
        "order = sorted(found, key=lambda key: key.rank)\n"
        'login("hf_abcdefghijklmnopqrst")\n'
    )
    (row,) = with_context(report_of(sync(line(4)))).sources
    shown = "\n".join(row.lines)
    assert "abcdef123" not in shown
    assert "hf_abcdef" not in shown
    assert 'API_KEY = "[redacted]"' in shown
    assert "token = next(tokens); loss.item()" in shown
    assert "key=lambda key: key.rank" in shown, "a name or an expression is no secret"


def test_all_lines_of_an_expression_are_as_they_are_for_its_columns_to_count(written):
    line = written("def f():\n    y = call(\n        token='abcdef123', n=d.item(), z=1)\n    token = 'abcdef123'\n")
    waits = replace(line(2), span=Span(8, 3, 39, indent=4))
    (row,) = with_context(report_of(sync(waits))).sources
    assert row.lines[2:] == ("        token='abcdef123', n=d.item(), z=1)", "    token = '[redacted]'")


def test_a_line_that_is_data_is_cut_and_says_so(written):
    line = written(f"DATA = [\n'{'A' * 300_000}'\n]\nx.item()\n")
    (row,) = with_context(report_of(sync(line(4)))).sources
    assert row.lines == ("DATA = [", "'" + "A" * 239 + "…", "]", "x.item()")


def test_a_long_line_of_the_site_itself_is_whole(written):
    sums = "total = " + " + ".join(f"losses[{number}]" for number in range(60))
    line = written(f"{sums} + loss.item()\n")
    (row,) = with_context(report_of(sync(line(1)))).sources
    assert row.lines == (f"{sums} + loss.item()",)


def test_a_merged_report_has_each_line_once_as_the_first_rank_has_it():
    ranks = [report_of(sync(), rank=rank) for rank in (0, 1)]
    one, other = SourceRow("a.py", 1, ("x1", "x2")), SourceRow("a.py", 2, ("y2", "y3"))
    far, elsewhere = SourceRow("a.py", 9, ("y9",)), SourceRow("b.py", 1, ("z",))
    ranks = [replace(ranks[0], sources=(one,)), replace(ranks[1], sources=(elsewhere, far, other))]
    expected = (SourceRow("a.py", 1, ("x1", "x2", "y3")), far, elsewhere)
    assert merge(ranks).sources == expected
    assert Report.from_dict(merge(ranks).to_dict()).sources == expected
