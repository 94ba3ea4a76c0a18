"""Measures what syncs really cost: pairs of programs, alternating and unprofiled, then traces of each for the replay.

python tests/gpu/cost_pairs.py --out FOLDER [--match TEXT] [--device cpu]

Each pair runs in a process of its own: first the truth (rounds of both programs in turn), then, with the agent on, what
the product's window does with each: steps without the profiler between two drains, then six captured steps.  The traces
are kept with what the replay needs of them.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STEPS = 6
"""The first one fills the pipeline; the cost is estimated from five."""
_KEPT = ("correlation", "stream", "device", "bytes", "External id", "memory bandwidth (GB/s)", "wait_on_stream",
         "wait_on_cuda_event_record_corr_id", "wait_on_cuda_event_id", "cuda_sync_kind", "event_id",
         "Fwd thread id", "Sequence number", "Ev Idx")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--match", default="")
    parser.add_argument("--from", dest="first", default="", help="the pair to begin with")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--budget-s", type=float, default=450)
    parser.add_argument("--block-s", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=17)
    parser.add_argument("--activities", default="cpu+cuda", help="of the captures: cuda, cpu+cuda or both with a comma")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure(arguments)
        return
    import cost_programs

    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    names = list(cost_programs.PAIRS)
    for name in names[names.index(arguments.first) if arguments.first else 0 :]:
        if arguments.match and not any(part in name for part in arguments.match.split(",")):
            continue
        if time.monotonic() - began > arguments.budget_s:
            print("out of time before", name, flush=True)
            break
        command = [sys.executable, __file__, "--one", name, "--out", str(out), "--device", arguments.device,
                   "--block-s", str(arguments.block_s), "--rounds", str(arguments.rounds),
                   "--activities", arguments.activities]  # fmt: skip
        try:
            done = subprocess.run(command, timeout=200, capture_output=True, text=True, check=False)
        except subprocess.TimeoutExpired:
            print(f"{name} took too long", flush=True)
            continue
        print(f"{time.monotonic() - began:6.1f} s  {done.stdout.strip()}", flush=True)
        if done.returncode:
            print(f"{name} failed: {done.stderr[-1500:]}", flush=True)


def measure(arguments: argparse.Namespace) -> None:
    import torch
    from cost_programs import PAIRS

    name, device = arguments.one, arguments.device
    entry = PAIRS[name]
    steps = dict(zip(("with", "without"), entry.build(device, device != "cuda"), strict=True))
    truth = take_turns(steps, device, arguments.block_s, arguments.rounds)
    out = Path(arguments.out)
    windows: dict[str, Any] = {}
    for program, step in steps.items():
        for activities in arguments.activities.split(","):
            file = out / f"{name}.{program}.{activities.replace('+', '_')}.trace.json.gz"
            windows[f"{program} {activities}"] = window(step, device, activities, file, raw=name.startswith("two_str"))
    result = {
        "name": name, "regime": entry.regime, "free": entry.is_free, "truth": truth, "windows": windows,
        "torch": torch.__version__, "python": platform.python_version(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "none",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }  # fmt: skip
    (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{name}: with {truth['with_ms']:.3f} ms, without {truth['without_ms']:.3f} ms, "
          f"saves {truth['saves_ms']:.3f} ms {truth['saves_ci95']}; traces "
          f"{ {k: v['trace_bytes'] for k, v in windows.items()} }")  # fmt: skip


def drain(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def block_ms(step: Any, count: int, device: str) -> float:
    """Milliseconds per step, over ``count`` steps between two drains."""
    drain(device)
    began = time.perf_counter()
    for _ in range(count):
        step()
    drain(device)
    return (time.perf_counter() - began) * 1e3 / count


def take_turns(steps: dict[str, Any], device: str, block_s: float, rounds: int) -> dict[str, Any]:
    counts = {}
    for program, step in steps.items():
        block_ms(step, 5, device)
        once = block_ms(step, 5, device)
        counts[program] = max(int(block_s * 1e3 / once), 3 if once > 100 else 6)
        block_ms(step, counts[program], device)
    times: dict[str, list[float]] = {program: [] for program in steps}
    for number in range(rounds):
        for program in steps if number % 2 else reversed(steps):
            times[program].append(block_ms(steps[program], counts[program], device))
    differences = [a - b for a, b in zip(times["with"], times["without"], strict=True)]
    return {
        "with_ms": statistics.median(times["with"]), "without_ms": statistics.median(times["without"]),
        "with_ci95": interval(times["with"]), "without_ci95": interval(times["without"]),
        "saves_ms": statistics.median(differences), "saves_ci95": interval(differences),
        "steps_a_block": counts, "rounds": rounds,
        "times": {program: [round(t, 4) for t in found] for program, found in times.items()},
    }  # fmt: skip


def interval(values: list[float], draws: int = 2000) -> list[float]:
    """The bootstrap's 95 % interval of the median."""
    dice = random.Random(0)
    medians = sorted(statistics.median(dice.choices(values, k=len(values))) for _ in range(draws))
    return [round(medians[int(draws * 0.025)], 4), round(medians[int(draws * 0.975)], 4)]


