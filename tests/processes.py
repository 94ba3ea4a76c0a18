"""Programs in processes of their own, with nothing of the person who runs the tests in their environment."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path

import syncagent

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = os.path.join(os.path.dirname(syncagent.__file__), "")
"""How the path of each file of the agent's begins."""

_LAUNCHERS = ("SLURM_", "OMPI_", "PMI_", "PMIX_", "TORCHELASTIC_", "PET_", "RAY_", "JOB_", "MASTER_")
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


_ports = itertools.count(10_000 + os.getpid() % 100 * 200)


def free_port() -> int:
    """Return a port of loopback that nothing listens on.

    The system gives such a low one to no client, and workers that run tests side by side look in different places.
    """
    while True:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port := next(_ports))):
                return port


def is_setting(variable: str) -> bool:
    """Whether the agent, OpenTelemetry or a launcher would go by this variable."""
    return variable.startswith(("SYNCAGENT", "OTEL_", *_LAUNCHERS)) or variable in _RANKS


def environment(**variables: str) -> dict[str, str]:
    """The environment of the tests without what is a setting, and with these variables."""
    return {name: value for name, value in os.environ.items() if not is_setting(name)} | variables


def run(*words, cwd, timeout=110, text=True, given=None, **variables):
    """Run Python with these words in that folder, nothing set but the variables; its exit code and what it printed.

    ``given`` is its standard input.
    """
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env=environment(**variables),
        capture_output=True, encoding="utf-8" if text else None, timeout=timeout, check=False, input=given,
    )  # fmt: skip
