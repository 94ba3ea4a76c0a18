"""What CI services are given, an action for GitHub, a job for GitLab and a hook for pre-commit: their commands run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import processes

yaml = pytest.importorskip("yaml", exc_type=ImportError)

ROOT = Path(__file__).resolve().parents[2]
ACTION = yaml.safe_load((ROOT / ".github/actions/syncagent/action.yml").read_text(encoding="utf-8"))
STEPS = {step.get("id", step["name"]): step for step in ACTION["runs"]["steps"]}
EXPRESSION = re.compile(r"\$\{\{ *(.*?) *\}\}")
TRAIN = """\
import torch
w = torch.ones(4, device="cuda", requires_grad=True)
optimizer = torch.optim.SGD([w], lr=0.1)
x = torch.ones(4).to("cuda")
for _ in range(4):
    loss = (w * x).sum()
    loss.backward()
    optimizer.step()
    {line}
"""


@pytest.fixture
def project(tmp_path):
    """A folder with a script; ``project.line(...)`` is the last one of its loop."""
    (tmp_path / "pyproject.toml").write_text("", encoding="utf-8")
    (tmp_path / "train.py").write_text(TRAIN.format(line="pass"), encoding="utf-8")
    return tmp_path


@pytest.fixture
def bash(project):
    """``bash(command, **variables)`` in that folder, with the command ``syncagent`` on the path."""

    def run(command, **variables):
        environment = processes.environment(SYNCAGENT_SUMMARY="off", SYNCAGENT_JOURNAL="off", **variables)
        environment.setdefault("PATH", os.environ["PATH"])
        environment["PATH"] = os.pathsep.join(
            (str(project / "bin"), os.path.dirname(sys.executable), environment["PATH"])
        )
        words = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", command]
        return subprocess.run(
            words, cwd=project, env=environment, capture_output=True, text=True, timeout=110, check=False
        )

    return run


class Job:
    """A job on GitHub that uses the action, as far as its runner does something for it."""

    def __init__(self, folder, bash, **inputs):
        defaults = {name: given.get("default", "") for name, given in ACTION["inputs"].items()}
        assert inputs.keys() <= defaults.keys()
        self.known = {f"inputs.{name}": value for name, value in (defaults | inputs).items()}
        self.summary, self._output, self._bash = folder / "summary.md", folder / "output.txt", bash
        self._variables = {
            "RUNNER_TEMP": str(folder / "temp"), "GITHUB_STEP_SUMMARY": str(self.summary),
            "GITHUB_OUTPUT": str(self._output), "GITHUB_ACTION_PATH": str(ROOT / ".github/actions/syncagent"),
        }  # fmt: skip

    def value(self, text):
        return EXPRESSION.sub(lambda found: self.known.get(found[1], ""), text)

    def step(self, name):
        """Run a step and keep its outputs."""
        step = STEPS[name]
        self._output.write_text("", encoding="utf-8")
        given = {key: self.value(value) for key, value in step.get("env", {}).items()}
        done = self._bash(step["run"], **self._variables | given)
        for line in self._output.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition("=")
            self.known[f"steps.{name}.outputs.{key}"] = value
        return done


@pytest.mark.timeout(600)
def test_the_action_passes_without_a_change_and_fails_with_a_new_sync(project, bash):
    """And says both in the summary of the job; the findings are there for code scanning."""
    job = Job(project, bash, script="train.py --epochs 1")
    first = job.step("run")
    assert first.returncode == 0, first.stdout + first.stderr
    report = job.known["steps.run.outputs.report"]
    assert json.loads(Path(report).read_text())["run"]["simulated"] is True
    assert bash(f"syncagent check {shlex.quote(report)} --baseline known.json --update").returncode == 0
    good = job.step("check")
    assert good.returncode == 0, good.stdout + good.stderr
    assert "### Host syncs: the check has passed\n" in job.summary.read_text()

    (project / "train.py").write_text(TRAIN.format(line="loss.item()"), encoding="utf-8")
    assert job.step("run").returncode == 0
    bad = job.step("check")
    assert bad.returncode == 1, bad.stdout + bad.stderr
    assert "1 site new\n" in bad.stdout
    assert "### Host syncs: the check has failed, 1 finding\n" in job.summary.read_text()
    (result,) = json.loads(Path(job.known["steps.check.outputs.sarif"]).read_text())["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["region"]["startLine"] == 9

    (project / "known.json").unlink()
    none = job.step("check")
    assert none.returncode == 2
    assert not Path(job.known["steps.check.outputs.sarif"]).exists()  # nothing stale is uploaded
    assert "### Host syncs: the check proves nothing\n" in job.summary.read_text()


def test_the_action_installs_what_it_is_a_part_of_unless_it_is_told_otherwise(project, bash):
    (project / "bin").mkdir()
    (project / "bin" / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    (project / "bin" / "python").chmod(0o755)
    own, other = (Job(project, bash, script="x.py", **more) for more in ({}, {"install": "syncagent==1.0"}))
    said = own.step("Install syncagent").stdout.splitlines()
    assert said[:3] == ["-m", "pip", "install"]
    assert Path(said[-1]).resolve() == ROOT
    assert other.step("Install syncagent").stdout.splitlines()[-1] == "syncagent==1.0"


def test_the_action_refuses_a_device_that_there_is_not(project, bash):
    done = Job(project, bash, script="train.py", device="tpu").step("run")
    assert (done.returncode, done.stdout) == (2, "::error::device is 'tpu', but it must be simulated or gpu\n")


def test_every_expression_of_the_action_names_something_that_it_has():
    known = {f"inputs.{name}" for name in ACTION["inputs"]}
    known |= {f"steps.{name}.outputs.{key}" for name, key in (("run", "report"), ("check", "sarif"))}
    text = (ROOT / ".github/actions/syncagent/action.yml").read_text(encoding="utf-8")
    named = {name for found in EXPRESSION.findall(text) for name in re.findall(r"(?:inputs|steps)\.[\w.-]+", found)}
    assert named == known
    for step in STEPS.values():
        assert not EXPRESSION.search(step.get("run", ""))  # what is put into a script could be run as one
        assert "uses" in step or step["shell"] == "bash"


def block_of(title):
    """The YAML below a heading of the page about CI."""
    section = (ROOT / "docs/ci.md").read_text(encoding="utf-8").partition(f"## {title}\n")[2].partition("\n## ")[0]
    return yaml.safe_load(re.search(r"(?s)```yaml\n(.*?)```", section)[1])


@pytest.mark.timeout(600)
def test_the_job_for_gitlab_and_the_hook_for_pre_commit_do_what_they_say(project, bash):
    (job,) = block_of("GitLab").values()
    commands = [line for line in job["script"] if not line.startswith("pip ")]
    baseline = "syncagent run --simulate --detail syncs --report good.json train.py && "
    assert bash(f"{baseline} syncagent check good.json --baseline known.json --update").returncode == 0
    for command in commands:
        done = bash(command)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (project / job["artifacts"]["reports"]["junit"]).read_text().startswith("<?xml")

    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    (used,) = block_of("pre-commit")["repos"][0]["hooks"]
    assert used["id"] == hook["id"]
    (project / "report.json").write_bytes((project / "new.json").read_bytes())
    for arguments in (used["args"], hook["args"]):
        done = bash(shlex.join([*hook["entry"].split(), *arguments]))
        assert (done.returncode, done.stdout) == (0, "No new or grown sites; 1 known site unchanged.\n")


def test_the_workflow_on_the_page_gives_the_action_inputs_that_it_has():
    job = block_of("GitHub")["jobs"]["check"]
    (step,) = (step for step in job["steps"] if "/actions/syncagent@" in step.get("uses", ""))
    path = step["uses"].partition("@")[0].partition("/")[2].partition("/")[2]
    assert (ROOT / path / "action.yml").is_file()
    assert step["with"].keys() <= ACTION["inputs"].keys()
    required = {name for name, given in ACTION["inputs"].items() if given.get("required")}
    assert required <= step["with"].keys()
