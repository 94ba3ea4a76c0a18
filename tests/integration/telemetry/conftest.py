"""Receivers and jobs in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT

HERE = Path(__file__).parent


@pytest.fixture
def environ(environ, tmp_path):
    """The environment for a job that finds this checkout and reaches loopback without a proxy."""
    return environ | {"PYTHONPATH": str(ROOT), "NO_PROXY": "*", "TMPDIR": str(tmp_path)}


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
def job(python, environ):
    def run(steps=3, close_timeout=5.0, **variables):
        return Result(python(HERE / "job.py", steps, close_timeout, **environ | variables))

    return run
