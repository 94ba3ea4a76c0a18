"""Which functions of the CUDA runtime wait: every call of them is timed by CUPTI, behind a sleeping GPU.

    python tests/gpu/blocking_functions.py --out FILE.json [--only TEXT] [--groups corpus,torch] [--seconds 400]

All calls of the corpus, those that wait first, and then more: what the corpus lacks, the runtime's functions by
themselves, and other libraries (cupy, numba, NCCL).  Each group runs in a process of its own, so that one that breaks
the GPU's context does not end the others.  A function is *slow* where it took more than 1 ms, and has *waited* where it
lasted for a good part of the sleep.  A case that waited while no function of the runtime did has called the driver
directly: a second pass watches the driver's functions instead.

Not tried: builds for per-thread streams as such (their functions are, by name), ``cudaMemcpyToSymbol`` (it wants a
symbol of a compiled kernel), ``cudaMemcpyBatchAsync``, managed memory, and what opens memory of another process.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in {None, ""}:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from syncagent.errors import SyncAgentError
from tests.gpu import physical
from tests.gpu.corpus import CASES
from tests.gpu.corpus.case import Case, table
from tests.gpu.driver import Call, DriverOracle
from tests.gpu.explore import choose, environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["main"]

_ROOT = Path(__file__).resolve().parents[2]
_SLOW_NS = 1_000_000
_SHARE = 0.4
"""A function that lasts this share of the sleep has waited for it."""
_EXTRA_SLEEP_MS = 40.0
_FIRST_SLEEP_MS = 200.0
"""Longer than the corpus's: page-locking memory or loading a kernel takes milliseconds by itself."""
_LONGEST_MS = 300.0
_NAMED = 12
_SAVE_EVERY = 50
_VERSION = re.compile(r"_v\d+$")
_TRUTH = Path(__file__).with_name("results") / "truth.json"

# --- what is tried beyond the corpus --------------------------------------------------------------------------------

TORCH = (
    *table(
        "torch",
        """
    B k = T.empty(1 << 28, device=D); del k || T.cuda.empty_cache()
    - T.cuda.empty_cache() || T.empty(1 << 28, device=D)
    - T.cuda.empty_cache() || [T.empty(3 << 20, device=D) for _ in range(20)]
    B k = T.empty(1 << 28, device=D); del k; cap(2 << 30) || T.empty(3 << 27, device=D)
    - k = T.cuda.caching_allocator_alloc(1 << 24) || T.cuda.caching_allocator_delete(k)
    - T.cuda.caching_allocator_delete(T.cuda.caching_allocator_alloc(1 << 24))
    - T.cuda.ipc_collect()
    - T.empty(1 << 24, pin_memory=True)
    - T._C._host_emptyCache() || T.empty(1 << 24, pin_memory=True)
    - T._C._host_emptyCache() || T.empty(8, pin_memory=True)
    - k = T.empty(1 << 25, pin_memory=True); del k || T._C._host_emptyCache()
    - k = T.empty(1 << 23, pin_memory=True) || k.copy_(T.empty(1 << 23, device=D), non_blocking=True); del k
    - k = T.rand(1 << 22) || k.pin_memory()
    - k = T.rand(1 << 20) || T.cuda.cudart().cudaHostRegister(k.data_ptr(), 4 << 20, 0); unregister(k)
    - k = T.rand(1 << 20); T.cuda.cudart().cudaHostRegister(k.data_ptr(), 4 << 20, 0) || unregister(k)
    - T.cuda.cudart().cudaMemGetInfo(0)
    B T.cuda.cudart().cudaStreamSynchronize(0) if hasattr(T.cuda.cudart(), "cudaStreamSynchronize") else z.item()
    B k = T.cuda.Event() || k.record(); k.synchronize()
    B k = T.cuda.Event(blocking=True) || k.record(); k.synchronize()
    - k = T.cuda.Event() || k.record(); del k
    - k = [T.cuda.Stream() for _ in range(3)] || del k
    - T.cuda.ExternalStream(T.cuda.Stream().cuda_stream)
    B k = T.cuda.CUDAGraph(); capture(k) || k.replay(); k.reset()
    B k = T.cuda.CUDAGraph() || capture(k)
    - k = T.cuda.CUDAGraph(); capture(k); k.replay() || k.replay()
    - T.cuda.memory.memory_snapshot()
    - T.cuda.memory._record_memory_history(); T.cuda.memory._record_memory_history(enabled=None)
    - T.cuda.profiler.start(); T.cuda.profiler.stop()
    - T.cuda.set_per_process_memory_fraction(1.0)
    - k = T.cuda.MemPool() || del k
    """,
        setup="from tests.gpu.blocking_functions import cap, capture, unregister",
    ),
    # The queue of a stream holds about a thousand entries; whoever comes then waits for room, whatever it calls.
    *(
        Case(f"full queue: {what}", "queue", f"for _ in range({count}):\n    {body}", setup, expect=True)
        for what, count, body, setup in (
            ("2,000 kernels", 2000, "g.add_(1)", ""),
            ("2,000 kernels, then a pinned non_blocking copy", 1, "fill(); k.copy_(p, non_blocking=True)", ""),
            ("kernels and pinned non_blocking copies in turn", 1000, "g.add_(1); k.copy_(o, non_blocking=True)", ""),
            ("2,000 pinned non_blocking copies of 36 bytes", 2000, "k.copy_(o, non_blocking=True)", ""),
            ("2,000 non_blocking copies to pinned memory", 2000, "o.copy_(k, non_blocking=True)", ""),
            ("2,000 pageable non_blocking copies of 36 bytes", 2000, "k.copy_(s, non_blocking=True)", ""),
            ("2,000 copies on the device", 2000, "k.copy_(v)", ""),
            ("2,000 memsets", 2000, "k.zero_()", ""),
            ("2,000 events", 2000, "e.record()", ""),
            ("2,000 waits for events", 2000, "q.wait_stream(T.cuda.current_stream())", ""),
        )
        for setup in [
            (
                "from tests.gpu.blocking_functions import fill_queue\nfill = lambda: fill_queue(g)\n"
                + ("k = T.empty_like(G)" if "(p, " in body else "k = T.empty(9, device=D)")
                + "\nv = T.ones(9, device=D); o = pinned(T.rand(9)); e = T.cuda.Event(); q = T.cuda.Stream()"
            )
        ]
    ),
)

