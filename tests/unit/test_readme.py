"""The README is short, and the documents say what the committed results and the code say."""

from __future__ import annotations

import importlib.util
import json
import re

import pytest
import torch

from syncagent.events import SyncKind
from syncagent.policy import packs
from syncagent.settings import schema
from tests.gpu import tables

DOCS = tables.ROOT / "docs"
SPEC = importlib.util.spec_from_file_location("settings_page", DOCS / "settings.py")
settings_page = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(settings_page)
README = (tables.ROOT / "README.md").read_text(encoding="utf-8")


def section(page: str, title: str) -> str:
    """The text under one heading of a page, up to the next."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.split(r"(?m)^#+ ", text.partition(f"# {title}\n")[2], maxsplit=1)[0]


def test_the_readme_is_read_in_five_minutes():
    """With its output and code; whatever is longer has a page of its own in ``docs/``."""
    assert len(README.splitlines()) <= 130
    assert len(README.split()) <= 1200


def test_the_index_has_every_page_on_a_line_of_its_own():
    lines = (DOCS / "index.md").read_text(encoding="utf-8").splitlines()
    linked = [link for line in lines for link in re.findall(r"^- \[.+?\]\((\w+\.md)\): .+\.$", line)]
    assert sorted(linked) == sorted(page.name for page in DOCS.glob("*.md") if page.name != "index.md")


def test_the_example_in_python_runs(cpu_device, capsys):
    """Its ``train`` waits at a line of its own; the read after the loop is allowed."""
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {"batches": torch.ones(4, 3), "train": lambda batch: batch.nonzero().sum()}
    exec(code[0], names)
    assert len(code) == 1
    sites = {site.op: (site.count, site.allowed) for site in names["agent"].report().sites}
    assert sites == {"aten::nonzero": (4, None), "aten::_local_scalar_dense": (1, "once per epoch")}
    assert capsys.readouterr().out.startswith("3\n")


def test_the_tables_are_those_of_the_results():
    """``python tests/gpu/tables.py`` has been run since the results changed."""
    for name in tables.PAGES:
        text = (tables.ROOT / name).read_text(encoding="utf-8")
        assert tables.filled(text) == text, name


def test_what_is_said_of_each_setting_is_what_the_schema_says():
    text = settings_page.PAGE.read_text(encoding="utf-8")
    assert settings_page.filled(text) == text, "run: python docs/settings.py"


def test_every_setting_is_there_with_its_variable_what_it_accepts_and_its_default():
    text = re.sub(r"(?<=.)\n(?=.)", " ", settings_page.PAGE.read_text(encoding="utf-8"))
    found = re.findall(r"(?m)^### `(\w+)`\n\n[A-Z].+\.\n\n`SYNCAGENT_(\w+)`: (.+)\. Default: (.+)\.$", text)
    shown = {name: (accepts, default) for name, variable, accepts, default in found if variable == name.upper()}
    assert list(shown) == list(schema.PARSERS)
    assert (
        shown.items()
        >= {
            "policy": ("one of `observe`, `warn`, `raise`", "`observe`"),
            "overhead": ("a share of the time from 0 to 1", "`0.01`"),
            "max_events": ("a whole number, 1 or more", "`10000`"),
            "file_mode": ("a file's mode in octal from `0600` to `0666`, such as `0640`", "`0600`"),
            "simulate": ("a yes or no: 1, 0, true, false, on or off", "off"),
            "baseline": ("a path", "none"),
            "summary": ("a yes or no: 1, 0, true, false, on or off", "on for scripts, off for `watch()` and `start()`"),
        }.items()
    )


def test_every_kind_and_every_pack_is_named():
    assert all(f"`{kind.value}`" in section("settings.md", "`judge_kinds`") for kind in SyncKind)
    assert all(f"`{name}`" in section("production.md", "What may pass") for name in packs.PACKS)


def test_a_table_without_its_result_says_so(monkeypatch, tmp_path):
    """And names the command that measures it."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    for name in ("overhead", "persync", "latency", "memory", "telemetry", "compat", "beforeafter"):
        assert re.fullmatch(r"Not measured yet: `python tests/\S+\.py( --cpus 2)? --out FILE`\.", tables.MAKERS[name]())
    assert tables.targets() == "Not measured yet."


def test_a_script_that_gains_nothing_says_none_and_one_that_failed_is_named(monkeypatch, tmp_path):
    site = {"file": "gan.py", "line": 3, "named": True, "advice": "keep it"}
    counted = {"per_step": 5.0, "sites": [site, {**site, "line": 4}, {**site, "named": False}]}
    times = {"before_ms": 9.0, "after_ms": 8.99, "gain_ms": 0.01, "gain_ci95": [-0.1, 0.1]}
    times |= {"differs_by": 0.0, "differs_from_itself_by": 1e-7}
    row = {
        "tolerance": 0.0,
        "before": counted,
        "after": {**counted, "per_step": 0.0},
        "times": times,
        "cost": {"gain_all_ms": 0.0},
    }
    scripts = {
        "gan": row,
        "rl_ppo": {
            **row,
            "times": {**times, "gain_ci95": [0.008, 0.1], "differs_by": 2e-7},
            "cost": {"gain_all_ms": None},
        },
        "hf_trainer": {**row, "times": {"error": "RuntimeError: ended with 1: ...\nmore"}},
    }
    result = {**RESULT, "repeats": 6, "scripts": scripts}
    (tmp_path / "before_after.json").write_text(json.dumps(result), encoding="utf-8")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    text = tables.before_after()
    assert "| gan | 2 | 5 → 0 | 9.00 ms | 8.99 ms | 0.01 ms (-0.10 to 0.10), none | 0.00 ms |" in text
    assert "| 0.01 ms (0.01 to 0.10) | not known |" in text
    assert (
        "further apart than their scripts state, relatively: rl ppo 2e-07 (the same variant, from run to run: 1e-07). "
        in text
    )
    assert "Not in the table:\n\n- hf_trainer: RuntimeError: ended with 1: ...\n\n" in text


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
