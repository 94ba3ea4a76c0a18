"""Whole processes: forks, threads, signals, exits, memory, and the agent started a thousand times."""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import torch

import syncagent
from tests.gpu.compat_cases import ITEM, NONZERO, Finished, Net, Run, SkipCase, batch, case, train

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

_ROUNDS = 1000
_LEAK_BUDGET_S = 12.0


# --- in this process ------------------------------------------------------------------------------------------------


def _resources() -> dict[str, int]:
    gc.collect()
    gc.collect()
    with open("/proc/self/statm", encoding="utf-8") as stream:
        pages = int(stream.read().split()[1])
    return {
        "rss_kb": pages * os.sysconf("SC_PAGE_SIZE") // 1024, "objects": len(gc.get_objects()),
        "threads": len(os.listdir("/proc/self/task")), "fds": len(os.listdir("/proc/self/fd")),
    }  # fmt: skip


@case("start and stop, 1,000 times", watched=False, limit_s=60)
def restarted(run: Run) -> Any:
    """What grows while nothing is seen is a leak: less than 1 kB and one object in four rounds is not."""
    net = Net().to(run.device)
    x = batch(run)

    def one_round() -> None:
        with run.watching(), torch.no_grad():
            net(x).sum().item()

    warm = 3 if run.bare else 60
    for _ in range(warm):
        one_round()
    before, began, rounds = _resources(), time.perf_counter(), 0
    halfway = before
    while rounds < _ROUNDS and time.perf_counter() - began < _LEAK_BUDGET_S:
        one_round()
        rounds += 1
        if rounds == _ROUNDS // 2:
            halfway = _resources()
    spent = time.perf_counter() - began
    run.agent = None
    after = _resources()
    grown = {key: after[key] - before[key] for key in before}
    run.notes.update(rounds=rounds, ms_a_round=round(spent * 1e3 / rounds, 2), grown=grown)
    run.check(grown["objects"] <= max(rounds / 4, 50), f"{grown['objects']} objects more after {rounds} rounds")
    # Memory grows by whole arenas, now and then; a leak grows in both halves.  torch itself does at first.
    halves = [halfway["rss_kb"] - before["rss_kb"], after["rss_kb"] - halfway["rss_kb"]]
    run.check(run.bare or min(halves) <= rounds / 2, f"{halves} kB more in the halves of {rounds} rounds")
    run.check(grown["threads"] <= 0, f"{grown['threads']} threads more after {rounds} rounds")
    run.check(grown["fds"] <= 0, f"{grown['fds']} file descriptors more after {rounds} rounds")
    return None


def _child(kind: str) -> int:
    """Work on the CPU only, as DataLoader workers do; say by the exit code what was wrong."""
    torch.set_num_threads(1)
    out = Net()(torch.ones(2, 8)).sum()
    if kind == "spawn":  # autograd refuses to work in a fork of a process in which it has threads
        out.backward()
    if torch.ones(3).sum().item() != 3.0:
        return 3
    return 4 if kind == "fork" and syncagent.current() is not None else 0


def _leave(kind: str) -> None:
    os._exit(_child(kind))


@case("fork with live CUDA")
def forked(run: Run) -> Any:
    x = batch(run)
    value = x.sum().item()
    worker = multiprocessing.get_context("fork").Process(target=_leave, args=("fork",))
    worker.start()
    worker.join(20)
    run.check(worker.exitcode == 0, f"the child ended with {worker.exitcode}")
    with run.syncs({ITEM: 1}, at=".item()"):
        again = x.sum().item()
    return value, again, worker.exitcode


@case("spawn with live CUDA", limit_s=60)
def spawned(run: Run) -> Any:
    x = batch(run)
    value = x.sum().item()
    worker = multiprocessing.get_context("spawn").Process(target=_leave, args=("spawn",))
    worker.start()
    worker.join(50)
    with run.syncs({ITEM: 1}, at=".item()"):
        again = x.sum().item()
    return value, again, worker.exitcode


