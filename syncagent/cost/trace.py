"""A Kineto trace as the calls of the host and the work of the GPU that the replay needs."""

from __future__ import annotations

import os
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from syncagent.errors import SyncAgentError
from syncagent.support import reading

BOUNDARY = "syncagent#step"
"""Name of the annotation that the window puts between steps."""
_LARGEST = 2.0**63

_OP_KINDS = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_CALL_KINDS = frozenset({"cuda_runtime", "cuda_driver"})
WAITS = {
    "cudaStreamSynchronize": "stream", "cuStreamSynchronize": "stream", "cudaStreamSynchronize_ptsz": "stream",
    "cudaDeviceSynchronize": "device", "cuCtxSynchronize": "device",
    "cudaEventSynchronize": "event", "cuEventSynchronize": "event",
    "cudaFree": "device", "cudaFreeHost": "device", "cuMemFree_v2": "device",
}  # fmt: skip
"""Calls that wait, and for what."""
_RECORD = frozenset({"cudaEventRecord", "cudaEventRecordWithFlags", "cuEventRecord"})
_AWAIT = frozenset({"cudaStreamWaitEvent", "cuStreamWaitEvent"})


MOST_BYTES = 1024 * reading.MIB
"""The largest trace as JSON: some three million events, which take several times as much memory."""


@dataclass(slots=True)
class Op:
    """Work of the GPU; times in µs."""

    stream: int
    start: float
    end: float
    name: str
    bytes: int = 0

    @property
    def pageable(self) -> bool:
        return "Pageable" in self.name

    @property
    def to_host(self) -> bool:
        return self.name.startswith("Memcpy DtoH")


@dataclass(slots=True)
class Call:
    """A call of the CUDA API; times in µs."""

    start: float
    end: float
    thread: int
    name: str
    correlation: int
    op: Op | None = None
    waits_for: str | None = None
    """``stream``, ``device`` or ``event``."""
    stream: int | None = None
    """The stream of a wait, a record or a stream's wait for an event, where the trace says."""
    record: int | None = None
    """The correlation of the call that recorded the event that is waited for, where the trace says."""

    @property
    def records(self) -> bool:
        return self.name in _RECORD

    @property
    def awaits(self) -> bool:
        return self.name in _AWAIT


@dataclass
class Trace:
    """What a trace holds, in order of time."""

    name: str
    calls: list[Call]
    ops: list[Op]
    bounds: list[float] = field(default_factory=list)
    """Where steps begin and end (µs): one more than there are steps, or empty where the trace does not say."""
    spans: list[tuple[float, float, int, str, str]] = field(default_factory=list)
    """Ranges of host threads (start, end, thread, category, name), by start: annotations, ops, Python functions."""
    thread_names: dict[int, str] = field(default_factory=dict)
    base_ns: int = 0
    """The origin of the trace's times (ns since the Unix epoch)."""
    profiler_pauses: list[tuple[float, float]] = field(default_factory=list)
    """When the profiler blocked the host to get memory for itself."""

    @cached_property
    def ends(self) -> list[float]:
        """When each op ended, in order."""
        return sorted(op.end for op in self.ops)

    def busy_ns(self, most: int = 3_000) -> tuple[tuple[int, int], ...]:
        """When the GPU worked on any of its streams (ns since the Unix epoch, begin and end), in order.

        Pauses of less than a microsecond are left out, or of more where there would be more than ``most`` times.
        """
        spans = sorted((op.start, op.end) for op in self.ops)
        pause_us = 1.0
        while True:
            busy: list[tuple[float, float]] = []
            for start, end in spans:
                if busy and start - busy[-1][1] < pause_us:
                    busy[-1] = busy[-1][0], max(busy[-1][1], end)
                else:
                    busy.append((start, end))
            if len(busy) <= most:
                return tuple(
                    (self.base_ns + round(start * 1e3), self.base_ns + round(end * 1e3)) for start, end in busy
                )
            spans, pause_us = busy, 2 * pause_us

    @property
    def thread(self) -> int:
        """The thread that makes the most calls outside of the backward pass, or inside where nothing else is left."""
        counts = Counter(call.thread for call in self.calls)
        backward = {thread for thread in counts if self.thread_names.get(thread, "").startswith("pt_autograd")}
        return max(counts.keys() - backward or backward, key=lambda thread: counts[thread])


