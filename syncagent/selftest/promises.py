"""What the agent promises besides seeing syncs: a policy that holds, spans, a clean end, a bearable overhead."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import ChainMap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import syncagent
from syncagent.errors import HostSyncError
from syncagent.selftest.cases import FILE, READ, compiled, line_of, namespace
from syncagent.selftest.probe import ATTEMPTS, BROKEN, OK

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType

    from syncagent.selftest.probe import Delay, Verdict
    from syncagent.settings.schema import Detail

_REASON = "selftest"

CALLS = {
    "a sync with nothing to wait for": "z.item()",
    "a hooked op that does not wait": "x[n]",
    "any other op": "x.neg()",
}
_TIMES, _ROUNDS = 300, 3
_ABSURD_US = 5_000.0

Cost = dict[str, dict[str, float]]
"""For each of :data:`CALLS` µs a call: ``without``, and under each ``detail``."""


@dataclass(frozen=True, slots=True)
class Promise:
    """One sentence, and whether it holds."""

    name: str
    detail: str | None
    status: str
    said: str


def _promise(name: str, detail: str | None, wrong: Sequence[str], said: str) -> Promise:
    return Promise(name, detail, BROKEN if wrong else OK, "; ".join(wrong) or said)


def every_kind(verdicts: Sequence[Verdict], detail: str) -> Promise:
    """Each kind of sync was caught at least once in a call that really waited."""
    here = [verdict for verdict in verdicts if verdict.detail == detail and verdict.kind is not None]
    kinds = list(dict.fromkeys(verdict.kind for verdict in here))
    caught = {verdict.kind for verdict in here if verdict.waited and verdict.status == OK}
    wrong = [f"no {kind} was caught" for kind in kinds if kind not in caught]
    return _promise("kinds", detail, wrong, f"all {len(kinds)} kinds of sync were caught")


def state() -> dict[str, Any]:
    """Return all that starting an agent changes in this process and on this thread, by name, as it is now."""
    from syncagent.attribution import ranges, steps
    from syncagent.sensors.registry import SENSORS

    names = sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("syncagent"))
    footprints = [sensor.footprint() for sensor in SENSORS] + [ranges.footprint(), steps.footprint()]
    return {"threads": names, **ChainMap(*map(dict, footprints))}


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Name what differs."""
    return [name for name in before if before[name] != after[name]]


def leaves_nothing(before: dict[str, Any], during: dict[str, Any], after: dict[str, Any], detail: str) -> Promise:
    """All that the agent put into torch is gone once it has stopped."""
    put = changed(before, during)
    wrong = [f"{name} was not restored" for name in changed(before, after)]
    if not put:
        wrong.append("the running agent had changed nothing, so nothing is proven")
    return _promise("stop", detail, wrong, f"stop() took off all {len(put)} things that the agent had put into torch")


def forbids(delay: Delay, detail: Detail, *, simulate: bool) -> Promise:
    """``policy="raise"`` stops a sync before it waits, at its line."""
    wrong: list[str] = []
    took_ms = 0.0
    with syncagent.watch(policy="raise", detail=detail, warmup_steps=0, simulate=simulate):
        names, code = _prepared()
        _stopped(code, names)  # a first error imports and looks up more than those that follow
        for _ in range(ATTEMPTS):
            marks = delay.queue()
            started = time.perf_counter_ns()
            error = _stopped(code, names)
            took_ms = (time.perf_counter_ns() - started) / 1e6
            is_over = marks[1].query()  # else it has not waited, however long all takes on a busy machine
            queued_ms = _length_ms(marks)
            wrong = _faults_of(error, took_ms, queued_ms, has_waited=is_over and took_ms >= queued_ms / 2)
            if not wrong:
                break
    return _promise("raise", detail, wrong, f'policy="raise" stopped a sync after {took_ms * 1e3:.0f} µs, unwaited')


def _prepared() -> tuple[dict[str, Any], CodeType]:
    with syncagent.allow(_REASON):
        return namespace(), compiled(READ)


