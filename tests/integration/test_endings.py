"""Programs may do anything to their own process, threads, folders and outputs: the agent copes.

Most cases are children of one process that has loaded torch; see ``tests/forked.py``.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from tests.forked import begin, fork

CASES: dict[str, tuple[str, dict[str, str]]] = {}


def case(name, code, patch="", **variables):
    CASES[name] = (begin(patch) + textwrap.dedent(code), variables)


# --- forks while the agent is at work ---------------------------------------------------------------------------------

FORKS = """
import logging
over = threading.Event()
def sync():
    while not over.is_set():
        x.nonzero()
        time.sleep(0.0005)
thread = threading.Thread(target=sync)
thread.start()
lazy = ["wave", "sndhdr", "chunk", "colorsys", "cgi", "aifc", "mailbox", "plistlib", "tabnanny", "turtledemo"]
hung, enough = [], time.monotonic() + 6
for number in range(40):
    if time.monotonic() > enough:
        break  # a busy machine
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.ones(2).nonzero()
            logging.warning("a child's own")
            print("child", file=sys.stderr, flush=True)
            syncagent.step()
            assert syncagent.current() is None
            if number % 20 == 0:
                with syncagent.watch(detail="syncs", simulate=False) as agent:
                    agent.report()
            if number % 4 == 1:
                threading.Thread(target=lambda: torch.ones(2).sum().item()).start()
            if number % 4 == 2:
                from syncagent.support.log import log_once
                log_once("child", "of the child")
            code = 0
        finally:
            os._exit(code)
    ending = time.monotonic() + 30
    done = 0
    while not done and time.monotonic() < ending:
        done, status = os.waitpid(pid, os.WNOHANG)
        time.sleep(0.001)
    if not done:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        hung.append(number)
    elif status:
        hung.append((number, os.waitstatus_to_exitcode(status)))
    if hung:
        break
