"""The example ``examples/policy_gate``: a new sync in the hot loop is stopped, warned of, and found by CI."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest

from tests import processes

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "policy_gate"
LINE = "self.mean = 0.9 * self.mean + 0.1 * loss.item()"
REGRESSED = ("train.py", "--model", "model_regressed")


@pytest.fixture
def python(tmp_path):
    """``python(*words, **variables)``: a fresh interpreter in a copy of the example, on the simulated device."""
    folder = shutil.copytree(EXAMPLE, tmp_path / "job", ignore=shutil.ignore_patterns("__pycache__", ".syncagent"))
    quiet = {"SYNCAGENT_SIMULATE": "1", "SYNCAGENT_JOURNAL": "off", "SYNCAGENT_SUMMARY": "off"}
    return partial(processes.run, cwd=folder, **quiet)


@pytest.fixture
def train(forker, python, environ):
    """``train(*words, **variables)``: a script of the example under the agent, in the folder of ``python``."""
    watched = {name: value for name, value in python.keywords.items() if name != "cwd"} | {"SYNCAGENT": "1"}
    return lambda *words, **variables: forker.run(*words, cwd=python.keywords["cwd"], **environ | watched | variables)


def syncagent_check(python, report):
    return python("-m", "syncagent", "check", report, "--baseline", "baseline.json")


def test_the_good_script_passes_under_raise_and_against_the_committed_baseline(python, train):
    """Its log line is allowed, and set-up is over before the policy acts."""
    done = train(
        "train.py",
        SYNCAGENT_POLICY="raise",
        SYNCAGENT_WARMUP_STEPS="3",
        SYNCAGENT_REPORT="good.json",
    )
    assert (done.returncode, done.stdout.count("loss")) == (0, 2), done.stderr
    assert "HostSync" not in done.stderr
    checked = syncagent_check(python, "good.json")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "No new or grown sites; 4 known sites unchanged." in checked.stdout


def test_raise_stops_the_regression_at_its_line(train):
    """With the baseline in place of the warm-up, in the very first step."""
    done = train(
        *REGRESSED,
        SYNCAGENT_POLICY="raise",
        SYNCAGENT_WARMUP_STEPS="0",
        SYNCAGENT_BASELINE="baseline.json",
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert f'model_regressed.py", line 17, in loss\n    {LINE}\n' in done.stderr
    assert "HostSyncError: aten::_local_scalar_dense makes the host wait for the GPU in step 0 at " in done.stderr


def test_warn_reports_the_regression_once_and_the_check_of_its_report_fails(python):
    """As the workflow in the README runs it, and with warnings: both go together."""
    done = python("-m", "syncagent", "run", "--policy", "warn", "--report", "new.json", *REGRESSED)
    assert (done.returncode, done.stdout.count("loss")) == (0, 2), done.stderr
    assert done.stderr.count("HostSyncWarning") == 1
    assert "in step 3 at " in done.stderr
    assert LINE in done.stderr
    checked = syncagent_check(python, "new.json")
    assert checked.returncode == 1, checked.stdout + checked.stderr
    assert "1 site new\n" in checked.stdout
    assert f"model_regressed.py:17 in Classifier.loss\n    {LINE}\n    20 syncs (1 per step)" in checked.stdout