def _stopped(code: CodeType, names: dict[str, Any]) -> HostSyncError | None:
    try:
        exec(code, names)  # noqa: S102 - from the table
    except HostSyncError as error:
        return error
    return None


def _length_ms(marks: tuple[Any, Any]) -> float:
    import torch

    with syncagent.allow(_REASON):
        torch.cuda.synchronize()
    return float(marks[0].elapsed_time(marks[1]))


def _faults_of(error: HostSyncError | None, took_ms: float, queued_ms: float, *, has_waited: bool) -> list[str]:
    if error is None:
        return ['policy="raise" let a sync pass']
    wrong = []
    site = error.event.site if error.event is not None else None
    if site is None or (site.file, site.line) != (FILE, line_of(READ)):
        wrong.append(f"the error names {site or 'no line'}, not {FILE}:{line_of(READ)}")
    if has_waited:
        wrong.append(f"the error came after {took_ms:.1f} ms, with {queued_ms:.1f} ms of work queued: it waited")
    return wrong


def allows(delay: Delay, detail: Detail, *, simulate: bool) -> Promise:
    """``syncagent.allow`` lets a sync pass under ``policy="raise"`` and puts its reason on record."""
    wrong = []
    with syncagent.watch(policy="raise", detail=detail, warmup_steps=0, simulate=simulate) as agent:
        names, code = _prepared()
        before = len(agent.events())
        marks = delay.queue()
        with syncagent.allow(_REASON):
            error = _stopped(code, names)
        reasons = [event.allowed for event in agent.events()[before:]]
        if error is not None:
            wrong.append(f"a sync inside allow() was stopped: {error}")
        elif reasons != [_REASON]:
            wrong.append(f"allowances on record: {reasons}, not [{_REASON!r}]")
        _length_ms(marks)
    return _promise("allow", detail, wrong, "allow() let a sync pass, and its reason is on record")


def makes_spans(*, simulate: bool) -> Promise:
    """A sync becomes a span of the program's own tracer provider, inside the span of its step."""
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    except ImportError as error:
        return _promise("spans", None, [f"OpenTelemetry cannot be imported: {error}"], "")
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    trace.set_tracer_provider(provider)
    names, code = namespace(), compiled(READ)
    with syncagent.watch(detail="syncs", simulate=simulate) as agent:
        exec(code, names)  # noqa: S102 - from the table
        [op] = {event.op for event in agent.events()} or {"no sync"}
        syncagent.step()
    spans = kept.get_finished_spans()
    wrong = []
    roots = [span for span in spans if span.name == "train.step"]
    made = [span for span in spans if span.name == op and span.parent is not None]
    if not roots or not made:
        wrong.append(f"a step with one sync ({op}) became the spans {sorted(span.name for span in spans)}")
    elif (made[0].attributes or {}).get("code.line.number") != line_of(READ):
        wrong.append("the span of a sync lacks its line")
    return _promise("spans", None, wrong, "a sync became an OpenTelemetry span, inside the span of its step")


def measure_cost(details: Sequence[Detail], *, simulate: bool) -> Cost:
    """Measure the agent's overhead on this thread: the best of some rounds of loops, with and without it in turns."""
    found: Cost = {what: {} for what in CALLS}
    for _ in range(_ROUNDS):
        for detail in (None, *details):
            way = detail or "without"
            watch = syncagent.watch(detail=detail, copies="all", simulate=simulate) if detail else None
            with watch or contextlib.nullcontext():
                took_us = _loops()
            for what, us in took_us.items():
                found[what][way] = round(min(us, found[what].get(way, us)), 2)
    return found


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


def is_bearable(cost: Cost) -> Promise:
    """Only an absurd cost breaks this: figures depend on the machine and on what else it does."""
    worst = max(us - ways["without"] for ways in cost.values() for us in ways.values())
    said = (
        f"the agent adds {worst:.0f} µs to a call at most" if worst >= 1 else "what the agent adds is lost in the noise"
    )
    return Promise("cost", None, OK if worst < _ABSURD_US else BROKEN, said)
