"""What a process was started for and cannot have ends it before it does anything else."""

from __future__ import annotations

import os
from functools import partial

import pytest

NOT_TORCH = """
__version__ = "9.9.0"
"""

SCRIPT = """
print("started", flush=True)
try:
    import torch
except BaseException:
    print("swallowed", flush=True)
print("went on", flush=True)
"""


@pytest.fixture
def start(python, tmp_path):
    """``start(*words, **variables)``: Python with a torch in which the simulated device finds nothing that it needs."""
    (tmp_path / "lib" / "torch").mkdir(parents=True)
    (tmp_path / "lib" / "torch" / "__init__.py").write_text(NOT_TORCH)
    (tmp_path / "train.py").write_text(SCRIPT)
    path = os.pathsep.join(filter(None, (str(tmp_path / "lib"), os.environ.get("PYTHONPATH"))))
    return partial(python, PYTHONPATH=path)


CANNOT = "simulate=1 cannot be honoured: the simulated device does not work with torch 9.9.0: it lacks torch."


def test_a_script_that_asks_for_the_simulated_device_ends_with_2_when_it_imports_a_torch_that_cannot_have_it(start):
    """Whatever it catches around the import; until then nothing is known of its torch, and it runs."""
    done = start("train.py", SYNCAGENT="1", SYNCAGENT_SIMULATE="1")
    assert (done.returncode, done.stdout) == (2, "started\n")
    assert done.stderr.startswith(f"syncagent: {CANNOT}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("how", ["--simulate", "SYNCAGENT_SIMULATE", "pyproject.toml"])
def test_syncagent_run_ends_with_2_before_the_first_line_of_the_script(start, tmp_path, how):
    if how == "pyproject.toml":
        (tmp_path / how).write_text("[tool.syncagent]\nsimulate = true\n")
    variables = {how: "1"} if how.isupper() else {}
    done = start("-m", "syncagent", "run", *(["--simulate"] if how == "--simulate" else []), "train.py", **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"syncagent run: {CANNOT}")
    assert done.stderr.count("\n") == 1


GOES_TOO_FAR = """
import atexit
import sys
import torch

if "distributed" in sys.argv:  # it puts a hook of its own around sys.excepthook
    torch.distributed.init_process_group("nccl", store=torch.distributed.HashStore(), rank=0, world_size=1)
atexit.register(print, "at exit", flush=True)
try:
    torch.cuda.memory_snapshot()
except RuntimeError:
    print("caught", flush=True)
try:
    if "other" in sys.argv:
        raise ValueError("the program's own")
    torch.cuda.CUDAGraph()
finally:
    print("finally", flush=True)
"""


@pytest.mark.parametrize("words", [(), ("distributed",), ("-m", "syncagent", "run", "--simulate")])
def test_what_is_not_simulated_ends_the_program_with_2_and_one_sentence_that_names_its_line(python, tmp_path, words):
    """What the program has for such cases still runs: it may catch the error, and clean up."""
    (tmp_path / "train.py").write_text(GOES_TOO_FAR)
    if "run" in words:
        done = python(*words, "train.py")
    else:
        done = python("train.py", *words, SYNCAGENT_SIMULATE="1", SYNCAGENT_LOG_LEVEL="error")
    printed = [
        line for line in done.stdout.splitlines() if not line.startswith("[Gloo]")
    ]  # which up to torch 2.10 says so
    assert (done.returncode, printed) == (2, ["caught", "finally", "at exit"])
    said = next(line for line in done.stderr.splitlines() if line.startswith("syncagent: "))
    line = 1 + GOES_TOO_FAR.splitlines().index("    torch.cuda.CUDAGraph()")
    assert said.partition("train.py")[2].startswith(f":{line}: torch.cuda.CUDAGraph: CUDA graphs are not simulated")
    assert said.endswith("The process ends here, with exit code 2.")
    assert "Traceback" not in done.stderr


def test_an_error_of_the_programs_own_keeps_its_traceback(python, tmp_path):
    (tmp_path / "train.py").write_text(GOES_TOO_FAR)
    done = python("train.py", "other", SYNCAGENT_SIMULATE="1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ValueError: the program's own"
