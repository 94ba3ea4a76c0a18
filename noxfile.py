"""The supported versions of torch, Python and what the agent depends on, each combination in an environment of its own.

    nox                 every pair of PAIRS, the declared minimum versions and real programs on the newest torch
    nox -s sim_oldest sim_newest      what CI runs of it
    nox -s "tests(python='3.13', torch='2.11.0')"     any other pair, all tests
    nox -s "tests(python='3.12', torch='2.15.0')" -- tests/unit/policy/test_packs.py      with pytest's own arguments

Each session that runs to its end writes a line to tests/matrix/results.json and updates the README's table of versions.
"""

from __future__ import annotations

import os
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
    *(f"tests(python='{python}', torch='{torch}')" for torch, python in PAIRS), "minimums", "programs",
]  # fmt: skip


def _install(session: nox.Session, torch: str, *extra: str) -> None:
    session.install("numpy", "pip", f"torch=={torch}")  # tests of the packages want a pip, which uv leaves out
    session.install("-c", "constraints.txt", "-e", ".[dev]", *extra)


def _test(session: nox.Session, key: str, torch: str, paths: tuple[str, ...], *, keep: bool = True) -> None:
    """Run pytest and note the result, even if tests failed."""
    # Not in create_tmp(): that becomes the folder for temporary files, and those would lie inside this repository.
    junit = Path(session.virtualenv.location) / "junit.xml"
    junit.unlink(missing_ok=True)
    began = time.monotonic()
    python = str(session.run("python", "-c", "import platform; print(platform.python_version())", silent=True)).strip()
    try:
        session.run(
            "python", "-m", "pytest", f"--junitxml={junit}", "-o", "junit_family=xunit2",
            "-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder", *paths,
        )  # fmt: skip
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
    _install(session, torch)
    _test(session, f"torch {torch}, Python {session.python}", torch, tuple(session.posargs), keep=not session.posargs)


def _simulated(session: nox.Session, torch: str) -> None:
    _install(session, torch)
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
    session.install("numpy", "pip", pins.pop("torch"))
    session.install("-e", ".[dev]", *pins.values())
    _test(session, "minimum versions", TORCHES[0], tuple(session.posargs), keep=not session.posargs)


@nox.session(python=_first_of("3.12", "3.13"))
def programs(session: nox.Session) -> None:
    """Real training programs of libraries on the simulated device, with the newest torch; and the demo."""
    _install(session, TORCHES[-1], "transformers", "accelerate", "lightning")
    paths = tuple(session.posargs) or ("tests/integration/test_programs.py",)
    _test(session, f"transformers and Lightning, torch {TORCHES[-1]}", TORCHES[-1], paths, keep=not session.posargs)
    session.run("python", "examples/demo.py")