_SIZES = ((8, 8), (64 << 10, 64), (16 << 20, 1 << 12))
"""In bytes, each with the width of a row where the copy has rows."""
_WAYS = {
    "H2D pageable": ("E", "c", 1), "H2D pinned": ("E", "p", 1), "D2H pageable": ("c", "E", 2),
    "D2H pinned": ("p", "E", 2), "D2D": ("E", "G", 3), "H2H": ("c", "p", 0), "default kind": ("E", "p", 4),
}  # fmt: skip
"""To, from, and the runtime's number of the direction."""
_COPIES = (
    "cudaMemcpy", "cudaMemcpyAsync", "cudaMemcpy_ptds", "cudaMemcpyAsync_ptsz", "cudaMemcpy2D", "cudaMemcpy2DAsync",
)  # fmt: skip


def copies() -> Iterator[Case]:
    for size, width in _SIZES:
        for way, (to, source, kind) in _WAYS.items():
            for function in _COPIES:
                first, second, count = f"{to}.data_ptr()", f"{source}.data_ptr()", str(size)
                if "2D" in function:  # every other piece of a row
                    first, second = f"{first}, {2 * width}", f"{second}, {2 * width}"
                    count = f"{width}, {max(size // width // 2, 1)}"
                stream = ", 0" if "Async" in function else ""
                call = f"R.{function}({first}, {second}, {count}, {kind}{stream})"
                yield Case(f"raw: {function} {way} {size} bytes", "raw", call, "R = raw(); E = T.empty_like(G)")


