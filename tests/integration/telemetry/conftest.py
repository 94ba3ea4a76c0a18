"""Receivers and jobs in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


@pytest.fixture
def environ(tmp_path):
    """The environment for a job: no OTEL_*, SYNCAGENT* or launcher of the person who runs the tests."""
    others = ("OTEL_", "SYNCAGENT", "SLURM_", "OMPI_", "PMI_", "PMIX_", "TORCHELASTIC_", "PET_", "RAY_", "MASTER_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return clean | {"PYTHONPATH": str(ROOT), "NO_PROXY": "*", "TMPDIR": str(tmp_path)}


class Receiver:
    def __init__(self, process, file):
        self.process = process
        self.port = int(process.stdout.readline())
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._file = file

    def spans(self):
        return self._lines("")

    def points(self):
        """Data points of metrics, in the order in which they came."""
        return self._lines(".metrics")

    def log_records(self):
        return self._lines(".logs")

    def requests(self):
        """When each came, and the mode it met."""
        return self._lines(".requests")

    def stop(self):
        self.process.kill()
        self.process.wait()

    def _lines(self, suffix):
        file = self._file.with_name(self._file.name + suffix)
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def receiver(tmp_path, environ):
    processes = []

    def start(mode="ok", protocol="http", port=0):
        file = tmp_path / f"received-{len(processes)}.jsonl"
        command = [sys.executable, str(HERE / "receiver.py"), mode, str(file), protocol, str(port)]
        process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return Receiver(process, file)

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


class Result:
    def __init__(self, done):
        self.code = done.returncode
        self.account = json.loads(done.stdout) if done.stdout else None
        self.stderr = done.stderr
        self.messages = done.stderr.splitlines()


@pytest.fixture
def job(tmp_path, environ):
    def run(steps=3, close_timeout=5.0, **variables):
        command = [sys.executable, str(HERE / "job.py"), str(steps), str(close_timeout)]
        return Result(
            subprocess.run(
                command,
                env=environ | variables,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        )

    return run
