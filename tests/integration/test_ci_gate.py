"""The example ``examples/ci_gate``: its README is run from top to bottom, and each command prints what stands there."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import processes

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ci_gate"
BLOCK = re.compile(r"(?ms)^```console\n(.*?)^```$")
TIMES = re.compile(r"\d[\d.,]* (ns|µs|ms|s)\*")


def commands():
    """Each command of the README, and what it prints there."""
    for block in BLOCK.findall((EXAMPLE / "README.md").read_text(encoding="utf-8")):
        yield from re.findall(r"(?m)^\$ (.*)\n((?:(?!\$ ).*\n)*)", block)


def settled(output):
    """Without what differs from run to run: durations, and messages of the log."""
    lines = [line for line in output.splitlines() if not line.startswith("[syncagent]")]
    return TIMES.sub("TIME", "\n".join(lines))


@pytest.mark.timeout(600)
def test_the_readme_shows_what_its_commands_print(tmp_path):
    """An added sync fails, a formatter's change passes, a library's upgrade fails; the baseline is the same again."""
    folder = shutil.copytree(EXAMPLE, tmp_path / "job", ignore=shutil.ignore_patterns("__pycache__", ".syncagent"))
    environment = processes.environment(SYNCAGENT_SUMMARY="off")
    environment["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), environment["PATH"]))
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=folder, check=True, env=environment, capture_output=True)
    codes = []
    for command, said in commands():
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            environment[name] = value
            continue
        done = subprocess.run(
            ["bash", "-c", f"{{ {command}; }} 2>&1"], cwd=folder, env=environment, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        assert settled(done.stdout) == settled(said), command
        codes += re.findall(r"exit code (\d)", done.stdout)
    assert codes == ["0", "1", "0", "1"]
    assert (folder / "known.json").read_bytes() == (EXAMPLE / "known.json").read_bytes()


def test_the_formatted_script_is_the_same_program():
    one, other = (ast.parse((EXAMPLE / name).read_text()) for name in ("train.py", "changes/train_formatted.py"))
    assert ast.dump(one) == ast.dump(other)
