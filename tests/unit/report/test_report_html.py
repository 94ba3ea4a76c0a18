"""The page: what stands in it, that it is whole by itself, and that nothing of the run becomes markup or code."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

from training_run import CWD, LOSS, MASK, NONZERO, report_of, sync, whole_report

from syncagent.events import CallSite, Span
from syncagent.report.formats import html
from syncagent.report.merge import merge
from syncagent.report.model import BusyRow, CellRow, CostRow, RankShare, SourceRow

VOID = {"meta", "br", "input"}
EVIL = "</td></script><script>alert(1)</script><img src=http://x.invalid/ onerror='a()'>\"&{{ 7*7 }}"


class Page(HTMLParser):
    """Checks that tags close in order, and keeps what it meets."""

    def __init__(self, source):
        super().__init__()
        self.source = source
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    @property
    def data(self):
        return json.loads(
            re.search(r'<script type="application/json" id="data">(.*?)</script>', self.source, re.DOTALL)[1]
        )

    def card(self, number):
        """The markup of one line's entry."""
        return re.search(rf'<li class="site[^"]*" id="site-{number}".*?\n</li>', self.source, re.DOTALL)[0]


def test_it_says_what_the_text_says():
    page = Page(html.render(whole_report()))
    for words in (
        "loss.py:41",
        "torch.nonzero(labels == 9)",
        "range loss",
        "backward of this line",
        "transformers/trainer.py:9",
        "kernels",
        "warm-up",
        "conv2d",
        "120 µs",
        "dropped",
        "4 host syncs",
    ):
        assert words in page.text, words


def test_it_begins_with_what_to_fix_first():
    report = report_of(sync(MASK, ms=9, at_ms=10), sync(ms=1, at_ms=110), sync(ms=1, at_ms=120), steps=3)
    told = replace(report, sites=tuple(replace(site, advice=f"advice for {site.line}") for site in report.sites))
    page = Page(html.render(told))
    assert "What to fix first loss.py:41 advice for 41" in page.text, "the other one is of the first step alone"
    assert ("href", "#site-1") in page.attributes
    assert "What to fix first" not in Page(html.render(report)).text


def test_it_loads_nothing():
    source = html.render(whole_report())
    page = Page(source)
    assert not {name for name, _ in page.attributes} & {"src", "srcset", "action"}
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    # The library that draws says where it comes from.
    assert not re.search(r"url\(|@import|https?:", source.replace("/*! https://github.com/leeoniya/uPlot", ""))
    assert "default-src 'none'" in source


def test_whatever_comes_from_the_run_is_escaped():
    site = CallSite(f"{CWD}/{EVIL}.py", 1, EVIL, EVIL)
    event = sync(
        site,
        op=EVIL,
        api=EVIL,
        module=EVIL,
        ranges=(EVIL,),
        allowed=EVIL,
        thread=EVIL,
        forward_site=site,
        stack=(site,),
    )
    report = report_of(
        event, notes=[EVIL], problems=[EVIL], script=EVIL, device=EVIL, host=EVIL, torch=EVIL, policy=EVIL, steps=2
    )
    evil = replace(report.sites[0], advice=EVIL, kind=EVIL, phase=EVIL)
    report = replace(report, sites=(evil,), sources=(SourceRow(site.file, 1, (EVIL, EVIL)),))
    page = Page(html.render(report))
    assert page.tags.count("script") == 2, "the data, and the page's own"
    assert "img" not in page.tags
    assert page.text.count(EVIL) > 10
    assert EVIL in page.data["timeline"]["lanes"]


def test_entries_hold_what_they_are_sorted_grouped_and_filtered_by():
    page = Page(html.render(report_of(sync(ms=1_500, module="head"), sync(MASK, ms=1), duration_s=3.0)))
    assert 'data-share="0.5" data-stall="1500" data-median="1500" data-longest="1500" data-count="1"' in page.card(0)
    groups = (
        'data-file="loss.py" data-module="head" data-phase="forward" data-kind="dynamic_shape" data-op="aten::nonzero"'
    )
    assert groups in page.card(0)
    assert "<dt>stall</dt><dd>1.50 s</dd>" in page.card(0)


def test_no_syncs_is_stated_with_what_it_means():
    page = Page(html.render(report_of()))
    assert "No host sync was seen" in page.text
    assert "The sensors below were live." in page.text
    assert "timeline" not in page.data or page.data["timeline"] is None
    assert "this says nothing" in Page(html.render(replace(report_of(), sensors=()))).text


def test_ranks_and_simulation_are_shown():
    page = Page(html.render(merge([whole_report(rank=rank, simulated=True) for rank in (0, 1)])))
    assert "2 ranks" in page.text
    assert "Simulated device" in page.text
    assert "By rank rank 0 40.0 ms* rank 1 40.0 ms*" in page.text
    assert {"rank 0 · steps", "rank 1 · MainThread", "rank 0 · autograd"} <= set(page.data["timeline"]["lanes"])


