from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


def test_it_shows_a_table_on_stdout(verb, saved, capsys):
    assert verb("report", saved("x.json", loss_item=3)) == 0
    out, err = capsys.readouterr()
    assert "3 host syncs; the host waited 6.0 ms for the GPU" in out
    assert err == ""


@pytest.mark.parametrize(("form", "key"), [("json", "schema"), ("sarif", "version"), ("trace", "traceEvents")])
def test_it_writes_other_formats(verb, saved, capsys, form, key):
    assert verb("report", saved("x.json", loss_item=3), "--format", form) == 0
    assert key in json.loads(capsys.readouterr().out)


def test_several_ranks_merge(verb, saved, capsys):
    paths = [saved(f"rank{rank}.json", rank=rank, loss_item=1) for rank in range(3)]
    assert verb("report", *paths) == 0
    assert "3 ranks" in capsys.readouterr().out


def test_a_directory_stands_for_its_reports(verb, saved, capsys, tmp_path):
    for rank in range(2):
        saved(f"runs/rank{rank}.json", rank=rank, loss_item=1)
    assert verb("report", str(tmp_path / "runs")) == 0
    assert "2 ranks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["--output", "o.html"], "<!doctype html>"),
        (["--output", "o.txt"], "\n"),
        (["--output", "o.out", "--format", "text"], "\n"),
        (["--output", "o.out", "--format", "json"], '{\n "schema": 1'),
    ],
)
def test_output_is_written_to_a_file_whose_suffix_names_the_format(
    verb, saved, capsys, tmp_path, monkeypatch, words, start
):
    path = saved("x.json", loss_item=3)
    monkeypatch.chdir(tmp_path)
    assert verb("report", path, *words) == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / words[1]).read_text().startswith(start)


@pytest.mark.parametrize("name", ["r.pdf", "r", "r.JSON", ".json", "r.trace", "r.jsonl", "folder/"])
def test_an_output_whose_name_says_no_format_is_refused(verb, saved, capsys, tmp_path, monkeypatch, name):
    """A page as r.pdf would be a file of text that nothing opens."""
    path = saved("x.json")
    monkeypatch.chdir(tmp_path)
    assert verb("report", path, "--output", name) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"syncagent report: the name {name!r} does not say which format to write: it has to end in .txt, .json, .html, "
        ".md, .sarif or .trace.json, or --format has to say it\n"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_reports_of_two_scripts_are_refused(verb, saved, capsys):
    assert verb("report", saved("a.json", rank=0, script="a.py"), saved("b.json", rank=1, script="b.py")) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "only reports of one run can be added up, and these are of two" in err
    assert "'a.py'" in err
    assert "'b.py'" in err
    assert err.count("\n") == 1


def test_a_file_stands_for_all_processes_that_saved_under_its_name(verb, saved, capsys):
    saved("x.json", run_id="one", process="a", loss_item=1)
    saved("x.1.json", run_id="one", process="b", part=1, loss_item=2)
    saved("x.2.json", run_id="before", process="c", part=2, loss_item=4)
    saved("x.3.json", loss_item=8)
    assert verb("report", saved("x.json", run_id="one", process="a", loss_item=1)) == 0
    out = capsys.readouterr().out
    assert "3 host syncs" in out
    assert "2 processes" in out


def test_a_bad_file_is_one_sentence_and_exit_code_2(verb, saved, capsys, tmp_path):
    (tmp_path / "bad.json").write_text("{")
    assert verb("report", saved("x.json"), str(tmp_path / "bad.json")) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("syncagent report: ")
    assert err.count("\n") == 1


def test_an_unwritable_output_is_one_sentence_and_exit_code_2(verb, saved, capsys, tmp_path):
    path = saved("x.json")
    assert verb("report", path, "--output", f"{path}/o.html") == 2
    assert "cannot be written to" in capsys.readouterr().err


def test_an_unknown_format_is_a_usage_error(verb, saved, capsys):
    assert verb("report", saved("x.json"), "--format", "pdf") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("syncagent report: Invalid value for '--format': 'pdf' is not one of 'text'")
    assert err.count("\n") == 1


def test_a_reader_that_leaves_early_is_no_error(saved):
    """``syncagent report … | head -1``: no traceback, and the exit code of a program that SIGPIPE ended."""
    program = [sys.executable, "-m", "syncagent", "report", saved("x.json", loss_item=3)]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(program, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
