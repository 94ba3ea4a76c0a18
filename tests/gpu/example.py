"""The example's four variants on a GPU: the agent's reports, the table of times, and the agent's overhead.

    python tests/gpu/example.py --out DIR [--budget SECONDS]

Times are taken in a process of their own, without the agent but for the cost; then every variant runs under the agent
as a user runs it.  Writes ``example.json``, a report and the printed table for each run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in {None, ""}:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.gpu.real_programs import read, run

if TYPE_CHECKING:
    from collections.abc import Callable

_SCRIPT = Path(__file__).resolve().parents[2] / "examples/masked_loss/train.py"
_BATCHES = (8, 256)
_VARIANTS = range(4)
_BURST = 4
"""Steps that fit into CUDA's queue of launches (about 1,000): only so does the host show how far it runs ahead."""
_SLOW_S = 0.15
_WARM = 3


# --- times, in a process of their own -------------------------------------------------------------------------------


def stepper(module: Any, variant: int, batch: int, device: str) -> Callable[[], None]:
    """Return one training step, the example's own."""
    import torch

    torch.manual_seed(0)
    net = module.Net().to(device)
    criterion = module.MaskedLoss(variant)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    images = torch.rand(batch, 3, module.SIZE, module.SIZE, device=device)
    labels = torch.randint(-1, module.CLASSES, (batch, module.SIZE, module.SIZE), device=device)

    def step() -> None:
        optimizer.zero_grad()
        loss = criterion(net(images), labels)
        loss.backward()
        optimizer.step()

    return step


def timed(step: Callable[[], None], steps: int, wait: Callable[[], None]) -> tuple[float, float]:
    """Return host time and end-to-end time per step in ms, from an idle GPU."""
    wait()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    returned = time.perf_counter()
    wait()
    ended = time.perf_counter()
    return (returned - began) * 1e3 / steps, (ended - began) * 1e3 / steps


def times(step: Callable[[], None], steps: int, wait: Callable[[], None]) -> dict[str, float]:
    turns = 3 if steps > _BURST else 2
    bursts = [timed(step, _BURST, wait)[0] for _ in range(turns)]
    loops = [timed(step, steps, wait) for _ in range(turns)]
    host, whole = (statistics.median(column) for column in zip(*loops, strict=True))
    return {"steps": steps, "host_ms": statistics.median(bursts), "loop_host_ms": host, "end_to_end_ms": whole}


def costs(step: Callable[[], None], steps: int, wait: Callable[[], None]) -> dict[str, Any]:
    """Return end-to-end time with and without the agent, alternating, with spans going to a journal."""
    from syncagent.runtime import process
    from syncagent.runtime.sinks import build
    from syncagent.settings import sources

    found: dict[str, list[float]] = {"bare": [], "ops": [], "syncs": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(3 if steps > _BURST else 2):
            for detail in ("bare", "ops", "syncs"):
                if detail == "bare":
                    step()
                    found[detail].append(timed(step, steps, wait)[1])
                    continue
                settings = sources.load({"detail": detail, "journal": str(Path(folder, f"{detail}{turn}.jsonl"))})
                ends = build(settings)
                watching = process.launch(settings, ends.sinks)
                try:
                    for _ in range(_WARM if steps > _BURST else 1):
                        step()
                    found[detail].append(timed(step, steps, wait)[1])
                finally:
                    process.release(watching)
                    if ends.outbox is not None:
                        ends.outbox.close()
    bare = statistics.median(found["bare"])
    return {
        detail: {
            "end_to_end_ms": statistics.median(runs), "ratio": statistics.median(runs) / bare,
            "runs": [round(run, 3) for run in runs],
        }
        for detail, runs in found.items()
    }  # fmt: skip


def busy(step: Callable[[], None], wait: Callable[[], None]) -> dict[str, float]:
    """Return how long the GPU works per step, and its share of the span, by torch.profiler (GPU activities only)."""
    from torch.profiler import ProfilerActivity, profile

    steps = 3
    wait()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            step()
        wait()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(file))
        events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    spans = sorted(
        (float(event["ts"]), float(event["ts"]) + float(event["dur"]))
        for event in events
        if event.get("ph") == "X" and event.get("cat") in {"kernel", "gpu_memcpy", "gpu_memset"}
    )
    union = reached = 0.0
    for begin, end in spans:
        union += max(end - max(begin, reached), 0.0)
        reached = max(reached, end)
    if not spans:
        return {"kernels": 0}
    return {
        "kernels": len(spans) / steps, "gpu_ms": union / 1e3 / steps,
        "busy_while_profiled": union / (reached - spans[0][0]),
    }  # fmt: skip


