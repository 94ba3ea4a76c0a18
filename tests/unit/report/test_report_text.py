from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from training_run import CUPTI, CWD, LOSS, MASK, NONZERO, report_of, sync, whole_report

from syncagent.events import CallSite, Span, SyncKind
from syncagent.report import wording
from syncagent.report.formats import text
from syncagent.report.merge import merge
from syncagent.report.model import Overhead, SensorStatus

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
    where = {"report": "x.json", "spans": "http://localhost:4318"}
    shown = text.render(whole_report(), width=width, where=where, cut=True)
    assert max(map(len, shown.splitlines())) <= width
    assert not [line for line in shown.splitlines() if line != line.rstrip()]
    for words in (
        "train.py · NVIDIA H100 · 2 steps in 1.00 s",
        "4 host syncs; the host waited 53.0 ms for the GPU, 53.0 % of step time (100 ms).",
        "2 lines cause 91 % of it; start with loss.py:41.",
        "loss.py:41 in masked_loss · forward",
        "torch.nonzero(labels == 9)",
        "torch.nonzero() (aten::nonzero): 0.5 per step, 40.0 ms per step",
        "module head · range loss",
        "loss.py:57 in masked_loss · backward of this line",
        "called at train.py:88 in main: loss.backward()",
        "in transformers/trainer.py:9 in _loop: float(x)",
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


class TestAnswer:
    """What stands at the end of a run."""

    @pytest.mark.parametrize("width", [40, 60, 80, 140])
    @pytest.mark.parametrize("sites", [1, 3, 40, 2_000])
    def test_it_has_at_most_25_lines(self, sites, width):
        events = (sync(CallSite("a.py", line, "f", "x" * 200), ms=line, at_ms=100) for line in range(1, sites + 1))
        report = report_of(*events, steps=3, dropped=4, notes=["a note"])
        shown = text.render(report, width=width, verbose=False, cut=True, where={"report": "x.json"}).splitlines()
        assert len(shown) <= 25
        assert f"a.py:{sites} in f" in "\n".join(shown)
        assert any("4 syncs noticed but not recorded" in line.replace("\n", " ") for line in shown) or width < 80
        assert not any("a note" in line for line in shown)

    def test_the_rest_is_counted_and_a_command_shows_it(self):
        events = [sync(CallSite("a.py", line, "f"), ms=line * line, at_ms=100) for line in range(1, 28)]
        shown = text.render(report_of(*events, steps=3), verbose=False, where={"report": "x.json"})
        assert "more sites, and the rest: syncagent report x.json" in shown
        tiny = [sync(CallSite("b.py", 1, "f"), ms=50, at_ms=100), sync(CallSite("a.py", 1, "f"), ms=0.01, at_ms=100)]
        shown = text.render(report_of(*tiny, steps=3), verbose=False)
        assert "1 more site below 0.1 %, and the rest: --verbose" in shown
        assert "a.py" not in shown

    def test_set_up_comes_last_and_apart(self):
        events = [sync(MASK, ms=80), sync(NONZERO, ms=2, at_ms=150), sync(NONZERO, ms=2, at_ms=250)]
        report = report_of(*events, steps=3)
        shown = text.render(report, verbose=False)
        assert "One line causes all of it: loss.py:41." in shown
        assert "Before the second step, and not counted above: 80.0 ms, most of it at loss.py:57." in shown
        assert "loss.py:57 in" not in shown
        assert [site.line for site in report.sites] == [41, 57]
        whole = text.render(report)
        assert re.search(rf"not counted above.*\n\n +{wording.DASH} +loss.py:57 in masked_loss", whole)
        assert ": 1 time, 80.0 ms in all" in whole  # and not so many per step

    def test_what_went_wrong_is_said(self):
        off = SensorStatus("kernels", live=False, cannot_see="", detail="torch lacks a name")
        unwanted = SensorStatus("modes", live=False, cannot_see="", detail='off: detail is "syncs"')
        report = replace(
            report_of(sync(None, ms=3), sync(ms=7), problems=["the policy failed and is off"]),
            sensors=(off, unwanted),
            overhead=Overhead(1.0, 0.05, 0.01),
        )
        shown = text.render(report, verbose=False)
        for words in (
            "! The sensor kernels is off: torch lacks a name",
            "! The agent has added 5.0 % to the run, and 1.0 % were allowed",
            "! The line of 30 % of the stall is not known",
            "! the policy failed and is off",
        ):
            assert words in shown, words
        assert "modes" not in shown

    def test_few_syncs_are_called_few(self):
        shown = text.render(report_of(sync(ms=0.05, at_ms=100), steps=2), verbose=False)
        assert "That is little: nothing here is worth much work. The longest stall is at loss.py:41." in shown

    def test_what_would_read_100_percent_is_called_all(self):
        events = [sync(ms=500, at_ms=100), sync(MASK, ms=1, at_ms=150)]
        assert "One line causes all of it: loss.py:41." in text.render(report_of(*events, steps=2), verbose=False)

    def test_how_long_a_simulated_device_takes_does_not_say_that_syncs_are_cheap(self):
        report = report_of(sync(ms=0.05, at_ms=100), steps=2)
        shown = text.render(replace(report, run=replace(report.run, simulated=True)), verbose=False)
        assert "little" not in shown
        assert "One line causes all of it: loss.py:41." in shown


@pytest.mark.parametrize("color", [False, True])
def test_what_goes_on_in_the_next_line_is_indented_like_the_first(color):
    report = report_of(*[sync(CallSite("a.py", 1, "f", "loss.item()"), ms=5, at_ms=at) for at in (100, 200)], steps=3)
    advice = "keep the value on the GPU " * 4
    shown = text.render(
        replace(report, sites=(replace(report.sites[0], advice=advice),)),
        width=60,
        verbose=False,
        cut=True,
        color=color,
    )
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in shown.splitlines()]
    assert max(map(len, lines)) <= 60
    begin = next(number for number, line in enumerate(lines) if "→" in line)
    assert lines[begin].index("→") + 2 == len(lines[begin + 1]) - len(lines[begin + 1].lstrip())
    assert "keep the value on the GPU" in f"{lines[begin]} {lines[begin + 1].lstrip()}"


