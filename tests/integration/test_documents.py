"""Every command and every block of code in the documents works: each page is run from top to bottom.

A page is run in a folder of its own, on the simulated device, with the script of docs/quickstart.md as ``train.py``.
What cannot run here stands in ``ELSEWHERE``, with what runs it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r'(?ms)^```(\w+)(?: title="(\S+)")?\n(.*?)^```$')
EXPORTED = re.compile(r"export (.*)")

ELSEWHERE = {
    "README.md": {
        "syncagent run --simulate examples/masked_loss/train.py": "make demo",
        "pip install .": "every test runs what it has installed",
        "syncagent selftest --no-simulate": "it needs a GPU: tests/gpu/compat.py",
    },
    "docs/quickstart.md": {"pip install .": "every test runs what it has installed"},
    "docs/report.md": {"syncagent run --simulate examples/masked_loss/train.py": "make demo"},
    "docs/telemetry.md": {"": "tests/stack, with a real Collector, Jaeger, Phoenix and Prometheus"},
    "docs/cost.md": {"": "it needs a trace of a GPU: tests/unit/cost/test_cost_cli.py has them"},
}
"""By page: the beginning of a command, and where it is run."""
CODE_ELSEWHERE = {
    "README.md": "tests/unit/test_readme.py",
    "docs/fixing.md": "tests/unit/cost/test_cost_rewrites.py runs the examples that the page is made from",
}


def pages():
    found = ["README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
    return [page for page in found if BLOCK.search((ROOT / page).read_text(encoding="utf-8"))]


def blocks(page):
    return [found.groups() for found in BLOCK.finditer((ROOT / page).read_text(encoding="utf-8"))]


def commands(text):
    """The lines after a dollar; what is printed stands below."""
    return [line[2:] for line in text.splitlines() if line.startswith("$ ")]


@pytest.fixture
def folder(tmp_path):
    script = next(code for kind, file, code in blocks("docs/quickstart.md") if file == "train.py")
    (tmp_path / "train.py").write_text(script, encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text("", encoding="utf-8")
    return tmp_path


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", pages())
def test_a_page_does_what_it_says(page, folder):
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("SYNCAGENT", "OTEL_"))},
        "PATH": os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"])),
        "SYNCAGENT_SIMULATE": "1",
    }
    elsewhere = ELSEWHERE.get(page, {})
    for kind, file, code in blocks(page):
        if kind == "python" and file:
            (folder / file).write_text(code, encoding="utf-8")
        elif kind == "python" and page not in CODE_ELSEWHERE:
            run([sys.executable, "-c", SURROUNDINGS.get(page, "") + code], folder, environment)
        elif kind == "console":
            for command in commands(code):
                if any(command.startswith(beginning) for beginning in elsewhere):
                    continue
                if exported := EXPORTED.match(command.partition("#")[0].strip()):
                    environment |= dict(each.split("=", 1) for each in exported[1].split())
                    continue
                run(["bash", "-c", command], folder, environment)


SURROUNDINGS = {
    "docs/quickstart.md": "exec(open('train.py').read())\n",
    "docs/usage.md": (
        "import torch, syncagent\nloss = torch.ones((), device='cuda')\ndef train_one_epoch(): loss.item()\n"
    ),
}
"""What stands around a page's code in the reader's program."""


def run(command, folder, environment):
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, capture_output=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr


def test_what_runs_elsewhere_is_still_in_the_documents():
    for page, named in ELSEWHERE.items():
        said = [command for kind, _, code in blocks(page) if kind == "console" for command in commands(code)]
        for beginning in named:
            assert any(command.startswith(beginning) for command in said), (page, beginning)
    for page in CODE_ELSEWHERE:
        assert any(kind == "python" for kind, _, _ in blocks(page)), page
