"""What `syncagent run` starts, and with which settings; what is then seen is the business of other tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from syncagent.cli import main
from syncagent.runtime import pth
from syncagent.settings import schema

SETTINGS = [setting for setting in fields(schema.Settings) if "parse" in setting.metadata]
FLAGS = {setting.name for setting in SETTINGS if str(setting.type).startswith("bool")}

TELL = """\
import json, os, sys
settings = {name: value for name, value in os.environ.items() if name.startswith("SYNCAGENT")}
print(json.dumps({"name": __name__, "argv": sys.argv, "path": sys.path[0], "settings": settings}))
"""


@pytest.fixture(autouse=True)
def no_settings(monkeypatch, tmp_path):
    """No setting of the person who runs the tests."""
    for name in tuple(os.environ):
        if name.startswith("SYNCAGENT"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """The package is taken for installed, whatever this interpreter's site-packages hold."""
    monkeypatch.setattr(pth, "find", lambda: Path("somewhere"))


@pytest.fixture
def script(tmp_path):
    """A script in the working directory."""
    (tmp_path / "train.py").write_text("pass")
    return "train.py"


@pytest.fixture
def started(monkeypatch):
    """``started(*words)`` runs the verb until the script replaces it; returns the command line and the new settings."""

    class GivenWay(BaseException):  # as of a process that has gone: nothing catches it
        pass

    def give_way(_path, words, environment):
        raise GivenWay(words, environment)

    monkeypatch.setattr(os, "execve", give_way)

    def run(*words):
        with pytest.raises(GivenWay) as found:
            main(["run", *words])
        command, environment = found.value.args
        assert command[0] == sys.executable
        return command[1:], {name: value for name, value in environment.items() if name.startswith("SYNCAGENT")}

    return run


def test_a_script_is_run_by_the_same_python_with_the_agent_switched_on(started, script):
    assert started(script) == ([script], {"SYNCAGENT": "1"})


def test_a_module_is_run_as_python_does(started):
    assert started("-m", "package.train", "--lr", "1") == (["-m", "package.train", "--lr", "1"], {"SYNCAGENT": "1"})


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["-h"],
        ["--version"],
        ["--"],
        ["--", "--", "x"],
        ["--policy", "raise"],
        ["--policy=nonsense"],
        ["--simulate", "-m", "json"],
        ["--unknown", "-x", "-1", ""],
        ["a b", "*", "$HOME", "é", "\udcff"],
    ],
    ids=ascii,
)
@pytest.mark.parametrize("before", [[], ["--"], ["--detail", "syncs"]], ids=" ".join)
def test_all_that_follows_the_script_is_the_scripts_own(started, script, before, words):
    command, settings = started(*before, script, *words)
    assert command == [script, *words]
    assert "SYNCAGENT_POLICY" not in settings


def test_two_dashes_before_a_script_end_the_options(started, tmp_path):
    (tmp_path / "--odd.py").write_text("pass")
    assert started("--", "--odd.py")[0] == ["--odd.py"]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_each_setting_is_an_option_and_its_text_is_in_the_help(setting, capsys):
    assert main(["run", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"--{setting.name.replace('_', '-')} " in out
    assert setting.metadata["doc"][1:].replace("`", "") in out


@pytest.mark.parametrize(
    ("words", "variable", "value"),
    [
        (["--policy", "raise"], "SYNCAGENT_POLICY", "raise"),
        (["--min-stall-ms=2.5"], "SYNCAGENT_MIN_STALL_MS", "2.5"),
        (["--report", "out/{rank}.json"], "SYNCAGENT_REPORT", "out/{rank}.json"),
        (["--allow", "a.b,c.py:3"], "SYNCAGENT_ALLOW", "a.b,c.py:3"),
        (["--allow", "a.b", "--allow", "c.py:3"], "SYNCAGENT_ALLOW", "a.b,c.py:3"),
    ],
    ids=str,
)
def test_an_option_becomes_the_settings_variable(started, script, words, variable, value):
    assert started(*words, script)[1] == {"SYNCAGENT": "1", variable: value}


@pytest.mark.parametrize("name", sorted(FLAGS))
@pytest.mark.parametrize(("form", "value"), [("--{}", "1"), ("--no-{}", "0")])
def test_a_flag_is_yes_or_no(started, script, name, form, value):
    assert started(form.format(name), script)[1] == {"SYNCAGENT": "1", f"SYNCAGENT_{name.upper()}": value}


def test_an_option_beats_the_environment(started, script, monkeypatch):
    monkeypatch.setenv("SYNCAGENT_POLICY", "warn")
    monkeypatch.setenv("SYNCAGENT_DETAIL", "syncs")
    monkeypatch.setenv("SYNCAGENT", "0")
    settings = {"SYNCAGENT": "1", "SYNCAGENT_POLICY": "raise", "SYNCAGENT_DETAIL": "syncs"}
    assert started("--policy", "raise", script)[1] == settings


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "syncagent run: say which script to run: syncagent run script.py [arguments ...]"),
        (["-m"], "syncagent run: say which script to run: syncagent run script.py [arguments ...]"),
        (["gone.py"], "syncagent run: there is no file 'gone.py' (a module is run with -m)"),
        (
            ["--policy", "strict", "train.py"],
            "syncagent: setting --policy is 'strict', but it must be one of observe, warn, raise.",
        ),
        (
            ["--warmup-steps", "-1", "train.py"],
            "syncagent: setting --warmup-steps is '-1', but it must be a whole number, 0 or more.",
        ),
        (["--report"], "syncagent run: Option '--report' requires an argument."),
    ],
    ids=str,
)
def test_bad_input_is_one_sentence_and_exit_code_2(script, capsys, words, sentence):
    assert main(["run", *words]) == 2
    assert capsys.readouterr() == ("", f"{sentence}\n")