def test_of_many_ranks_those_that_waited_longest_are_shown_and_the_others_are_said():
    """All of a few; and it is said where a line did not wait in all ranks."""
    ranks = [report_of(sync(ms=1.0 + rank), rank=rank) for rank in range(100)]
    elsewhere = [report_of(sync(MASK), rank=100 + rank) for rank in range(4)]
    page = Page(html.render(merge([*ranks, *elsewhere])))
    assert "By rank rank 99 100 ms rank 98 99.0 ms" in page.text
    assert page.card(0).count('<th scope="row">rank ') == 16
    assert (
        "These 16 of 100 ranks waited longest. The 84 others waited from 1.0 ms to 84.0 ms. "
        "In 4 of the 104 ranks the line did not wait."
    ) in page.text
    assert page.card(1).count('<th scope="row">rank ') == 4
    assert "In 100 of the 104 ranks the line did not wait." in page.text
    few = Page(html.render(merge(ranks[:16])))
    assert few.card(0).count('<th scope="row">rank ') == 16
    assert "waited longest" not in few.text
    one = Page(html.render(merge([ranks[7], *elsewhere])))
    assert "rank 7 alone" in " ".join(one.card(0).replace("</dt><dd>", " ").split())


def test_what_waits_is_marked_and_set_up_stands_apart():
    waits = CallSite(f"{CWD}/a.py", 9, "f", "y = x[x > 0].sum()", span=Span(8, 9, 16, indent=4))
    early = CallSite(f"{CWD}/b.py", 1, "g", "x.to(device)")
    source = html.render(report_of(sync(waits, ms=9, at_ms=150), sync(early, ms=20), steps=3))
    assert '<pre class="source">y = <mark>x[x &gt; 0]</mark>.sum()</pre>' in source
    assert "One line causes all of it: a.py:9." in Page(source).text
    steps, _, set_up = source.partition("Before the second step, not counted above")
    assert "x.to(device)" in set_up
    assert "x.to(device)" not in steps


def test_the_source_around_a_line_is_shown_without_its_margin_and_with_all_of_the_expression_marked():
    waits = CallSite(LOSS, 3, "f", "kept = torch.nonzero(", span=Span(11, 4, 11, indent=4))
    report = replace(
        report_of(sync(waits)),
        sources=(
            SourceRow(LOSS, 1, ("def f():", "", "    kept = torch.nonzero(", "        x > 0)", "    return kept")),
            SourceRow("/elsewhere.py", 3, ("nothing",)),
        ),
    )
    card = Page(html.render(report)).card(0)
    assert '<span class="number">3</span>     kept = <mark>torch.nonzero(</mark>\n' in card
    assert '<span class="number">4</span>         <mark>x &gt;</mark> 0)\n' in card
    assert '<span class="number">1</span> def f():\n' in card
    assert "nothing" not in card


def test_stalls_are_stacked_by_step_and_the_rest_of_the_lines_are_one():
    lines = [CallSite(LOSS, number, "f", f"x{number}.item()") for number in range(1, 10)]
    events = [
        sync(line, ms=line.line, at_ms=100.0 * step + line.line, step=step) for line in lines for step in range(3)
    ]
    page = Page(html.render(report_of(*events, steps=3)))
    data = page.data["per_step"]
    assert data["steps"] == [0, 1, 2]
    assert data["ms"] == [[float(9 - row)] * 3 for row in range(7)] + [[3.0] * 3]
    legend = page.text.partition("Drawn from")[0]
    assert " ".join(f"loss.py:{9 - row}" for row in range(7)) + " other lines" in legend


def test_of_several_ranks_a_step_has_the_mean_of_their_stalls():
    ranks = [report_of(sync(ms=2.0 + 4 * rank, rank=rank), steps=1, rank=rank) for rank in (0, 1)]
    assert Page(html.render(merge(ranks))).data["per_step"]["ms"] == [[4.0], [0.0]]


def test_a_step_of_whose_waits_some_are_no_longer_kept_is_not_drawn():
    events = [sync(at_ms=100.0 * step, step=step) for step in range(4)]
    report = report_of(*events, steps=4)
    kept = replace(report, events=report.events[1:])
    assert Page(html.render(kept)).data["per_step"]["steps"] == [2, 3]


def test_the_time_line_has_a_lane_for_each_thread_and_one_for_the_gpu_where_its_work_is_known():
    report = report_of(sync(ms=5, at_ms=10), sync(ms=2, at_ms=110, thread="loader", step=1), steps=2)
    begin_ns = report.step_times[0].start_ns
    busy = (BusyRow(begin_ns + 2_000_000, begin_ns + 9_000_000),)
    line = Page(html.render(replace(report, cost=CostRow(1, 1.0, 1.0, 0.0, None, gpu_busy=busy)))).data["timeline"]
    assert line["lanes"] == ["steps", "MainThread", "loader", "GPU"]
    assert line["steps"] == {"step": [0, 1], "lane": [0, 0], "start": [0, 100_000], "us": [100_000, 100_000]}
    assert line["busy"] == {"lane": [3], "start": [2_000], "us": [7_000]}
    assert line["waits"] == {
        "site": [0, 0], "lane": [1, 2], "start": [10_000, 110_000], "us": [5_000, 2_000], "step": [0, 1],
    }  # fmt: skip


