"""The forms in which ``syncagent check`` gives its result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from syncagent.report import files

EVIL = "x]]>\x00\x1b[31m</failure>&\ud800\ufffe| `<b>` \u202e"


@pytest.fixture
def two(saved, monkeypatch):
    """A baseline, and a report in which one line is known, one waits more often, one is new, one new one is allowed."""
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    base, new = saved("base.json", a=1, b=1, z=1), saved("new.json", a=1, b=3, c=1, d=1)
    report = files.load(new)
    advice = {"c": "read it every N steps", "b": "move it out of the loop"}
    sites = tuple(
        replace(site, advice=advice.get(site.source), allowed="wanted" if site.source == "d" else None)
        for site in report.sites
    )
    files.save(replace(report, sites=sites), new)
    return [new, "--baseline", base]


def test_sarif_has_the_findings_alone_with_level_place_and_advice(verb, two, capsys):
    assert verb("check", *two, "--format", "sarif") == 1
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    found = {result["locations"][0]["physicalLocation"]["region"]["startLine"]: result for result in run["results"]}
    assert {line: (result["level"], result["baselineState"]) for line, result in found.items()} == {
        2: ("error", "updated"),
        3: ("error", "new"),
    }
    assert found[3]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "train.py"
    said = found[3]["message"]["text"]
    assert said.startswith("This host sync is not in the baseline. ")
    assert "What to do: read it every N steps." in said
    assert found[2]["message"]["text"].startswith(
        "This line waits more often than in the baseline: "
        "1 sync (1 per step), 2.0 ms  →  3 syncs (3 per step), 6.0 ms. "
    )


def test_sarif_of_a_check_that_passes_has_no_results(verb, saved, capsys):
    """A service then closes what it had found before."""
    assert verb("check", saved("new.json", a=1), "--baseline", saved("base.json", a=1), "--format", "sarif") == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["results"] == []


def test_junit_has_a_test_for_each_site(verb, two, capsys):
    assert verb("check", *two, "--format", "junit") == 1
    suites = ET.fromstring(capsys.readouterr().out)
    (suite,) = suites
    for element in (suites, suite):
        assert {key: element.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
            "tests": "4", "failures": "2", "errors": "0", "skipped": "0",
        }  # fmt: skip
    cases = {case.get("name"): case for case in suite}
    assert {name: [child.tag for child in case] for name, case in cases.items()} == {
        "a in main": [], "b in main": ["failure"], "c in main": ["failure"], "d in main": [],
    }  # fmt: skip
    case = cases["c in main"]
    assert (case.get("classname"), case.get("file"), case.get("line")) == ("train.py", "train.py", "3")
    assert case[0].get("message") == "not in the baseline: 1 sync (1 per step), 2.0 ms"
    assert "→ read it every N steps" in case[0].text
    assert cases["b in main"][0].get("message").startswith("waits more often than in the baseline: 1 sync")


def test_junit_skips_what_is_not_judged(verb, two, capsys):
    report = files.load(two[0])
    sites = tuple(replace(site, kind="collective" if site.source == "c" else site.kind) for site in report.sites)
    files.save(replace(report, sites=sites), two[0])
    verb("check", *two, "--format", "junit")
    (skipped,) = ET.fromstring(capsys.readouterr().out).iter("skipped")
    assert skipped.get("message") == "kind collective is not judged unless judge_kinds names it"


def test_junit_of_a_run_without_a_sync_has_one_test_that_passes(verb, saved, capsys):
    assert verb("check", saved("new.json"), "--baseline", saved("base.json"), "--format", "junit") == 0
    (case,) = ET.fromstring(capsys.readouterr().out).iter("testcase")
    assert (case.get("name"), len(case)) == ("no host sync", 0)


def test_two_tests_never_have_one_name(verb, two, capsys):
    report = files.load(two[0])
    sites = (*report.sites, *(replace(site, kind="copy_d2h", id=site.id + 10) for site in report.sites))
    files.save(replace(report, sites=sites), two[0])
    verb("check", *two, "--format", "junit")
    names = [case.get("name") for case in ET.fromstring(capsys.readouterr().out).iter("testcase")]
    assert len(set(names)) == len(names) == 8
    assert {"a in main", "a in main [2]"} <= set(names)


@pytest.mark.parametrize("form", ["junit", "sarif", "markdown", "text"])
def test_a_hostile_source_ends_no_text_early(verb, two, capsys, form):
    report = files.load(two[0])
    sites = tuple(
        replace(site, source=EVIL, function=EVIL, file=f"/proj/{EVIL}.py", advice=EVIL, api=EVIL, op=EVIL)
        for site in report.sites
    )
    Path(two[0]).write_text(json.dumps(replace(report, sites=sites).to_dict()))
    verb("check", *two, "--format", form)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x00" not in out
    if form == "junit":
        (suite,) = ET.fromstring(out)
        assert {case.tag for case in suite} == {"testcase"}
        assert "]]></failure>&" not in out
    elif form == "sarif":
        assert json.loads(out)["runs"][0]["results"]


def test_markdown_has_the_verdict_and_what_changed(verb, two, capsys):
    assert verb("check", *two, "--format", "markdown") == 1
    out = capsys.readouterr().out
    assert out.startswith("### Host syncs: the check has failed, 2 findings\n\n**2 sites are new, 1 waits more often")
    assert "| new | `train.py:3` in `main` |" in out


@pytest.mark.parametrize(
    ("name", "begins"),
    [("x.sarif", "{"), ("x.xml", "<?xml"), ("x.md", "### Host syncs"), ("x.txt", "1 site new")],
)
def test_the_suffix_says_the_form_and_the_text_is_printed_as_well(verb, two, capsys, tmp_path, name, begins):
    assert verb("check", *two, "--output", str(tmp_path / name)) == 1
    assert (tmp_path / name).read_text().startswith(begins)
    assert capsys.readouterr().out.startswith("1 site new\n")


def test_a_form_that_is_given_beats_the_suffix(verb, two, tmp_path):
    verb("check", *two, "--output", str(tmp_path / "x.xml"), "--format", "markdown")
    assert (tmp_path / "x.xml").read_text().startswith("### ")


def test_an_output_that_cannot_be_written_is_exit_code_2(verb, two, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert verb("check", *two, "--output", str(tmp_path / "file" / "x.xml")) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_summary_of_a_job_on_github_gets_the_markdown(verb, two, monkeypatch, tmp_path):
    """It is added to what other steps have written."""
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert verb("check", *two) == 1
    assert summary.read_text().startswith("before\n### Host syncs: the check has failed, 2 findings\n")


def test_so_it_does_where_nothing_could_be_checked(verb, two, monkeypatch, tmp_path):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    assert verb("check", two[0], "--baseline", "none.json") == 2
    text = (tmp_path / "summary.md").read_text()
    assert text.startswith("### Host syncs: the check proves nothing\n\n")
    assert "none.json" in text


def test_a_summary_that_cannot_be_written_changes_no_exit_code(verb, two, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    assert verb("check", *two) == 1
    out, err = capsys.readouterr()
    assert "1 site new" in out
    assert err.startswith("syncagent check: the summary was not written to ")


@pytest.mark.parametrize("form", ["text", "markdown", "sarif", "junit"])
def test_a_check_imports_nothing_heavy(python, two, form):
    code = (
        "import sys; from syncagent.cli import main\n"
        f"main(['check', *{two!r}, '--format', {form!r}])\n"
        "print(sorted({'torch', 'numpy', 'opentelemetry', 'jinja2', 'rich'} & sys.modules.keys()), file=sys.stderr)"
    )
    assert python("-c", code).stderr == "[]\n"
