from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from syncagent.cli import selftest


@pytest.fixture
def child(monkeypatch):
    """``child(text, code=0)``: the test's own process prints that and ends so."""

    def ends(text, code=0):
        def run(words, **options):
            assert words[:3] == [sys.executable, "-m", "syncagent.selftest"]
            assert not any(name.startswith("SYNCAGENT") for name in options["env"])
            return subprocess.CompletedProcess(words, code, stdout=text)

        monkeypatch.setenv("SYNCAGENT", "1")
        monkeypatch.setenv("SYNCAGENT_ALLOW", "train.py")
        monkeypatch.setattr(selftest.subprocess, "run", run)

    return ends


@pytest.mark.parametrize("words", [("--format", "html"), ("--device", "cuda"), ("train.py",)])
def test_wrong_usage_is_one_sentence_and_exit_code_2(verb, capsys, words):
    assert verb("selftest", *words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("syncagent selftest: ")
    assert err.count("\n") == 1


def test_without_torch_it_says_so(verb, capsys, monkeypatch):
    monkeypatch.setattr(selftest, "find_spec", lambda _name: None)
    assert verb("selftest") == 2
    assert capsys.readouterr().err == (
        "syncagent selftest: torch is not installed in this environment; install it first.\n"
    )


def test_what_cannot_be_tested_is_one_sentence_and_no_finding(verb, capsys, child):
    child(json.dumps({"unable": "there is no CUDA device here\nthat torch can use; try --simulate"}))
    assert verb("selftest", "--no-simulate") == 2
    assert capsys.readouterr().err == (
        "syncagent selftest: there is no CUDA device here that torch can use; try --simulate\n"
    )


@pytest.mark.parametrize(("code", "how"), [(-signal.SIGSEGV, "signal 11 ended it"), (3, "it ended with 3")])
def test_a_test_that_breaks_down_is_a_broken_promise(verb, capsys, child, code, how):
    child("", code)
    assert verb("selftest") == 1
    assert f"BROKEN: {how}; its output is above\n" in capsys.readouterr().err
    assert verb("selftest", "--format", "json") == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False


def test_a_test_that_hangs_is_a_broken_promise(verb, capsys, monkeypatch):
    def run(words, **options):
        raise subprocess.TimeoutExpired(words, options["timeout"])

    monkeypatch.setattr(selftest.subprocess, "run", run)
    assert verb("selftest") == 1
    assert "BROKEN: it did not end within 300 s\n" in capsys.readouterr().err
