from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from training_run import CUPTI, CWD, LOSS, MASK, report_of, sync, whole_report

from syncagent.events import CallSite
from syncagent.report.formats import text
from syncagent.report.merge import merge

HOSTILE = [
    "x[mask]",
    "[bold]x[/bold] [/nonsense]",
    "\x1b[31mred\x1b[0m \x07",
    "tab\there",
    "\udcff",
    "名前 = 'ü' # 🙂 :smile:",
    "\u202eevil",
    "x" * 5_000,
    "{braces} %s",
]


@pytest.mark.parametrize("width", [80, 140])
def test_it_fits_the_width_and_says_everything(width):
    shown = text.render(whole_report(), width=width, where={"report": "x.json", "spans": "http://localhost:4318"})
    assert max(map(len, shown.splitlines())) <= width
    assert not [line for line in shown.splitlines() if line != line.rstrip()]
    for words in (
        "train.py · NVIDIA H100 · 2 steps in 1.00 s",
        "4 host syncs, stalled for 53.0 ms",
        "loss.py:41 in masked_loss",
        "torch.nonzero(labels == 9)",
        "module head · range loss",
        "forward loss.py:57 in masked_loss",
        "backward train.py:88 in main",
        "library transformers/trainer.py:9 in _loop",
        "(line unknown)",
        "allowed: warm-up",
        "net.py:22 in forward",
        "kernels  live  coalesce on sparse tensors",
        "cupti    off   not asked for",
        "agent: 120 µs per step, 0.8 %",
        "dropped: 3 syncs noticed but not recorded",
        "note: copies were timed on every 10th step",
        "report: x.json",
        "spans: http://localhost:4318",
    ):
        assert words in shown, words


def test_numbers_of_a_site_are_on_one_line_worst_first():
    lines = text.render(whole_report(), width=80).splitlines()
    numbers = [line for line in lines if re.match(r" *[\d.]+ (ms|µs|s) ", line)]
    assert re.split(r"  +", numbers[0].strip()) == [
        "40.0 ms",
        "40.0 %",
        "1",
        "0.5",
        "40.0 ms",
        "aten::nonzero",
        "forward",
    ]
    assert numbers[1].split()[:2] == ["8.0", "ms"]


def test_an_op_too_long_for_its_line_has_one_of_its_own():
    shown = text.render(report_of(sync(op="torch.cuda.streams.Event.synchronize_everything")), width=72)
    assert "\n        torch.cuda.streams.Event.synchronize_everything  forward\n        loss.py:41" in shown


def test_what_is_not_the_case_is_not_said():
    shown = text.render(report_of(sync()))
    for word in ("dropped", "note:", "Simulated", "Host time", "library", "gain", "of step time"):
        assert word not in shown
    assert "no steps were marked" in shown


def test_a_simulated_run_says_so():
    assert "Simulated device: every time below is this CPU's" in text.render(whole_report(simulated=True))


def test_gains_and_advice_are_shown_where_known():
    report = report_of(sync(ms=7))
    report = replace(report, sites=(replace(report.sites[0], gain_ms=3.0, advice="use torch.where"),))
    shown = text.render(report)
    assert re.search(r"gain +idle +stall", shown)
    assert "→ use torch.where" in shown


def test_a_sampled_count_is_marked():
    report = report_of(sync())
    assert "  ~1  " in text.render(replace(report, sites=(replace(report.sites[0], sampled=True),)))


def test_only_the_worst_twenty_sites_are_shown():
    report = report_of(*(sync(CallSite("a.py", line, "f"), ms=line) for line in range(1, 28)))
    shown = text.render(report)
    assert shown.count(" in f\n") == 20
    assert "… and 7 more sites" in shown


def test_ranks_show_their_spread():
    merged = merge([report_of(sync(ms=rank + 1), rank=rank) for rank in range(3)])
    assert "1.0 ms on rank 0 to 3.0 ms on rank 2" in text.render(merged)


class TestNoSyncs:
    def test_none_means_what_the_live_sensors_could_see(self):
        shown = text.render(report_of(steps=5), width=140)
        assert "No host sync was seen: nothing in 5 steps made the host wait for the GPU.\n" in shown
        assert "Live sensors: kernels; kernels cannot see coalesce on sparse tensors.\n" in shown

    def test_without_a_live_sensor_none_means_nothing(self):
        shown = text.render(replace(report_of(), sensors=(CUPTI,)))
        assert "no sensor was live: this says nothing about the run" in shown
        assert "not asked for" in shown


class TestOddStrings:
    @pytest.mark.parametrize("width", [40, 80, 140])
    @pytest.mark.parametrize("odd", HOSTILE, ids=lambda odd: ascii(odd)[:20])
    def test_they_are_shown_and_harm_nothing(self, odd, width):
        site = CallSite(f"{CWD}/{odd}.py", 1, odd, odd)
        event = sync(site, op=odd, module=odd, ranges=(odd,), allowed=odd, library_site=site, forward_site=site)
        shown = text.render(report_of(event, notes=[odd], script=odd), width=width, color=False, where={"report": odd})
        assert "\x1b" not in shown
        assert "\x07" not in shown
        assert "\u202e" not in shown

    def test_markup_is_shown_as_it_was_written(self):
        assert "[bold]x[/bold] [/nonsense]" in text.render(report_of(sync(CallSite(LOSS, 1, "f", HOSTILE[1]))))

    def test_a_long_source_line_is_cut(self):
        shown = text.render(report_of(sync(CallSite(LOSS, 1, "f", "x" * 5_000))), width=80)
        assert shown.count("x" * 60) == 1
        assert "…" in shown


class _Terminal(io.StringIO):
    def isatty(self):
        return True


class TestEmit:
    def test_a_terminal_gets_colour(self, monkeypatch):
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm")
        stream = _Terminal()
        text.emit(whole_report(), stream)
        assert "\x1b[" in stream.getvalue()

    def test_no_color_is_honoured(self, monkeypatch):
        monkeypatch.setenv("NO_COLOR", "1")
        stream = _Terminal()
        text.emit(whole_report(), stream)
        assert "\x1b[" not in stream.getvalue()

    def test_a_file_gets_none(self, monkeypatch):
        monkeypatch.setenv("FORCE_COLOR", "1")
        stream = io.StringIO()
        text.emit(whole_report(), stream)
        assert "\x1b[" not in stream.getvalue()

    def test_it_goes_to_stderr(self, capsys):
        text.emit(whole_report())
        out, err = capsys.readouterr()
        assert out == ""
        assert "4 host syncs" in err

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
    def test_a_stream_that_knows_few_letters_gets_those(self, encoding):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
        text.emit(report_of(sync(CallSite(LOSS, 1, "f", HOSTILE[5]))), stream)
        assert b"1 host sync" in raw.getvalue()


def test_the_ops_of_a_line_are_shown_where_there_are_several_and_what_no_gate_counts():
    shown = text.render(report_of(sync(ms=3), sync(op="aten::unique"), sync(op="aten::unique"), sync(MASK)), width=80)
    assert shown.count("aten::nonzero 1, aten::unique 2") == 1
    assert "depends on the driver's state" not in shown
    assert "depends on the driver's state" in text.render(report_of(sync(conditional=True)), width=80)
