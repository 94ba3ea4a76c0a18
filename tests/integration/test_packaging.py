"""What is shipped, and what it does in a fresh environment: no network is used, and nothing is left in the checkout."""

from __future__ import annotations

import base64
import csv
import email
import hashlib
import os
import platform
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest

import syncagent
from syncagent.native import build

ROOT = Path(__file__).resolve().parents[2]
PTH = "syncagent_autostart.pth"
LIBRARIES = {f"syncagent/native/{library.file}" for library in build.LIBRARIES}
VARIABLES = ("CC", "SYNCAGENT_NATIVE", "_PYTHON_HOST_PLATFORM")

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="needs the checkout")


def clean(**variables):
    """The environment for a build in which only these variables say something of the library."""
    return {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables


def compiles():
    """Whether the native library can be built here."""
    try:
        return build.machine(build.find_compiler(clean())) == platform.machine()
    except build.NotBuiltError:
        return False


needs_compiler = pytest.mark.skipif(not compiles(), reason="needs a C compiler, and glibc on x86-64 or aarch64")


def run(*words, status=0, **options):
    done = subprocess.run(words, capture_output=True, text=True, check=False, **{"env": clean()} | options)
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
def hatchling(built, tmp_path_factory):
    """``hatchling(target, into, **variables)``: build that in the unpacked sdist; the file, and what was printed."""
    tree = tmp_path_factory.mktemp("tree")
    with tarfile.open(built[0]) as archive:
        archive.extractall(tree, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    [tree] = tree.iterdir()

    def build(target, into, status=0, **variables):
        words = ("-m", "hatchling", "build", "-t", target, "-d", into)
        done = run(sys.executable, *words, status=status, cwd=tree, env=clean(**variables))
        return next(into.glob("*.whl"), None), done.stdout + done.stderr

    build.native = tree / "syncagent" / "native"
    return build


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
    native = ROOT / "syncagent" / "native"
    source = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "syncagent").rglob("*")
        if path.is_file() and path.suffix not in {".pyc", ".so"}
        if path != native / "build.py" and native / "src" not in path.parents
    }
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == source | {PTH} | (LIBRARIES if compiles() else set())
    assert {"syncagent/py.typed", "syncagent/report/formats/page/report.html.jinja"} <= shipped


def test_the_wheel_carries_the_licence_and_says_what_it_needs(wheel):
    folder = f"syncagent-{syncagent.__version__}.dist-info"
    assert wheel.read(f"{folder}/licenses/LICENSE").lstrip().startswith(b"Apache License")
    said = email.message_from_bytes(wheel.read(f"{folder}/METADATA"))
    assert (said["Version"], said["License-Expression"]) == (syncagent.__version__, "Apache-2.0 AND MIT")
    drawing = wheel.read(f"{folder}/licenses/syncagent/report/formats/page/uplot/LICENSE")
    assert drawing.startswith(b"The MIT License")
    assert said["Requires-Python"] == ">=3.10"
    needed = [line for line in said.get_all("Requires-Dist") if "extra ==" not in line]
    assert any(line.startswith("click") for line in needed)
    assert not any(line.startswith("torch") for line in needed)  # an agent must not replace the image's own build


def test_record_lists_each_file_with_its_digest_and_size(wheel):
    record = f"syncagent-{syncagent.__version__}.dist-info/RECORD"
    listed = {name: (digest, size) for name, digest, size in csv.reader(wheel.read(record).decode().splitlines())}
    assert listed.pop(record) == ("", "")
    assert set(listed) == set(wheel.namelist()) - {record}
    for name, (digest, size) in listed.items():
        content = wheel.read(name)
        wanted = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        assert (digest, int(size)) == (f"sha256={wanted}", len(content)), name


@needs_compiler
def test_a_wheel_with_the_native_library_is_for_this_platform_and_any_python(built, wheel):
    tag = f"py3-none-linux_{platform.machine()}"
    assert built[1].name == f"syncagent-{syncagent.__version__}-{tag}.whl"
    said = email.message_from_bytes(wheel.read(f"syncagent-{syncagent.__version__}.dist-info/WHEEL"))
    assert (said["Root-Is-Purelib"], said.get_all("Tag")) == ("false", [tag])


