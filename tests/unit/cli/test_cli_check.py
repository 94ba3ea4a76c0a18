from __future__ import annotations

import pytest


def test_known_sites_pass(verb, saved, capsys):
    assert verb("check", saved("new.json", a=1), "--baseline", saved("base.json", a=1, b=1)) == 0
    assert capsys.readouterr().out == "No new or grown sites; 1 known site unchanged.\n"


def test_a_new_site_fails_and_is_printed(verb, saved, capsys):
    assert verb("check", saved("new.json", a=1, b=1), "--baseline", saved("base.json", a=1)) == 1
    assert capsys.readouterr().out == (
        "1 site new\n  aten::item  train.py:2 in main\n    b\n    1 sync (1 a step), 2.0 ms\n"
    )


def test_a_grown_site_fails_unless_it_is_tolerated(verb, saved, capsys):
    words = [saved("new.json", a=3), "--baseline", saved("base.json", a=2)]
    assert verb("check", *words) == 1
    assert "1 site grown" in capsys.readouterr().out
    assert verb("check", *words, "--tolerance", "0.5") == 0


@pytest.mark.parametrize("value", ["much", "-1", "nan", "inf"])
def test_a_tolerance_is_a_share(verb, saved, capsys, value):
    assert verb("check", saved("new.json"), "--baseline", saved("base.json"), f"--tolerance={value}") == 2
    assert f"{value!r} is not a share: a number from 0 up, such as 0.1" in capsys.readouterr().err


def test_a_baseline_is_needed(verb, saved, capsys):
    assert verb("check", saved("new.json")) == 2
    assert capsys.readouterr().err == "syncagent check: Missing option '--baseline'.\n"


def test_a_bad_baseline_is_one_sentence_and_exit_code_2(verb, saved, capsys, tmp_path):
    (tmp_path / "base.json").write_text('{"schema": 7}')
    assert verb("check", saved("new.json"), "--baseline", str(tmp_path / "base.json")) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "has schema 7, but this version of syncagent reads schema 1 only" in err
