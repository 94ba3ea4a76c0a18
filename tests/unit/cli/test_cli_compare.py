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