def test_a_wrong_variable_is_reported_before_anything_runs(script, capsys, monkeypatch):
    monkeypatch.setenv("SYNCAGENT_DETAIL", "all")
    assert main(["run", script]) == 2
    sentence = "syncagent: setting SYNCAGENT_DETAIL is 'all', but it must be one of auto, ops, syncs.\n"
    assert capsys.readouterr().err == sentence


class TestInRealProcesses:
    """From the shell's side of it; the script never imports torch, so nothing is watched."""

    @staticmethod
    def run(*words, code="import sys; from syncagent.cli import main; sys.exit(main())"):
        return subprocess.run([sys.executable, "-c", code, "run", *words], capture_output=True, text=True, check=False)

    # Without the .pth the script runs in the process of `syncagent run` itself.
    here = (
        "import sys; import syncagent.cli; from syncagent.runtime import pth; pth.find = lambda: None;"
        "sys.exit(syncagent.cli.main())"
    )
    both = pytest.mark.parametrize("code", ["import sys; from syncagent.cli import main; sys.exit(main())", here])

    @both
    def test_a_script_sees_its_own_name_arguments_and_folder(self, tmp_path, code):
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "tell.py").write_text(TELL)
        done = self.run("--detail", "syncs", "sub/tell.py", "--help", "--", "--detail", "ops", code=code)
        assert json.loads(done.stdout) == {
            "name": "__main__",
            "argv": ["sub/tell.py", "--help", "--", "--detail", "ops"],
            "path": str(tmp_path / "sub"),
            "settings": {"SYNCAGENT": "1", "SYNCAGENT_DETAIL": "syncs"},
        }
        assert (done.returncode, done.stderr) == (0, "")

    @both
    def test_a_module_sees_its_arguments_and_the_working_directory(self, tmp_path, code):
        (tmp_path / "tell.py").write_text(TELL)
        told = json.loads(self.run("-m", "tell", "-m", "--help", code=code).stdout)
        assert (told["name"], told["path"]) == ("__main__", str(tmp_path))
        assert told["argv"] == [str(tmp_path / "tell.py"), "-m", "--help"]

    @both
    @pytest.mark.parametrize(
        ("body", "returned", "error"),
        [
            ("raise SystemExit(7)", 7, ""),
            ("raise SystemExit", 0, ""),
            ("raise SystemExit('sorry')", 1, "sorry\n"),
            ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
            ("raise KeyboardInterrupt", 130, "KeyboardInterrupt\n"),
            ("import click\nraise click.UsageError('mine')", 1, "click.exceptions.UsageError: mine\n"),
            (
                "from syncagent.settings import sources\nsources.load({'policy': 'x'})",
                1,
                "one of observe, warn, raise.\n",
            ),
            ("raise BrokenPipeError", 1, "BrokenPipeError\n"),
        ],
    )
    def test_the_exit_code_and_the_traceback_are_the_scripts(self, script, tmp_path, code, body, returned, error):
        (tmp_path / script).write_text(body)
        done = self.run(script, code=code)
        expected = -2 if returned == 130 else returned  # an interrupted Python ends by the signal itself
        assert (done.returncode, done.stdout) == (expected, "")
        assert done.stderr.endswith(error)
        assert ("Traceback" in done.stderr) == (not body.startswith("raise SystemExit"))


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("words", [["train.py", "--lr", "1"], ["-m", "package.train"]], ids=" ".join)
def test_a_run_that_is_judged_is_started_in_a_process_of_its_own(monkeypatch, script, installed, words):
    """Without the ``.pth`` by ``syncagent run``, which reads the same settings from the environment."""
    judged = {}
    monkeypatch.setattr(pth, "find", lambda: Path("somewhere") if installed else None)
    monkeypatch.setattr(
        "syncagent.runtime.judged.run", lambda *given: judged.update(command=given[0], environment=given[1]) or 5
    )
    assert main(["run", "--fail-on", "any", "--warmup-steps", "1", *words]) == 5
    verb = [] if installed else ["-m", "syncagent", "run"]
    assert judged["command"] == [sys.executable, *verb, *words]
    settings = {name: value for name, value in judged["environment"].items() if name.startswith("SYNCAGENT")}
    assert settings == {
        "SYNCAGENT": "1", "SYNCAGENT_WARMUP_STEPS": "1", "SYNCAGENT_POLICY": "warn", "SYNCAGENT_COPIES": "all",
    }  # fmt: skip


def test_what_judges_changes_no_policy_that_was_asked_for(monkeypatch, script):
    judged = {}
    monkeypatch.setattr("syncagent.runtime.judged.run", lambda *given: judged.update(given[1]) or 0)
    asked = ["--policy", "raise", "--copies", "off", "--max-syncs-per-step", "1"]
    assert main(["run", "--fail-on", "budget", *asked, script]) == 0
    assert (judged["SYNCAGENT_POLICY"], judged["SYNCAGENT_COPIES"]) == ("raise", "off")
