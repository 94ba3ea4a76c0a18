"""What is shipped, and what it does in a fresh environment: no network is used, and nothing is left in the checkout."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest

import syncagent

ROOT = Path(__file__).resolve().parents[2]
PTH = "syncagent_autostart.pth"

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="needs the checkout")


def run(*words, status=0, **options):
    done = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist of this checkout, and the wheel that pip builds of that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    [sdist] = folder.glob("*.tar.gz")
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    run(sys.executable, "-m", "pip", "wheel", *options, "-w", folder, sdist, cwd=folder)
    [wheel] = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def sdist(built):
    """The names in the sdist, without its one top folder."""
    with tarfile.open(built[0]) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


@pytest.fixture(scope="module")
def wheel(built):
    """The wheel, open."""
    with zipfile.ZipFile(built[1]) as archive:
        yield archive


class Environment:
    """A fresh virtual environment with the wheel in it, and the packages that it needs within reach."""

    def __init__(self, folder, wheel):
        self.folder = folder
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        self.pip("install", "--no-index", "--no-deps", wheel)

    def pip(self, *words):
        python = self.folder / "bin" / "python"
        run(sys.executable, "-m", "pip", "--python", python, "--quiet", *words, cwd=self.folder)

    def run(self, program, *words, status=0, **variables):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SYNCAGENT", "PYTHON", "COV"))}
        reach = os.pathsep.join(path for path in sys.path if path.endswith("-packages"))
        return run(
            self.folder / "bin" / program, *words, status=status,
            cwd=self.folder, env=clean | {"PYTHONPATH": reach} | variables,
        )  # fmt: skip

    def files(self):
        """What of the package lies in site-packages."""
        found = self.folder.glob("lib/python*/site-packages/syncagent*")
        return {path.name.partition("-")[0] for path in found}


@pytest.fixture(scope="module")
def environment(built, tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("fresh"), built[1])


def test_the_wheel_holds_the_whole_package_the_pth_and_nothing_else(wheel):
    """Built by way of the sdist, so the sdist lacks nothing either."""
    source = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "syncagent").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == source | {PTH}
    assert {"syncagent/py.typed", "syncagent/report/formats/page.html.jinja"} <= shipped


def test_the_wheel_carries_the_licence_and_says_what_it_needs(wheel):
    folder = f"syncagent-{syncagent.__version__}.dist-info"
    assert wheel.read(f"{folder}/licenses/LICENSE").lstrip().startswith(b"Apache License")
    said = email.message_from_bytes(wheel.read(f"{folder}/METADATA"))
    assert (said["Version"], said["License-Expression"]) == (syncagent.__version__, "Apache-2.0")
    assert said["Requires-Python"] == ">=3.10"
    needed = [line for line in said.get_all("Requires-Dist") if "extra ==" not in line]
    assert any(line.startswith("click") for line in needed)
    assert not any(line.startswith("torch") for line in needed)  # an agent must not replace the image's own build


def test_the_sdist_can_be_tested_and_holds_nothing_that_git_ignores(sdist):
    wanted = {PTH, "LICENSE", "README.md", "CHANGELOG.md", "Makefile", "constraints.txt", "pyproject.toml"}
    assert wanted | {"tests/unit/conftest.py", "tests/integration/test_packaging.py"} <= sdist
    assert not [name for name in sdist if name.endswith((".pyc", ".whl")) or "/.venv/" in name]


def test_the_pth_starts_the_agent_where_the_variable_is_set_and_there_alone(environment):
    """A setting that is not allowed is reported in one sentence, and the program runs on."""
    code = "import sys; print('syncagent.runtime.autostart' in sys.modules, 'syncagent' in sys.modules)"
    for off in ({}, {"SYNCAGENT": ""}, {"SYNCAGENT": "0"}):
        unwatched = environment.run("python", "-c", code, **off)
        assert (unwatched.stdout, unwatched.stderr) == ("False False\n", "")
    watched = environment.run("python", "-c", code, SYNCAGENT="1", SYNCAGENT_DETAIL="nonsense")
    assert watched.stdout == "True True\n"
    assert watched.stderr == (
        "syncagent: setting SYNCAGENT_DETAIL is 'nonsense', but it must be one of ops, syncs. "
        "The script runs unwatched.\n"
    )


def test_the_simulated_device_alone_is_there_from_the_first_import_of_torch_on(environment):
    """Nothing watches; a watch inside does not take it away; a wrong value ends the process where torch is imported."""
    code = """
        import sys
        print("syncagent.runtime.autostart" in sys.modules, "syncagent.runtime.agent" in sys.modules)
        import torch
        there = torch.cuda.is_available(), torch.ones(2, device="cuda").sum().item()
        print(*there, "syncagent.runtime.agent" in sys.modules)
        import syncagent
        print(syncagent.current())
        with syncagent.watch(simulate=True) as agent:
            torch.ones(2, device="cuda").sum().item()
        print(len(agent.events()), torch.cuda.is_available())
    """
    done = environment.run("python", "-c", textwrap.dedent(code), SYNCAGENT_SIMULATE="1", SYNCAGENT_SUMMARY="0")
    assert done.stdout.splitlines() == ["True False", "True 2.0 False", "None", "1 True"]
    for value in ("", "0"):
        off = environment.run("python", "-c", "import sys; print('syncagent' in sys.modules)", SYNCAGENT_SIMULATE=value)
        assert (off.stdout, off.stderr) == ("False\n", "")
    code = "print(1, flush=True)\ntry:\n    import torch\nexcept BaseException:\n    pass\nprint(2)"
    refused = environment.run("python", "-c", code, status=2, SYNCAGENT_SIMULATE="maybe")
    assert refused.stdout == "1\n"
    assert "is 'maybe', but it must be" in refused.stderr
    assert environment.run("python", "-c", "print(3)", SYNCAGENT_SIMULATE="maybe").stdout == "3\n"


def test_the_command_is_installed(environment):
    assert environment.run("syncagent", "--version").stdout == f"syncagent {syncagent.__version__}\n"
    where = environment.run("python", "-c", "import syncagent; print(syncagent.__file__)").stdout
    assert where.startswith(str(environment.folder))


def test_nothing_is_left_when_it_is_uninstalled(built, tmp_path):
    environment = Environment(tmp_path / "fresh", built[1])
    assert environment.files() == {"syncagent", PTH}
    environment.run("python", "-c", "import syncagent")  # leaves bytecode
    environment.pip("uninstall", "--yes", "syncagent")
    assert environment.files() == set()
    assert not (environment.folder / "bin" / "syncagent").exists()