def test_threads_may_have_the_names_of_other_lanes():
    report = report_of(sync(ms=5, thread="steps"), sync(ms=5, at_ms=30, thread="GPU"), sync(ms=4, at_ms=50), steps=1)
    begin_ns = report.step_times[0].start_ns
    cost = CostRow(1, 1.0, 1.0, 0.0, None, gpu_busy=(BusyRow(begin_ns, begin_ns + 1_000),))
    line = Page(html.render(replace(report, cost=cost))).data["timeline"]
    assert line["lanes"] == ["steps", "steps", "GPU", "MainThread", "GPU"]
    assert (line["steps"]["lane"], line["waits"]["lane"], line["busy"]["lane"]) == ([0], [1, 2, 3], [4])


def test_processes_without_a_rank_have_lanes_for_their_gpus_as_well():
    part = report_of(sync(), steps=1)
    begin_ns = part.step_times[0].start_ns
    part = replace(part, cost=CostRow(1, 1.0, 1.0, 0.0, None, gpu_busy=(BusyRow(begin_ns, begin_ns + 9_000),)))
    line = Page(html.render(merge([part, part]))).data["timeline"]
    assert [lane for lane in line["lanes"] if "GPU" in lane] == ["rank 0 · GPU", "rank 1 · GPU"]


def test_a_notebooks_cell_shows_its_source():
    file = "/tmp/ipykernel_123/456.py"
    report = report_of(sync(CallSite(file, 2, "<module>", "x.item()")))
    report = replace(report, cells=(CellRow(file, 3),), sources=(SourceRow(file, 1, ("x = f()", "x.item()")),))
    card = Page(html.render(report)).card(0)
    assert "In [3], line 2" in card
    assert '<span class="number">1</span> x = f()' in card


def test_the_distribution_counts_each_wait_that_is_known_in_the_power_of_two_that_it_is_in():
    report = report_of(*(sync(ms=ms) for ms in (0.5, 0.52, 0.6, 4)))
    page = Page(html.render(report))
    assert "How long its newest waits took 262 µs to 524 µs 2 524 µs to 1.0 ms 1" in page.text
    assert "2.1 ms to 4.2 ms 1" in page.text
    assert "How long" not in Page(html.render(report_of(sync()))).text


def test_the_time_line_of_many_ranks_has_the_newest_of_their_steps():
    ranks = [report_of(sync(at_ms=0), rank=rank, steps=2_000) for rank in range(12)]
    steps = Page(html.render(merge(ranks))).data["timeline"]["steps"]
    assert len(steps["step"]) == 10_000
    assert (min(steps["step"]), max(steps["step"])) == (1_166, 1_999)


def test_two_thousand_lines_and_a_thousand_steps_of_one_rank_or_of_many_fit_into_three_megabytes():
    """With names, texts and advice as long as real ones."""
    name = f"{CWD}/package/subpackage/a_module_with_a_name"
    lines = [
        CallSite(
            f"{name}_{number % 40}.py", number, "Trainer.training_step", f"total_loss += self.loss_{number}(x).item()"
        )
        for number in range(2_000)
    ]
    library = CallSite(
        "/v/lib/python3.12/site-packages/transformers/trainer.py", 2_345, "Trainer._inner", "tr_loss.item()"
    )
    events = [
        sync(lines[number % 2_000], at_ms=10.0 * number, step=number // 10, stack=(NONZERO,) * 20, library_site=library)
        for number in range(10_000)
    ]
    report = report_of(*events, steps=1_000)
    assert len(report.sites) == 2_000
    advice = "keep the value on the GPU (x.detach(), and sums as tensors) and read it every N steps"
    sources = tuple(SourceRow(line.file, line.line, ("x" * 80,) * 7) for line in lines[:100])
    report = replace(report, sites=tuple(replace(site, advice=advice) for site in report.sites), sources=sources)
    page = html.render(report)
    assert len(page.encode()) < 3_000_000
    ranks = tuple(RankShare(rank, 9, 1_234.5 + rank) for rank in range(32))
    times = tuple(
        replace(step, rank=rank, end_ns=step.end_ns + rank * 1_234_567)
        for rank in range(32)
        for step in report.step_times
    )
    sites = tuple(replace(site, ranks=ranks) for site in report.sites)
    run = replace(report.run, ranks=tuple(range(32)))
    of_ranks = html.render(replace(report, run=run, sites=sites, step_times=times))
    assert "Slower ranks, step by step" in of_ranks
    assert len(of_ranks.encode()) < 3_000_000
    assert page.count('<li class="site"') == 2_000
