"""Programs that are children of one process, which has loaded torch and the agent and done nothing else.

Loading them takes seconds, which a child need not spend.  It ends as an interpreter of its own would.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap

from tests import processes

LOADED = """\
import gc, importlib, json, os, pkgutil, signal, sys, time
import torch
import syncagent
for module in pkgutil.walk_packages(syncagent.__path__, "syncagent."):
    # pkgutil takes any file that ends in .so for a module.
    if module.name.split(".")[1] not in {left_out!r} and not module.name.startswith("syncagent.native.lib"):
        importlib.import_module(module.name)
torch.set_num_threads(1)
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():  # loads what each child would load at its first op
    torch.ones(2).sum()

import rich.box, rich.console, rich.padding, rich.table, rich.text, statistics
gc.collect()
gc.freeze()  # a child's own collections leave alone what it shares with the others
"""
LEFT_OUT = ("__main__", "cli", "integrations", "selftest")

# --- many cases at once, each of which begins the agent by itself -----------------------------------------------------

FORKER = (
    LOADED.format(left_out=LEFT_OUT)
    + """
cases, folder = json.load(open(sys.argv[1])), sys.argv[2]
def wait(running, most, results):
    while len(running) > most:
        for pid, (name, began) in list(running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                results[name] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() - began > 60:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                results[name] = "hangs"
            else:
                continue
            del running[pid]
        time.sleep(0.01)

running, results, code = {}, {}, None
for name, case in cases.items():
    wait(running, 1, results)
    pid = os.fork()
    if pid == 0:
        place = os.path.join(folder, name)
        os.makedirs(place)
        os.chdir(place)
        for number, file in ((1, "out"), (2, "err")):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
        os.environ.update({"SYNCAGENT": "1", "SYNCAGENT_SIMULATE": "1", "SYNCAGENT_JOURNAL": "off",
                           "SYNCAGENT_CAPTURE": "off",
                           "SYNCAGENT_REPORT": "report.json", **case.get("variables", {})})
        code = case["code"]
        break
    running[pid] = (name, time.monotonic())
if code is None:
    wait(running, 0, results)
    json.dump(results, open(os.path.join(folder, "results.json"), "w"))
    sys.exit()
sys.argv = ["train.py"]
del cases, folder, running, results
exec(compile(code, "train.py", "exec"))
"""
)

BEGIN = """\
import os, signal, sys, threading, time
from syncagent.runtime import autostart
import syncagent
{patch}
autostart.begin()
import torch
x = torch.tensor([1.0, 0.0, 2.0], device="cuda")
assert syncagent.current() is not None or {unwatched}
assert x[x > 0].sum().item() == 3.0
print("trained", flush=True)
"""


def begin(patch="", *, unwatched=False):
    return BEGIN.format(patch=textwrap.dedent(patch), unwatched=unwatched)


# Triton, which is loaded with torch here, counts at exit what a program that never loads it does not have.
_TRITONS_COUNT = re.compile(r"nanobind: leaked .*?/refleaks\.html\n?", re.DOTALL)


class Done:
    """What a case left behind."""

    def __init__(self, folder, code):
        self.code = code
        self.folder = folder
        self.out = (folder / "out").read_text()
        self.err = _TRITONS_COUNT.sub("", (folder / "err").read_text(errors="replace"))

    @property
    def said(self):
        return [line for line in self.err.splitlines() if line.startswith(("[syncagent] ", "syncagent: "))]

    @property
    def report(self):
        return json.loads((self.folder / "report.json").read_text())

    def blames_us(self):
        """Whether the program's reader is shown a traceback of the agent's."""
        return [line for line in self.err.splitlines() if "Exception ignored" in line or processes.PACKAGE in line]


def fork(cases, folder):
    """Run all cases, a process each; returns ``done(name)``, how that case ended."""
    (folder / "cases.json").write_text(json.dumps(cases))
    ran = processes.run("-c", FORKER, folder / "cases.json", folder, cwd=folder, timeout=500)
    assert ran.returncode == 0, ran.stderr[-4000:]
    results = json.loads((folder / "results.json").read_text())
    return lambda name: Done(folder / name, results[name])


# --- one program after the other, each with an environment of its own -------------------------------------------------

# OpenTelemetry is not loaded: some of its variables are read as it is.
SERVER = (
    LOADED.format(left_out=(*LEFT_OUT, "telemetry"))
    + """
assert "opentelemetry" not in sys.modules
for line in iter(sys.stdin.readline, ""):
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        break
    ending, done = time.monotonic() + job["timeout"], 0
    while not done:
        done, status = os.waitpid(pid, os.WNOHANG)
        if not done and time.monotonic() > ending:
            os.kill(pid, signal.SIGKILL)
            done, status = os.waitpid(pid, 0)
        time.sleep(0.01)
    print(os.waitstatus_to_exitcode(status), flush=True)
else:
    sys.exit()
os.environ.clear()
os.environ.update(job["environment"])
os.chdir(job["cwd"])
for number, (file, how) in enumerate(((os.devnull, os.O_RDONLY), *((file, os.O_WRONLY) for file in job["outputs"]))):
    os.dup2(os.open(file, how), number)
sys.argv = job["words"]
sys.path[0] = os.getcwd()
__file__, code, begin = sys.argv[0], open(sys.argv[0]).read(), job["begin"]
del job, pid, line, number, file, how, module
exec(begin)
exec(compile(code, __file__, "exec"))
"""
)


class Forker:
    """Runs scripts, each in a child of one process."""

    def __init__(self, folder):
        self._outputs = [folder / name for name in ("out", "err")]
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER], cwd=folder, env=processes.environment(PYTHONPATH=str(processes.ROOT)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *words, cwd, timeout=100, **environment):
        """Run this script with these words in that folder, as an interpreter with the agent installed would."""
        for file in self._outputs:
            file.write_bytes(b"")
        begin = (processes.ROOT / "syncagent_autostart.pth").read_text(encoding="utf-8")
        job = {
            "words": [str(word) for word in words], "cwd": str(cwd), "timeout": timeout, "begin": begin,
            "environment": environment, "outputs": [str(file) for file in self._outputs],
        }  # fmt: skip
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        out, err = (file.read_text("utf-8") for file in self._outputs)
        return subprocess.CompletedProcess(words, code, out, _TRITONS_COUNT.sub("", err))

    def stop(self):
        """Have the process end, once no more scripts come."""
        self._process.communicate()