def measure(out: Path, budget_s: float, device: str, size: int | None) -> None:
    """Fill in everything that is timed; kept after each part, so that a run that is cut short still has results."""
    import torch

    began = time.perf_counter()
    spec = importlib.util.spec_from_file_location("train", _SCRIPT)
    assert spec is not None and spec.loader is not None  # noqa: PT018 - for mypy
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if size:
        module.SIZE = size
    wait = torch._C._cuda_synchronize if device == "cuda" else lambda: None
    rows: dict[str, Any] = {}

    def part(name: str, row: dict[str, Any], make: Callable[[], Any]) -> None:
        if time.perf_counter() - began > budget_s:
            row[name] = {"error": "no time left"}
        else:
            try:
                row[name] = make()
            except Exception as error:
                row[name] = {"error": repr(error)[:300]}
        out.write_text(json.dumps(rows), encoding="utf-8")

    for profiled in (False, True):  # the profiler leaves traces in the process: it comes last
        for batch in _BATCHES:
            for variant in _VARIANTS:
                row = rows.setdefault(f"batch {batch} variant {variant}", {})
                step: Callable[[], None] | None = None
                try:
                    step = stepper(module, variant, batch, device)
                    for _ in range(_WARM):
                        step()
                    steps = 20 if timed(step, 1, wait)[1] < _SLOW_S * 1e3 else _BURST
                except Exception as error:
                    row["error"] = repr(error)[:300]
                    continue
                if profiled:
                    part("gpu", row, lambda s=step: busy(s, wait))
                else:
                    part("times", row, lambda s=step, n=steps: times(s, n, wait))
                    part("agent", row, lambda s=step, n=steps: costs(s, n, wait))
                del step
                if device == "cuda":
                    torch.cuda.empty_cache()
    for row in rows.values():
        if "gpu_ms" in row.get("gpu", {}) and "end_to_end_ms" in row.get("times", {}):
            row["gpu"]["busy"] = row["gpu"]["gpu_ms"] / row["times"]["end_to_end_ms"]
    rows["took_s"] = round(time.perf_counter() - began, 1)
    out.write_text(json.dumps(rows), encoding="utf-8")


# --- reports, as a user gets them -----------------------------------------------------------------------------------


def watched(out: Path, variant: int, batch: int, detail: str, steps: int) -> dict[str, Any]:
    name = f"variant{variant}_batch{batch}_{detail}"
    report = out / f"{name}.report.json"
    words = ["-m", "syncagent", "run", str(_SCRIPT), "--variant", str(variant), "--batch", str(batch), "--steps"]
    result = run(
        [*words, str(steps)], out / f"{name}.txt", SYNCAGENT="1", SYNCAGENT_DETAIL=detail,
        SYNCAGENT_REPORT=str(report), SYNCAGENT_COPIES="all", SYNCAGENT_JOURNAL="off",
    )  # fmt: skip
    content = read(report)
    for key in ("totals", "overhead", "notes", "unreadable"):
        if key in content:
            result[key] = content[key]
    wanted = ("op", "line", "source", "phase", "count", "per_step", "stall_ms")
    result["sites"] = [{key: site.get(key) for key in wanted} for site in content.get("sites", [])[:8]]
    return result


def table(rows: dict[str, Any]) -> list[str]:
    """Lay the times out as text."""
    lines = [
        (
            f"{'':22s} {'host':>9s} {'loop host':>9s} {'end to end':>10s} {'GPU':>9s} {'busy':>6s} "
            f"{'ops costs':>9s} {'syncs cost':>10s}  (ms per step)"
        )
    ]
    for name, row in rows.items():
        if not isinstance(row, dict):
            continue
        own, gpu, agent = row.get("times", {}), row.get("gpu", {}), row.get("agent", {})
        lines.append(
            f"{name:22s} {_figure(own, 'host_ms'):>9s} {_figure(own, 'loop_host_ms'):>9s} "
            f"{_figure(own, 'end_to_end_ms'):>10s} {_figure(gpu, 'gpu_ms'):>9s} {_figure(gpu, 'busy', 3):>6s} "
            f"{_cost(agent, 'ops'):>9s} {_cost(agent, 'syncs'):>10s}"
        )
    return lines


def _figure(row: dict[str, Any], key: str, digits: int = 2) -> str:
    return f"{row[key]:.{digits}f}" if key in row else "-"


def _cost(row: dict[str, Any], detail: str) -> str:
    return f"{(row[detail]['ratio'] - 1) * 100:+.1f} %" if detail in row else "-"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=145.0, help="seconds in all (default 145)")
    parser.add_argument("--measure", action="store_true", help="only take times (it calls itself so)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, help="height and width, for a test of this script")
    options = parser.parse_args()
    out = options.out.resolve()
    if options.measure:
        measure(out, options.budget, options.device, options.size)
        return 0
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    timings = out / "times.json"
    # Its memory goes back with its process: at batch 256 two do not fit on a GPU.
    words = [sys.executable, __file__, "--measure", "--out", str(timings), "--budget", str(0.45 * options.budget)]
    words += ["--device", options.device, *(["--size", str(options.size)] if options.size else [])]
    try:
        code = subprocess.run(words, check=False, timeout=0.6 * options.budget).returncode
    except subprocess.TimeoutExpired:
        code = -1
    rows = read(timings)
    timings.unlink(missing_ok=True)
    results: dict[str, Any] = {"measure_rc": code, "table": table(rows), "times": rows, "watched": {}}
    print("\n".join(results["table"]), flush=True)
    plan = [(detail, batch) for detail in ("ops", "syncs") for batch in _BATCHES]
    for detail, batch in plan:
        for variant in _VARIANTS:
            name = f"variant {variant} batch {batch} {detail}"
            left = options.budget - (time.perf_counter() - began)
            if left < 8:
                results["watched"][name] = {"error": "no time left"}
                continue
            whole = rows.get(f"batch {batch} variant {variant}", {}).get("times", {}).get("end_to_end_ms", 0.0)
            steps = 20 if whole < _SLOW_S * 1e3 else 8
            found = results["watched"][name] = {"steps": steps, **watched(out, variant, batch, detail, steps)}
            print(f"{name}: rc {found['rc']}, {found['wall_s']} s, {found.get('totals')}", flush=True)
            for site in found["sites"][:4]:
                print(f"    {site['stall_ms']:9.2f} ms {site['count']:4d}x {site['op']} line {site['line']}")
            (out / "example.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    results["took_s"] = round(time.perf_counter() - began, 1)
    (out / "example.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"took {results['took_s']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
