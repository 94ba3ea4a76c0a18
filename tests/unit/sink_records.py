"""Records for tests of sinks, in milliseconds after an arbitrary moment."""

from __future__ import annotations

from typing import Any

from syncagent.delivery.sink import Source
from syncagent.events import CallSite, Phase, StepRecord, SyncEvent, SyncKind, Weight

T0 = 1_700_000_000_000_000_000
MS = 1_000_000


def sync(at: float = 0.0, stall: float = 1.0, **changes: Any) -> SyncEvent:
    fields: dict[str, Any] = {
        "op": "aten::nonzero",
        "api": "torch.nonzero",
        "kind": SyncKind.DYNAMIC_SHAPE,
        "start_ns": T0 + round(at * MS),
        "stall_ns": round(stall * MS),
        "site": CallSite("/app/train.py", 12, "loss", "mask = torch.nonzero(labels)"),
        "phase": Phase.FORWARD,
        "step": 0,
        "rank": None,
        "device": "cuda:0",
        "stream": 0,
        "thread": "MainThread",
        "sensor": "kernels",
    }
    return SyncEvent(**(fields | changes))


def step(start: float = 0.0, end: float = 10.0, number: int = 0, **changes: Any) -> StepRecord:
    return StepRecord(number, T0 + round(start * MS), T0 + round(end * MS), **changes)


def source(lost: Any = None, scale: Any = lambda _event: Weight(), summary: Any = None, facts: Any = None) -> Source:
    """What an agent would show its sinks."""
    return Source({} if lost is None else lost, scale, summary, facts)