RAW = (
    *copies(),
    *table(
        "raw",
        """
    B R.cudaDeviceSynchronize()
    B R.cudaStreamSynchronize(0)
    B R.cudaStreamSynchronize_ptsz(0)
    B k = T.cuda.Event(); k.record() || R.cudaEventRecord(k.cuda_event, 0); R.cudaEventSynchronize(k.cuda_event)
    - R.cudaGetLastError()
    - R.made("cudaEventCreate")
    - k = R.made("cudaEventCreate") || R.cudaEventRecord(k, 0); R.cudaEventDestroy(k)
    - R.made("cudaStreamCreate")
    - R.made("cudaStreamCreateWithFlags", 1)
    - k = R.made("cudaStreamCreate") || R.cudaStreamDestroy(k)
    - R.made("cudaMalloc", 1 << 10)
    - R.made("cudaMalloc", 1 << 26)
    - R.made("cudaMalloc", 1 << 31)
    B k = R.made("cudaMalloc", 1 << 10) || R.cudaFree(k)
    B k = R.made("cudaMalloc", 1 << 26) || R.cudaFree(k)
    - R.cudaFree(0)
    - R.cudaMallocPitch(words(0), words(0), 1000, 1000)
    - R.cudaMallocArray(words(0), words(32, 0, 2), 64, 64, 0)
    B k = R.made("cudaMallocArray", words(32, 0, 2), 64, 64, 0) || R.cudaFreeArray(k)
    - R.made("cudaHostAlloc", 1 << 10, 0)
    - R.made("cudaHostAlloc", 1 << 26, 0)
    - R.made("cudaMallocHost", 1 << 24)
    B k = R.made("cudaHostAlloc", 1 << 10, 0) || R.cudaFreeHost(k)
    B k = R.made("cudaHostAlloc", 1 << 26, 0) || R.cudaFreeHost(k)
    B k = R.made("cudaMallocHost", 1 << 24) || R.cudaFreeHost(k)
    - k = T.rand(1 << 22) || R.cudaHostRegister(k.data_ptr(), 16 << 20, 0); R.cudaHostUnregister(k.data_ptr())
    B k = T.rand(1 << 22); R.cudaHostRegister(k.data_ptr(), 16 << 20, 0) || R.cudaHostUnregister(k.data_ptr())
    - k = R.made("cudaMallocAsync", 1 << 24, 0) || R.cudaFreeAsync(k, 0)
    - R.cudaFreeAsync(R.made("cudaMallocAsync", 1 << 24, 0), 0)
    - R.cudaFreeAsync(R.made("cudaMallocAsync", 1 << 28, 0), 0) || R.cudaMemPoolTrimTo(pool(), 0)
    B R.cudaFreeAsync(R.made("cudaMallocAsync", 1 << 28, 0), 0); R.cudaMemPoolTrimTo(pool(), 0)
    B k = R.made("cudaMallocAsync", 1 << 24, 0) || R.cudaFree(k)
    - R.cudaMemset(E.data_ptr(), 0, 16 << 20)
    - R.cudaMemsetAsync(E.data_ptr(), 0, 16 << 20, 0)
    B R.cudaMemset(p.data_ptr(), 0, 16 << 20)
    - R.cudaMemset2D(E.data_ptr(), 128, 0, 64, 64)
    - R.cudaMemcpyPeer(E.data_ptr(), 0, G.data_ptr(), 0, 16 << 20)
    - R.cudaMemcpyPeerAsync(E.data_ptr(), 0, G.data_ptr(), 0, 16 << 20, 0)
    B R.cudaMemcpy3D(block(c, E))
    B R.cudaMemcpy3DAsync(block(c, E), 0)
    - R.cudaMemcpy3DAsync(block(p, E), 0)
    - R.cudaIpcGetMemHandle(words(*[0] * 8), G.data_ptr())
    - R.cudaMemGetInfo(words(0), words(0))
    - R.cudaPointerGetAttributes(words(*[0] * 16), G.data_ptr())
    - R.cudaProfilerStart(); R.cudaProfilerStop()
    - R.cudaDeviceGraphMemTrim(0)
    - R.cudaCtxResetPersistingL2Cache()
    - k = words(0); R.cudaDeviceGetLimit(k, 0) || R.cudaDeviceSetLimit(0, 8192); R.cudaDeviceSetLimit(0, 1024)
    - R.cudaDeviceSetLimit(1, 2 << 20)
    - R.cudaSetDevice(0)
    - R.cudaDeviceGetStreamPriorityRange(words(0), words(0))
    - R.cudaStreamQuery(R.made("cudaStreamCreateWithFlags", 1))
    """,
        setup="R = raw(); E = T.empty_like(G)",
    ),
)
RAW = tuple(
    Case(case.name, case.family, case.call, f"from tests.gpu.runtime import block, pool, raw, words\n{case.setup}")
    for case in RAW
)

FIRST_USE = table(
    "first use",
    """
    - T.special.airy_ai(g)
    - T.special.scaled_modified_bessel_k1(g)
    - T.special.zeta(g + 2, g)
    - T.special.hermite_polynomial_h(g, 3)
    - T.igamma(g, g)
    - T.polygamma(2, g)
    - T.cdist(A, A, p=3.0)
    - F.adaptive_max_pool2d(x4, 3)
    - T.fft.rfft(g)
    - A @ A
    - F.conv2d(x4, T.rand(4, 3, 3, 3, device=D))
    - F.scaled_dot_product_attention(x4.half(), x4.half(), x4.half())
    """,
)
"""Run once, with no run before: a kernel is loaded at its first use, which may wait for the GPU."""

