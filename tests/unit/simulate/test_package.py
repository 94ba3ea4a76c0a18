"""The package from outside: what it imports, and how it begins and ends."""

from __future__ import annotations

import ast
import itertools
import re
import sys
from pathlib import Path

import pytest

from syncagent import native, simulate
from syncagent.errors import SyncAgentError
from syncagent.simulate.requirements import ON_INSTANCES, OPTIONAL, REQUIRED

SOURCES = sorted(Path(simulate.__file__).parent.glob("*.py"))


@pytest.fixture
def run(forked, tmp_path):
    """``run(program)``: in a process that has loaded torch, and not installed the device."""

    def written(program):
        (tmp_path / "program.py").write_text(program)
        return forked("program.py")

    return written


def test_importing_the_package_does_not_import_torch(python):
    done = python("-c", "import syncagent.simulate, sys; print('torch' in sys.modules, syncagent.simulate.installed())")
    assert done.stdout == "False False\n", done.stderr


def test_its_errors_are_the_packages_own():
    assert issubclass(simulate.SimulationError, SyncAgentError)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_private_name_of_torch_is_listed(path):
    used = re.findall(r"\btorch((?:\.\w+)*?\.(?:_(?!_)\w+)(?:\.\w+)*)", path.read_text())
    listed = {f".{name}." for name in (*REQUIRED, *OPTIONAL, *ON_INSTANCES)}
    for name in used:
        if not name.startswith(".ops."):  # ops of the dispatcher, not names of Python
            assert any(f"{name}.".startswith(known) or known.startswith(f"{name}.") for known in listed), name


def private_attributes(tree):
    """Private attributes that are read, those that are set or declared, of whatever object."""
    read, own = set(), {"_replace", "_getframe"}  # of a NamedTuple, of sys
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            base = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            if base != "aten":  # ops of the dispatcher, not names of Python
                (read if isinstance(node.ctx, ast.Load) else own).add(node.attr)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"getattr", "hasattr"}:
            read.update(argument.value for argument in node.args[1:2] if isinstance(argument, ast.Constant))
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            own.add(node.name)
        elif isinstance(node, ast.AnnAssign):
            own.add(getattr(node.target, "id", ""))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            own.update(re.findall(r"^_syncagent_\w+$", node.value))
    private = re.compile("_(?!_)")
    return {name for name in read if private.match(name)}, own


def test_every_private_attribute_of_torchs_objects_is_listed():
    found = [private_attributes(ast.parse(path.read_text())) for path in SOURCES]
    own = set().union(*(names for _, names in found))
    listed = {part for path in (*REQUIRED, *OPTIONAL, *ON_INSTANCES) for part in path.split(".")}
    assert {
        path.name: read - own - listed for path, (read, _) in zip(SOURCES, found, strict=True) if read - own - listed
    } == {}
    assert {"_schema", "_backend_fns", "_untyped_storage"} <= set().union(*(read for read, _ in found))


