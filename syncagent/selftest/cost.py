"""Measures the agent's overhead on the training thread: loops of one call, with and without the agent in turns."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import syncagent
from syncagent.selftest.cases import namespace
from syncagent.selftest.probe import BROKEN, OK
from syncagent.selftest.promises import Promise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncagent.settings.schema import Detail

__all__ = ["CALLS", "Cost", "is_bearable", "measure"]

CALLS = {
    "a sync with nothing to wait for": "z.item()",
    "a hooked op that does not wait": "x[n]",
    "any other op": "x.neg()",
}
_TIMES, _ROUNDS = 300, 3
_ABSURD_US = 5_000.0

Cost = dict[str, dict[str, float]]
"""For each of :data:`CALLS` µs a call: ``without``, and under each ``detail``."""


def measure(details: Sequence[Detail], *, simulate: bool) -> Cost:
    """Return the best of some rounds, in which every way takes its turn."""
    found: Cost = {what: {} for what in CALLS}
    for _ in range(_ROUNDS):
        for detail in (None, *details):
            for what, us in _one_round(detail, simulate=simulate).items():
                way = detail or "without"
                found[what][way] = round(min(us, found[what].get(way, us)), 2)
    return found


def is_bearable(cost: Cost) -> Promise:
    """Only an absurd cost breaks this: figures depend on the machine and on what else it does."""
    worst = max(us - ways["without"] for ways in cost.values() for us in ways.values())
    said = (
        f"the agent adds {worst:.0f} µs to a call at most" if worst >= 1 else "what the agent adds is lost in the noise"
    )
    return Promise("cost", None, OK if worst < _ABSURD_US else BROKEN, said)


def _one_round(detail: Detail | None, *, simulate: bool) -> dict[str, float]:
    if detail is None:
        return _loops()
    with syncagent.watch(detail=detail, copies="all", simulate=simulate):
        return _loops()


def _loops() -> dict[str, float]:
    import torch

    names = namespace()
    found = {}
    for what, call in CALLS.items():
        loop = compile(f"for _ in range({_TIMES}): {call}", "<syncagent selftest cost>", "exec")
        exec(call, names)  # noqa: S102 - from the table
        torch.cuda.synchronize()
        started = time.perf_counter_ns()
        exec(loop, names)  # noqa: S102 - from the table
        found[what] = (time.perf_counter_ns() - started) / 1e3 / _TIMES
        torch.cuda.synchronize()
    return found
