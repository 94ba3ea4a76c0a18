"""Fifteen training scripts as written and as the report's advice leaves them: what was predicted, and what was gained.

    python tests/gpu/before_after.py --out FILE.json [--only NAME] [--steps N] [--repeats R] [--simulate]

The scripts are in ``before_after/``; each says in its docstring what the report named and what was done.  Each is run

- once under ``detail=syncs`` in both variants, for the counts and the advice;
- bare, both variants in turn in one process, for the times;
- as it was written under ``cost``, for the predicted gain.

``--simulate`` rehearses all of it without a GPU: few steps of small models, whose times mean nothing.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import importlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

if __package__ in {None, ""}:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.gpu.cost_pairs import interval

FOLDER = Path(__file__).with_name("before_after")
NAMES = (
    "cnn_validation", "lm_accumulation_amp", "gan", "detection_loss", "rl_ppo", "diffusion", "gnn_scatter",
    "hf_trainer", "lightning_progbar", "segmentation", "contrastive", "seq2seq_lengths", "vae_mixture",
    "super_resolution", "moe_routing",
)  # fmt: skip
COST_STEPS = 150
"""The window of the costs opens after the warm-up and takes up to seventy steps."""
_BLOCK_S = 0.6
_EVERY = 20
"""The scripts log, and validate, every so many steps: a block is a multiple of it."""
_LIMIT_S = 150
_AT_ONCE = 6


@dataclass(frozen=True)
class Script:
    """What a script says of itself."""

    text: str
    """Its docstring."""
    named: tuple[str, ...]
    """Parts of the lines that the report names, and that something was done about."""
    tolerance: float
    """How far the checksums of the variants may be apart, relatively."""
    libraries: tuple[str, ...]


@functools.cache
def declared(path: Path) -> Script:
    """Read a script's declarations from its text: its libraries need not be there."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in {"NAMED", "TOLERANCE"}
    }
    imported = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    tops = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names - {"torch", "stepclock"}
    libraries = {*tops, *({"accelerate"} if "transformers" in tops else ())}
    return Script(ast.get_docstring(tree) or "", values["NAMED"], values["TOLERANCE"], tuple(sorted(libraries)))


def watched(report: Path, *, simulate: bool, **settings: str) -> dict[str, str]:
    """Return the variables under which a run is watched and leaves its report there."""
    return {
        "SYNCAGENT": "1", "SYNCAGENT_DETAIL": "syncs", "SYNCAGENT_COPIES": "all", "SYNCAGENT_REPORT": str(report),
        "SYNCAGENT_JOURNAL": "off", "SYNCAGENT_CAPTURE": "off", "SYNCAGENT_SUMMARY": "0",
        "SYNCAGENT_MAX_EVENTS": "100000", **({"SYNCAGENT_SIMULATE": "1"} if simulate else {}), **settings,
    }  # fmt: skip


def printed(out: str) -> dict[str, float]:
    """Return what a script prints last."""
    found = re.findall(r"(?m)^(?:before|after): (\S+) ms a step, checksum (\S+)$", out)[-1]
    return {"step_ms": float(found[0]), "checksum": float(found[1])}


