"""``syncagent run --fail-on``: the run goes to its end, and its exit code is the verdict."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from syncagent.report import files
from tests import processes

TRAIN = """\
import sys, torch
w = torch.ones(4, device="cuda", requires_grad=True)
optimizer = torch.optim.SGD([w], lr=0.1)
x = torch.ones(4).to("cuda")
for _ in range({steps}):
    loss = (w * x).sum()
    loss.backward()
    optimizer.step()
    {line}
print("end", flush=True)
sys.exit({code})
"""
READ = "seen = loss.item()"
QUIET = {"SYNCAGENT_SIMULATE": "1", "SYNCAGENT_JOURNAL": "off", "SYNCAGENT_CAPTURE": "off", "SYNCAGENT_SUMMARY": "off"}


@pytest.fixture
def script(tmp_path):
    """``script(line)``: a training script with this line at the end of each step."""

    def write(line="pass", steps=6, code=0):
        (tmp_path / "train.py").write_text(TRAIN.format(line=line, steps=steps, code=code), encoding="utf-8")

    return write


@pytest.fixture
def run(tmp_path):
    """``run(*options)`` of the script, on the simulated device."""
    (tmp_path / "pyproject.toml").write_text("", encoding="utf-8")
    return lambda *words, **more: processes.run(
        "-m", "syncagent", "run", *words, "train.py", cwd=tmp_path, **QUIET | more
    )


@pytest.fixture
def known(tmp_path, run, script):
    """The baseline of the script without a sync in its steps."""
    script()
    assert run("--report", "good.json").returncode == 0
    done = processes.run("-m", "syncagent", "check", "good.json", "--baseline", "known.json", "--update", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return "known.json"


def test_new_is_judged_like_check_and_the_script_runs_to_its_end(known, run, script, tmp_path):
    summary = tmp_path / "summary.md"
    good = run("--fail-on", "new", "--baseline", known, GITHUB_STEP_SUMMARY=str(summary))
    assert summary.read_text(encoding="utf-8").startswith("### Host syncs: the check has passed\n\n")
    assert (good.returncode, good.stdout) == (0, "end\n"), good.stderr
    assert "No new or grown sites; 1 known site unchanged.\n" in good.stderr
    script(READ)
    bad = run("--fail-on", "new", "--report", "own.json", SYNCAGENT_BASELINE=known)
    assert (bad.returncode, bad.stdout) == (1, "end\n"), bad.stderr
    assert "1 site new\n  Tensor.item() (aten::_local_scalar_dense)  train.py:9\n    seen = loss.item()\n" in bad.stderr
    assert len(files.load(tmp_path / "own.json").sites) == 2  # the report that was asked for is saved as well


def test_any_is_a_sync_that_nothing_allows_after_the_warm_up(run, script, tmp_path):
    """Set-up is no finding."""
    script()
    assert run("--fail-on", "any").returncode == 0
    script(READ)
    bad = run("--fail-on", "any", GITHUB_STEP_SUMMARY=str(tmp_path / "summary.md"))
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith(
        "### Host syncs: the check has failed, 1 finding\n\n**1 site with a sync that is not allowed**\n\n"
        "| where | what waits | syncs | findings |\n|---|---|--:|--:|\n| `train.py:9`"
    )
    assert " | `seen = loss.item()`<br>" in summary
    assert summary.endswith(" | 6 | 4 |\n\n")
    assert (bad.returncode, bad.stdout) == (1, "end\n"), bad.stderr
    assert "1 site with a sync that is not allowed\n" in bad.stderr
    assert "    seen = loss.item()\n    6 syncs, 4 of them a finding\n" in bad.stderr
    allowed = run("--fail-on", "any", "--allow", "train.py:9")
    assert allowed.returncode == 0, allowed.stderr
    assert "No sync that is not allowed.\n" in allowed.stderr


def test_budget_is_one_that_is_exceeded(run, script):
    script(READ)
    assert run("--fail-on", "budget", "--max-syncs-per-step", "1").returncode == 0
    bad = run("--fail-on", "budget", "--max-syncs-per-step", "0")
    assert (bad.returncode, bad.stdout) == (1, "end\n"), bad.stderr
    assert "1 site with a sync beyond the budget of a step\n" in bad.stderr


def test_a_script_that_fails_keeps_its_exit_code(run, script, tmp_path):
    script(READ, code=7)
    done = run("--fail-on", "any", GITHUB_STEP_SUMMARY=str(tmp_path / "summary.md"))
    assert (done.returncode, done.stdout) == (7, "end\n")
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith("### Host syncs: the check proves nothing\n\n")
    assert summary.endswith("was not judged: the script ended with exit code 7\n\n")
    assert "--fail-on any was not judged: the script ended with exit code 7\n" in done.stderr


@pytest.mark.parametrize("back_to", ["warn", "raise", "observe"])
def test_a_policy_that_only_observes_for_a_while_hides_no_finding(run, script, back_to):
    """Whatever it is at the end, and whatever it was in between."""
    watched = "import syncagent; agent = syncagent.current(); agent.policy = {!r}; seen = loss.item()"
    script(f"{watched.format('observe')}; agent.policy = 'raise'; agent.policy = {back_to!r}")
    hidden = run("--fail-on", "any")
    assert (hidden.returncode, hidden.stdout) == (2, "end\n"), hidden.stderr
    assert "did not hold (the policy was changed to observe by the program" in hidden.stderr
    script(f"{watched.format('warn')}")
    assert run("--fail-on", "any").returncode == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_reaches_the_script_and_its_end_is_told_like_a_shell_does(tmp_path, number):
    (tmp_path / "train.py").write_text(
        "import signal, time, torch\nx = torch.ones(1, device='cuda')\nprint('up', flush=True)\ntime.sleep(60)\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "syncagent", "run", "--fail-on", "any", "train.py"]
    environment = processes.environment(**QUIET)
    piped = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, **piped) as started:
        assert started.stdout.readline() == "up\n"
        os.kill(started.pid, number)
        assert started.wait(60) == 128 + number
        assert f"the script ended with exit code {128 + number}\n" in started.stderr.read()


def test_a_run_that_proves_nothing_is_exit_code_2(known, run, script, tmp_path):
    script(steps=3)
    short = run("--fail-on", "any")
    assert short.returncode == 2
    assert "it made 3 steps, and the policy does not act in the first 3 (--warmup-steps)\n" in short.stderr
    (tmp_path / "train.py").write_text("print('no torch')", encoding="utf-8")
    for words in (["new", "--baseline", known], ["any"]):
        none = run("--fail-on", *words)
        assert (none.returncode, none.stdout) == (2, "no torch\n")
        assert "the script has left no report" in none.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["new"], "name one with --baseline"),
        (["new", "--baseline", "none.json"], "none.json"),
        (["new", "--baseline", "train.py"], "is not a syncagent report"),
        (["budget"], "--fail-on budget needs a budget"),
        (["any", "--max-syncs-per-step", "3"], "use --fail-on budget"),
        (["any", "--detail", "auto"], "has to see each sync"),
        (["some"], "'some' is not one of"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_judged_stops_before_the_script_starts(run, script, tmp_path, words, why):
    script()
    done = run("--fail-on", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_processes_that_a_script_starts_are_judged_with_it(run, tmp_path):
    (tmp_path / "train.py").write_text(
        "import subprocess, sys\nsubprocess.run([sys.executable, 'child.py'], check=True)\n", encoding="utf-8"
    )
    (tmp_path / "child.py").write_text(TRAIN.format(line=READ, steps=6, code=0), encoding="utf-8")
    done = run("--fail-on", "any")
    assert done.returncode == 1, done.stderr
    assert "child.py:9" in done.stderr