@case("CUDA out of memory, then training goes on", needs="cuda")
def out_of_memory(run: Run) -> Any:
    net = Net().to(run.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    caught = []
    try:
        torch.empty(1 << 46, dtype=torch.uint8, device=run.device)
    except torch.OutOfMemoryError as error:
        caught.append(type(error).__name__)
    x = torch.ones(1 << 24, dtype=torch.bool, device=run.device)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    # nonzero needs 128 MB for its result: it fails inside the hooked op.
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (64 << 20)) / total)
    try:
        torch.nonzero(x)
    except torch.OutOfMemoryError as error:
        caught.append(type(error).__name__)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    with run.syncs({NONZERO: 1}, at="nonzero"):
        rows = torch.nonzero(x[:9])
    with run.syncs({ITEM: 3}, at=".item()"):
        losses = train(run, net, optimizer)
    return caught, rows, losses, net


@case("MemoryError on the host, then training goes on")
def host_memory(run: Run) -> Any:
    net = Net().to(run.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    caught = []

    def fails(_gradient: torch.Tensor) -> None:
        raise MemoryError("asked for by the test")

    out = net(batch(run))
    out.register_hook(fails)
    for call in (lambda: bytearray(1 << 62), lambda: torch.empty(1 << 52), out.sum().backward):
        try:
            call()
        except (MemoryError, RuntimeError) as error:
            caught.append(type(error).__name__)
    optimizer.zero_grad()
    with run.syncs({ITEM: 3}, at=".item()"):
        losses = train(run, net, optimizer)
    return caught, losses, net


@case("200 threads")
def many_threads(run: Run) -> Any:
    each = 5
    values = [torch.arange(4.0, device=run.device) + n for n in range(200)]
    read: list[list[float]] = [[] for _ in values]
    start = threading.Barrier(len(values))

    def work(index: int) -> None:
        start.wait()
        for _ in range(each):
            read[index].append(values[index].sum().item())

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(values))]
    with run.syncs({ITEM: each * len(values)}, at=".item()", threads=True):
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return read


@case("asyncio: 20 tasks, one of them allowed")
def tasks(run: Run) -> Any:
    values = [torch.arange(4.0, device=run.device) + n for n in range(20)]

    async def work(index: int) -> list[float]:
        read = []
        for _ in range(3):
            await asyncio.sleep(0)
            read.append(values[index].sum().item())
        return read

    async def wanted(index: int) -> list[float]:
        with syncagent.allow("task 7"):
            return await work(index)

    async def main() -> list[list[float]]:
        return await asyncio.gather(*((wanted if n == 7 else work)(n) for n in range(len(values))))

    with run.syncs({ITEM: 60}, at=".item()"):
        read = asyncio.run(main())
    if run.sees:
        allowed = [event.allowed for event in run.events() if event.allowed is not None]
        run.check(allowed == ["task 7"] * 3, f"allowed were {allowed}")
    return read


# --- in processes of their own --------------------------------------------------------------------------------------

_STALL = """
import os, sys, threading, time
import torch

x = torch.ones(4, device=DEVICE)
x.sum().item()

def stall():
    if DEVICE == "cuda":
        torch.cuda._sleep(4_000_000_000)  # about two seconds
    else:
        time.sleep(2)
    return x.sum().item()
"""


def _judge(run: Run, done: Finished, code: int | None, *, report: bool = True) -> Any:
    """Check how a process ended; what it printed and its exit code are the result, which must be as without."""
    if code is not None:
        run.check(done.code == code, f"exit code {done.code}, not {code}; stderr ends: {done.err.strip()[-300:]!r}")
    run.notes["stderr"] = done.err.strip()[-200:]
    if report and not run.bare:
        run.check(done.report, "no report was saved")
        sites = json.loads(done.report)["sites"] if done.report else []
        run.notes["sites"] = [f"{site['op']} x{site['count']} line {site['line']}" for site in sites]
        if run.device == "cuda":
            run.check(any(site["op"] == ITEM for site in sites), "the report lacks the sync")
    return done.code, done.out


def _sends(number: int) -> Callable[[subprocess.Popen[str]], None]:
    return lambda process: process.send_signal(number)


_SIGNALLED = _STALL + 'print("stalled", flush=True)\nstall()\ntime.sleep(20)\nprint("not reached")\n'


@case("Ctrl-C in a stall", process=True, watched=False)
def interrupted(run: Run) -> Any:
    done = run.python(_SIGNALLED, when="stalled", then=_sends(signal.SIGINT))
    run.check("KeyboardInterrupt" in done.err, "no KeyboardInterrupt was shown")
    return _judge(run, done, -signal.SIGINT)


