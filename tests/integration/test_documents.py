"""Every command and every block of code in the documents works: each page is run from top to bottom.

A page is run in a folder of its own, on the simulated device, with the script of docs/quickstart.md as ``train.py``;
the README of an example, in a copy of its folder.  What cannot run here stands in ``ELSEWHERE``, with what runs it.
Blocks of data are read by what reads them in use, as far as that is there.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from syncagent.settings import sources
from syncagent.support.compat import load_toml
from tests import contributing

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r'(?ms)^```(\w*)(?: title="(\S+)")?\n(.*?)^```$')
EXPORTED = re.compile(r"export (.*)")

STACK = "tests/stack, with a real Collector, Jaeger, Phoenix and Prometheus"
ELSEWHERE = {
    "README.md": {
        "SYNCAGENT_COST=1 SYNCAGENT_REPORT=cost.html": "it needs a GPU: examples/masked_loss/output/h200.txt",
        "pip install .": "every test runs what it has installed",
        "syncagent selftest --no-simulate": "it needs a GPU: tests/gpu/compat.py",
    },
    "docs/quickstart.md": {"pip install .": "every test runs what it has installed"},
    "docs/report.md": {"syncagent run --simulate examples/masked_loss/train.py": "make demo"},
    "docs/telemetry.md": {"": STACK},
    "docs/testing.md": {"pytest -q --syncagent-simulate": "tests/integration/test_pytest_plugin.py, as it fails"},
    "docs/trainers.md": {"": "it needs the libraries: tests/integration/test_trainers.py, by nox -s trainers"},
    "docs/cost.md": {"": "it needs a trace of a GPU: tests/unit/cost/test_cost_cli.py has them"},
    "otel/README.md": {
        "make telemetry-demo": "tests/stack/test_demo.py",
        "cd otel": "it needs docker: tests/stack/test_files.py reads the file as docker compose does",
        "export OTEL_EXPORTER_OTLP_ENDPOINT=": STACK,
    },
    "examples/masked_loss/README.md": {
        "SYNCAGENT=1 python": "it needs a GPU to end soon: tests/gpu/example.py",
        "SYNCAGENT=1 torchrun": "tests/gpu/pipeline.py",
        "syncagent run --simulate": "make demo",
    },
    "examples/logging_item/README.md": {"SYNCAGENT=1 SYNCAGENT_COST=1": "it needs a GPU: tests/gpu/cost_programs.py"},
    "examples/policy_gate/README.md": {"": "tests/integration/test_policy_gate.py"},
    "examples/ddp_straggler/README.md": {"torchrun": "tests/integration/test_late_ranks.py", "syncagent": "the same"},
    "examples/ci_gate/README.md": {"": "tests/integration/test_ci_gate.py, with what it prints"},
}
"""By page: the beginning of a command, or of a block of ``sh``, and where it is run."""
CODE_ELSEWHERE = {
    "README.md": "tests/unit/test_readme.py",
    "CONTRIBUTING.md": "tests/unit/test_contributing.py and the tests that it names",
    "docs/fixing.md": "tests/unit/cost/test_cost_rewrites.py runs the examples that the page is made from",
    "examples/policy_gate/README.md": "a part of the example's train.py",
}
NAMED = {contributing.example(name) for name in re.findall(r"<!-- example: (.+?) -->", contributing.TEXT)}
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").glob("*.md")),
    "otel/README.md",
    *sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "examples").glob("*/README.md")),
]
RUN = ("console", "sh", "python")
"""Kinds of block that are run."""


def blocks(page):
    """The kind, the title and the content of each block of a page."""
    return [found.groups() for found in BLOCK.finditer((ROOT / page).read_text(encoding="utf-8"))]


def pages():
    """Those with a block that is run."""
    return [page for page in PAGES if any(kind in RUN for kind, _, _ in blocks(page))]


def commands(kind, text):
    """In ``console`` what follows a dollar, with the lines that go on after ``>``; a block of ``sh`` is one command."""
    if kind == "sh":
        return [text]
    return [found[1].replace("\n> ", "\n") for found in re.finditer(r"(?m)^\$ (.*(?:\n> .*)*)", text)]


def where_else(page, command):
    """What runs a command that is not run here."""
    return next((said for start, said in ELSEWHERE.get(page, {}).items() if command.startswith(start)), None)


@pytest.fixture
def folder(page, tmp_path):
    """Where the page is run."""
    if page.startswith("examples/"):
        unwanted = shutil.ignore_patterns("__pycache__", ".syncagent")
        return shutil.copytree((ROOT / page).parent, tmp_path / "job", ignore=unwanted)
    script = next(code for kind, file, code in blocks("docs/quickstart.md") if file == "train.py")
    (tmp_path / "train.py").write_text(script, encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text("", encoding="utf-8")
    return tmp_path


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", pages())
def test_a_page_does_what_it_says(page, folder, environ, written):
    environment = {
        **environ,
        "PATH": os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"])),
        "SYNCAGENT_SIMULATE": "1",
    }
    environment.pop("PYTEST_CURRENT_TEST")  # it is another one for each page
    for kind, file, code in blocks(page):
        if kind == "python" and file:
            (folder / file).write_text(code, encoding="utf-8")
        elif kind == "python" and page not in CODE_ELSEWHERE:
            run([sys.executable, "-c", SURROUNDINGS.get(page, "") + code], folder, environment)
        elif kind in ("console", "sh"):
            for command in commands(kind, code):
                if where_else(page, command):
                    run(["bash", "-n", "-c", command], folder, environment)
                elif kind == "console" and (exported := EXPORTED.match(command.partition("#")[0].strip())):
                    environment |= dict(each.split("=", 1) for each in exported[1].split())
                else:
                    run_once(command, folder, environment, written)


SURROUNDINGS = {
    "docs/quickstart.md": "exec(open('train.py').read())\n",
    "docs/testing.md": "import torch\nbatch = loss = torch.ones((), device='cuda')\ntrain_step = torch.neg\n",
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


@pytest.fixture(scope="module")
def written():
    """What the commands so far have written: each by itself, its environment and the files that it names."""
    return {}


def run_once(command, folder, environment, written):
    """Run a command; what it has written elsewhere already, with the same script, is put here."""
    command = re.sub(r"(?m)[ ]+#.*$", "", command)
    before = files(folder)
    named = {name: content for name, content in before.items() if str(name) in command}
    key = command, *sorted(named.items()), *sorted(environment.items())
    if key not in written:
        run(["bash", "-e", "-c", command], folder, environment)
        written[key] = dict(files(folder).items() - before.items())
    for name, content in written[key].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_runs_elsewhere_is_still_in_the_documents():
    for page, named in ELSEWHERE.items():
        said = [command for kind, _, code in blocks(page) if kind in RUN for command in commands(kind, code)]
        for beginning in named:
            assert any(command.startswith(beginning) for command in said), (page, beginning)
    for page in CODE_ELSEWHERE:
        assert any(kind == "python" for kind, _, _ in blocks(page)), page


def test_each_example_of_how_to_extend_it_has_the_name_by_which_a_test_runs_it():
    unnamed = [code for kind, _, code in blocks("CONTRIBUTING.md") if kind == "python" and code not in NAMED]
    assert unnamed == []


# --- blocks of data ---------------------------------------------------------------------------------------------------


def toml(text, folder):
    """By the parser, and settings of the agent by what loads them."""
    table = load_toml(io.BytesIO(text.encode()))
    if "syncagent" in table.get("tool", {}):
        (folder / "pyproject.toml").write_text(text, encoding="utf-8")
        settings = sources.load({}, {})
        assert settings.sources.keys() == {name.replace("-", "_") for name in table["tool"]["syncagent"]}
        assert settings.warnings == ()


def yaml(text, folder):
    """By the parser; objects of Kubernetes by its schemas, and workflows by the keys that GitHub asks for."""
    parser = pytest.importorskip("yaml", exc_type=ImportError)
    for thing in parser.safe_load_all(text):
        if "apiVersion" in thing and "." not in thing["apiVersion"].partition("/")[0]:  # else it is of some operator
            kubernetes_validate = pytest.importorskip("kubernetes_validate")
            kubernetes_validate.validate(thing, kubernetes_validate.latest_version(), strict=True)
        elif "jobs" in thing:
            assert True in thing or "on" in thing  # in YAML 1.1 "on" is a yes
            for job in thing["jobs"].values():
                assert job["runs-on"]
                assert all(("run" in step) != ("uses" in step) for step in job["steps"])
        elif "receivers" in thing and "service" in thing:
            for pipeline in thing["service"]["pipelines"].values():
                for part, named in pipeline.items():
                    assert set(named) <= {*thing.get(part, ()), *thing.get("connectors", ())}


DATA = {"toml": toml, "yaml": yaml, "json": lambda text, _: json.loads(text)}
"""Kinds of block that are read; what is between the fences of ``text`` is for people alone."""


@pytest.mark.usefixtures("no_settings")
@pytest.mark.parametrize(
    ("page", "number"),
    [(page, number) for page in PAGES for number, (kind, _, _) in enumerate(blocks(page)) if kind in DATA],
)
def test_a_block_of_data_is_what_its_reader_takes(page, number, tmp_path):
    kind, _, text = blocks(page)[number]
    DATA[kind](text, tmp_path)


@pytest.mark.usefixtures("no_settings")
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("toml", "[tool.syncagent]\npolicy = 'obsrve'\n"),
        ("toml", "[tool.syncagent]\npolcy = 'observe'\n"),
        ("toml", "[tool.syncagent\n"),
        ("yaml", "a: [1\n"),
        ("yaml", "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: a, imaje: b}]}}"),
        ("yaml", "{on: push, jobs: {a: {runs-on: b, steps: [{run: c, uses: d}]}}}"),
        ("yaml", "{receivers: {otlp: }, service: {pipelines: {traces: {receivers: [otpl]}}}}"),
        ("json", "{'a': 1}"),
    ],
)
def test_a_mistake_in_a_block_of_data_is_found(kind, text, tmp_path):
    with pytest.raises(Exception):  # noqa: B017 - each reader has its own
        DATA[kind](text, tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_read(page):
    """None is indented, and each says what it is."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert len(re.findall(r"(?m)^\s*(?:```|~~~)", text)) == 2 * len(blocks(page))
    assert {kind for kind, _, _ in blocks(page)} <= {*RUN, *DATA, "text"}
