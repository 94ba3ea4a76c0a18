"""A torch that lacks a name that the agent uses: the agent starts, watches, and its report says what is lost.

Names are taken away in forked children of one process, which has imported torch and no more.
"""

from __future__ import annotations

import json

GROUPS = (
    (
        "_C._get_obj_in_tls", "_C._current_graph_task_id", "_C._current_autograd_node", "_C._autograd._get_sequence_nr",
        "_C._cuda_getCurrentRawStream", "_C._cuda_isCurrentStreamCapturing", "_C._cuda_synchronize",
        "_C._accelerator_emptyCache", "backends.cuda.is_built", "cuda.Event", "is_grad_enabled", "amp.GradScaler",
        "Event", "ctc_loss",
    ),
    (
        "_C._dispatch_has_kernel_for_dispatch_key", "_C._dispatch_keys", "ops.aten._local_scalar_dense",
    ),
    (
        "library.Library", "_C._len_torch_function_stack", "profiler.record_function",
        "optim.optimizer.register_optimizer_step_post_hook",
    ),
)  # fmt: skip
"""Names that are taken away together."""

UNSAID = {"_C._dispatch_has_kernel_for_dispatch_key", "_C._dispatch_keys", "Event", "ctc_loss"}
"""Without these nothing is lost: there is another way, or nothing to watch."""

PROGRAM = """
import json, os, sys, traceback
import torch
import syncagent.runtime.agent
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():  # loads what each child would load at its first op
    torch.ones(2).sum()

def take_away(path):
    if path.startswith("ops.aten."):
        name = path.rpartition(".")[2]
        find = type(torch.ops.aten).__getattr__
        def look(namespace, asked):
            if namespace is torch.ops.aten and asked == name:
                raise AttributeError(name)
            return find(namespace, asked)
        type(torch.ops.aten).__getattr__ = look
        vars(torch.ops.aten).pop(name, None)
        return
    holder, _, name = path.rpartition(".")
    place, path = torch, "torch"
    for part in holder.split(".") if holder else ():
        path += "." + part
        place = sys.modules[path] if path in sys.modules else getattr(place, part)
    delattr(place, name)

def attempt(names):
    for name in names:
        take_away(name)
    with syncagent.watch(detail="ops") as agent:
        value = torch.ones(2, requires_grad=True)
        (value * 2).sum().backward()
        syncagent.step()
    report = agent.report().to_dict()
    said = [*report["notes"], *(f"{s['name']}: {s['cannot_see']}" for s in report["sensors"])]
    return {"gradient": value.grad.tolist(), "steps": report["run"]["steps"], "said": said}

for names in json.load(sys.stdin):
    read, write = os.pipe()
    if not os.fork():
        try:
            outcome = attempt(names)
        except BaseException:
            outcome = {"failed": traceback.format_exc()}
        os.write(write, json.dumps(outcome).encode()[:60_000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        print(pipe.read(), flush=True)
    os.wait()
"""


def test_an_agent_starts_without_any_of_them_and_says_what_is_lost(python):
    done = python("-c", PROGRAM, given=json.dumps([[], *GROUPS]))
    assert done.returncode == 0, done.stderr
    usual, *outcomes = map(json.loads, done.stdout.splitlines())
    for names, outcome in zip(GROUPS, outcomes, strict=True):
        assert (outcome.get("gradient"), outcome.get("steps")) == ([2.0, 2.0], 1), (names, outcome)
        said = " ".join(sentence for sentence in outcome["said"] if sentence not in usual["said"])
        for name in names:
            wanted = "hook of optimizers" if name.endswith("_hook") else name.rpartition(".")[2]
            assert name in UNSAID or wanted in said, (name, said)
