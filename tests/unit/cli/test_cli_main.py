from __future__ import annotations

import sys

import pytest

from syncagent import __version__
from syncagent.cli import main

VERBS = ["run", "report", "compare", "check"]


def test_the_verbs_are_listed_in_the_order_in_which_one_needs_them(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    places = [out.index(f"\n  {verb} ") for verb in VERBS]
    assert places == sorted(places)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_each_verb_says_what_it_takes(verb, option, capsys):
    assert main([verb, option]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: syncagent {verb} [OPTIONS] ")


def test_the_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"syncagent {__version__}\n"


def test_no_verb_is_wrong_usage_and_shows_the_help(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Usage: syncagent [OPTIONS] VERB [ARGUMENTS]...\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["chek"], "syncagent: No such command 'chek'"),
        (["--colour"], "syncagent: No such option"),
        (["report"], "syncagent report: Missing argument 'PATH"),
        (["report", "--colour", "x.json"], "syncagent report: No such option"),
        (["compare", "x.json"], "syncagent compare: Missing argument 'NEW'"),
        (["check", "--baseline", "z.json"], "syncagent check: Missing argument 'PATH"),
        (["run", "--colour", "x.py"], "syncagent run: No such option"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(words, sentence, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(sentence)
    assert err.count("\n") == 1


def test_an_interrupt_ends_it_without_a_traceback(monkeypatch, capsys):
    def interrupted(_paths, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr("syncagent.report.files.load_merged", interrupted)
    assert main(["report", "x.json"]) == 130
    assert capsys.readouterr() == ("", "")


def test_help_loads_neither_torch_nor_opentelemetry_nor_rich(python):
    """Verbs import what they work with when they are called, so help comes at once."""
    code = (
        "import sys; from syncagent.cli import main; main(['run', '--help']);"
        "print({'torch', 'opentelemetry', 'rich', 'numpy'} & set(sys.modules), file=sys.stderr)"
    )
    done = python("-c", code)
    assert done.stderr == "set()\n"


@pytest.mark.parametrize("word", ["\x1b[31mred", "a\nb", "\u202etxt", "\udcff"])
def test_a_refusal_is_one_line_that_does_nothing_to_a_terminal(word, capsys):
    for words in ([word], ["report", word], ["check", word, "--baseline", word], ["cost", word], ["run", word]):
        assert main(words) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.isprintable()


def test_a_mistake_of_syncagents_own_is_no_finding(monkeypatch, capsys):
    """Python's exit code would be 1, which says of ``check`` that there are new sites."""
    monkeypatch.setattr("syncagent.report.files.load_merged", lambda _paths: 1 / 0)
    assert main(["check", "x.json", "--baseline", "y.json"]) == 2
    assert "an internal error of syncagent; please report it" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["text", "json", "html"])
def test_with_its_output_closed_a_verb_writes_it_nowhere(form, saved, monkeypatch, capsys):
    """As with ``>&-``: it has still done its work, and what calls it goes on without one."""
    file = saved("x.json", loss_item=3)
    with monkeypatch.context() as closed:
        closed.setattr("sys.stdout", None)
        codes = [main(["report", file, "--format", form]), main(["compare", file, file])]
        assert sys.stdout is None
    assert codes == [0, 0]
    assert capsys.readouterr() == ("", "")


def test_with_its_stderr_closed_a_refusal_is_not_said_on_stdout(monkeypatch, capsys):
    with monkeypatch.context() as closed:
        closed.setattr("sys.stderr", None)
        assert main(["chek"]) == 2
    assert capsys.readouterr() == ("", "")