LIBRARIES = (
    *table(
        "cupy",
        """
    B a.get()
    B C.asnumpy(a)
    B a.item() if a.size == 1 else a[0].item()
    B float(a.sum())
    B C.cuda.runtime.deviceSynchronize()
    B C.cuda.Stream.null.synchronize()
    B C.cuda.Device().synchronize()
    B k = C.cuda.Event() || k.record(); k.synchronize()
    B a.set(numpy.ones(999, "float32"))
    B C.asarray(numpy.ones(1 << 22, "float32"))
    B C.nonzero(a)
    - a + a
    - C.cuda.get_current_stream()
    B C.ones(1 << 24); C.get_default_memory_pool().free_all_blocks()
    """,
        setup="import cupy as C, numpy; a = C.ones(999, dtype='float32')",
        needs='has("cupy")',
    ),
    *table(
        "numba",
        """
    B N.synchronize()
    B a.copy_to_host()
    B N.to_device(numpy.ones(1 << 22, "float32"))
    B N.default_stream().synchronize()
    """,
        setup="import numpy; from numba import cuda as N; a = N.to_device(numpy.ones(999, 'float32'))",
        needs='has("numba")',
    ),
    *table(
        "nccl",
        """
    B dist.barrier()
    B dist.barrier(device_ids=[0])
    B dist.barrier(async_op=True).wait()
    - dist.all_reduce(g)
    - dist.all_reduce(g, async_op=True).wait()
    - dist.broadcast(g, 0)
    B dist.all_gather_object([None], {"a": 1})
    B dist.broadcast_object_list([1, "a"], 0)
    """,
        setup="from tests.gpu.runtime import single_group; dist = single_group()",
        needs="torch.distributed.is_nccl_available()",
    ),
)  # fmt: skip

GROUPS: dict[str, Sequence[Case]] = {
    "corpus": CASES, "torch": TORCH, "libraries": LIBRARIES, "first use": FIRST_USE, "raw": RAW,
}  # fmt: skip


def cap(beyond: int) -> None:
    """Let the allocator have so much and no more, so that the next allocation has to free what is cached."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min((torch.cuda.memory_allocated() + beyond) / total, 1.0))


def capture(graph: Any) -> None:
    held = torch.ones(99, device="cuda")
    with torch.cuda.graph(graph):
        held.mul_(2)


def unregister(tensor: torch.Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(tensor.data_ptr())


def fill_queue(tensor: torch.Tensor) -> None:
    """Launch until a launch waits for room, at most 2,000 times."""
    for _ in range(2000):
        began = time.perf_counter_ns()
        tensor.add_(1)
        if time.perf_counter_ns() - began > _SLOW_NS:
            return


# --- one group ------------------------------------------------------------------------------------------------------


class Recorder:
    """The driver's record of a domain; where there is no CUPTI, no calls and the reason."""

    def __init__(self, domain: Any) -> None:
        self._oracle = DriverOracle(domain)
        self.why_not = ""
        try:
            self._oracle.start()
        except SyncAgentError as error:
            self.why_not = str(error)

    def take(self) -> list[Call]:
        return [] if self.why_not else self._oracle.take()

    def stop(self) -> int:
        self._oracle.stop()
        return self._oracle.lost


def run_group(group: str, part: Path, only: str, limit: int | None, seconds: float) -> None:
    """Run a group's cases and write what was seen; a broken context ends it, with what there is."""
    ends = time.monotonic() + seconds
    rows: dict[str, dict[str, Any]] = {}
    content: dict[str, Any] = {**environment(), "group": group, "stopped": "", "cases": rows}
    cases = choose(GROUPS[group], limit, only or None)
    known = json.loads(_TRUTH.read_text(encoding="utf-8"))["cases"] if group == "corpus" else {}
    cases = sorted(cases, key=lambda case: not known.get(case.name, {}).get("blocks"))  # those that wait come first
    try:
        for domain in ("runtime", "driver"):
            recorder = Recorder(domain)
            content[f"cupti_{domain}"] = recorder.why_not or "callbacks in C"
            todo = cases if domain == "runtime" else [case for case in cases if _unexplained(rows.get(case.name, {}))]
            for index, case in enumerate(todo):
                if time.monotonic() > ends:
                    content["stopped"] = f"{len(todo) - index} cases were not reached within {seconds:g} s"
                    break
                row = rows.setdefault(case.name, {"group": group, "family": case.family})
                one_case(case, row, known.get(case.name, {}), recorder, domain, warm=group != "first use")
                if index % _SAVE_EVERY == _SAVE_EVERY - 1:
                    part.write_text(json.dumps(content), encoding="utf-8")
            content[f"lost_{domain}"] = recorder.stop()
    except physical.StickyError as error:
        content["stopped"] = str(error)
    part.write_text(json.dumps(content), encoding="utf-8")


