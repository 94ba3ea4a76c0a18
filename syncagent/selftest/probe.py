"""Fires a call behind work of known length, with the agent on, and judges what the agent says of it."""

from __future__ import annotations

import gc
import statistics
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from syncagent.selftest.cases import FILE, compiled, line_of, namespace
from syncagent.torchbridge.internals import keep_busy

if TYPE_CHECKING:
    from syncagent.events import SyncEvent
    from syncagent.runtime.handle import Agent
    from syncagent.selftest.cases import Case

OK, BROKEN, UNCLEAR = "ok", "BROKEN", "unclear"

_SHARE = 0.6
"""A call that lasts this share of the work queued before it has waited for it."""
ATTEMPTS = 5
"""A busy machine takes a thread off the processor for as long as a wait lasts."""
_LEAST_NS = 1_000_000
_WITHIN = 0.2

_CYCLES = 20_000_000
"""About 10 ms on a GPU of 2 GHz."""

_now = time.perf_counter_ns


class Delay:
    """Work that keeps the current stream busy for about ``ms`` milliseconds; none is queued when this is made.

    The simulated device knows the same kernel.
    """

    def __init__(self, ms: float) -> None:
        self.ms = ms
        self._cycles = _CYCLES
        lengths_ms = [self._length_ms() for _ in range(6)]
        per_ms = _CYCLES / statistics.median(lengths_ms[3:])  # the clock rises under load
        self._cycles = max(int(ms * per_ms), 1)

    def queue(self) -> tuple[Any, Any]:
        """Queue it and return the events around it, which measure its length: a GPU's clock is not constant."""
        import torch

        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        keep_busy(self._cycles)
        ended.record()
        return begun, ended

    def _length_ms(self) -> float:
        import torch

        begun, ended = self.queue()
        torch.cuda.synchronize()
        return max(float(begun.elapsed_time(ended)), 1e-3)


