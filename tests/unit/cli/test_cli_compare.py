from __future__ import annotations

import json


def test_it_lists_what_changed_and_does_not_judge(verb, saved, capsys):
    assert verb("compare", saved("old.json", a=1, b=1), saved("new.json", a=3, c=1)) == 0
    out = capsys.readouterr().out
    assert "1 site new\n  aten::item  train.py:2 in main\n    c\n" in out
    assert "1 sync (1 per step), 2.0 ms  →  3 syncs (3 per step), 6.0 ms" in out
    assert "1 site gone" in out


def test_as_json(verb, saved, capsys):
    assert verb("compare", saved("old.json", a=1), saved("new.json", b=1), "--format", "json") == 0
    values = json.loads(capsys.readouterr().out)
    assert [change["verdict"] for change in values["changes"]] == ["new", "gone"]


def test_a_missing_file_is_one_sentence_and_exit_code_2(verb, saved, capsys):
    assert verb("compare", saved("old.json"), "/nowhere/new.json") == 2
    assert capsys.readouterr().err == (
        "syncagent compare: cannot read the report '/nowhere/new.json': no such file or directory\n"
    )


def test_the_suffix_of_the_output_decides_the_form(verb, saved, tmp_path, capsys):
    old, new = saved("old.json", a=1, b=1), saved("new.json", a=3, c=1)
    begins = {"x.html": "<!doctype html>", "x.md": "**1 site is new", "x.json": "{", "x.txt": "1 site new"}
    for name, beginning in begins.items():
        assert verb("compare", old, new, "--output", str(tmp_path / name)) == 0
        assert (tmp_path / name).read_text().startswith(beginning)
    assert capsys.readouterr().out == ""
    assert verb("compare", old, new, "--format", "markdown") == 0
    assert capsys.readouterr().out == (tmp_path / "x.md").read_text()


def test_an_output_that_cannot_be_written_is_one_sentence(verb, saved, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert verb("compare", saved("old.json"), saved("new.json"), "--output", str(tmp_path / "file" / "x.html")) == 2
    assert capsys.readouterr().err.count("\n") == 1
