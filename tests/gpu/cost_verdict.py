"""Compares the replay with the truth: what it says about each pair, from the traces that cost_pairs.py left.

python tests/gpu/cost_verdict.py FOLDER --out tests/gpu/results/cost_pairs.json [--fixtures tests/unit/cost/traces]
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path
from typing import Any

from syncagent.cost import replay, sites, trace
from syncagent.cost.estimate import estimate
from syncagent.cost.program import build

FIXTURES = (
    "article_batch_256", "convnet_item_step", "copy_pageable", "example_logging_item", "tiny_mlp_item_step",
    "two_streams",
)  # fmt: skip
SECOND = ("second_item",)
"""Both programs wait once per step, and one of them a second time."""
_STEP, _SAVING, _SAVING_MS = 0.03, 0.2, 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fixtures", type=Path)
    arguments = parser.parse_args()
    measured = [json.loads(file.read_text()) for file in sorted(arguments.folder.glob("*.json"))]
    rows = {found["name"]: verdict(arguments.folder, found) for found in measured}
    first = max(measured, key=lambda found: found["date"])
    result = {
        **{key: first[key] for key in ("gpu", "torch", "python", "date")},
        "allowed": {"step": _STEP, "saving": _SAVING, "saving_ms": _SAVING_MS},
        "pairs": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, row in rows.items():
        print(name, row["saves_ms"], row["predicted_saving_ms"], row["step_error"], row["saving_ok"], row["step_ok"])
    if arguments.fixtures:
        arguments.fixtures.mkdir(exist_ok=True)
        for name in FIXTURES:
            fixture(arguments.folder, name, arguments.fixtures)
        truth = {name: rows[name] for name in FIXTURES}
        (arguments.fixtures / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")


def verdict(folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """What the replay of the program with syncs predicts, and how well it reproduces the one without."""
    name, truth = found["name"], found["truth"]
    with_ms, without_ms, saves = truth["with_ms"], truth["without_ms"], truth["saves_ms"]
    began = time.perf_counter()
    whole = trace.read(folder / f"{name}.with.cpu_cuda.trace.json.gz")
    read_s = time.perf_counter() - began
    estimated = estimate(whole, sites.from_trace, measured_ms=with_ms)
    priced_s = time.perf_counter() - began - read_s
    gain = estimated.gain_all_ms
    if name in SECOND and gain is not None:  # the other program keeps the first wait of each step
        program = build(whole, whole.bounds)
        fit = replay.fit(program, with_ms)
        left_out = frozenset(range(1, len(program.waits), 2))
        gain = fit.step_ms - replay.run(fit.items, program.groups, left_out)
    other = estimate(
        trace.read(folder / f"{name}.without.cpu_cuda.trace.json.gz"), sites.from_trace, measured_ms=without_ms
    )
    predicted = None if gain is None else with_ms - gain
    tolerance = max(_SAVING * abs(saves), _SAVING_MS)
    low, high = truth["saves_ci95"]
    fast, slow = truth["without_ci95"]
    return {
        "regime": found["regime"], "free": found["free"],
        "with_ms": round(with_ms, 4), "without_ms": round(without_ms, 4), "without_ci95": truth["without_ci95"],
        "saves_ms": round(saves, 4), "saves_ci95": truth["saves_ci95"], "rounds": truth["rounds"],
        "window_plain_ms": [round(ms, 4) for ms in found["windows"]["with cpu+cuda"]["plain_ms"]],
        "replayed_ms": round(estimated.step_ms, 4), "host_scale": estimated.host_scale,
        "abstained": estimated.abstained,
        "predicted_ms": None if predicted is None else round(predicted, 4),
        "predicted_saving_ms": None if gain is None else round(gain, 4),
        "step_error": None if predicted is None else round(predicted / without_ms - 1, 4),
        "step_ok": predicted is not None and abs(predicted / without_ms - 1) <= _STEP,
        "step_ok_within_truth": predicted is not None and fast * (1 - _STEP) <= predicted <= slow * (1 + _STEP),
        "saving_ok": gain is not None and abs(gain - saves) <= tolerance,
        "saving_ok_within_truth": gain is not None and low - tolerance <= gain <= high + tolerance,
        "reproduces_without": round(other.step_ms / without_ms - 1, 4), "without_abstained": other.abstained,
        "gpu_ops": len(whole.ops), "read_s": round(read_s, 3), "priced_s": round(priced_s, 3),
    }  # fmt: skip


def fixture(folder: Path, name: str, into: Path) -> None:
    """The trace with what a replay needs and nothing else, small enough to be committed."""
    with gzip.open(folder / f"{name}.with.cpu_cuda.trace.json.gz", "rt") as stream:
        values = json.load(stream)
    whole = trace.from_values(values, name)
    first = min(event["ts"] for event in values["traceEvents"] if event.get("ph") == "X")
    waits = [(call.start, call.end) for call in whole.calls if call.waits_for or (call.op and "Memcpy" in call.op.name)]
    kept = []
    for event in values["traceEvents"]:
        category = event.get("cat")
        if event.get("ph") == "M" and event["name"] != "thread_name":
            continue
        if category == "cpu_op" and not any(
            event["ts"] <= start and end <= event["ts"] + event["dur"] for start, end in waits
        ):
            continue
        arguments = event.get("args", {})
        small = {"ph": event["ph"], "name": event["name"][:22], "pid": event.get("pid"), "tid": event.get("tid")}
        if event.get("ph") == "X":
            small |= {"cat": category, "ts": round(event["ts"] - first, 2), "dur": round(event["dur"], 2)}
            names = ("correlation", "stream", "device", "bytes", "wait_on_cuda_event_record_corr_id")
            small["args"] = {key: arguments[key] for key in names if key in arguments}
        else:
            small["args"] = arguments
        kept.append(small)
    file = into / f"{name}.trace.json.gz"
    with open(file, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as stream:
        stream.write(json.dumps({"traceEvents": kept}, separators=(",", ":")).encode())
    print(file, file.stat().st_size)


if __name__ == "__main__":
    main()