@dataclass(frozen=True, slots=True)
class Shot:
    """One timed call."""

    wall_ns: int
    """From right before the call until it is back: the stall is no longer than that."""
    idle_ns: int
    """The same with nothing queued before it: about what the call takes on the host by itself."""
    queued_ms: float
    """How long the work queued before it really took."""
    events: tuple[SyncEvent, ...]

    @property
    def waited(self) -> bool:
        return self.wall_ns / 1e6 >= _SHARE * self.queued_ms


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one call under one ``detail``."""

    call: str
    kind: str | None
    """As what it should be reported; ``None``: not at all."""
    detail: str
    status: str
    """``ok``, ``BROKEN``, or ``unclear`` where the call did not wait on this machine, so that nothing is proven."""
    why: str
    waited: bool = False
    reported: int = 0
    op: str | None = None
    found: str | None = None
    """The kind that it was reported as."""
    sensor: str | None = None
    line_right: bool | None = None
    wall_ms: float | None = None
    stall_ms: float | None = None
    error_us: float | None = None
    """The wall time less the stall: negative if more was reported than there can have been."""


def applies(case: Case, *, simulated: bool) -> bool:
    return not (case.real and simulated) and not (case.monitored and sys.version_info < (3, 12))


def failure(case: Case) -> str | None:
    """Say how a call fails on this machine with no agent on, or ``None``; the first time, it also loads its modules."""
    try:
        fire(case, compiled(case))
    except Exception as error:
        return _described(error)
    return None


def probe(case: Case, delay: Delay, agent: Agent, failed: str | None = None) -> Verdict:
    """Fire a case until its verdict is good or cannot get better; ``failed`` says how it does without the agent."""
    detail = agent.settings.detail_in_force
    if failed is not None:
        return _unfired(case, detail, UNCLEAR, f"cannot be made here: {failed}")
    try:
        return _best(case, delay, agent, detail)
    except Exception as error:
        return _unfired(case, detail, BROKEN, f"failed under the agent only: {_described(error)}")


def _best(case: Case, delay: Delay, agent: Agent, detail: str) -> Verdict:
    code = compiled(case)
    fire(case, code)
    best: Verdict | None = None
    for _ in range(ATTEMPTS):
        idle_ns, _, _ = fire(case, code)
        wall_ns, queued_ms, events = fire(case, code, delay, agent)
        shot = Shot(wall_ns, idle_ns, queued_ms, events)
        verdict = judge(case, shot, detail)
        if best is None or best.status == UNCLEAR or verdict.status == OK:
            best = verdict
        missed = shot.waited and not shot.events and case.kind is not None
        if missed or best.status == OK:
            break
    assert best is not None
    return verdict if missed else best


def _unfired(case: Case, detail: str, status: str, why: str) -> Verdict:
    return Verdict(case.shown, None if case.kind is None else str(case.kind), detail, status, why)


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def fire(
    case: Case, code: Any, delay: Delay | None = None, agent: Agent | None = None
) -> tuple[int, float, tuple[SyncEvent, ...]]:
    """Make a call once; return how long it took (ns), how long the work before it took (ms), and what was reported."""
    import torch

    names = namespace()
    exec(case.setup, names)  # noqa: S102 - from the table
    then = compile(case.then, "<syncagent selftest setup>", "exec")
    torch.cuda.synchronize()
    before = len(agent.events()) if agent is not None else 0
    times: list[int] = []

    def call() -> None:
        started = _now()
        exec(code, names)  # noqa: S102 - from the table
        times.append(_now() - started)

    thread = threading.Thread(target=call, name="selftest") if case.in_thread else None
    collects = gc.isenabled()
    gc.disable()
    try:
        marks = delay.queue() if delay is not None else None
        exec(then, names)  # noqa: S102 - from the table
        if thread is not None:
            thread.start()
            thread.join()
        else:
            call()
    finally:
        if collects:
            gc.enable()
    events = agent.events()[before:] if agent is not None else ()
    torch.cuda.synchronize()
    if not times:
        raise RuntimeError(f"{case.shown} failed in its thread")
    return times[0], float(marks[0].elapsed_time(marks[1])) if marks is not None else 0.0, events


def judge(case: Case, shot: Shot, detail: str) -> Verdict:
    """Hold what was reported against what happened."""
    event = max(shot.events, key=lambda event: event.stall_ns, default=None)
    error_ns = shot.wall_ns - event.stall_ns if event is not None else None
    line_right = None
    if event is not None:
        line_right = event.site is not None and (event.site.file, event.site.line) == (FILE, line_of(case))
    wrong: list[str] = []
    status = OK
    if case.kind is None:
        if event is not None and not shot.waited:
            wrong.append(f"reported as {event.op}, but it does not wait")
        elif event is None and shot.waited:
            wrong.append("waited, which it should not, and was not reported")
    elif not shot.waited:
        status, wrong = UNCLEAR, ["did not wait here, so nothing is proven"]
    elif event is None or error_ns is None:
        wrong.append("waited and was not reported")
    else:
        if event.kind != case.kind:
            wrong.append(f"reported as {event.kind}, not {case.kind}")
        if not line_right:
            wrong.append(f"reported at {event.site or 'an unknown line'}, not {FILE}:{line_of(case)}")
        if abs(error_ns) > max(_LEAST_NS, _WITHIN * shot.wall_ns) + shot.idle_ns:
            wrong.append(f"reported a stall of {event.stall_ns / 1e6:.2f} ms in a call of {shot.wall_ns / 1e6:.2f} ms")
    return Verdict(
        call=case.shown,
        kind=None if case.kind is None else str(case.kind),
        detail=detail,
        status=BROKEN if wrong and status == OK else status,
        why="; ".join(wrong),
        waited=shot.waited,
        reported=len(shot.events),
        op=None if event is None else event.op,
        found=None if event is None else str(event.kind),
        sensor=None if event is None else event.sensor,
        line_right=line_right,
        wall_ms=round(shot.wall_ns / 1e6, 4),
        stall_ms=None if event is None else round(event.stall_ns / 1e6, 4),
        error_us=None if error_ns is None else round(error_ns / 1e3, 1),
    )
