"""What a crossing costs is measured once, whoever asks."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor


def fresh():
    """The module as a new process has it."""
    spec = importlib.util.find_spec("syncagent.torchbridge.calibration")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_threads_that_ask_at_once_get_the_one_measure():
    """Two measurements at a time would register the same op, and one of them take it from under the other."""
    calibration = fresh()
    with ThreadPoolExecutor(8) as threads:
        kernels = [threads.submit(calibration.kernel_ns) for _ in range(8)]
        both = [threads.submit(calibration.mode_ns) for _ in range(8)]
    assert len({asked.result() for asked in kernels}) == len({asked.result() for asked in both}) == 1
    assert kernels[0].result() > 0
    assert both[0].result() > 0
    calibration.settle()


def test_a_program_that_keeps_the_interpreter_busy_makes_no_call_cost_more():
    """By the clock each call would take as long as the interpreter lets others wait: thousands of times longer."""
    quiet = fresh().kernel_ns()
    with ThreadPoolExecutor(1) as threads:
        calibration = fresh()
        asked = threads.submit(calibration.kernel_ns)
        while not asked.done():
            sum(range(1000))
    assert asked.result() < 50 * quiet


def test_it_loads_no_compiler():
    """Another thread may be loading it for the program, which would then fail with half of a module."""
    code = (
        "import sys, torch\n"
        "from syncagent.torchbridge import calibration\n"
        "assert calibration.kernel_ns() > 0 and calibration.mode_ns() > 0\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