def _unexplained(row: dict[str, Any]) -> bool:
    return bool(row.get("waited")) and not any(waited for *_, waited in row.get("runtime", ()))


def one_case(
    case: Case, row: dict[str, Any], known: dict[str, Any], recorder: Recorder, domain: str, *, warm: bool
) -> None:
    """Run a case behind the sleep, and put down the functions that it called and how long each took."""
    usual = {"corpus": 10.0, "first use": _FIRST_SLEEP_MS}.get(row["group"], _EXTRA_SLEEP_MS)
    sleep_ms = known.get("sleep_ms") or usual
    try:
        with physical.guarded(case):
            if case.needs and not eval(case.needs, physical.fresh()):
                row["error"] = physical.SKIPPED + case.needs
                return
            if warm:
                physical.run_case(case)
                host_ms = physical.run_case(case).ms
                row["host_ms"] = round(host_ms, 2)
                if host_ms > sleep_ms / 4:
                    sleep_ms = min(max(sleep_ms, 6 * host_ms), _LONGEST_MS)
            recorder.take()
            run = physical.run_case(case, sleep_ms)
    except physical.StickyError:
        raise
    except Exception as error:
        row["error"] = physical.describe(error)
        return
    finally:
        if "cap(" in case.setup and torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(1.0)
    calls = [call for call in recorder.take() if run.start_ns <= call.start_ns and call.end_ns <= run.end_ns]
    row |= {"waited": run.waited, "ms": round(run.ms, 3), "slept_ms": round(run.slept_ms, 3)}
    row[f"{domain}_calls"] = dict(Counter(call.name for call in calls))
    row[domain] = [
        [call.name, round(call.ns / 1e6, 3), call.ns >= _SHARE * run.slept_ms * 1e6 > 0]
        for call in sorted(calls, key=lambda call: -call.ns)
        if call.ns >= _SLOW_NS
    ]


# --- what comes of it -----------------------------------------------------------------------------------------------


def functions(rows: dict[str, dict[str, Any]], domain: str) -> dict[str, dict[str, Any]]:
    """Sum up per function, without its version; those that waited come first."""
    found: dict[str, dict[str, Any]] = {}
    for name, row in rows.items():
        for versioned, count in row.get(f"{domain}_calls", {}).items():
            entry = found.setdefault(_VERSION.sub("", versioned), _nothing())
            entry["count"] += count
            entry["versions"] = sorted({*entry["versions"], versioned})
        told: set[str] = set()
        for versioned, ms, waited in row.get(domain, ()):
            function = _VERSION.sub("", versioned)
            entry = found[function]
            entry["over_1ms"] += 1
            entry["waited"] += waited
            if ms > entry["longest_ms"]:
                entry["longest_ms"], entry["longest_in"] = ms, name
            if waited and function not in told:
                told.add(function)
                entry["cases"] += 1
                groups = entry["groups"]
                groups[row["group"]] = groups.get(row["group"], 0) + 1
                if groups[row["group"]] <= _NAMED:
                    entry["for"].append(name)
            elif not waited and len(entry["slow_in"]) < _NAMED and name not in entry["slow_in"]:
                entry["slow_in"].append(name)
    return dict(sorted(found.items(), key=lambda item: (-item[1]["waited"], -item[1]["over_1ms"], item[0])))


def _nothing() -> dict[str, Any]:
    return {
        "count": 0, "over_1ms": 0, "waited": 0, "cases": 0, "longest_ms": 0.0, "longest_in": "", "groups": {},
        "versions": [], "for": [], "slow_in": [],
    }  # fmt: skip


