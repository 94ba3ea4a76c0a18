"""What a comparison says as a page and as Markdown."""

from __future__ import annotations

import json
import re
from dataclasses import replace

from test_report_html import EVIL, Page
from training_run import CWD, MASK, NONZERO, report_of, sync

from syncagent.events import CallSite
from syncagent.report import baseline, wording
from syncagent.report.compare import compare
from syncagent.report.compared import markdown, page, words
from syncagent.report.merge import merge
from syncagent.report.model import Report

MORE = CallSite(f"{CWD}/more.py", 5, "step", "x.item()")


def two():
    """A line that is gone, one that waits more often, one that is new, and one that is as it was."""
    same = sync(CallSite(f"{CWD}/same.py", 1, "f", "y.cpu()"))
    old = report_of(sync(NONZERO, ms=4, at_ms=110), sync(MASK), same, steps=2)
    new = report_of(sync(MASK), sync(MASK, ms=2, at_ms=110), sync(MORE, ms=3), same, steps=2)
    return old, replace(new, sites=tuple(replace(site, advice=f"advice for {site.line}") for site in new.sites))


def paged(old, new):
    return Page(page.render(compare(old, new), old, new))


def test_the_headline_counts_what_has_become_of_the_sites():
    old, new = two()
    assert words.headline(compare(old, new)) == "1 site is new, 1 waits more often, 1 is gone and 1 is as it was."
    assert words.headline(compare(report_of(), new)) == "3 sites are new."
    assert words.headline(compare(old, old)) == "3 sites are as they were."
    assert words.headline(compare(report_of(), report_of())) == "No host sync in either report."


def test_the_page_says_what_each_line_was_and_is():
    shown = paged(*two()).text
    assert "1 is gone and 1 is as it was. A step: 100 ms → 100 ms" in shown
    assert "1.5 → 2" in shown, "syncs per step"
    assert "4.0 ms → 2.0 ms stall per step" in shown or "stall per step 4.0 ms → 2.0 ms" in shown
    new, _, rest = shown.partition("More often than before")
    assert "more.py:5 in step x.item()" in new
    assert "advice for 5" in new
    assert "before \N{EN DASH} after 0.5 per step 3.0 ms" in new
    grown, _, rest = rest.partition("Gone 1 line")
    assert "loss.py:57" in grown
    assert "before 0.5 per step 1.0 ms after 1 per step 3.0 ms" in grown
    assert "loss.py:41" in rest.partition("As before")[0]


def test_a_simulated_side_is_marked():
    old, new = two()
    simulated = replace(new, run=replace(new.run, simulated=True))
    shown = paged(old, simulated).text
    assert "after 0.5 per step 3.0 ms*" in shown
    assert "* of a simulated device" in shown
    assert "0.5 per step 4.0 ms " in shown, "the other side is not"
    assert "3.0 ms\\*" in markdown.render(compare(old, simulated))


def test_markdown_has_what_is_worse_first_and_folds_what_is_better():
    shown = markdown.render(compare(*two()))
    head, _, rest = shown.partition("\n\n")
    assert head == "**1 site is new, 1 waits more often, 1 is gone and 1 is as it was.**"
    (line,) = (line for line in rest.splitlines() if line.startswith("| new"))
    assert line.startswith("| new | `more.py:5` in `step` | `x.item()`<br>`torch.nonzero()`<br>→ advice for 5 |")
    assert line.endswith("| \N{EN DASH} → 0.5 | \N{EN DASH} → 3.0 ms |")
    worse, _, better = rest.partition("<details><summary>Sites: 1 gone</summary>")
    assert "loss.py:57" in worse
    assert "loss.py:41" in better
    assert "same.py" not in shown


def test_markdown_of_a_thousand_sites_fits_into_a_comment():
    lines = [CallSite(f"{CWD}/folder/file{number}.py", number, "function", "x" * 60) for number in range(1, 1_001)]
    shown = markdown.render(compare(report_of(*map(sync, lines[:500])), report_of(*map(sync, lines[500:]))))
    assert len(shown) < 65_536
    assert "… and 450 more sites" in shown


def test_nothing_of_a_run_becomes_markup():
    evil = CallSite(f"{CWD}/{EVIL}.py", 1, EVIL, EVIL)
    old = report_of(sync(), host=EVIL)
    new = report_of(sync(evil, op=EVIL, api=EVIL, forward_site=evil, library_site=evil), script=EVIL, device=EVIL)
    shown = paged(old, new)
    assert "script" not in shown.tags
    assert "img" not in shown.tags
    table = markdown.render(compare(old, new)).splitlines()
    row = next(line for line in table if line.startswith("| new"))
    assert "<script>" in row
    assert "<script>" not in re.sub("`[^`]*`", "", row), "it is code, or escaped"


def test_where_one_side_has_no_steps_whole_counts_are_compared():
    old, new = report_of(*[sync(ms=1, at_ms=9 * n) for n in range(20)], steps=2), report_of(sync())
    for one, other in ((old, new), (new, old), (new, new), (old, report_of())):
        shown = paged(one, other).text
        assert "syncs per step" not in shown
    assert ("style", "width:5.0%") in paged(old, new).attributes, "1 of 20"


def test_of_several_ranks_a_step_is_as_long_as_one_of_them_takes():
    one = report_of(sync(at_ms=110), sync(at_ms=10), steps=2)
    two = merge([replace(one, run=replace(one.run, rank=rank)) for rank in (0, 1)])
    comparison = compare(one, two)
    assert (comparison.steps.old_ms, comparison.steps.new_ms) == (100.0, 100.0)
    shown = paged(one, two).text
    assert "syncs per step 1 → 1" in shown
    assert "stall per step 1.0 ms → 1.0 ms" in shown


def test_a_baseline_has_no_times_and_none_are_shown_for_it():
    old, new = two()
    known = Report.from_dict(json.loads(baseline.render(old)))
    assert [change.verdict for change in compare(known, new).changes] == [
        change.verdict for change in compare(old, new).changes
    ]
    shown, said = paged(known, new).text, markdown.render(compare(known, new))
    assert "0 ns" not in shown
    assert "0 ns" not in said
    assert "stalled" not in " ".join(name for name, _, _ in page._tiles(compare(known, new), known, new))
    assert f"| 0.5 → 1 | {wording.DASH} → " in said
