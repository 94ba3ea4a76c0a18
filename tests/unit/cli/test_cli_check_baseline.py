"""``syncagent check --update``: the baseline that it writes, and what a check and the policy make of it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from syncagent.events import CallSite
from syncagent.policy.allowances import Baseline
from syncagent.report import baseline, files
from syncagent.sites import Home


def run_of(path, **fields):
    """Give the run of a saved report other fields."""
    report = files.load(path)
    files.save(replace(report, run=replace(report.run, **fields)), path)
    return path


def update(verb, path, base):
    return verb("check", path, "--baseline", str(base), "--update")


def test_the_first_baseline_is_written_and_a_check_against_it_passes(verb, saved, capsys, tmp_path):
    path, base = saved("new.json", a=1, b=2), tmp_path / "base.json"
    assert update(verb, path, base) == 0
    assert capsys.readouterr().out == f"{base} now has 2 sites; there was no baseline before.\n"
    assert verb("check", path, "--baseline", str(base)) == 0
    assert capsys.readouterr().out == "No new or grown sites; 2 known sites unchanged.\n"


def test_a_later_one_says_what_was_added_and_removed(verb, saved, capsys, tmp_path):
    base = tmp_path / "base.json"
    update(verb, saved("old.json", a=1, b=2), base)
    capsys.readouterr()
    assert update(verb, saved("new.json", b=4, c=1, d=1), base) == 0
    assert capsys.readouterr().out == f"{base} now has 3 sites: 2 added, 1 removed, 1 changed.\n"
    assert update(verb, str(tmp_path / "new.json"), base) == 0
    assert capsys.readouterr().out == f"{base} now has 3 sites: 0 added, 0 removed.\n"


def test_one_of_sampled_steps_says_that_its_counts_are_estimates(verb, saved, capsys, tmp_path):
    path, base = saved("new.json", detail="auto", a=1), tmp_path / "base.json"
    assert update(verb, path, base) == 0
    note, said = capsys.readouterr().out.splitlines()
    assert note == (
        "note: the counts are estimates, since steps were sampled; a run with --detail syncs counts each sync"
    )
    assert said == f"{base} now has 1 site; there was no baseline before."


def test_it_finds_what_a_whole_report_as_the_baseline_finds(verb, saved, capsys, tmp_path):
    base = tmp_path / "base.json"
    update(verb, saved("old.json", a=1, b=2), base)
    new = saved("new.json", a=1, b=3, c=1)
    capsys.readouterr()
    assert verb("check", new, "--baseline", str(base)) == 1
    out = capsys.readouterr().out
    assert "1 site new\n  aten::item  train.py:3 in main\n    c\n    1 sync (1 per step), 2.0 ms\n" in out
    assert "    2 syncs (2 per step)  →  3 syncs (3 per step), 6.0 ms\n" in out  # the baseline has no times


def test_the_same_sites_give_the_same_bytes_whatever_the_time_the_machine_and_the_order(verb, saved, tmp_path):
    one = run_of(saved("one.json", a=1, b=2, c=3), folder="/proj", project="/proj", host="x", pid=1)
    home = {"folder": "/other/proj", "project": "/other/proj", "cwd": "/other"}
    two = saved("two.json", a=1, b=2, c=3)
    report = files.load(two)
    moved = tuple(replace(site, file="/other/proj/train.py", stall_ms=site.count % 3) for site in report.sites)
    run = replace(report.run, started="2026-01-01T00:00:00Z", duration_s=9.0, torch="9", host="y", pid=2, **home)
    files.save(replace(report, sites=moved, run=run), two)
    for path in (one, two):
        update(verb, path, f"{path}.base")
    text = Path(f"{one}.base").read_text()
    assert text == Path(f"{two}.base").read_text()
    assert [site["line"] for site in json.loads(text)["sites"]] == [1, 2, 3]
    for machine in ("/proj", "2025", '"x"'):
        assert machine not in text


def test_an_update_from_a_baseline_itself_changes_nothing(verb, saved, tmp_path):
    base = tmp_path / "base.json"
    update(verb, run_of(saved("new.json", a=1), folder="/proj/src", project="/proj"), base)
    before = base.read_bytes()
    assert update(verb, str(base), base) == 0
    assert base.read_bytes() == before


@pytest.mark.parametrize(
    "home",
    [
        Home("/ci/repo", "/ci/repo/jobs", "/ci"),  # another checkout
        Home("", "/ci/repo/jobs", "/"),  # an image without .git
    ],
    ids=["checkout", "image"],
)
def test_its_files_are_known_wherever_the_project_is(verb, saved, tmp_path, home):
    base, path = tmp_path / "base.json", saved("new.json", a=1, b=1, c=1, d=1)
    report = files.load(path)
    places = [
        "jobs/train.py",
        "jobs/lib/x.py",
        ".venv/lib/python3.12/site-packages/torch/x.py",
        "/usr/lib/python3.12/y.py",
    ]

    def at(root, folders):
        names = [name if name.startswith("/") else f"{root}/{name}" for name in places]
        sites = tuple(replace(site, file=file) for site, file in zip(report.sites, names, strict=True))
        run = replace(report.run, project=folders.project, folder=folders.folder, cwd=folders.cwd)
        files.save(replace(report, sites=sites, run=run), path)

    at("/home/me/repo", Home("/home/me/repo", "/home/me/repo/jobs", "/home/me/repo/jobs"))
    update(verb, path, base)
    at("/ci/repo", home)
    assert verb("check", path, "--baseline", str(base)) == 0


def test_the_policy_knows_its_sites(verb, saved, tmp_path, monkeypatch):
    """What ``SYNCAGENT_BASELINE`` names."""
    base = tmp_path / "base.json"
    path = run_of(saved("new.json", **{"x.item()": 1}), folder="/proj", project="/proj")
    update(verb, path, base)
    monkeypatch.setattr("syncagent.policy.allowances.home_of_process", lambda: Home("/ci/p", "/ci/p", "/ci"))
    known = Baseline(str(base))
    line = CallSite("/ci/p/train.py", 40, "main", "x.item()")
    assert known.knows("scalar_read", (line, None, None), lambda point: point)
    other = replace(line, source="(x > 0).any().cpu()")
    assert not known.knows("scalar_read", (other, None, None), lambda point: point)


def test_a_directory_of_ranks_makes_one(verb, saved, capsys, tmp_path):
    for rank in (0, 1):
        saved(f"ranks/rank{rank}.json", rank=rank, a=1)
    base = tmp_path / "base.json"
    assert update(verb, str(tmp_path / "ranks"), base) == 0
    assert f"{base} now has 1 site" in capsys.readouterr().out
    assert verb("check", str(tmp_path / "ranks"), "--baseline", str(base)) == 0


def test_what_depends_on_the_drivers_state_is_left_out(saved):
    report = files.load(saved("new.json", a=1, b=1))
    sites = (replace(report.sites[0], conditional=True), *report.sites[1:])
    assert len(json.loads(baseline.render(replace(report, sites=sites)))["sites"]) == 1


def test_it_is_a_report_and_says_that_it_is_a_baseline(verb, saved, capsys, tmp_path):
    base = tmp_path / "base.json"
    update(verb, saved("new.json", a=1), base)
    assert verb("report", str(base)) == 0
    assert baseline.NOTE in " ".join(capsys.readouterr().out.split())


def test_a_report_without_sites_makes_one_too(verb, saved, tmp_path):
    base = tmp_path / "base.json"
    assert update(verb, saved("new.json"), base) == 0
    assert files.load(base).sites == ()


def test_a_report_that_proves_nothing_makes_none(verb, saved, capsys, tmp_path):
    base = tmp_path / "base.json"
    assert update(verb, run_of(saved("new.json", a=1), device=None), base) == 2
    assert "its run saw no CUDA device" in capsys.readouterr().err
    assert not base.exists()


def test_a_file_that_is_no_report_is_not_replaced(verb, saved, capsys, tmp_path):
    base = tmp_path / "notes.json"
    base.write_text("{}")
    assert update(verb, saved("new.json", a=1), base) == 2
    assert "is not a syncagent report" in capsys.readouterr().err
    assert base.read_text() == "{}"


@pytest.mark.parametrize("place", [".", "missing/base.json"])
def test_it_is_written_into_a_file(verb, saved, capsys, tmp_path, place):
    base = tmp_path / place
    code = update(verb, saved("new.json", a=1), base)
    if place == ".":
        assert code == 2
        assert "is a directory; --update writes it into one file" in capsys.readouterr().err
    else:
        assert code == 0
        assert base.exists()


def test_it_compares_nothing(verb, saved, capsys, tmp_path):
    words = ["check", saved("new.json", a=1), "--baseline", str(tmp_path / "base.json"), "--update"]
    for more in (["--format", "sarif"], ["--output", "x.xml"]):
        assert verb(*words, *more) == 2
        assert "leave out --format and --output" in capsys.readouterr().err
    assert not os.path.exists(tmp_path / "base.json")


def test_a_line_that_the_baseline_of_the_run_let_pass_is_no_less_checked(verb, saved, capsys, tmp_path):
    """With SYNCAGENT_BASELINE the report says "allowed": it knows the line, not how often it may wait."""
    base, path = tmp_path / "base.json", saved("new.json", a=3)
    update(verb, saved("old.json", a=1), base)
    report = files.load(path)
    files.save(replace(report, sites=tuple(replace(site, allowed="baseline") for site in report.sites)), path)
    capsys.readouterr()
    assert verb("check", path, "--baseline", str(base)) == 1
    assert capsys.readouterr().out.startswith("1 site grown\n")
    update(verb, path, base)
    assert json.loads(base.read_text())["sites"][0]["allowed"] is None


def test_a_baseline_of_another_program_proves_nothing(verb, saved, capsys, tmp_path):
    """Another script, and no file in common."""
    base, path = saved("base.json", a=1), saved("new.json", a=1)
    report = files.load(path)
    sites = tuple(replace(site, file="/proj/serve.py") for site in report.sites)
    files.save(replace(report, sites=sites), path)
    run_of(base, script="train.py")
    run_of(path, script="train.py")
    assert verb("check", path, "--baseline", base) == 1  # the known line is fixed, and another one is new
    run_of(path, script="serve.py")
    capsys.readouterr()
    assert verb("check", path, "--baseline", base) == 2
    assert capsys.readouterr().err == (
        f"syncagent check: {base} is no baseline for {path}: it is of train.py and has no file in common with the "
        "report, which is of serve.py; if the files have new names, write a new baseline with --update\n"
    )
    assert update(verb, path, base) == 0
    assert "1 added, 1 removed" in capsys.readouterr().out


def test_a_baseline_that_is_missing_is_one_sentence(verb, saved, capsys, tmp_path):
    assert verb("check", saved("new.json"), "--baseline", str(tmp_path / "none.json")) == 2
    assert "none.json" in (err := capsys.readouterr().err)
    assert err.count("\n") == 1