def read(path: str | Path) -> Trace:
    """Read a Chrome trace as Kineto writes it, gzipped or not.

    Raises :class:`SyncAgentError` with one sentence for what is no such trace, or not enough of one.
    """
    name = os.fspath(path)
    return from_values(load(name), name)


def load(name: str, most: int = MOST_BYTES) -> Any:
    """Return the JSON in a file, gzipped or not.

    Raises :class:`~syncagent.support.reading.TooLargeError` where it has more than ``most`` bytes once it is unpacked.
    """
    try:
        content = reading.read(name, most)
        if content[:2] == b"\x1f\x8b":
            content = reading.unpacked(content, most)
        return reading.from_json(content, strict=False)  # Kineto may write NaN for an occupancy
    except EOFError:
        raise SyncAgentError(f"the trace {name!r} is cut off: its gzip stream has no end") from None
    except zlib.error as error:
        raise SyncAgentError(f"the trace {name!r} is cut off or damaged: it is not whole gzip ({error})") from None
    except reading.TooLargeError:
        raise
    except OSError as error:
        raise SyncAgentError(f"cannot read {name!r}: {reading.reason(error)}") from None
    except ValueError as error:
        raise SyncAgentError(f"{name!r} is not whole JSON, so it is cut off or no trace ({error})") from None


def from_values(values: Any, name: str) -> Trace:
    """Make a trace of the JSON values of a Chrome trace file."""
    events = values.get("traceEvents") if isinstance(values, dict) else values
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise SyncAgentError(f"{name!r} is not a Chrome trace: it has no list of events")
    base_ns = values.get("baseTimeNanoseconds", 0) if isinstance(values, dict) else 0
    try:
        return from_events(events, name, base_ns=int(base_ns))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"an event lacks {error}" if isinstance(error, KeyError) else f"an event has a wrong value ({error})"
        raise SyncAgentError(f"{name!r} is not a trace that torch.profiler wrote: {what}") from None


def _span(event: Mapping[str, Any]) -> tuple[float, float]:
    """When an event begins and ends, in µs; ``float`` takes texts such as "nan", and numbers that no clock shows."""
    start, duration = float(event["ts"]), float(event["dur"])
    for number in (start, duration):
        if not abs(number) < _LARGEST:
            raise ValueError(f"{number} is no time")
    return start, start + max(duration, 0.0)


def from_events(events: Iterable[Mapping[str, Any]], name: str = "the trace", *, base_ns: int = 0) -> Trace:
    """Make a trace of Kineto's events."""
    ops: dict[int, list[Op]] = defaultdict(list)
    raw: list[Mapping[str, Any]] = []
    syncs: dict[int, Mapping[str, Any]] = {}
    spans: list[tuple[float, float, int, str, str]] = []
    thread_names: dict[int, str] = {}
    profiler_pauses: list[tuple[float, float]] = []
    processes: set[Any] = set()
    devices: set[Any] = set()
    categories: set[str] = set()
    for event in events:
        category = event.get("cat")
        if event.get("ph") == "M":
            if event.get("name") == "thread_name" and isinstance(event.get("tid"), int):
                shown = str(event["args"]["name"])
                inner = re.fullmatch(r"thread \d+ \((.*)\)", shown)
                thread_names[event["tid"]] = inner[1] if inner else shown
            continue
        if event.get("ph") != "X":
            continue
        categories.add(str(category))
        arguments = event.get("args") or {}
        if category in _OP_KINDS:
            start, end = _span(event)
            stream, size = int(arguments["stream"]), int(arguments.get("bytes", 0))
            devices.add(arguments.get("device"))
            ops[arguments["correlation"]].append(Op(stream, start, end, str(event["name"]), size))
        elif category in _CALL_KINDS:
            raw.append(event)
            processes.add(event.get("pid"))
        elif category == "cuda_sync":
            syncs[arguments["correlation"]] = arguments
        elif category == "overhead":
            if "Request" in str(event["name"]):  # flushes run on a thread of the profiler's
                profiler_pauses.append(_span(event))
        elif category in {"user_annotation", "cpu_op", "python_function"}:
            spans.append((*_span(event), event["tid"], category, str(event["name"])))
    _refuse(name, categories, processes, devices, ops=bool(ops), calls=bool(raw))
    calls = sorted((_call(event, ops, syncs) for event in raw), key=lambda call: call.start)
    spans.sort(key=lambda span: (span[0], -span[1]))
    launched = [op for call in calls if (op := call.op) is not None]
    if not launched:
        raise SyncAgentError(f"{name!r} links no work of the GPU to the calls that launched it: the trace is cut off")
    trace = Trace(name, calls, launched, [], spans, thread_names, base_ns, sorted(profiler_pauses))
    trace.bounds = _bounds(trace)
    return trace