def test_what_waits_is_underlined():
    site = CallSite(LOSS, 41, "f", "y = x[x > 0].sum()", span=Span(8, 41, 16, indent=4))
    shown = text.render(report_of(sync(site)))
    assert "  y = x[x > 0].sum()\n" in shown
    [underline] = [line for line in shown.splitlines() if "^" in line]
    [source] = [line for line in shown.splitlines() if "x[x > 0]" in line]
    assert source[underline.index("^") : underline.rindex("^") + 1] == "x[x > 0]"


def test_a_narrow_terminal_sees_what_waits_and_a_file_the_whole_line():
    source = "loss = " + "a_long_name + " * 20 + "lens.max().item() + " + "b * " * 40 + "c"
    begin = source.index("lens.max")
    site = CallSite(LOSS, 41, "f", source, span=Span(begin, 41, begin + len("lens.max().item()")))
    cut = text.render(report_of(sync(site)), width=60, cut=True)
    assert "lens.max().item()" in cut
    assert max(map(len, cut.splitlines())) <= 60
    assert source in text.render(report_of(sync(site)), width=60)


def test_sites_are_in_the_order_of_their_share():
    lines = text.render(whole_report(), width=80).splitlines()
    shares = [line.split()[0] for line in lines if re.match(r" *[\d.]+ %  ", line)]
    assert shares == ["40.0", "8.0", "5.0"]


def test_what_is_not_the_case_is_not_said():
    shown = text.render(report_of(sync()))
    for word in ("dropped", "note:", "Simulated", "Host time", "gain", "of step time", "*"):
        assert word not in shown
    assert "no steps were marked" in shown