def steady(report: dict[str, Any], steps: int) -> float:
    """Return the syncs per step, between the two waits of the script's own clock."""
    clock = {site["id"] for site in report["sites"] if site["file"].endswith("stepclock.py")}
    events = sorted(report["events"], key=lambda event: event["start_ns"])
    began, ended = (number for number, event in enumerate(events) if event["site"] in clock)
    return (ended - began - 1) / (steps - max(steps // 5, 1))


# --- one process for the times


def take_turns(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Both variants in turn; the first run of each is not counted."""
    sys.path.insert(0, str(FOLDER))
    clock, script = importlib.import_module("stepclock"), importlib.import_module(name)

    def train(variant: str, steps: int) -> tuple[float, float]:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            return script.train(clock.Run(variant, options.device, steps, options.simulate))

    sys.stdin.readline()  # its turn has come
    variants = ("before", "after")
    steps = options.steps
    first = {variant: train(variant, min(steps, _EVERY))[0] for variant in variants}
    if not options.simulate:
        fits = int(_BLOCK_S * 1e3 / max(first.values())) // _EVERY * _EVERY
        steps = min(max(fits, _EVERY), steps)
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    sums: dict[str, list[float]] = {variant: [] for variant in variants}
    for number in range(options.repeats):
        for variant in variants if number % 2 else reversed(variants):
            step_ms, checksum = train(variant, steps)
            times[variant].append(step_ms)
            sums[variant].append(checksum)
    saved = [a - b for a, b in zip(times["before"], times["after"], strict=True)]
    scale = max(abs(sums["before"][0]), 1e-12)
    return {
        "steps": steps,
        **{f"{variant}_ms": round(statistics.median(times[variant]), 4) for variant in variants},
        **{f"{variant}_ci95": interval(times[variant]) for variant in variants},
        "gain_ms": round(statistics.median(saved), 4), "gain_ci95": interval(saved),
        "times": {variant: [round(ms, 4) for ms in times[variant]] for variant in variants},
        "checksums": {variant: sums[variant] for variant in variants},
        "differs_by": max(abs(a - b) / scale for a, b in zip(sums["before"], sums["after"], strict=True)),
        "differs_from_itself_by": (max(sums["before"]) - min(sums["before"])) / scale,
    }  # fmt: skip


# --- processes


def started(words: list[str], **variables: str) -> subprocess.Popen[str]:
    """Start Python without a setting of whoever runs this."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SYNCAGENT", "OTEL_"))}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **variables}
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *words], env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def ended(process: subprocess.Popen[str], given: str = "") -> str:
    """Give a process its input and wait for it; what it printed."""
    try:
        out, err = process.communicate(given, timeout=_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    if process.returncode:
        raise RuntimeError(f"ended with {process.returncode}: {err[-1500:]}")
    return out


def words_of(name: str, variant: str, steps: int, options: argparse.Namespace) -> list[str]:
    """Return how a watched run is started, also where the package is not installed but only on the path."""
    words = ["-m", "syncagent", "run", str(FOLDER / f"{name}.py"), "--variant", variant, "--steps", str(steps)]
    return [*words, "--small"] if options.simulate else words


def counted(job: tuple[str, str, argparse.Namespace, Path]) -> dict[str, Any]:
    """Return the syncs per step of a variant, and its sites with what is said of each."""
    name, variant, options, folder = job
    steps = options.steps if options.simulate else 2 * _EVERY
    file = folder / f"{name}.{variant}.json"
    try:
        ended(started(words_of(name, variant, steps, options), **watched(file, simulate=options.simulate)))
        report = json.loads(file.read_text(encoding="utf-8"))
        return {"per_step": round(steady(report, steps), 3), "sites": [kept(name, site) for site in report["sites"]]}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def kept(name: str, site: dict[str, Any]) -> dict[str, Any]:
    """Return what the result keeps of a site."""
    keys = ("op", "kind", "phase", "line", "source", "count", "per_step", "stall_ms", "gain_ms", "idle_ms", "advice")
    script = declared(FOLDER / f"{name}.py")
    return {
        "file": os.path.basename(site["file"]), **{key: site[key] for key in keys},
        "advice_kind": site.get("advice_kind"), "named": any(text in site["source"] for text in script.named),
    }  # fmt: skip


def priced(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the gain that a run of ``before`` predicts."""
    file = folder / f"{name}.cost.json"
    steps = options.steps if options.simulate else COST_STEPS
    settings = watched(file, simulate=options.simulate, SYNCAGENT_COST="1")
    # As a user has it: with cost the agent chooses the rest.
    chosen = {key: value for key, value in settings.items() if key not in {"SYNCAGENT_DETAIL", "SYNCAGENT_COPIES"}}
    ended(started(words_of(name, "before", steps, options), **chosen))
    report = json.loads(file.read_text(encoding="utf-8"))
    cost = report.get("cost") or {"abstained": "; ".join(report["notes"]), "gain_all_ms": None}
    keys = ("steps", "step_ms", "measured_step_ms", "gain_all_ms", "abstained", "order", "notes")
    sites = [kept(name, site) for site in report["sites"] if site["gain_ms"] is not None]
    named = [site["gain_ms"] for site in sites if site["named"]]
    return {
        **{key: cost.get(key) for key in keys}, "sites": sites,
        "gain_named_one_by_one_ms": round(sum(named), 4) if named else None,
    }  # fmt: skip


def turns_of(name: str, options: argparse.Namespace) -> subprocess.Popen[str]:
    """Start the process for the times: it loads what it needs, and waits for its turn."""
    words = [__file__, "--turns", name, "--out", os.devnull, "--steps", str(options.steps), "--repeats",
             str(options.repeats), "--device", options.device]  # fmt: skip
    return started([*words, "--simulate"] if options.simulate else words)


def measure(name: str, options: argparse.Namespace, folder: Path, turns: subprocess.Popen[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    parts = {
        "times": lambda: json.loads(ended(turns, "now\n").splitlines()[-1]),
        "cost": lambda: priced(name, options, folder),
    }
    for part, make in parts.items():
        try:
            found[part] = make()
        except Exception as error:
            found[part] = {"error": f"{type(error).__name__}: {error}"}
    return found


def described(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    return {
        "torch": torch.__version__, "python": platform.python_version(),
        "gpu": "none, simulated" if options.simulate else torch.cuda.get_device_name(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "simulated": options.simulate, "repeats": options.repeats,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="scripts whose name holds this; several with commas")
    parser.add_argument("--steps", type=int, help="at most so many per block (60; 4 if simulated)")
    parser.add_argument("--repeats", type=int, help="blocks of each variant (6; 2 if simulated)")
    parser.add_argument("--simulate", action="store_true", help="rehearse without a GPU")
    parser.add_argument("--budget-s", type=float, default=440, help="no script is begun after that")
    parser.add_argument("--turns", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--device", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.steps = options.steps or (4 if options.simulate else 3 * _EVERY)
    options.repeats = options.repeats or (2 if options.simulate else 6)
    options.device = options.device or ("cpu" if options.simulate else "cuda")
    if options.turns:
        print(json.dumps(take_turns(options.turns, options)))
        return 0
    names = [name for name in NAMES if any(part in name for part in options.only.split(","))]
    began, result = time.monotonic(), {**described(options), "scripts": {}}
    rows: dict[str, Any] = result["scripts"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # Loading takes seconds; two cores have no room for fifteen that do.
        waiting = {} if options.simulate else {name: turns_of(name, options) for name in names}
        try:
            count(names, rows, options, folder)
            print(f"{time.monotonic() - began:6.1f} s  counted", flush=True)
            for name in names:
                if time.monotonic() - began > options.budget_s:
                    print("out of time before", name, flush=True)
                    break
                rows[name] |= measure(name, options, folder, waiting.pop(name, None) or turns_of(name, options))
                options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
                print(f"{time.monotonic() - began:6.1f} s  {told(name, rows[name])}", flush=True)
        finally:
            for process in waiting.values():
                process.kill()
                process.communicate()
    return 0


def count(names: list[str], rows: dict[str, Any], options: argparse.Namespace, folder: Path) -> None:
    """Count both variants' syncs: that does not depend on what runs beside it, as times do."""
    jobs = [(name, variant, options, folder) for name in names for variant in ("before", "after")]
    with ThreadPoolExecutor(1 if options.simulate else _AT_ONCE) as pool:
        for (name, variant, *_), found in zip(jobs, pool.map(counted, jobs), strict=True):
            rows.setdefault(name, {"tolerance": declared(FOLDER / f"{name}.py").tolerance})[variant] = found


def told(name: str, row: dict[str, Any]) -> str:
    """Return what a person wants to know first."""
    errors = [f"{part}: {row[part]['error']}" for part in ("before", "after", "times", "cost") if "error" in row[part]]
    if errors:
        return f"{name}: {'; '.join(errors)}"
    times, cost = row["times"], row["cost"]
    predicted = cost["abstained"] if cost["gain_all_ms"] is None else f"{cost['gain_all_ms']:.3f} ms"
    return (
        f"{name}: {row['before']['per_step']:g} → {row['after']['per_step']:g} syncs, {times['before_ms']:.3f} → "
        f"{times['after_ms']:.3f} ms, gain {times['gain_ms']:.3f} ms {times['gain_ci95']}, predicted {predicted}; "
        f"checksums differ by {times['differs_by']:.2g}, from themselves by {times['differs_from_itself_by']:.2g}"
    )


if __name__ == "__main__":
    sys.exit(main())