def _refuse(name: str, categories: set[str], processes: set[Any], devices: set[Any], *, ops: bool, calls: bool) -> None:
    python = categories & {"cpu_op", "python_function", "user_annotation"}
    is_amd = any(category.startswith(("hip", "roc")) for category in categories)
    refusals = {
        "is of an AMD GPU; the replay knows CUDA's calls only": is_amd,
        "has no GPU activity: profile with ProfilerActivity.CUDA, and on a GPU": python and not ops and not calls,
        "is not a trace of torch.profiler: it has no event of category cuda_runtime or kernel": not ops and not calls,
        "has no GPU activity: nothing ran on the GPU while it was recorded": not ops,
        "has no calls of the CUDA API (category cuda_runtime), without which nothing can be replayed": not calls,
        f"holds {len(processes)} processes: give one rank's trace at a time": len(processes) > 1,
        f"is of {len(devices)} GPUs driven by one process, which cannot be replayed yet": len(devices) > 1,
    }
    why = next((why for why, is_so in refusals.items() if is_so), None)
    if why is not None:
        raise SyncAgentError(f"{name!r} {why}")


def _call(event: Mapping[str, Any], ops: Mapping[int, list[Op]], syncs: Mapping[int, Mapping[str, Any]]) -> Call:
    arguments = event.get("args") or {}
    correlation = arguments.get("correlation", 0)
    call = Call(*_span(event), event["tid"], str(event["name"]), correlation)
    found = ops.get(correlation)
    if found:
        # A graph's launch has all of its kernels under one number.
        call.op = found[0] if len(found) == 1 else Op(
            found[0].stream, min(op.start for op in found), max(op.end for op in found), "graph"
        )  # fmt: skip
    call.waits_for = WAITS.get(call.name)
    about = syncs.get(correlation, {})
    stream, record = about.get("stream"), about.get("wait_on_cuda_event_record_corr_id")
    call.stream = stream if isinstance(stream, int) and 0 <= stream < 2**31 else None
    call.record = record if isinstance(record, int) and record > 0 else None
    return call


def _bounds(trace: Trace) -> list[float]:
    """Where steps begin: the window's own marks, ``ProfilerStep#N``, or the ends of one optimizer's steps."""
    marks: dict[int, float] = {}
    profiler: dict[int, tuple[float, float]] = {}
    optimizers: dict[str, list[float]] = defaultdict(list)
    for start, end, _, category, name in trace.spans:
        if category != "user_annotation":
            continue
        kind, _, rest = name.partition(" ")
        if kind == BOUNDARY and rest.isdigit():
            marks[int(rest)] = start
        elif name.startswith("ProfilerStep#"):
            profiler[int(name.partition("#")[2])] = (start, end)
        elif name.startswith("Optimizer.step#"):
            optimizers[name].append(end)
    if len(marks) > 1:
        return [start for _, start in sorted(marks.items())]
    if profiler:
        steps = [span for _, span in sorted(profiler.items())]
        return [*(start for start, _ in steps), steps[-1][1]]
    ends = next(iter(optimizers.values()), [])
    return ends if len(ends) > 2 else []
