"""How far modelled times are from a GPU's: ten programs, and the pairs of cost_programs.py that an H100 has run.

    python tests/gpu/modelled.py measure --out FILE.json                        # on a GPU
    python tests/gpu/modelled.py model --gpu H200 --out FILE.json [--small]     # needs none
    python tests/gpu/modelled.py model --gpu H100 --pairs --out FILE.json       # needs none
    python tests/gpu/modelled.py compare MEASURED.json MODELLED.json --out FILE.json

``measure`` writes for each program the time of a step, the host's stall in it as the agent sees it, and how long the
GPU's kernels ran, as torch.profiler sees it.  ``model`` writes the same for the simulated device.  ``compare`` puts
them side by side; for ``--pairs`` the measured side is ``results/cost_pairs.json``, where only steps are timed.  Its
result belongs into ``results/modelled.json`` (``modelled_pairs.json`` for pairs).  ``--only NAME`` takes some programs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

if __package__ in {None, ""}:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

RESULTS = Path(__file__).with_name("results")
PAIRS = RESULTS / "cost_pairs.json"
_TOO_LARGE = ("article_batch_256",)
"""A step of it takes a CPU many minutes."""


def about(gpu: str) -> dict[str, Any]:
    import torch

    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"gpu": gpu, "torch": torch.__version__, "python": platform.python_version(), "date": date}


def settings(**more: Any) -> dict[str, Any]:
    return {
        "detail": "syncs", "copies": "all", "journal": "off", "capture": "off", "summary": False, "report": None, **more
    }  # fmt: skip


def stall_ms(agent: Any, since_ns: int, steps: int) -> float:
    return sum(event.stall_ns for event in agent.events() if event.start_ns >= since_ns) / 1e6 / steps


# --- on a GPU ------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    import syncagent
    from tests.gpu.modelled_programs import PROGRAMS

    rows = {}
    for name in options.only or PROGRAMS:
        torch.manual_seed(0)
        step = PROGRAMS[name]("cuda", options.small)
        times = [_block_ms(step, options.steps) for _ in range(options.rounds + 1)][1:]
        with syncagent.watch(**settings()) as agent:
            began_ns = time.time_ns()
            _block_ms(step, options.steps)
            stall = stall_ms(agent, began_ns, options.steps)
        rows[name] = {"step_ms": statistics.median(times), "stall_ms": stall, "busy_ms": _busy_ms(step, options.steps)}
        print(name, rows[name], flush=True)
        save(options.out, {**about(torch.cuda.get_device_name()), "small": options.small, "programs": rows})
        del step
        torch.cuda.empty_cache()
    return {**about(torch.cuda.get_device_name()), "small": options.small, "programs": rows}


def _block_ms(step: Any, steps: int) -> float:
    import torch

    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) * 1e3 / steps


def _busy_ms(step: Any, steps: int) -> float:
    """How long kernels and copies ran, in a step: the union of their times on all streams."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        _block_ms(step, steps)
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    busy, until = 0.0, 0.0
    for start, end in spans:
        busy += max(end - max(start, until), 0.0)
        until = max(until, end)
    return busy / 1e3 / steps


# --- on the simulated device -----------------------------------------------------------------------------------


def model(options: argparse.Namespace) -> dict[str, Any]:
    import syncagent

    with syncagent.watch(**settings(simulate=True, simulate_gpu=options.gpu)) as agent:
        import torch

        from syncagent.simulate import modelled

        if modelled.clock is not None:  # these programs do nothing but call torch: a busy machine would only add noise
            modelled.clock.processor_ns = int
        if options.pairs:
            from tests.gpu.cost_programs import PAIRS as builds

            names = [name for name in options.only or builds if name not in _TOO_LARGE]
            programs = {name: _both(builds[name].build, options.small) for name in names}
        else:
            from tests.gpu.modelled_programs import PROGRAMS

            programs = {name: _one(PROGRAMS[name], options.small) for name in options.only or PROGRAMS}
        rows: dict[str, dict[str, float]] = {}
        for name, build in programs.items():
            torch.manual_seed(0)
            for variant, step in build().items():
                rows[name + variant] = _modelled(agent, step, options.steps, options.warm_up)
                print(name + variant, rows[name + variant], flush=True)
                save(options.out, {**about(options.gpu), "small": options.small, "programs": rows})
    return {**about(options.gpu), "small": options.small, "programs": rows}


def _one(build: Any, small: bool) -> Any:
    return lambda: {"": build("cuda", small)}


def _both(build: Any, small: bool) -> Any:
    return lambda: dict(zip((" with", " without"), build("cuda", small), strict=True))


def _modelled(agent: Any, step: Any, steps: int, warm_up: int) -> dict[str, float]:
    import torch

    from syncagent import simulate

    for _ in range(warm_up):
        step()
    torch.cuda.synchronize()
    before = len(agent.events())
    began, busy = simulate.now_ns(), simulate.gpu_busy_ns()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    return {
        "step_ms": (simulate.now_ns() - began) / 1e6 / steps,
        "stall_ms": sum(event.stall_ns for event in agent.events()[before:]) / 1e6 / steps,
        "busy_ms": (simulate.gpu_busy_ns() - busy) / 1e6 / steps,
    }


# --- side by side ----------------------------------------------------------------------------------------------


def compare(options: argparse.Namespace) -> dict[str, Any]:
    modelled = json.loads(Path(options.files[-1]).read_text(encoding="utf-8"))
    if options.pairs:
        measured = json.loads(PAIRS.read_text(encoding="utf-8"))
        steps = {
            f"{name} {variant}": {"step_ms": pair[f"{variant}_ms"]}
            for name, pair in measured["pairs"].items()
            for variant in ("with", "without")
        }
    else:
        measured = json.loads(Path(options.files[0]).read_text(encoding="utf-8"))
        steps = measured["programs"]
    rows = {
        name: {
            key: {"measured": steps[name][key], "modelled": row[key], "ratio": _ratio(row[key], steps[name][key])}
            for key in ("step_ms", "stall_ms", "busy_ms")
            if key in steps[name]
        }
        for name, row in modelled["programs"].items()
        if name in steps
    }
    ratios = sorted(max(row["step_ms"]["ratio"], 1 / row["step_ms"]["ratio"]) for row in rows.values())
    heads = {key: measured[key] for key in ("gpu", "torch", "python", "date")}
    return {
        **heads, "modelled_for": modelled["gpu"], "modelled_with": modelled["torch"], "modelled_on": modelled["date"],
        "off_by_median": statistics.median(ratios), "off_by_most": ratios[-1], "programs": rows,
    }  # fmt: skip


def _ratio(modelled: float, measured: float) -> float | None:
    return modelled / measured if measured else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "model", "compare"))
    parser.add_argument("files", nargs="*")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--gpu", default="H200", help="whose times are modelled")
    parser.add_argument("--pairs", action="store_true", help="the pairs of cost_programs.py")
    parser.add_argument("--small", action="store_true", help="tiny models, to try the script")
    parser.add_argument("--only", action="append")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    result = {"measure": measure, "model": model, "compare": compare}[options.what](options)
    save(options.out, result)


def save(file: Path, result: dict[str, Any]) -> None:
    """Write a result, also one of which some programs are still missing."""
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
