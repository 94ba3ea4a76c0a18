"""Runs to report on, put together from records as the pipeline would deliver them."""

from __future__ import annotations

from syncagent.events import CallSite, OpCount, Phase, StepRecord, SyncEvent, SyncKind
from syncagent.report.model import Overhead, Report, RunInfo, SensorStatus
from syncagent.report.summary import Summary

CWD = "/home/ada/proj"
LOSS = f"{CWD}/loss.py"
TRAIN = f"{CWD}/train.py"
START_NS = 1_700_000_000_000_000_000
MS = 1_000_000

MASK = CallSite(LOSS, 57, "masked_loss", "kept = logits[mask]")
NONZERO = CallSite(LOSS, 41, "masked_loss", "torch.nonzero(labels == 9)")
BACKWARD = CallSite(TRAIN, 88, "main", "loss.backward()")


def sync(site=NONZERO, *, ms=1.0, at_ms=0.0, **changed) -> SyncEvent:
    values = {
        "op": "aten::nonzero",
        "api": "torch.nonzero",
        "kind": SyncKind.DYNAMIC_SHAPE,
        "start_ns": START_NS + round(at_ms * MS),
        "stall_ns": round(ms * MS),
        "site": site,
        "phase": Phase.FORWARD,
        "step": 0,
        "rank": None,
        "device": "cuda:0",
        "stream": 0,
        "thread": "MainThread",
        "sensor": "kernels",
    }
    return SyncEvent(**(values | changed))


def backward_sync(**changed) -> SyncEvent:
    return sync(**({"site": BACKWARD, "phase": Phase.BACKWARD, "forward_site": MASK, "thread": "autograd"} | changed))


def step(number=0, *, start_ms=0.0, end_ms=100.0) -> StepRecord:
    return StepRecord(number, START_NS + round(start_ms * MS), START_NS + round(end_ms * MS))


def run_info(**changed) -> RunInfo:
    values = {
        "started": "2025-11-23T02:50:00Z",
        "duration_s": 1.0,
        "torch": "2.11.0+cu130",
        "cuda": "13.0",
        "device": "NVIDIA H100",
        "host": "node7",
        "rank": None,
        "world_size": None,
        "steps": 0,
        "policy": "observe",
        "detail": "syncs",
        "simulated": False,
        "script": TRAIN,
        "argv": ("--variant", "0"),
        "cwd": CWD,
    }
    return RunInfo(**(values | changed))


KERNELS = SensorStatus("kernels", live=True, cannot_see="coalesce on sparse tensors")
CUPTI = SensorStatus("cupti", live=False, cannot_see="", detail="not asked for")


def report_of(*events: SyncEvent, steps: int = 0, dropped: int = 0, ops=(), notes=(), problems=(), **run) -> Report:
    """A report of these syncs in a run of ``steps`` steps, 100 ms each."""
    summary = Summary()
    summary.events(events)
    for number in range(steps):
        summary.step(step(number, start_ms=100.0 * number, end_ms=100.0 * (number + 1)))
    return summary.snapshot(run_info(**run), (KERNELS, CUPTI), Overhead(0.12, 0.008), dropped, ops, notes, problems)


def whole_report(**run) -> Report:
    """One of everything."""
    return report_of(
        sync(ms=40, at_ms=100, module="head", ranges=("loss",)),
        backward_sync(ms=8, at_ms=150),
        sync(
            CallSite(TRAIN, 93, "main", "trainer.train()"),
            op="aten::item",
            kind=SyncKind.SCALAR_READ,
            phase=Phase.OPTIMIZER,
            ms=0.03,
            at_ms=160,
            library_site=CallSite("/v/lib/python3.12/site-packages/transformers/trainer.py", 9, "_loop", "float(x)"),
        ),
        sync(None, op="torch.cuda.synchronize", kind=SyncKind.EXPLICIT, ms=5, at_ms=170, allowed="warm-up"),
        steps=2,
        dropped=3,
        ops=[
            OpCount("aten::conv2d", CallSite(f"{CWD}/net.py", 22, "forward", "x = conv(x)"), Phase.FORWARD, 9, 70 * MS)
        ],
        notes=["copies were timed on every 10th step"],
        **run,
    )