def window(step: Any, device: str, activities: str, file: Path, *, raw: bool) -> dict[str, Any]:  # noqa: PLR0915 - one run
    """What users get: the agent on, steps without the profiler, then a capture."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    import syncagent
    from syncagent.runtime import process
    from syncagent.settings import sources

    agent = process.launch(sources.load({"detail": "syncs", "copies": "all", "report": None}))
    marks: list[dict[str, Any]] = []
    try:
        block_ms(step, 5, device)
        count = max(min(int(500 / max(block_ms(step, 3, device), 0.01)), 60), 10)
        plain_ms = [block_ms(step, count, device) for _ in range(2)]
        wanted = [ProfilerActivity.CUDA] if activities == "cuda" else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
        if device != "cuda":
            wanted = [ProfilerActivity.CPU]
        more = {}
        try:
            more["experimental_config"] = torch._C._profiler._ExperimentalConfig(enable_cuda_sync_events=True)
        except TypeError as error:
            print("no sync events:", error)
        profiler = profile(activities=wanted, acc_events=True, **more)
        clocks = []

        def mark(number: int) -> None:
            before, epoch = time.perf_counter_ns(), time.time_ns()
            with torch.profiler.record_function(f"syncagent#step {number}"):
                if device == "cuda":
                    torch.cuda.current_stream().query()
            clocks.append([before, epoch, time.perf_counter_ns()])

        drain(device)
        profiler.start()
        # The first record of a profiled run is expensive: get it over with before the first step.
        for _ in range(3):
            mark(-1)
        drain(device)
        for number in range(STEPS):
            mark(number)
            step()
        mark(STEPS)
        marks = [{"perf_ns": c[0], "epoch_ns": c[1], "after_ns": c[2]} for c in clocks]
        drain(device)
        drained_ns = time.perf_counter_ns()
        profiler.stop()
        since = time.time_ns() - 60_000_000_000
        anchor = agent._buffers.epoch_ns(0)
        events = [
            {"op": e.op, "api": e.api, "kind": str(e.kind), "perf_ns": e.start_ns - anchor, "stall_ns": e.stall_ns,
             "file": os.path.basename(e.site.file) if e.site else "", "line": e.site.line if e.site else 0,
             "source": e.site.source if e.site else "", "phase": str(e.phase), "thread": e.thread, "step": e.step,
             "stream": e.stream}
            for e in agent.events() if e.start_ns > since and marks and e.start_ns - anchor >= marks[0]["perf_ns"]
        ]  # fmt: skip
    finally:
        syncagent.stop()
    with tempfile.NamedTemporaryFile(suffix=".json") as whole:
        profiler.export_chrome_trace(whole.name)
        text = Path(whole.name).read_text()
    trace = json.loads(text)
    kept = strip(trace)
    with gzip.open(file, "wt", compresslevel=7) as stream:
        json.dump(kept, stream, separators=(",", ":"))
    if raw:
        with gzip.open(file.with_name("raw." + file.name), "wt", compresslevel=7) as stream:
            stream.write(text)
    return {
        "plain_ms": plain_ms, "count": count, "marks": marks, "drained_perf_ns": drained_ns, "events": events,
        "trace": file.name, "trace_bytes": file.stat().st_size, "main_tid": threading.get_native_id(),
        "trace_events": len(kept["traceEvents"]), "captured_ms": [
            (b["perf_ns"] - a["perf_ns"]) / 1e6 for a, b in itertools.pairwise(marks[3:])],
    }  # fmt: skip


def strip(trace: dict[str, Any]) -> dict[str, Any]:
    """The trace without what no replay needs."""
    kept = []
    for event in trace["traceEvents"]:
        category = event.get("cat")
        if event.get("ph") == "M":
            kept.append(event)
            continue
        if category in (None, "python_function", "ac2g", "fwdbwd", "Trace", "gpu_user_annotation", "cpu_instant_event"):
            continue
        arguments = event.get("args", {})
        event["args"] = {key: arguments[key] for key in _KEPT if key in arguments}
        event["name"] = event["name"][:48]
        kept.append(event)
    return {**{k: v for k, v in trace.items() if k != "traceEvents"}, "traceEvents": kept}


if __name__ == "__main__":
    main()