@needs_compiler
def test_the_native_library_is_there_once_the_wheel_is_installed(environment):
    code = "import ctypes, os, sys; from syncagent import native; print(native.why_not() or native.load().path)\n"
    code += "for file in sys.argv[1:]: ctypes.CDLL(os.path.join(os.path.dirname(native.PATH), file))"
    done = environment.run("python", "-c", code, *(library.file for library in build.LIBRARIES))
    assert done.stdout.startswith(str(environment.folder))


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"PATH": "/nowhere"}, "there is no C compiler: CC is not set, and cc, gcc and clang are not on the PATH"),
        ({"CC": "/nowhere/cc"}, "the C compiler '/nowhere/cc' does not start (No such file or directory)"),
        ({"SYNCAGENT_NATIVE": "0"}, "SYNCAGENT_NATIVE is 0"),
        ({"_PYTHON_HOST_PLATFORM": "macosx-14.0-arm64"}, "it needs Linux"),
        pytest.param(
            {"_PYTHON_HOST_PLATFORM": "linux-riscv64"},
            "this Python is for linux-riscv64, and the C compiler compiles for linux-",
            marks=needs_compiler,
        ),
    ],
)
def test_without_the_native_library_the_wheel_is_for_any_platform(hatchling, tmp_path, variables, why):
    """One sentence says why it is not there."""
    wheel, said = hatchling("wheel", tmp_path, **variables)
    assert wheel.name == f"syncagent-{syncagent.__version__}-py3-none-any.whl"
    [sentence] = [line for line in said.splitlines() if "native library" in line]
    assert sentence.startswith(f"syncagent is built without its native library: {why}")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]


@needs_compiler
def test_a_compiler_that_fails_is_reported_with_what_it_printed(hatchling, tmp_path):
    """And with ``SYNCAGENT_NATIVE=1`` nothing is built."""
    broken = tmp_path / "broken"
    broken.write_text('#!/bin/sh\ncase "$*" in *-E*) exec cc "$@";; esac\necho "x.c:1:2: error: no room" >&2\nexit 1\n')
    broken.chmod(0o755)
    wheel, said = hatchling("wheel", tmp_path, CC=str(broken))
    assert wheel.name.endswith("-py3-none-any.whl")
    wheel.unlink()
    failed = f"the C compiler '{broken}' failed (x.c:1:2: error: no room)."
    assert f"\nsyncagent is built without its native library: {failed}\n" in said
    assert f"{broken} -std=c11" in said
    for variables, why in (
        ({"CC": str(broken), "SYNCAGENT_NATIVE": "1"}, f"The native library cannot be built: {failed}"),
        (
            {"SYNCAGENT_NATIVE": "maybe"},
            "SYNCAGENT_NATIVE is 'maybe', but it must be 0 (leave it out) or 1 (fail without it).",
        ),
    ):
        wheel, said = hatchling("wheel", tmp_path, status=1, **variables)
        assert wheel is None
        assert f"{why}\n" in said
        assert "Traceback" not in said


@needs_compiler
def test_an_editable_install_has_the_library_that_its_sources_say(hatchling, tmp_path):
    """A stale one is compiled again, and one that cannot be is taken away."""
    libraries = {hatchling.native / library.file for library in build.LIBRARIES}
    for library in libraries:
        library.write_bytes(b"stale")
    hatchling("wheel:editable", tmp_path)
    assert {library.read_bytes()[:4] for library in libraries} == {b"\x7fELF"}
    assert {path for path in hatchling.native.iterdir() if path.suffix == ".so"} == libraries
    hatchling("wheel:editable", tmp_path, CC="/nowhere/cc")
    assert not [path for path in libraries if path.exists()]


def test_without_a_compiler_it_installs_and_works(hatchling, tmp_path):
    wheel, _ = hatchling("wheel", tmp_path, PATH="/nowhere")
    environment = Environment(tmp_path / "fresh", wheel)
    code = "import syncagent; from syncagent import native; print(native.load(), native.why_not())"
    assert environment.run("python", "-c", code).stdout.startswith("None The native library ")


def test_the_sdist_can_be_tested_and_holds_nothing_that_git_ignores(sdist):
    wanted = {PTH, "LICENSE", "README.md", "CHANGELOG.md", "Makefile", "constraints.txt", "pyproject.toml"}
    native = {f"syncagent/native/src/{file}" for library in build.LIBRARIES for file in library.sources}
    assert wanted | native | {"hatch_build.py", "syncagent/native/build.py"} <= sdist
    assert {"tests/unit/conftest.py", "tests/integration/test_packaging.py"} <= sdist
    assert not [name for name in sdist if name.endswith((".pyc", ".so", ".whl")) or "/.venv/" in name]


def test_the_pth_starts_the_agent_where_the_variable_is_set_and_there_alone(environment):
    """A setting that is not allowed is reported in one sentence, and the program runs on."""
    code = "import sys; print('syncagent.runtime.autostart' in sys.modules, 'syncagent' in sys.modules)"
    for off in ({}, {"SYNCAGENT": ""}, {"SYNCAGENT": "0"}):
        unwatched = environment.run("python", "-c", code, **off)
        assert (unwatched.stdout, unwatched.stderr) == ("False False\n", "")
    watched = environment.run("python", "-c", code, SYNCAGENT="1", SYNCAGENT_DETAIL="nonsense")
    assert watched.stdout == "True True\n"
    assert watched.stderr == (
        "syncagent: setting SYNCAGENT_DETAIL is 'nonsense', but it must be one of auto, ops, syncs. "
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