def sum_up(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    rows = {name: row for part in parts for name, row in part["cases"].items()}
    head = {key: parts[0][key] for key in environment() if key in parts[0]} if parts else environment()
    nothing = [name for name, row in rows.items() if _unexplained(row) and not any(row.get("driver", ()))]
    kept = {
        name: {key: value for key, value in row.items() if not key.endswith("_calls")}
        for name, row in rows.items()
        if row.get("waited") or row.get("runtime") or row.get("driver") or row.get("error") or row["group"] != "corpus"
    }
    return {
        **head,
        "groups": {
            part["group"]: {
                "cases": len(part["cases"]),
                "waited": sum(bool(row.get("waited")) for row in part["cases"].values()),
                "errors": sum(bool(row.get("error")) for row in part["cases"].values()),
                **{key: part[key] for key in part if key.startswith(("cupti_", "lost_", "stopped")) and part[key]},
            }
            for part in parts
        },
        "waited_unexplained": nothing,
        "functions": functions(rows, "runtime"),
        "driver_functions": functions(rows, "driver"),
        "cases": kept,
    }  # fmt: skip


def write(out: Path, content: dict[str, Any]) -> None:
    """Write JSON with one function or case a line."""
    listed = ("functions", "driver_functions", "cases")
    head = json.dumps({key: value for key, value in content.items() if key not in listed}, indent=2)
    text = head.rstrip("}").rstrip()
    for key in listed:
        body = ",\n".join(f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in content[key].items())
        text += f',\n  "{key}": {{\n{body}\n  }}'
    out.write_text(text + "\n}\n", encoding="utf-8")


def tell(content: dict[str, Any]) -> None:
    for group, row in content["groups"].items():
        print(f"{group}: {row}")
    for title in ("functions", "driver_functions"):
        print(f"\n== {title}: calls, over 1 ms, waited, in cases, longest ms, for example")
        for name, row in content[title].items():
            if row["over_1ms"]:
                figures = f"{row['count']:7d} {row['over_1ms']:6d} {row['waited']:6d} {row['cases']:6d}"
                print(f"{name:36s} {figures} {row['longest_ms']:9.2f}  {(row['for'] or row['slow_in'])[:2]}")
    print(f"\nwaited, and no function did: {content['waited_unexplained']}")
    errors = [(name, row["error"]) for name, row in content["cases"].items() if row.get("error")]
    for name, error in errors[:40]:
        print(f"error: {name}: {error}")


def main() -> int:
    parser = argparse.ArgumentParser(description="find the functions of the CUDA runtime that wait")
    folder = os.environ.get("OUT", ".")
    parser.add_argument("--out", type=Path, default=Path(folder, "blocking_functions.json"))
    parser.add_argument("--only", default="", help="only cases whose name holds this text")
    parser.add_argument("--groups", default=",".join(GROUPS), help=f"of {', '.join(GROUPS)}; all by default")
    parser.add_argument("--limit", type=int, help="only that many cases of each group")
    parser.add_argument("--seconds", type=float, default=400.0, help="for everything (default 400)")
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    groups = options.groups.split(",")
    if unknown := [group for group in groups if group not in GROUPS]:
        parser.error(f"--groups: no group {unknown[0]!r}; there are {', '.join(GROUPS)}")
    if options.part is not None:
        faulthandler.enable()
        warnings.filterwarnings("ignore")
        run_group(groups[0], options.part, options.only, options.limit, options.seconds)
        return 0
    ends = time.monotonic() + options.seconds
    parts: list[dict[str, Any]] = []
    code = 0
    with tempfile.TemporaryDirectory() as kept:
        for index, group in enumerate(groups):
            left = ends - time.monotonic()
            seconds = max(left - 12 * (len(groups) - index - 1), 5.0)  # each of the others gets a little
            part = Path(kept, f"{index}.json")
            words = [
                sys.executable,
                str(Path(__file__)),
                "--groups",
                group,
                "--part",
                str(part),
                "--only",
                options.only,
            ]
            words += ["--seconds", str(seconds)] + (["--limit", str(options.limit)] if options.limit else [])
            began = time.monotonic()
            try:
                ended = subprocess.run(words, cwd=_ROOT, timeout=seconds + 60, check=False).returncode
            except subprocess.TimeoutExpired:
                ended = -1
            print(f"group {group}: {time.monotonic() - began:.0f} s, exit code {ended}", flush=True)
            code = code or ended
            if part.exists():
                parts.append(json.loads(part.read_text(encoding="utf-8")))
                if ended and not parts[-1]["stopped"]:
                    parts[-1]["stopped"] = f"exit code {ended}"
            write(options.out, content := sum_up(parts))
    tell(content)
    return int(bool(code))


if __name__ == "__main__":
    sys.exit(main())