@case("Ctrl-C in a stall, caught by the script", process=True, watched=False)
def interrupt_caught(run: Run) -> Any:
    program = (
        _STALL
        + """
print("stalled", flush=True)
try:
    stall()
    time.sleep(20)
except KeyboardInterrupt:
    print("caught", x.sum().item())
    sys.exit(5)
"""
    )
    return _judge(run, run.python(program, when="stalled", then=_sends(signal.SIGINT)), 5)


@case("SIGTERM in a stall", process=True, watched=False)
def terminated(run: Run) -> Any:
    return _judge(run, run.python(_SIGNALLED, when="stalled", then=_sends(signal.SIGTERM)), -signal.SIGTERM)


@case("os._exit in a stall", process=True, watched=False)
def left(run: Run) -> Any:
    program = (
        _STALL
        + """
threading.Timer(0.5, os._exit, (7,)).start()
print("stalled", flush=True)
stall()
time.sleep(20)
"""
    )
    return _judge(run, run.python(program), 7, report=False)


@case("the script fails in a stall", process=True, watched=False)
def failed(run: Run) -> Any:
    program = _STALL + 'stall()\nraise ValueError("of the script")\n'
    done = run.python(program)
    run.check("ValueError: of the script" in done.err, "the script's traceback is gone")
    return _judge(run, done, 1)


@case("torch imported late", process=True, watched=False)
def late(run: Run) -> Any:
    program = """
import sys
assert "torch" not in sys.modules

def read():
    import torch
    return torch.ones(4, device=DEVICE).sum().item()

print(read(), read())
"""
    return _judge(run, run.python(program), 0)


@case("the interpreter ends while a daemon thread syncs", process=True, watched=False)
def shutdown(run: Run) -> Any:
    program = (
        _STALL
        + """
def forever():
    mine = torch.ones(4, device=DEVICE)
    while True:
        mine.sum().item()

for _ in range(2):
    threading.Thread(target=forever, daemon=True).start()
time.sleep(0.5)
print("ends", flush=True)
"""
    )
    done = run.python(program)
    run.check("Traceback" not in done.err, f"a traceback at the end: {done.err.strip()[-300:]!r}")
    run.notes["exit code"] = done.code
    if done.code != 0 and not run.bare:  # torch itself may abort when such a thread is cut off in C++
        without = [Run(run.case, "bare", run.device, sees=False).python(program).code for _ in range(3)]
        run.notes["exit codes without the agent"] = without
        run.check(done.code in without, f"exit code {done.code}; without the agent {without}")
    _judge(run, done, None, report=done.code == 0)
    return done.out


@case("a capture that fails on item()", needs="cuda", process=True, watched=False)
def capture_refused(run: Run) -> Any:
    """In a process of its own: what a failed capture leaves behind must not reach other cases."""
    program = (
        _STALL
        + """
graph = torch.cuda.CUDAGraph()
refused = "nothing"
try:
    with torch.cuda.graph(graph):
        x.sum().item()
except Exception as error:
    refused = type(error).__name__
print(refused)
try:
    print(torch.ones(4, device=DEVICE).sum().item())
except Exception as error:
    print(type(error).__name__)
"""
    )
    return _judge(run, run.python(program), None)


@case("SYNCAGENT=1 and a spawned DataLoader", process=True, watched=False, limit_s=60)
def spawned_loader(run: Run) -> Any:
    program = """
import torch

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.full((4,), float(index))

if __name__ == "__main__":
    loader = torch.utils.data.DataLoader(Rows(), batch_size=4, num_workers=2, multiprocessing_context="spawn")
    print([rows.to(DEVICE).sum().item() for rows in loader])
"""
    return _judge(run, run.python(program), 0)


@case("raise: torch.compile's own reads under a default device", process=True, watched=False, limit_s=60)
def compile_reads(run: Run) -> Any:
    """Where a function mode is active, Dynamo tries every operator on real tensors, once a process.

    Those stand on the default device, and one is read back: were that forbidden, Dynamo would stay half made up.
    """
    program = """
import torch

torch.set_default_device(DEVICE)
compiled = torch.compile(lambda x: (x > 0) * 2, backend="aot_eager", fullgraph=True)
x = torch.zeros(4)
for _ in range(2):
    try:
        print(tuple(compiled(x).shape))
    except Exception as error:
        print(type(error).__name__, str(error)[:200])
"""
    return _judge(run, run.python(program, policy="raise", warmup_steps="0"), 0, report=False)


