from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

from training_run import CWD, report_of, sync, whole_report

from syncagent.events import CallSite, Span
from syncagent.report.formats import html
from syncagent.report.merge import merge

VOID = {"meta", "br"}
EVIL = "</td><script>alert(1)</script><img src=http://x.invalid/ onerror='a()'>\"&"


class Page(HTMLParser):
    """Checks that tags close in order, and keeps what it meets."""

    def __init__(self, source):
        super().__init__()
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
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def test_it_says_what_the_text_says():
    page = Page(html.render(whole_report()))
    for words in (
        "loss.py:41",
        "torch.nonzero(labels == 9)",
        "range loss",
        "backward",
        "transformers/trainer.py:9",
        "kernels",
        "warm-up",
        "conv2d",
        "120 µs",
        "dropped",
    ):
        assert words in page.text, words


def test_it_loads_nothing():
    source = html.render(whole_report())
    assert not {name for name, _ in Page(source).attributes} & {"src", "href", "srcset", "action"}
    assert not re.search(r"url\(|@import|https?:", source)
    assert "default-src 'none'" in source


def test_whatever_comes_from_the_run_is_escaped():
    site = CallSite(f"{CWD}/{EVIL}.py", 1, EVIL, EVIL)
    event = sync(site, op=EVIL, api=EVIL, module=EVIL, ranges=(EVIL,), allowed=EVIL, thread=EVIL, forward_site=site)
    report = report_of(event, notes=[EVIL], script=EVIL, device=EVIL, host=EVIL, torch=EVIL, policy=EVIL)
    report = replace(report, sites=(replace(report.sites[0], advice=EVIL, kind=EVIL, phase=EVIL),))
    page = Page(html.render(report))
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert EVIL in "".join(page.words)


def test_cells_of_numbers_sort_by_value():
    source = html.render(report_of(sync(ms=1_500), duration_s=3.0))
    assert '<td class=n data-value="1500.0">1.50 s</td>' in source


def test_no_syncs_is_stated_with_what_it_means():
    assert "No host sync was seen. The sensors below were live." in Page(html.render(report_of())).text
    assert "this says nothing" in Page(html.render(replace(report_of(), sensors=()))).text


def test_ranks_and_simulation_are_shown():
    page = Page(html.render(merge([whole_report(rank=rank, simulated=True) for rank in (0, 1)])))
    assert "2 ranks" in page.text
    assert "Simulated device" in page.text
    assert "ranks 0: 40.0 ms, 1: 40.0 ms" in page.text


def test_what_waits_is_underlined_and_set_up_stands_apart():
    waits = CallSite(f"{CWD}/a.py", 9, "f", "y = x[x > 0].sum()", span=Span(8, 9, 16, indent=4))
    early = CallSite(f"{CWD}/b.py", 1, "g", "x.to(device)")
    source = html.render(report_of(sync(waits, ms=9, at_ms=150), sync(early, ms=20), steps=3))
    assert "<pre>y = <u>x[x &gt; 0]</u>.sum()</pre>" in source
    assert "One line causes all of it: a.py:9." in Page(source).text
    steps, _, set_up = source.partition("Before the second step, and not counted above")
    assert "x.to(device)" in set_up
    assert "x.to(device)" not in steps
