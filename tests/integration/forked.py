"""Programs that are children of one process, which has loaded torch and the agent and done nothing else.

A child turns ``SYNCAGENT=1`` on by itself, on the simulated device, and ends as an interpreter of its own would.
"""

from __future__ import annotations

import json
import textwrap

from tests import processes

FORKER = """\
import gc, importlib, json, os, pkgutil, signal, sys, time
cases, folder = json.load(open(sys.argv[1])), sys.argv[2]
import torch
import syncagent
for module in pkgutil.walk_packages(syncagent.__path__, "syncagent."):
    if module.name.split(".")[1] not in ("__main__", "cli", "integrations", "selftest"):
        importlib.import_module(module.name)
torch.set_num_threads(1)
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():  # loads what each child would load at its first op
    torch.ones(2).sum()

import rich.box, rich.console, rich.padding, rich.table, rich.text, statistics
gc.collect()
gc.freeze()  # a child's own collections leave alone what it shares with the others

def wait(running, most, results):
    while len(running) > most:
        for pid, (name, began) in list(running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                results[name] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() - began > 20:
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


class Done:
    """What a case left behind."""

    def __init__(self, folder, code):
        self.code = code
        self.folder = folder
        self.out = (folder / "out").read_text()
        self.err = (folder / "err").read_text(errors="replace")

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
    ran = processes.run("-c", FORKER, folder / "cases.json", folder, cwd=folder, timeout=280)
    assert ran.returncode == 0, ran.stderr[-4000:]
    results = json.loads((folder / "results.json").read_text())
    return lambda name: Done(folder / name, results[name])