_BESIDE = """
import faulthandler, threading, time
import torch
import syncagent

faulthandler.enable()
torch.set_num_threads(1)
ends = time.monotonic() + 6
wrong = []

def work():
    one, other = torch.ones(4, device=DEVICE), torch.zeros(4, device=DEVICE)
    try:
        while time.monotonic() < ends:
            other.copy_(one)
            other.sum().item()
    except BaseException as error:
        wrong.append(repr(error)[:200])

workers = [threading.Thread(target=work) for _ in range(4)]
for worker in workers:
    worker.start()
"""
_BESIDE_ENDS = """
for worker in workers:
    worker.join()
print(wrong or "all went well")
"""


@case("started and stopped while other threads compute", process=True, watched=False)
def restarted_beside(run: Run) -> Any:
    program = _BESIDE + """
while time.monotonic() < ends and not wrong:
    if MODE == "bare":
        time.sleep(0.01)
        continue
    with syncagent.watch(detail=MODE, journal="off", summary=False):
        time.sleep(0.01)
""" + _BESIDE_ENDS  # fmt: skip
    return _judge(run, run.python(program, alone=True), 0, report=False)


@case("copies sampled while other threads compute", process=True, watched=False)
def sampled_beside(run: Run) -> Any:
    """Sampling arms and disarms the kernel of ``copy_`` in the middle of the run."""
    program = _BESIDE + """
def train():
    while time.monotonic() < ends and not wrong:
        syncagent.step()
        time.sleep(0.0005)

if MODE == "bare":
    train()
else:
    with syncagent.watch(detail=MODE, copies="sampled", journal="off", summary=False):
        train()
""" + _BESIDE_ENDS  # fmt: skip
    return _judge(run, run.python(program, alone=True), 0, report=False)


# --- beside what else looks into CUDA ---------------------------------------------------------------------------------


@case("an extension that is loaded later", needs="cuda", process=True, watched=False)
def extension_later(run: Run) -> Any:
    """It is known a second after it was loaded, at the latest."""
    program = """
import time
import torch
from tests.gpu import extension

x = torch.ones(4, device=DEVICE)
print(x.sum().item())
own = extension.load(hold_gil=False)
time.sleep(1.5)
torch.cuda._sleep(100_000_000)
print(own.wait_device())
"""
    done = run.python(program)
    if not run.bare:
        sites = json.loads(done.report)["sites"] if done.report else []
        seen = [(site["op"], site["count"], site["source"]) for site in sites if site["kind"] == "explicit"]
        expected = [("cudaDeviceSynchronize", 1, "print(own.wait_device())")]
        run.check(seen == expected, f"the explicit waits were {seen}")
    return _judge(run, done, 0)


_TOOLS = {
    "compute-sanitizer": ("--log-file", os.devnull, "--error-exitcode", "9"),
    "ncu": ("--log-file", os.devnull, "--clock-control", "none", "--launch-count", "3"),
}


def _beside(run: Run, tool: str) -> Any:
    path = shutil.which(tool)
    if path is None:
        raise SkipCase(f"{tool} is not installed")
    program = """
import torch

x = torch.arange(4.0, device=DEVICE)
print(torch.nonzero(x).sum().item(), x[x > 1].sum().item())
"""
    done = run.python(program, under=(path, *_TOOLS[tool]), timeout_s=150)
    if run.bare and done.code:
        raise SkipCase(f"{tool} does not work here: {(done.out + done.err).strip()[-200:]}")
    return _judge(run, done, 0)


@case("compute-sanitizer beside it", needs="cuda", process=True, watched=False, limit_s=150)
def sanitizer(run: Run) -> Any:
    return _beside(run, "compute-sanitizer")


@case("ncu beside it", needs="cuda", process=True, watched=False, limit_s=150)
def profiled_kernels(run: Run) -> Any:
    return _beside(run, "ncu")
