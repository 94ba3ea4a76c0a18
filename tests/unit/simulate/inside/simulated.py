"""Runs one module of this folder in a process of its own, in which the simulated device stands in for CUDA.

As a program it imports torch once and forks a process for each line on its standard input: the names of tests of one
module.  In that process it is a plugin of pytest that installs the device and reports each test as a line of JSON.
With the argument ``warm`` it also imports what torch would import at the first call on a simulated tensor.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

import pytest

STARTS_WITHOUT = ("in_devices.py", "in_life.py")
"""Modules that install the device themselves, or take it away again."""
RESULTS_FD = "SYNCAGENT_TEST_RESULTS_FD"


def pytest_configure(config):
    import torch

    from syncagent import simulate

    torch.set_num_threads(1)
    if not any(name in " ".join(config.args) for name in STARTS_WITHOUT):
        simulate.install()


@pytest.fixture
def observed():
    """What was reported to the observer, in order."""
    import torch
    from harness import Observed

    from syncagent import simulate

    observer = Observed()
    torch.cuda.synchronize()
    simulate.observe_waits(observer)
    yield observer
    simulate.observe_waits(None)


@pytest.fixture(autouse=True)
def _quiet_device():
    import torch

    from syncagent import simulate

    yield
    if simulate.installed():
        torch.cuda.synchronize()


# --- results -----------------------------------------------------------------------------------------------


def _send(**line):
    if RESULTS_FD in os.environ:
        os.write(int(os.environ[RESULTS_FD]), (json.dumps(line) + "\n").encode())


def pytest_collectreport(report):
    if report.failed:
        _send(error=str(report.longrepr))


def pytest_runtest_logreport(report):
    if report.when == "call" or not report.passed:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        _send(test=report.nodeid.rpartition("::")[2], outcome=report.outcome, text=reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    result = yield
    if nextitem is None or nextitem.originalname != item.originalname:
        _send(finished=item.originalname)
    return result


# --- processes ---------------------------------------------------------------------------------------------


def _serve():
    for name in ("torch", *(("torch._dynamo", "torch.distributed.tensor") if "warm" in sys.argv else ())):
        importlib.import_module(name)  # before the fork, since it takes seconds
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they take seconds, too
    results = os.dup(sys.stdout.fileno())
    os.environ[RESULTS_FD] = str(results)
    null = os.open(os.devnull, os.O_RDWR)
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if not child:
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "pytest_timeout", "-p", "simulated"]
            os._exit(pytest.main([*options, *line.split()]))
        _send(ended=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    _serve()
