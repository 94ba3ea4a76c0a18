"""The READMEs say what the committed results and the code say."""

from __future__ import annotations

import json
import re
from dataclasses import fields

import pytest

from syncagent.events import SyncKind
from syncagent.policy import packs
from syncagent.settings.schema import Settings
from tests.gpu import tables

README = (tables.ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text under one heading, up to the next."""
    return re.split(r"(?m)^#+ ", README.partition(f"# {title}\n")[2], maxsplit=1)[0]


def test_the_tables_are_those_of_the_results():
    """``python tests/gpu/tables.py`` has been run since the results changed."""
    for name in tables.PAGES:
        text = (tables.ROOT / name).read_text(encoding="utf-8")
        assert tables.filled(text) == text, name


def test_every_setting_is_in_the_table_of_settings_and_nothing_else():
    named = re.findall(r"(?m)^\| `(\w+)` \|", section("Every setting"))
    assert sorted(named) == sorted(field.name for field in fields(Settings) if "parse" in field.metadata)


def test_the_defaults_in_that_table_are_the_ones_in_force():
    shown = dict(re.findall(r"(?m)^\| `(\w+)` \| `?([\d,]+|observe|training|off)`? \|", section("Every setting")))
    defaults = {name: getattr(Settings(), name) for name in shown}
    words = {
        name: "off"
        if value is False
        else f"{value:04o}"
        if name == "file_mode"
        else f"{value:,}"
        if type(value) is int
        else value
        for name, value in defaults.items()
    }
    assert shown == {name: f"{value:g}" if isinstance(value, float) else value for name, value in words.items()}
    assert {"policy", "warmup_steps", "stall_share_window", "max_events", "simulate"} <= set(shown)


def test_every_kind_and_every_pack_is_named():
    assert all(f"`{kind.value}`" in section("Every setting") for kind in SyncKind)
    assert all(f"`{name}`" in section("What may pass") for name in packs.PACKS)


def test_a_table_without_its_result_says_so(monkeypatch, tmp_path):
    """And names the command that measures it."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    for name in ("overhead", "persync", "latency", "memory", "telemetry", "compat"):
        assert re.fullmatch(r"Not measured yet: `python tests/\S+\.py( --cpus 2)? --out FILE`\.", tables.MAKERS[name]())
    assert tables.targets() == "Not measured yet."


LATENCY_ROW = {"p50": 9.6, "p99": 20.0, "p99.9": 300.4, "max": 1234.5, "a_second": 700.0}
RESULT = {"torch": "2.11.0", "gpu": None, "python": "3.12.3", "date": "2026-11-23T00:00:00", "exact": True}


def test_the_latency_table_mentions_rates_not_reached_and_spans_dropped(monkeypatch, tmp_path):
    spans = {"exported": 60, "failed": 0, "dropped": 40}
    cases = {"1000 a second, no agent": LATENCY_ROW, "1000 a second, journal": {**LATENCY_ROW, "spans": spans}}
    (tmp_path / "latency.json").write_text(json.dumps({**RESULT, "cases": cases}), encoding="utf-8")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    text = tables.latency()
    assert "| journal | 10 · 20 · 300 · 1,234 |" in text
    assert "Rates not reached: journal 700 of 1,000." in text
    assert "Spans dropped, and counted: journal at 1,000 40%." in text
    assert "CPU in the place of a GPU" in text
    assert "--device cpu" in text


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ([(0.99, 1.0), (1.0, 1.01)], "met"),
        ([(0.99, 1.0), (1.0, 1.02)], "open: the limit is inside the interval"),
        ([(0.99, 1.0), (1.02, 1.03)], "**not met**"),
    ],
)
def test_a_target_is_met_only_where_the_whole_interval_is(limits, said):
    assert tables.verdict(limits, 1.01) == said