def test_a_program_that_ends_with_work_in_the_queue_ends_well(run):
    done = run(
        "from syncagent import simulate; simulate.install()\n"
        "import torch\n"
        "x = torch.rand(200, 200, device='cuda')\n"
        "for _ in range(200): x = x @ x * 0.01\n"
        "print('last line')\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "last line\n", "")


def test_a_program_that_ends_by_an_exception_keeps_its_traceback(run):
    done = run(
        "from syncagent import simulate; simulate.install()\n"
        "import torch\n"
        "torch.cuda._sleep(30_000_000)\n"
        "torch.ones(2, device='cuda') + torch.ones(2)\n"
    )
    assert done.returncode == 1
    assert "same device" in done.stderr.splitlines()[-1]


FAILING = """\
import torch

def train(weight):
    for step in range(3):
        total = weight[torch.tensor([3 * step], device="cuda")]
        for _ in range(60):
            total = total * 1.01
        print(total.item())

train(torch.ones(4, device="cuda"))
"""
"""Fails in its third step, by an index out of range."""


@pytest.mark.parametrize(("blocking", "line"), [("0", 8), ("1", 5)])
def test_an_uncaught_error_under_syncagent_run_shows_the_programs_frames_alone(python, tmp_path, blocking, line):
    (tmp_path / "train.py").write_text(FAILING)
    variables = {"CUDA_LAUNCH_BLOCKING": blocking, "PYTHONPATH": str(Path(simulate.__file__).parents[2])}
    done = python("-m", "syncagent", "run", "--simulate", "--no-summary", "train.py", **variables)
    assert done.returncode == 1
    places = re.findall(r'^  File "(.*)", line (\d+)', done.stderr, re.MULTILINE)
    if sys.version_info < (3, 11):  # where the frame that an error leaves the agent by cannot be left out
        places = [place for place in places if "syncagent" not in place[0]]
        places = [place for place, _ in itertools.groupby(places)]  # nor can its stand-in, which shows the same line
    # The last one is in the note that says where the op was queued.
    expected = [10, line] if blocking == "1" else [10, line, 5]
    assert [(Path(file).name, int(number)) for file, number in places] == [("train.py", number) for number in expected]
    assert "torch.AcceleratorError: CUDA error: device-side assert triggered" in done.stderr
    assert len(done.stderr.splitlines()) <= 20


def test_a_child_forked_before_the_device_was_used_may_use_it(run):
    done = run(
        "from syncagent import simulate; simulate.install()\n"
        "import os, torch\n"
        "child = os.fork()\n"
        "total = torch.ones(2, device='cuda').sum().item()\n"
        "os.write(1, f'{total}\\n'.encode())\n"  # in one piece: both may write at the same time
        "if child: os.waitpid(child, 0)\n"
    )
    assert done.stdout == "2.0\n2.0\n", done.stderr


def test_installing_is_silent_even_where_warnings_are_errors(python):
    done = python(
        "-c",
        "import warnings; warnings.simplefilter('error')\n"
        "import torch\n"
        "from syncagent import simulate; simulate.install()\n"
        "print(torch.ones(2, device='cuda'))\n",
    )
    assert (done.stdout, done.stderr) == ("tensor([1., 1.], device='cuda:0')\n", "")


def test_a_number_of_devices_below_one_is_refused(run):
    done = run("from syncagent import simulate\nsimulate.install(devices=0)")
    assert "SimulationError: devices=0: at least one" in done.stderr


WATCHED = """
import syncagent, torch
with syncagent.watch(simulate=True, detail="syncs") as agent:
    x = torch.ones(3, device="cuda")
    torch.cuda._sleep(100_000_000)
    over = torch.cuda.Event()
    over.record()
    print(x.sum().item(), over.query(), x.cpu().tolist(), torch.cuda.synchronize())
report = agent.report()
print(len(agent.events()), [sensor.cannot_see for sensor in report.sensors if sensor.name == "simulated"])
"""


def test_without_the_stand_in_for_cudas_runtime_the_host_waits_all_the_same_and_the_report_says_so(run):
    done = run(
        "from pathlib import Path\n"
        "from syncagent.simulate import standin\n"
        "standin._FILE = Path('nowhere', 'libsyncagent_standin.so')\n" + WATCHED
    )
    values, seen = done.stdout.splitlines()
    assert values == "3.0 True [1.0, 1.0, 1.0] None", done.stderr
    assert seen.startswith("3 [")
    assert "the driver's waits, which are not simulated: libsyncagent_standin.so was not built, which takes" in seen


@pytest.mark.skipif(native.load() is None, reason=native.why_not())
def test_with_it_the_report_has_nothing_to_say_about_it(run):
    values, seen = run(WATCHED).stdout.splitlines()
    assert values == "3.0 True [1.0, 1.0, 1.0] None"
    assert seen.startswith("3 [")
    assert "driver" not in seen


@pytest.mark.parametrize("text", [b"", b"no library"])
def test_a_file_that_is_no_library_is_none(run, tmp_path, text):
    (tmp_path / "broken.so").write_bytes(text)
    done = run(
        "from pathlib import Path\n"
        "from syncagent import simulate\n"
        "from syncagent.simulate import standin\n"
        "standin._FILE = Path('broken.so').resolve()\n"
        "simulate.install()\n"
        "import torch\n"
        "print(torch.ones(2, device='cuda').sum().item(), simulate.without_runtime())\n"
    )
    assert done.stdout.startswith("2.0 "), done.stderr
    assert "broken.so: file too short\n" in done.stdout or "broken.so: invalid ELF header\n" in done.stdout


def test_the_worker_keeps_to_the_number_of_threads_that_was_set_before_it_started(run):
    done = run(
        "from syncagent import simulate; simulate.install()\n"
        "import os, torch\n"
        "torch.set_num_threads(1)\n"
        "x = torch.empty(400, 400, device='cuda')\n"
        "torch.cuda.synchronize()\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "x @ x\n"
        "torch.cuda.synchronize()\n"
        "print(len(os.listdir('/proc/self/task')) - before)\n"
    )
    assert done.stdout == "0\n", done.stderr
