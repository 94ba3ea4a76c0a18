"""Collects the tests in ``inside/``, which run in processes of their own: see ``inside/simulated.py``."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

INSIDE = Path(__file__).parent / "inside"


def _is_inner(path, config):
    return path.parent == INSIDE and path.match("in_*.py") and not config.pluginmanager.hasplugin("simulated")


def pytest_collect_file(file_path, parent):
    if _is_inner(file_path, parent.config) and not parent.session.isinitpath(file_path):
        return InnerModule.from_parent(parent, path=file_path)
    return None


def pytest_pycollect_makemodule(module_path, parent):
    """A file that is named on the command line is a module for pytest, whatever its name."""
    return InnerModule.from_parent(parent, path=module_path) if _is_inner(module_path, parent.config) else None


def pytest_unconfigure():
    for server in SERVERS.values():
        server.stop()


class Server:
    """A program that imports torch once and forks a process for each module."""

    def __init__(self, *arguments):
        self.command = [sys.executable, "simulated.py", *arguments]
        self.process = None
        self.is_busy = False

    def run(self, tests):
        """Start these tests of one module, once those of the last one are over."""
        if self.process is None:
            self.process = subprocess.Popen(
                self.command, cwd=INSIDE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        while self.is_busy:
            self.receive()
        self.is_busy = True
        self.process.stdin.write(" ".join(tests) + "\n")
        self.process.stdin.flush()

    def receive(self):
        """What the process says next."""
        line = json.loads(self.process.stdout.readline() or '{"ended": "with the process that forks it"}')
        self.is_busy = "ended" not in line
        return line

    def stop(self, *, now=False):
        process, self.process, self.is_busy = self.process, None, False
        if process is not None:
            if now:
                process.kill()
            process.communicate()


SERVERS = {"in_life.py": Server()}  # it looks at what torch imports while the device is there
WARM = SERVERS["others"] = Server("warm")


class InnerModule(pytest.File):
    """A module of ``inside/``; its tests are known by name without importing it."""

    def collect(self):
        self.results = None
        self.server = SERVERS.get(self.path.name, WARM)
        for node in ast.parse(self.path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield InnerTest.from_parent(self, name=node.name, line=node.lineno)

    def result_of(self, name):
        """The lines about one test, all its parameters; the first call starts the process."""
        if self.results is None:
            self.results, self.finished, self.ended = {}, set(), None
            chosen = [item.name for item in self.session.items if item.parent is self]
            self.server.run(f"{self.path.name}::{each}" for each in chosen)
        while name not in self.finished and self.ended is None:
            line = self.server.receive()
            if "test" in line:
                self.results.setdefault(line["test"].partition("[")[0], []).append(line)
            elif "finished" in line:
                self.finished.add(line["finished"])
            elif "error" in line:
                self.ended = line["error"]
            else:
                self.ended = f"the process ended before this test did: {line['ended']}"
        if name not in self.finished:
            raise InnerFailure(self.ended)
        return self.results.get(name, [])


class InnerTest(pytest.Item):
    """One test, with all its parameters."""

    def __init__(self, *, line, **keywords):
        super().__init__(**keywords)
        self.line = line
        self.add_marker(pytest.mark.timeout(300))  # each set of parameters has the usual time, in its own process

    def runtest(self):
        try:
            results = self.parent.result_of(self.name)
        except InnerFailure:
            raise
        except BaseException:  # nothing that comes later would be this process's own
            self.parent.server.stop(now=True)
            raise
        failed = [result for result in results if result["outcome"] == "failed"]
        if failed:
            raise InnerFailure("\n".join(f"{result['test']}\n{result['text']}" for result in failed))
        if all(result["outcome"] == "skipped" for result in results):
            pytest.skip(results[0]["text"] if results else "nothing ran")

    def repr_failure(self, excinfo, style=None):
        return str(excinfo.value) if isinstance(excinfo.value, InnerFailure) else super().repr_failure(excinfo, style)

    def reportinfo(self):
        return self.path, self.line - 1, self.name


class InnerFailure(Exception):
    """What the inner process reported."""
