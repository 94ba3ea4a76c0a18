from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_known_sites_pass(verb, saved, capsys):
    assert verb("check", saved("new.json", a=1), "--baseline", saved("base.json", a=1, b=1)) == 0
    assert capsys.readouterr().out == "No new or grown sites; 1 known site unchanged.\n"


def test_a_new_site_fails_and_is_printed(verb, saved, capsys):
    assert verb("check", saved("new.json", a=1, b=1), "--baseline", saved("base.json", a=1)) == 1
    assert capsys.readouterr().out == (
        "1 site new\n  aten::item  train.py:2 in main\n    b\n    1 sync (1 per step), 2.0 ms\n"
    )


def test_a_grown_site_fails_unless_it_is_tolerated(verb, saved, capsys):
    words = [saved("new.json", a=3), "--baseline", saved("base.json", a=2)]
    assert verb("check", *words) == 1
    assert "1 site grown" in capsys.readouterr().out
    assert verb("check", *words, "--tolerance", "0.5") == 0


@pytest.mark.parametrize("value", ["much", "-1", "nan", "inf"])
def test_a_tolerance_is_a_share(verb, saved, capsys, value):
    assert verb("check", saved("new.json"), "--baseline", saved("base.json"), f"--tolerance={value}") == 2
    assert f"{value!r} is not a fraction: a number from 0 up, such as 0.1" in capsys.readouterr().err


def test_a_baseline_is_needed(verb, saved, capsys):
    assert verb("check", saved("new.json")) == 2
    assert capsys.readouterr().err == "syncagent check: Missing option '--baseline'.\n"


def test_a_bad_baseline_is_one_sentence_and_exit_code_2(verb, saved, capsys, tmp_path):
    (tmp_path / "base.json").write_text('{"schema": 7}')
    assert verb("check", saved("new.json"), "--baseline", str(tmp_path / "base.json")) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "has schema 7, but this version of syncagent reads schema 1 only" in err


def _changed(path, **run):
    values = json.loads(Path(path).read_text())
    values["run"] |= run
    Path(path).write_text(json.dumps(values))
    return path


def test_a_changed_line_passes_and_is_named(verb, saved, capsys):
    words = [saved("new.json", **{"log(x.item(), 1)": 1}), "--baseline", saved("base.json", **{"log(x.item())": 1})]
    assert verb("check", *words) == 0
    out = capsys.readouterr().out
    assert out.startswith("No new or grown sites; 0 known sites unchanged.\n1 known site changed a little\n")
    assert "    log(x.item(), 1)\n    was: log(x.item())\n" in out


def test_several_reports_are_checked_as_ranks_of_one_run(verb, saved, tmp_path):
    saved("ranks/rank0.json", rank=0, a=1)
    one = saved("rank1.json", rank=1, a=1, b=1)
    assert verb("check", str(tmp_path / "ranks"), "--baseline", saved("base.json", a=1)) == 0
    assert verb("check", str(tmp_path / "ranks"), one, "--baseline", str(tmp_path / "base.json")) == 1


@pytest.mark.parametrize(
    ("run", "why"),
    [
        ({"gate": "failed"}, "the gate of its run did not hold (for a reason that is not known)"),
        ({"gate": "weird"}, "the gate of its run did not hold (for a reason that is not known)"),
        ({"device": None}, "its run saw no CUDA device, so there was no host sync to see"),
    ],
)
def test_a_report_that_proves_nothing_is_exit_code_2(verb, saved, capsys, run, why):
    path = _changed(saved("new.json", a=1), **run)
    assert verb("check", path, "--baseline", saved("base.json", a=1)) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"syncagent check: {path} cannot be checked: {why}\n")


def test_so_is_one_of_a_blind_sensor_or_with_dropped_syncs(verb, saved, capsys):
    path, base = saved("new.json", a=1), saved("base.json", a=1)
    values = json.loads(Path(path).read_text())
    for change in ({"sensors": [{**values["sensors"][0], "live": False}]}, {"dropped": 2}):
        Path(path).write_text(json.dumps(values | change))
        assert verb("check", path, "--baseline", base) == 2
    assert "the sensor kernels was not live in its run\n" in (err := capsys.readouterr().err)
    assert "2 syncs were dropped in its run, and their sites may be missing\n" in err
