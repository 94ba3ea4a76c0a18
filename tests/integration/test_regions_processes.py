"""Regions in whole processes on the simulated device: scripts that are watched already open a watch of their own."""

from __future__ import annotations

import json
import signal

import pytest

SCRIPT = """\
import asyncio, json, os, signal, sys, threading
import torch
import syncagent

x = torch.tensor([[1.0, 0.0], [0.0, 5.0]], device="cuda")
w = torch.nn.Parameter(torch.ones(2, 2, device="cuda"))
optimizer = torch.optim.SGD([w], lr=0.1)
found = {}

def forbidden(call):
    try:
        call()
    except syncagent.HostSyncError as error:
        return error.event.site.line
    return 0

def read():
    return x.sum().item()  # line 18

class Waits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return y * 1

    @staticmethod
    def backward(ctx, gradient):
        read()
        return gradient

def train():
    Waits.apply(w * x).sum().backward()
    optimizer.step()

async def strict():
    with syncagent.watch(policy="raise"):
        await asyncio.sleep(0.01)
        return forbidden(read)

async def loose():
    with syncagent.watch(policy="observe") as region:
        for _ in range(3):
            await asyncio.sleep(0.01)
            read()
    return region.report().totals.syncs

async def tasks():
    return await asyncio.gather(strict(), loose(), strict())

read()
with syncagent.watch(policy="raise", report="inside.json", max_syncs_per_step={"backward": 1, "other": 0}) as region:
    found["policy"] = syncagent.current().policy
    found["item"] = forbidden(read)
    found["copy"] = bool(forbidden(lambda: x.cpu()))
    thread = threading.Thread(target=lambda: found.update(thread=forbidden(read)))
    thread.start()
    thread.join()
    with syncagent.allow("wanted"):
        read()
    train()
    Waits.apply(w * x).sum().backward()
    found["budget"] = forbidden(train)
found["after"] = forbidden(read)
found["tasks"] = asyncio.run(tasks())
print(json.dumps(found), flush=True)
with syncagent.watch(policy="raise", report="killed.json"), syncagent.allow("last"):
    read()
    if sys.argv[1:] == ["killed"]:
        os.kill(os.getpid(), signal.SIGTERM)
    sys.exit(3)
"""


@pytest.mark.parametrize(("detail", "ending"), [("ops", "exits"), ("syncs", "killed"), ("auto", "exits")])
def test_a_region_in_a_process_that_is_watched(forked, tmp_path, detail, ending):
    """It raises at the user's line before the wait, in its thread, task and backward passes, and nowhere else.

    Its report holds what ran inside, and is saved however the process ends.
    """
    (tmp_path / "train.py").write_text(SCRIPT)
    done = forked(
        "train.py", ending, SYNCAGENT="1", SYNCAGENT_SIMULATE="1", SYNCAGENT_DETAIL=detail, SYNCAGENT_JOURNAL="off",
        SYNCAGENT_REPORT="run.json",
    )  # fmt: skip
    assert done.returncode == (-signal.SIGTERM if ending == "killed" else 3), done.stderr
    line = 1 + SCRIPT.splitlines().index("    return x.sum().item()  # line 18")
    assert json.loads(done.stdout.splitlines()[0]) == {
        "policy": "raise", "item": line, "copy": True, "thread": 0, "budget": line, "after": 0,
        "tasks": [line, 3, line],
    }  # fmt: skip
    inside, killed, run = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("inside", "killed", "run"))
    assert (inside["run"]["policy"], inside["run"]["steps"], inside["run"]["detail"]) == ("raise", 1, detail)
    assert sum(site["count"] - site["violations"] for site in inside["sites"]) == 1 + 2
    assert sum(site["allowed_count"] for site in inside["sites"]) == 1
    assert [(site["count"], site["allowed"]) for site in killed["sites"]] == [(1, "last")]
    assert (run["run"]["policy"], run["run"]["steps"]) == ("observe", 1)
    unseen = detail == "auto"  # what the other thread reads
    assert sum(site["count"] - site["violations"] for site in run["sites"]) >= 3 + 1 + 1 + 2 + 3 + 1 - unseen