def test_modelled_times_are_marked_at_each_figure_and_say_for_which_gpu():
    report = whole_report(simulated=True)
    report = replace(report, run=replace(report.run, modelled="H100", gpu_busy_s=report.run.duration_s / 4))
    for verbose in (True, False):
        shown = text.render(report, verbose=verbose)
        assert "times and shares with a star are modelled for an H100, not measured on one." in shown
        assert "The H100 would be busy 25.0 %* of the run" in shown
        assert "CPU" not in shown


def test_a_simulated_run_says_so_at_each_figure():
    for verbose in (False, True):
        shown = text.render(whole_report(simulated=True), verbose=verbose)
        assert "times and shares with a star are this CPU's, not a GPU's" in shown
        figures = re.findall(r"[\d.]+ (?:%|ms|µs|ns)\S?", shown.partition("Host time")[0])
        assert figures
        assert all("*" in figure for figure in figures), figures


def test_gains_and_advice_are_shown_where_known():
    report = report_of(sync(ms=7))
    report = replace(report, sites=(replace(report.sites[0], gain_ms=3.0, idle_ms=1.0, advice="use torch.where"),))
    shown = text.render(report)
    assert "not waiting gains 3.0 ms per step · 1.0 ms idle GPU per step" in shown
    assert "→ use torch.where" in shown


def test_time_of_syncs_that_are_counted_elsewhere_has_no_rate():
    lost = sync(None, op="cudaStreamSynchronize", api=None, kind=SyncKind.OTHER, sensor="driver", ms=40, repeats=0)
    report = report_of(sync(ms=50), lost, steps=2)
    assert "cudaStreamSynchronize: 40.0 ms in all, in syncs that are counted at their lines" in report.to_text(
        verbose=True
    )
    assert f"| {wording.DASH} | 40.0 ms | `(line unknown)` |" in report.to_markdown()


def test_a_sampled_count_is_marked():
    report = report_of(sync())
    report = replace(report, sites=(replace(report.sites[0], sampled=True, count_error=2.6),))
    shown = text.render(report)
    assert ": ~1 time, " in shown
    assert "count scaled up from sampled steps, standard error 3" in shown


def test_calls_are_named_as_programs_have_them():
    names = {
        "torch.Tensor.item": "Tensor.item() (aten::x):",
        "torch.Tensor.__bool__": "bool(tensor) (aten::x):",
        "torch.nonzero": "torch.nonzero() (aten::x):",
        None: " aten::x:",
    }
    for api, name in names.items():
        assert name in text.render(report_of(sync(api=api, op="aten::x")))


class TestRanks:
    def test_all_of_them_show_their_spread(self):
        merged = merge([report_of(sync(ms=rank + 1), rank=rank) for rank in range(3)])
        assert "all 3 ranks, 1.0 ms to 3.0 ms, most on rank 2" in text.render(merged)
        alike = merge([report_of(sync(), rank=rank) for rank in range(2)])
        assert "all 2 ranks, 1.0 ms each" in text.render(alike)

    def test_a_site_of_one_rank_says_which_and_how_often_there(self):
        syncs = [sync(at_ms=150), sync(at_ms=160), sync(at_ms=250), sync(at_ms=260)]
        parts = [report_of(*(syncs if rank == 1 else [sync(MASK, at_ms=150)]), steps=2, rank=rank) for rank in range(4)]
        shown = text.render(merge(parts))
        assert "rank 1 only" in shown
        assert "2 per step" in shown
        assert "ranks 0, 2 and 3, 1.0 ms each" in shown


def test_a_thousand_sites_are_shown_whole():
    events = (sync(CallSite("a.py", line, "f", "x.item()"), ms=line) for line in range(1, 1_001))
    assert text.render(report_of(*events)).count(" in f · forward\n") == 1_000


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
        shown = text.render(report_of(sync(CallSite(LOSS, 1, "f", "x" * 5_000))), width=80, cut=True)
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