over.set()
thread.join()
print("hung", hung, flush=True)
os._exit(7) if hung else sys.exit(7)
"""
case("forks", FORKS, SYNCAGENT_JOURNAL="spans.jsonl", OTEL_BSP_SCHEDULE_DELAY="1")
case(
    "forks at the agent's wake-up",
    """
    agent = syncagent.current()
    wake = agent._pipeline._wake
    with wake._cond:  # as the agent's thread holds it for a moment, again and again
        pid = os.fork()
        if pid == 0:
            os._exit(0)
    ending, done = time.monotonic() + 30, 0
    while not done and time.monotonic() < ending:
        done, status = os.waitpid(pid, os.WNOHANG)
        time.sleep(0.01)
    if not done:
        os.kill(pid, signal.SIGKILL)
    print("hangs" if not done else status, flush=True)
    """,
)

# --- folders ----------------------------------------------------------------------------------------------------------

GONE = "import shutil, tempfile\nf = tempfile.mkdtemp(); os.chdir(f); shutil.rmtree(f)\n"
case("a folder that goes", GONE + "x.nonzero(); sys.exit(7)", SYNCAGENT_REPORT="{folder}/report.json")
case(
    "a folder that is gone at the start",
    "x.nonzero()\nsys.exit(7)",
    patch=GONE,
    SYNCAGENT_REPORT="{folder}/report.json",
    SYNCAGENT_JOURNAL="{folder}/spans.jsonl",
)

# --- outputs ----------------------------------------------------------------------------------------------------------

case("stderr closed", "x.nonzero(); sys.stderr.close(); sys.exit(7)")
case("both closed", "x.nonzero(); sys.stderr.close(); sys.stdout.close(); sys.exit(7)")
case("stderr is nothing, and a file is fd 2", "sys.stderr = None; os.close(2); f = open('own', 'w'); x.nonzero()\n"
     "f.write('own'); f.close(); sys.exit(7)")  # fmt: skip
case("stderr is a full disk", "os.dup2(os.open('/dev/full', os.O_WRONLY), 2); x.nonzero(); sys.exit(7)")
case("stderr is a full disk, and all is well", "os.dup2(os.open('/dev/full', os.O_WRONLY), 2); x.nonzero()")
case("stderr is a broken pipe", "a, b = os.pipe(); os.dup2(b, 2); os.close(b); os.close(a); x.nonzero()")
case(
    "stderr is somebody's that fails",
    "class S:\n    encoding = None\n    def write(self, text): raise OSError('full')\n    def flush(self): pass\n"
    "    def isatty(self): raise ValueError\nsys.stderr = S(); x.nonzero()",
)
OUTPUTS = {name: 7 if "sys.exit(7)" in code else 0 for name, (code, _) in CASES.items() if name.startswith(("s", "b"))}

# --- threads ----------------------------------------------------------------------------------------------------------

case(
    "instrument on another thread",
    """
    import signal
    before = signal.getsignal(signal.SIGTERM)
    for _ in range(3):
        x.nonzero()
    assert syncagent.current() is not None
    sys.exit(7)
    """,
)
CASES["instrument on another thread"] = (
    CASES["instrument on another thread"][0].replace(
        "autostart.begin()\nimport torch\n",
        "import torch\n"
        "thread = threading.Thread(target=autostart.instrument, args=({}, {'simulate': True, 'summary': True}))\n"
        "thread.start(); thread.join()\n",
    ),
    {},
)


# The first of them pays for the processes of all.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """``done(name)``: how that case ended."""
    folder = tmp_path_factory.mktemp("endings")
    given = {
        name: {"code": code, "variables": {k: v.replace("{folder}", str(folder / name)) for k, v in variables.items()}}
        for name, (code, variables) in CASES.items()
    }
    return fork(given, folder)


def test_children_that_are_forked_while_the_agent_works_do_not_hang(done):
    """They compute, log, print and start an agent of their own: nothing that a thread held is still held."""
    found = done("forks")
    assert (found.code, found.out) == (7, "trained\nhung []\n")


def test_a_child_does_not_wait_for_the_agents_thread(done):
    """Whose wake-up lock was held when it was forked."""
    assert done("forks at the agent's wake-up").out == "trained\n0\n"


@pytest.mark.parametrize("name", ["a folder that goes", "a folder that is gone at the start"])
def test_without_a_working_folder_there_are_a_report_and_a_table(done, name):
    """Paths are shown as they are."""
    found = done(name)
    assert (found.code, found.out) == (7, "trained\n")
    assert found.report["totals"]["syncs"] >= 3
    assert "host syncs; the host waited" in found.err
    assert found.blames_us() == []


@pytest.mark.parametrize("name", OUTPUTS)
def test_without_a_stderr_nothing_is_printed_elsewhere_and_the_exit_code_is_the_programs(done, name):
    """Its stdout and its files are its own; the report is saved."""
    found = done(name)
    assert (found.code, found.out) == (OUTPUTS[name], "trained\n")
    assert found.report["totals"]["syncs"] >= 3
    own = found.folder / "own"
    assert not own.exists() or own.read_text() == "own"


def test_instrumenting_on_another_thread_says_only_what_is_true(done):
    """It is watched, and nothing says that it is not."""
    found = done("instrument on another thread")
    assert (found.code, found.out) == (7, "trained\n")
    assert "unwatched" not in found.err
    assert "host syncs; the host waited" in found.err


@pytest.mark.parametrize("command", ["train.py", "-m syncagent run train.py"])
def test_a_process_that_has_no_stderr_from_the_start_has_its_files_and_its_stdout_for_itself(
    environ, tmp_path, command
):
    """Its first file is number 2; without a sync there is a line to be said, which has no place."""
    code = (
        "import os, sys\nf = open('own', 'w')\nimport torch\nassert f.fileno() == 2\ntorch.ones(2).nonzero()\n"
        "print('out'); f.write('own'); f.close(); sys.exit(3)"
    )
    (tmp_path / "train.py").write_text(code)
    ran = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} {command} 2>&-"], env=environ | {"SYNCAGENT": "1"}, cwd=tmp_path,
        stdout=subprocess.PIPE, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout, (tmp_path / "own").read_text()) == (3, "out\n", "own")


GEVENT = """\
import sys
import torch
from gevent import monkey
monkey.patch_all()
import gevent
gevent.joinall([gevent.spawn(lambda: torch.ones(2).sum().item()) for _ in range(2)])
sys.exit(5)
"""


def test_gevent_may_take_the_place_of_threads_after_torch_is_imported(python):
    """The agent's threads, which were there before, end silently."""
    pytest.importorskip("gevent")
    ran = python("-c", GEVENT, SYNCAGENT="1")
    assert (ran.returncode, ran.stdout) == (5, "")
    assert "KeyError" not in ran.stderr
    assert "Traceback" not in ran.stderr


DAEMON = """
import threading, time
import torch

x, model = torch.ones(1_000_000, device="cuda"), torch.nn.Linear(64, 64).to("cuda")
small = torch.ones(16, 64, device="cuda")

def queue():
    while True:
        x.add_(1)

def read():
    while True:
        model(small).argmax().item()
        time.sleep(0.002)

def train():
    while True:
        model(small).sum().backward()

model(small).sum().backward()  # at its first call torch imports a lot, which takes a thread too long for the end
x.add_(1).argmax().item()
for work in ({works}):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.3)
print(small.sum().item())
"""


@pytest.mark.parametrize("works", ["queue,", "read, read", "train,", "queue, read, train"])
@pytest.mark.parametrize("watched", ["0", "1"])
def test_daemon_threads_that_go_on_with_the_simulated_device_do_not_keep_the_process_from_its_end(
    python, works, watched
):
    """A queue that is filled faster than it empties; a thread that is inside torch while Python is torn down."""
    done = python("-c", DAEMON.format(works=works), SYNCAGENT_SIMULATE="1", SYNCAGENT=watched)
    assert (done.returncode, done.stdout) == (0, "1024.0\n"), done.stderr
