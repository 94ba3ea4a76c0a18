"""Waits outside of torch's own ops: collectives, sharded tensors, extensions, and other libraries that use the GPU.

    python tests/gpu/beyond_aten.py --out FILE.json [--only TEXT] [--groups nccl,ddp] [--seconds 300] [--compile]

Each call is made behind a sleeping GPU three times: without the agent, which says whether it waits; under
``detail="syncs"``; and as by default after the first steps, each call in a step of its own, of which few are sampled.
For a call that waits: was it seen, by which sensor, as which op and kind, for how long, and on which line?

Each group has a process of its own.  One GPU does: all process groups are of one rank.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in {None, ""}:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import syncagent
from tests.gpu import physical
from tests.gpu.blocking_functions import LIBRARIES
from tests.gpu.corpus.case import Case, table
from tests.gpu.driver_accuracy import settings_by_default
from tests.gpu.explore import environment

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_ROOT = Path(__file__).resolve().parents[2]
_SLEEP_MS = 20.0
_SEEN = 0.5
"""A call has been seen if the stalls reported within it last this share of what it waited."""
_FIRST = 21
_EVENTS = 100_000

_GROUP = "from tests.gpu.runtime import single_group; dist = single_group()"

NCCL = table(
    "nccl",
    """
    B dist.barrier()
    B dist.barrier(device_ids=[0])
    B dist.barrier(async_op=True).wait()
    - k = dist.barrier(async_op=True)
    B k = dist.new_group([0]); dist.barrier(k) || dist.barrier(group=k)
    - dist.all_reduce(g)
    - dist.all_reduce(g, async_op=True).wait()
    B dist.all_reduce(g, async_op=True).wait(timedelta(seconds=9))
    B dist.all_reduce(g); g[0].item()
    - dist.broadcast(g, 0)
    - dist.all_gather_into_tensor(T.empty_like(g), g)
    - dist.reduce_scatter_tensor(T.empty_like(g), g)
    B dist.all_gather_object([None], {"a": 1})
    B dist.gather_object({"a": 1}, [None])
    B dist.broadcast_object_list([1, "a"], 0)
    B dist.broadcast_object_list([1, "a"], 0, device=D)
    B dist.scatter_object_list([None], [{"a": 1}], 0)
    B C.all_reduce(g, "sum", [0]).sum().item()
    - C.all_reduce(g, "sum", [0])
    - dist.new_group([0])
    - k = dist.new_group([0]); dist.all_reduce(g, group=k) || dist.destroy_process_group(k)
    """,
    setup=f"{_GROUP}; from datetime import timedelta; import torch.distributed._functional_collectives as C",
    needs="torch.distributed.is_nccl_available()",
)
GLOO = table(
    "gloo",
    """
    - dist.monitored_barrier(group=k)
    - dist.monitored_barrier(group=k, wait_all_ranks=True)
    - dist.barrier(group=k)
    B dist.all_reduce(g, group=k)
    B dist.broadcast(g, 0, group=k)
    B dist.all_gather([T.empty_like(g)], g, group=k)
    - dist.all_gather_object([None], {"a": 1}, group=k)
    - dist.broadcast_object_list([1, "a"], 0, group=k)
    B T.cuda.synchronize(); dist.monitored_barrier(group=k)
    """,
    setup=f"{_GROUP}; k = dist.group.WORLD if dist.get_backend() == 'gloo' else dist.new_group([0], backend='gloo')",
)
DDP = table(
    "ddp",
    """
    - P(nn.Linear(64, 64, device=D))
    - n(A)
    - n(A).sum().backward()
    - with n.no_sync(): n(A).sum().backward()
    B n(A).sum().item()
    B n(A).sum().backward(); [v.grad.norm().item() for v in n.parameters()]
    B n(A).sum().backward() || nn.utils.clip_grad_norm_(n.parameters(), 1.0, error_if_nonfinite=True)
    - n(A).sum().backward() || nn.utils.clip_grad_norm_(n.parameters(), 1.0)
    - n = P(nn.Linear(64, 64, device=D), find_unused_parameters=True); n(A).sum().backward() || n(A).sum().backward()
    - n = P(nn.Linear(64, 64, device=D), static_graph=True); n(A).sum().backward() || n(A).sum().backward()
    - n = P(nn.BatchNorm1d(64, device=D)); n(A).sum().backward() || n(A).sum().backward()
    B T.save(n.state_dict(), io.BytesIO())
    """,
    setup=f"{_GROUP}; P = nn.parallel.DistributedDataParallel; n = P(nn.Linear(64, 64, device=D))",
    needs="torch.distributed.is_nccl_available()",
)
FSDP = table(
    "fsdp2",
    """
    - S(nn.Linear(64, 64, device=D))
    - S(nn.Linear(64, 64))
    - n(A)
    - n(A).sum().backward()
    B n(A).sum().item()
    B n(A).sum().backward() || nn.utils.clip_grad_norm_(n.parameters(), 1.0).item()
    B n(A).sum().backward() || nn.utils.clip_grad_norm_(n.parameters(), 1.0).full_tensor().item()
    - n(A).sum().backward() || nn.utils.clip_grad_norm_(n.parameters(), 1.0)
    - o = T.optim.AdamW(n.parameters()); n(A).sum().backward(); o.step() || o.step()
    B {k: v.full_tensor().cpu() for k, v in n.state_dict().items()}
    B get_model_state_dict(n, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    B n = S(nn.Linear(64, 64), offload_policy=CPUOffloadPolicy()) || n(A)
    B n = S(nn.Linear(64, 64), offload_policy=CPUOffloadPolicy()); n(A).sum().backward() || n(A).sum().backward()
    - n.unshard(); n.reshard()
    B save({"n": n.state_dict()}, checkpoint_id=tempfile.mkdtemp())
    """,
    setup=(
        f"{_GROUP}; import tempfile; from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard\n"
        "from torch.distributed.checkpoint import save\n"
        "from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict\n"
        "def S(module, **more):\n    fully_shard(module, **more)\n    return module\n"
        "n = S(nn.Sequential(nn.Linear(64, 64, device=D), nn.Linear(64, 64, device=D)))"
    ),
    needs="torch.distributed.is_nccl_available()",
)
DTENSOR = table(
    "dtensor",
    """
    - init_device_mesh(dev, (1,))
    - t.distribute_tensor(A, mesh, [t.Shard(0)])
    - d + d
    - d.full_tensor()
    - d.redistribute(placements=[t.Replicate()])
    B d.sum().item()
    B float(d.norm())
    B bool(d.sum() > 0)
    B T.equal(d, d)
    B d.full_tensor().cpu()
    B d.to_local().cpu()
    B d.cpu()
    B str(d)
    - t.rand(9, device_mesh=mesh, placements=[t.Shard(0)])
    - t.zeros(9, device_mesh=mesh, placements=[t.Shard(0)])
    """,
    setup=(
        f"{_GROUP}; import torch.distributed.tensor as t; from torch.distributed.device_mesh import init_device_mesh\n"
        "mesh = init_device_mesh(dev, (1,)); d = t.distribute_tensor(A, mesh, [t.Shard(0)])"
    ),
    needs="torch.distributed.is_nccl_available()",
)
EXTENSIONS = tuple(
    case
    for title, setup in (
        ("extension without the GIL", "from tests.gpu.extension import load; E = load(hold_gil=False)"),
        ("extension with the GIL", "from tests.gpu.extension import load; E = load(hold_gil=True)"),
    )
    for case in table(
        title,
        """
        B E.wait_device()
        B E.wait_stream(None)
        B e = T.cuda.Event() || e.record(); E.wait_event(e.cuda_event)
        B E.copy(c.data_ptr(), G.data_ptr(), 1 << 20, 2)
        B E.copy(G.data_ptr(), c.data_ptr(), 1 << 24, 1)
        B E.copy_async(G.data_ptr(), c.data_ptr(), 1 << 24, 1)
        - E.copy_async(G.data_ptr(), p.data_ptr(), 1 << 24, 1)
        B E.scratch(1 << 20)
        B E.wait_twice()
        - E.query(None)
        """,
        setup=setup,
    )
)
CTYPES = tuple(
    case
    for title, more in (("ctypes without the GIL", ""), ("ctypes with the GIL", "hold_gil=True"))
    for case in table(
        title,
        """
        B R.cudaDeviceSynchronize()
        B R.cudaStreamSynchronize(0)
        B R.cudaMemcpy(c.data_ptr(), G.data_ptr(), 1 << 20, 2)
        """,
        setup=f"from tests.gpu.runtime import Runtime; R = Runtime({more})",
    )
)
TORCH = table(
    "torch",
    """
    B T.mode(T.rand(2, 4096, device=D), 1)
    B g.unique(dim=0)
    B k = T.empty(1 << 26, device=D); del k || T.cuda.empty_cache()
    B T.cuda.cudart().cudaMemGetInfo(0); z.item()
    - T.empty(1 << 24, pin_memory=True)
    B C.synchronize()
    """,
    setup="import torch.accelerator as C",
)
COMPILED = (
    Case("compiled C++: wait()", "compiled C++", "X.wait()", "X = compiled()"),
    Case("compiled C++: wait_unlocked()", "compiled C++", "X.wait_unlocked()", "X = compiled()"),
    Case("compiled C++: through c10", "compiled C++", "X.c10_wait()", "X = compiled()"),
)
COMPILED = tuple(
    Case(case.name, case.family, case.call, f"from tests.gpu.beyond_aten import compiled\n{case.setup}")
    for case in COMPILED
)

GROUPS: dict[str, Sequence[Case]] = {
    "torch": TORCH, "extension": (*EXTENSIONS, *CTYPES), "nccl": (*NCCL, *GLOO), "ddp": DDP, "fsdp2": FSDP,
    "dtensor": DTENSOR, "cupy": [case for case in LIBRARIES if case.family == "cupy"],
    "numba": [case for case in LIBRARIES if case.family == "numba"], "compiled": COMPILED,
}  # fmt: skip
_REASONS = {
    "nccl: dist.all_reduce(g, async_op=True).wait(timedelta(seconds=9))": (
        "a wait with a timeout asks time and again whether the work is done, and sleeps in between"
    ),
    "cupy": "CuPy brings a CUDA runtime of its own, linked statically",
    "numba": "Numba calls the driver, not the runtime",
    "ctypes without the GIL": "ctypes looks the function up by dlsym and goes round every table of entries",
    "ctypes with the GIL": "ctypes looks the function up by dlsym and goes round every table of entries",
}
_CPP = """
#include <cuda_runtime_api.h>
#include <c10/cuda/CUDAStream.h>
#include <pybind11/pybind11.h>
void wait() { cudaDeviceSynchronize(); }
void wait_unlocked() { pybind11::gil_scoped_release unlocked; cudaDeviceSynchronize(); }
void c10_wait() { c10::cuda::getCurrentCUDAStream().synchronize(); }
"""


def compiled() -> Any:
    """Build a C++ extension as torch's documentation shows it; takes half a minute the first time."""
    from torch.utils.cpp_extension import load_inline

    return load_inline(
        "syncagent_waits", _CPP, functions=["wait", "wait_unlocked", "c10_wait"], with_cuda=True, use_pch=False
    )


# --- one group, in a process of its own -------------------------------------------------------------------------------


def run_group(group: str, part: Path, only: str, seconds: float) -> None:
    faulthandler.enable()
    warnings.filterwarnings("ignore")
    ends = time.monotonic() + seconds
    rows: dict[str, dict[str, Any]] = {}
    content: dict[str, Any] = {**environment(), "stopped": "", "cases": rows}
    cases = [case for case in GROUPS[group] if only in case.name]
    try:
        for case in cases:
            if time.monotonic() > ends:
                content["stopped"] = "not all cases were reached in time"
                break
            truth = physical.measure(case, _SLEEP_MS, 2)
            rows[case.name] = {
                "group": group, "family": case.family, "blocks": truth.blocks, "times_ms": list(truth.times_ms),
                "sleep_ms": round(truth.sleep_ms, 1), "error": truth.error,
            }  # fmt: skip
            part.write_text(json.dumps(content), encoding="utf-8")
        for which, settings in (
            ("syncs", {"detail": "syncs", "copies": "all"}), ("auto", settings_by_default()),
        ):  # fmt: skip
            content[which] = watched([case for case in cases if case.name in rows], rows, which, settings)
            part.write_text(json.dumps(content), encoding="utf-8")
    except physical.StickyError as error:
        content["stopped"] = str(error)
    part.write_text(json.dumps(content), encoding="utf-8")


def watched(
    cases: Sequence[Case], rows: dict[str, dict[str, Any]], which: str, settings: dict[str, Any]
) -> dict[str, Any]:
    """Run all cases under the agent, and put down what it reported within each."""
    from tests.gpu.oracle import Watched

    agent = syncagent.start(**settings, policy="observe", journal="off", summary=False, max_events=_EVENTS)
    try:
        for _ in range(_FIRST):
            syncagent.step()
        seen = Watched(agent)  # type: ignore[arg-type]  # the process's own agent
        for case in cases:
            row = rows[case.name]
            if row["blocks"] is None and physical.SLEEPS:
                continue
            syncagent.step()
            try:
                with physical.guarded(case):
                    physical.run_case(case)
                    run = physical.run_case(case, row["sleep_ms"] or _SLEEP_MS)
            except physical.StickyError:
                raise
            except Exception as error:
                row[which] = {"error": physical.describe(error)}
                continue
            events = seen.between(run)
            stall_ms = sum(event.stall_ns for event in events) / 1e6
            own = (f"<{case.name}>", f"<setup of {case.name}>")
            row[which] = {
                "ms": round(run.ms, 3), "slept_ms": round(run.slept_ms, 3), "waited": run.waited,
                "seen": bool(events) and stall_ms >= _SEEN * min(run.ms, run.slept_ms),
                "stall_ms": round(stall_ms, 3),
                "line": any(event.site is not None and event.site.file in own for event in events),
                "events": [
                    [event.op, str(event.kind), event.sensor, round(event.stall_ns / 1e6, 3), str(event.site),
                     event.thread, event.conditional]
                    for event in events[:6]
                ],
            }  # fmt: skip
        report = agent.report()
        return {
            "sensors": [[sensor.name, sensor.live, sensor.cannot_see, sensor.detail] for sensor in report.sensors],
            "notes": list(report.notes),
        }
    finally:
        syncagent.stop()


# --- the whole --------------------------------------------------------------------------------------------------------


def totals(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Count what waits and what of it was seen, under each detail."""
    waiting = {name: row for name, row in rows.items() if row["blocks"]}
    quiet = {name: row for name, row in rows.items() if row["blocks"] is False}
    result: dict[str, Any] = {
        "cases": len(rows), "waiting": len(waiting), "quiet": len(quiet),
        "undecided": {name: row["error"] for name, row in rows.items() if row["blocks"] is None},
    }  # fmt: skip
    for which in ("syncs", "auto"):
        parts = {name: row.get(which, {}) for name, row in waiting.items()}
        result[which] = {
            "seen": sum(bool(part.get("seen")) for part in parts.values()),
            "with_line": sum(bool(part.get("seen")) and part["line"] for part in parts.values()),
            "unseen": {
                name: part.get("error") or _REASONS.get(name) or _REASONS.get(rows[name]["family"], "")
                for name, part in parts.items()
                if not part.get("seen")
            },
            "without_line": {
                name: part["events"] for name, part in parts.items() if part.get("seen") and not part["line"]
            },
            "invented": {
                name: row[which]["events"]
                for name, row in quiet.items()
                if row.get(which, {}).get("events") and not row[which]["waited"]
            },
        }
    return result


def tell(content: dict[str, Any]) -> None:
    for name, row in content["cases"].items():
        word = {True: "waits", False: "-", None: "?"}[row["blocks"]]
        parts = []
        for which in ("syncs", "auto"):
            part = row.get(which, {})
            if "error" in part:
                parts.append(f"{which}: {part['error']}")
            elif part:
                shown = ", ".join(f"{op} {kind} {sensor} {ms}" for op, kind, sensor, ms, *_ in part["events"][:2])
                line = " LINE" if part["line"] else ""
                parts.append(f"{which}: {'seen' if part['seen'] else 'unseen'}{line} [{shown}]")
        print(f"{word:5s} {name}: {row['error'] or '; '.join(parts)}")
    found = content["totals"]
    print(f"\n{found['cases']} cases, {found['waiting']} wait, {found['quiet']} do not; undecided {found['undecided']}")
    for which in ("syncs", "auto"):
        part = found[which]
        print(f"{which}: {part['seen']} seen, {part['with_line']} of them with the line")
        for title in ("unseen", "without_line", "invented"):
            for name, what in part[title].items():
                print(f"    {title}: {name}: {what}")


def main() -> int:
    parser = argparse.ArgumentParser(description="hold the agent against waits outside of torch's own ops")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "."), "beyond_aten.json"))
    parser.add_argument("--only", default="", help="only cases whose name holds this text")
    parser.add_argument("--groups", default="", help=f"of {', '.join(GROUPS)}; all but compiled by default")
    parser.add_argument("--compile", action="store_true", help="with the group compiled, which takes a C++ compiler")
    parser.add_argument("--seconds", type=float, default=300.0, help="for everything (default 300)")
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    groups = options.groups.split(",") if options.groups else [group for group in GROUPS if group != "compiled"]
    groups += ["compiled"] if options.compile and "compiled" not in groups else []
    if unknown := [group for group in groups if group not in GROUPS]:
        parser.error(f"--groups: no group {unknown[0]!r}; there are {', '.join(GROUPS)}")
    if options.part is not None:
        run_group(groups[0], options.part, options.only, options.seconds)
        return 0
    ends = time.monotonic() + options.seconds
    content: dict[str, Any] = {**environment(), "groups": {}, "cases": {}}
    failed = 0
    for group in groups:
        left = ends - time.monotonic()
        if left < 5:
            content["groups"][group] = {"stopped": "not reached in time"}
            continue
        if not any(options.only in case.name for case in GROUPS[group]):
            continue
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder, "part.json")
            words = [sys.executable, str(Path(__file__)), "--groups", group, "--part", str(part)]
            words += ["--only", options.only, "--seconds", str(left)]
            environ = {key: value for key, value in os.environ.items() if not key.startswith("SYNCAGENT")}
            try:
                done = subprocess.run(
                    words, cwd=_ROOT, env=environ, timeout=left + 30, stderr=subprocess.PIPE, text=True
                )
                code, tail = done.returncode, done.stderr.strip().splitlines()[-5:]
            except subprocess.TimeoutExpired:
                code, tail = -1, ["out of time"]
            found = json.loads(part.read_text(encoding="utf-8")) if part.exists() else {"cases": {}}
        content["cases"] |= found.pop("cases")
        content["groups"][group] = {key: found[key] for key in ("stopped", "syncs", "auto") if found.get(key)}
        if code:
            failed += 1
            content["groups"][group] |= {"exit": code, "tail": tail}
            print(f"group {group}: exit code {code}: {tail}", flush=True)
        content["totals"] = totals(content["cases"])
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    content["totals"] = totals(content["cases"])
    tell(content)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
