"""Whatever is wrong with what the agent is given: one sentence, and the script runs as it would without it."""

from __future__ import annotations

import json
from functools import partial

import pytest

SCRIPT = "import sys; print('ran', flush=True); sys.exit(4)"


@pytest.fixture
def python(python):
    """``python(*words, **variables)``: an interpreter that is watched."""
    return partial(python, SYNCAGENT="1")


WRONG = {
    "SYNCAGENT_JUDGE_THREADS": ("some", "one of training, all"),
    "SYNCAGENT_DETAIL": ("everything", "one of auto, ops, syncs"),
    "SYNCAGENT_REPORT": ("report.txt", ".json, .html, .md, .sarif or .trace.json"),
    "SYNCAGENT_ALLOW": ("my-module", "package.module, package.module:function, path/file.py or path/file.py:LINE"),
    "SYNCAGENT_MIN_STALL_MS": ("fast", "a number of milliseconds, 0 or more"),
    "SYNCAGENT_WARMUP_STEPS": ("-1", "a whole number, 0 or more"),
    "SYNCAGENT_SIMULATE": ("maybe", "a yes or no"),
}


@pytest.mark.parametrize("variable", WRONG)
def test_a_wrong_variable_is_one_sentence_and_the_script_runs_unwatched(python, variable):
    """Setting, value and what is allowed; output and exit code are the script's own."""
    value, allowed = WRONG[variable]
    done = python("-c", SCRIPT, **{variable: value})
    assert (done.stdout, done.returncode) == ("ran\n", 4)
    [sentence] = done.stderr.splitlines()
    assert variable in sentence
    assert repr(value) in sentence
    assert allowed in sentence
    assert sentence.endswith("The script runs unwatched.")


def test_a_wrong_value_in_pyproject_toml_is_one_sentence_too(python, tmp_path):
    """With the file's name."""
    (tmp_path / "pyproject.toml").write_text("[tool.syncagent]\ndetail = 'loud'\n")
    done = python("-c", SCRIPT)
    assert (done.stdout, done.returncode) == ("ran\n", 4)
    [sentence] = done.stderr.splitlines()
    assert str(tmp_path / "pyproject.toml") in sentence
    assert "'loud'" in sentence


def test_what_stands_where_settings_do_and_has_no_effect_is_reported_once_torch_is_imported(python, tmp_path):
    """A slip in a variable's name, a project file that cannot be read; a helper without torch says nothing."""
    (tmp_path / "pyproject.toml").write_text("[tool.syncagent\n")
    done = python("-c", SCRIPT, SYNCAGENT_POLCY="raise")
    assert (done.stdout, done.stderr, done.returncode) == ("ran\n", "", 4)
    report = tmp_path / "r.json"
    done = python("-c", f"import torch; {SCRIPT}", SYNCAGENT_POLCY="raise", SYNCAGENT_REPORT=str(report))
    assert (done.stdout, done.returncode) == ("ran\n", 4)
    said = [line for line in done.stderr.splitlines() if "pyproject.toml" in line or "POLCY" in line]
    assert len(said) == 2
    assert "pyproject.toml' was not read for settings: it is not TOML (" in said[0]
    assert said[1].endswith(
        "the variable SYNCAGENT_POLCY is not a setting of syncagent; did you mean SYNCAGENT_POLICY?"
    )
    notes = json.loads(report.read_text())["notes"]
    assert [any(note in line for line in said) for note in notes[:2]] == [True, True]


NO_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
"""


def test_without_torch_a_watch_is_refused_in_one_sentence(python):
    """A program that asks for a watch gets an error that says what is missing; importing and allowing work."""
    code = NO_TORCH + (
        "import syncagent\n"
        "with syncagent.allow('x'): syncagent.step()\n"
        "try: syncagent.start()\n"
        "except syncagent.ConfigError as error: print(error)\n"
        "print(syncagent.current(), syncagent.stop().totals.syncs)\n"
    )
    done = python("-c", code, SYNCAGENT="0")
    assert done.stdout == ("syncagent: torch is not installed in this environment; install it first.\nNone 0\n")
    assert done.returncode == 0


def test_without_torch_a_watched_script_gets_pythons_own_error(python):
    """The same ``ModuleNotFoundError`` that it would get unwatched, and may catch as usual."""
    code = (
        NO_TORCH + "try:\n    import torch\nexcept ModuleNotFoundError as error:\n    print(error.name)\nimport torch\n"
    )
    done = python("-c", code)
    assert (done.stdout, done.returncode) == ("torch\n", 1)
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'torch'\n")
    assert "syncagent" not in done.stderr


def test_a_torch_that_cannot_be_imported_fails_as_it_would_unwatched(python, tmp_path):
    """A broken installation: its own error, twice if it is asked for twice."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libcudart.so: cannot open shared object file')")
    code = "try:\n    import torch\nexcept OSError as error:\n    print(error)\nimport torch\n"
    done = python("-c", code)
    assert (done.stdout, done.returncode) == ("libcudart.so: cannot open shared object file\n", 1)
    assert done.stderr.endswith("OSError: libcudart.so: cannot open shared object file\n")


def test_a_torch_without_cuda_and_a_report_that_cannot_be_written(python, tmp_path):
    """Each is one sentence, the first with the remedy; the script runs to its own end."""
    (tmp_path / "file").write_text("in the way")
    code = "import torch, sys; print(torch.ones(2).nonzero().numel(), flush=True); sys.exit(4)"
    done = python("-c", code, SYNCAGENT_REPORT=str(tmp_path / "file" / "out.json"))
    assert (done.stdout, done.returncode) == ("2\n", 4)
    without, unwritable = done.stderr.splitlines()
    assert "so there is no host sync to see" in without
    assert "SYNCAGENT_SIMULATE=1" in without
    assert str(tmp_path / "file" / "out.json") in unwritable
    assert "cannot be written" in unwritable


def test_a_program_that_uses_the_library_wrongly_keeps_working(python, tmp_path):
    """``stop`` without ``start``, a second ``start`` with other settings, a watch in a watch, all without CUDA."""
    code = (
        "import syncagent\n"
        "print(syncagent.stop().totals.syncs)\n"
        "first = syncagent.start(detail='syncs')\n"
        "print(syncagent.start(copies='all') is first)\n"
        "with syncagent.watch(detail='ops') as inner: print(inner is syncagent.current(), first.running)\n"
        "print(first.running, syncagent.stop().run.policy, syncagent.current() is first)\n"
        "print(syncagent.stop().run.policy, syncagent.current())\n"
        "print(syncagent.stop().sites)\n"
    )
    done = python("-c", code, SYNCAGENT="0")
    assert done.returncode == 0
    assert done.stdout.splitlines() == ["0", "True", "True True", "True observe True", "observe None", "()"]
    messages = done.stderr.splitlines()
    assert len(messages) == 4
    assert "stop() was called, but no agent is running" in messages[0]
    assert "so there is no host sync to see" in messages[1]
    assert "the settings of the second are not applied" in messages[2]
    assert "copies=\"'all', but None is in force\"" in messages[2]
    assert "setting detail is 'ops' for a watch inside another, but it stays 'syncs'" in messages[3]
