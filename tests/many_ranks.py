"""Writes the reports or captures of a run with many ranks: as large as real ones, and different in every rank.

The rows are those of a run of ``examples/masked_loss`` on the simulated device, in more files and with other numbers.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from syncagent.report.captured import SUMS

START_NS = 1_795_866_000_000_000_000
STEP_NS = 250_000_000
LATE_RANK = 1
PROJECT = "/home/ada/segmentation"
LIBRARY = "/home/ada/venv/lib/python3.12/site-packages/transformers/trainer.py"

_LINES = (
    # op, api, kind, function, source, phase, module, advice
    ("aten::nonzero", "torch.nonzero", "dynamic_shape", "MaskedLoss.ignore_background",
     "background = torch.nonzero(target == BACKGROUND, as_tuple=True)", "forward", "MaskedLoss",
     "torch.where(condition, value, x), or x.masked_fill_(condition, number), in place of both"),
    ("aten::index", "torch.Tensor.__getitem__", "dynamic_shape", "MaskedLoss.forward",
     "loss = self.cross_entropy(prediction.permute(0, 2, 3, 1)[labelled], target[labelled])", "forward", "MaskedLoss",
     "leave positions out inside of the loss: cross_entropy(..., ignore_index=...)"),
    ("aten::index_put_", "torch.Tensor.backward", "dynamic_shape", "train", "loss.backward()", "backward", None,
     "leave positions out inside of the loss: cross_entropy(..., ignore_index=...)"),
    ("aten::_local_scalar_dense", "torch.Tensor.item", "scalar_read", "train.<locals>.<listcomp>",
     "return [loss.item() for loss in losses], net", "optimizer", None,
     "keep the value on the GPU (x.detach(), and sums as tensors) and read it every N steps"),
    ("aten::copy_", "torch.Tensor.to", "copy_h2d", "train", "images = next(batches).to(device)", "other", None, None),
    ("c10d::all_reduce", "torch.distributed.all_reduce", "collective", "average",
     "torch.distributed.all_reduce(total, async_op=False)", "other", None, None),
)  # fmt: skip
_SENSORS = (
    ("driver", True, "waits in libraries that bring a CUDA runtime of their own (cupy, numba, cuSOLVER)", ""),
    ("kernels", True, "coalesce on sparse tensors", ""),
    ("modes", True, "ops of threads other than the one that started the agent, and ops inside compiled code", ""),
)


def write(folder: Path, ranks: int, *, captures: bool = False, sites: int = 300, events: int = 10_000,
          steps: int = 1_000, **run: Any) -> list[Path]:  # fmt: skip
    """Write the files of ``ranks`` ranks into a folder that is there, and return them."""
    paths = []
    for number in range(ranks):
        rank = Rank(number, ranks, sites=sites, events=events, steps=steps, run={"ended": not captures, **run})
        paths.append(rank.write_capture(folder) if captures else rank.write_report(folder))
    return paths


class Rank:
    """What one rank has seen: the same for the same arguments."""

    def __init__(self, rank: int, world_size: int, *, sites: int, events: int, steps: int, run: dict[str, Any]) -> None:
        self.rank = rank
        self._random = random.Random(rank)
        self._events, self._steps = events, steps
        self.run = {
            "started": "2026-11-28T11:41:27.704+00:00", "duration_s": steps * STEP_NS / 1e9 + 20 + rank % 7,
            "torch": "2.13.0+cu130", "cuda": "13.0", "device": "NVIDIA H100 80GB HBM3", "host": f"node{rank // 8}",
            "rank": rank, "world_size": world_size, "steps": steps, "policy": "observe", "detail": "ops",
            "simulated": False, "script": "train.py", "argv": ["train.py", "--size", "64"], "cwd": PROJECT,
            "pid": 10_000 + rank, "ranks": [], "gate": None, "folder": PROJECT, "project": PROJECT,
            "run_id": "08d6c37c5abe2157", "process": f"process{rank:09}", "part": 0, "processes": 0, "ended": True,
            "settings_file": None, "judge_kinds": [], "modelled": None, "gpu_busy_s": None,
        } | run  # fmt: skip
        self.sensors = [dict(zip(("name", "live", "cannot_see", "detail"), each, strict=True)) for each in _SENSORS]
        self.sites = [self._site(number) for number in range(sites) if (number + rank) % 50 or number < 6]

    def _site(self, number: int) -> dict[str, Any]:
        op, api, kind, function, source, phase, module, advice = _LINES[number % len(_LINES)]
        draw = self._random.random
        file, line = f"{PROJECT}/parts/part_{number // 12}.py", 10 + 7 * (number % 12)
        count = self._steps if draw() < 0.7 else max(round(self._steps * draw()), 1)
        median = 0.02 + 2 * draw() * (1 + (self.rank % 16 == 3)) / (1 + number % 40)
        stall_ms = count * median * (1 + draw())
        other = round(stall_ms * 0.25, 6)
        source = source.replace("loss", f"loss_{number}", 1)
        is_backward, in_library = phase == "backward", number % len(_LINES) == 3
        span = {"column": 4, "end_line": line, "end_column": len(source), "indent": 4}
        forward = {"file": file, "line": line - 3, "function": "MaskedLoss.forward",
                   "source": f"x = loss_{number}[mask]", "statement": "", "span": span}  # fmt: skip
        library = {"file": LIBRARY, "line": 2345, "function": "Trainer._inner", "source": "x.item()", "statement": "",
                   "span": None}  # fmt: skip
        sampled = number % 5 == 0
        parts = [(op, api, count - count // 4, stall_ms - other), ("aten::copy_", "torch.Tensor.to", count // 4, other)]
        phases = [(phase, count, stall_ms)] if number % 3 else [(phase, count - 1, stall_ms - other),
                                                                ("evaluation", 1, other)]  # fmt: skip
        return {
            "op": op, "api": api, "kind": kind, "file": file, "line": line, "function": function, "source": source,
            "phase": phase, "count": count, "per_step": count / self._steps, "stall_ms": stall_ms,
            "stall_ms_p50": median, "stall_ms_max": median * 9, "sampled": sampled,
            "allowed": "known" if number % 17 == 1 else None, "idle_ms": draw() if number % 11 == 0 else None,
            "gain_ms": draw() / 10 if number % 13 == 0 else None, "advice": advice, "id": number, "module": module,
            "ranges": ["ignore background"] if number % 4 == 0 else [], "forward": forward if is_backward else None,
            "library": library if in_library else None,
            "threads": ["MainThread"] if self.rank % 5 else ["MainThread", "reader"],
            "allowed_count": count if number % 17 == 1 else 0, "violations": number % 2,
            "step_stall_ms": stall_ms * 0.9,
            "ranks": [], "statement": "",
            "ops": [dict(zip(("op", "api", "count", "stall_ms"), part, strict=True)) for part in parts]
            if number % 2 else [{"op": op, "api": api, "count": count, "stall_ms": stall_ms}],
            "conditional": number % 29 == 0,
            "stack": [{"file": file, "line": line, "function": function, "source": source, "statement": "",
                       "span": None}] if number % 41 == 0 else [],
            "sensors": ["kernels"] if number % 2 else ["kernels", "driver"], "estimated_ms": 0.1 * draw(),
            "count_error": 3.0 * draw() if sampled else None, "advice_kind": "mask" if advice else None,
            "span": span, "phases": [dict(zip(("phase", "count", "stall_ms"), each, strict=True)) for each in phases],
        }  # fmt: skip

    def _totals(self) -> dict[str, Any]:
        stall_ms = sum(site["stall_ms"] for site in self.sites)
        return {
            "syncs": sum(site["count"] for site in self.sites), "stall_ms": stall_ms,
            "stall_share": 0.1 + 0.001 * (self.rank % 9),
            "step_ms": self._steps * STEP_NS / 1e6, "step_stall_ms": stall_ms * 0.9,
        }  # fmt: skip

    def _event_lines(self, head: str) -> list[str]:
        known, draw = [site["id"] for site in self.sites], self._random.random
        apart = max(self._steps * STEP_NS // max(self._events, 1), 1)
        first = START_NS + 1_009 * self.rank
        return [
            f'{head}"site": {known[number * 7 % len(known)]}, "start_ns": {first + number * apart}, '
            f'"stall_ns": {int(2_000_000 * draw())}, "step": {number * self._steps // self._events}, '
            f'"thread": "{"reader" if number % 50 == 0 else "MainThread"}", "rank": {self.rank}}}'
            for number in range(self._events)
        ]

    def _step_lines(self, head: str, *, late: bool = False) -> list[str]:
        """All steps; ``late``: those again whose waits for collectives have become known after their end.

        Rank 1 waits 3 ms less than the others: they wait for it.
        """
        first = START_NS + 1_009 * self.rank
        draw = random.Random(self.rank)
        lines = []
        for step in range(self._steps):
            start_ns, length_ns = first + step * STEP_NS, STEP_NS - draw.randrange(50_000_000)
            waited_ms = round(5 + draw.random() - 3 * (self.rank == LATE_RANK), 4)
            known = "null" if (head.startswith('{"type"') and not late) or step == self._steps - 1 else waited_ms
            lines.append(
                f'{head}"step": {step}, "start_ns": {start_ns}, "end_ns": {start_ns + length_ns}, '
                f'"rank": {self.rank}, "collective_ms": {known}}}'
            )
        return lines

    def _host(self) -> list[dict[str, Any]]:
        """Rank 1 collects garbage for 2 ms a step; all wait for the loader alike."""
        rows = [{"cause": "data loader", "file": f"{PROJECT}/train.py", "line": 9, "function": "main",
                 "source": "for images in loader:", "count": 400, "ms": 30.5 + self.rank, "rank": None}]  # fmt: skip
        if self.rank == LATE_RANK:
            rows.append({"cause": "garbage collection", "file": "", "line": 0, "function": "", "source": "",
                         "count": self._steps, "ms": 2.0 * self._steps, "rank": None})  # fmt: skip
        return rows

    def _ops(self) -> list[dict[str, Any]]:
        return [
            {"op": f"aten::op_{number}", "file": f"{PROJECT}/parts/part_{number % 25}.py", "line": 34,
             "function": "Net.forward",
             "source": "return self.layers(images)", "phase": "backward" if number % 3 else "other",
             "count": 72 + number,
             "host_ms": 1.0 + 50 * self._random.random(), "stall_ms": 0.25 * (number % 4), "share": 0.01}
            for number in range(100)
        ]  # fmt: skip

    def write_report(self, folder: Path) -> Path:
        """Write it as a report's JSON, as :mod:`syncagent.report.formats.json` does."""
        lists: dict[str, list[str]] = {
            "sensors": [*map(json.dumps, self.sensors)],
            "sites": [*map(json.dumps, self.sites)],
            "ops": [*map(json.dumps, self._ops())],
            "notes": ['"copies were timed on every 10th step"', f'"the note of node {self.rank // 8}"'],
            "events": self._event_lines("{"),
            "step_times": self._step_lines("{"),
            "host": [*map(json.dumps, self._host())],
            "sources": [
                json.dumps({"file": f"{PROJECT}/parts/part_{number}.py", "first": 7, "lines": ["    x = x + 1"] * 7})
                for number in range(20)
            ],
        }
        values = {
            "schema": 1, "run": self.run,
            "overhead": {"agent_ms_per_step": 0.12 + self.rank % 3, "share": 0.005, "budget": 0.01},
            "dropped": self.rank % 2, "totals": self._totals(), "cost": None, "problems": [], "cells": [],
        }  # fmt: skip
        parts = [f' "{key}": {json.dumps(value)}' for key, value in values.items()]
        parts += [f' "{key}": [\n  ' + ",\n  ".join(rows) + "\n ]" for key, rows in lists.items()]
        file = folder / f"rank{self.rank}.json"
        file.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
        return file

    def write_capture(self, folder: Path) -> Path:
        """Write it as a capture of a process that was killed: each site once in full, and twice more its sums."""
        origin = {key: self.run[key] for key in ("run_id", "process", "part", "script", "rank", "world_size", "started",
                                                 "duration_s")}  # fmt: skip
        header = {"type": "header", "capture": 1, "syncagent": "0.1.0", "schema": 1, "syncagent_origin": origin}
        about = {"type": "run", "t": 1.0, "run": self.run, "sensors": self.sensors, "notes": ["the capture's own note"]}
        totals = self._totals()
        last = {
            "type": "totals", "t": 1.0, "duration_s": self.run["duration_s"], "steps": self._steps,
            "step_ms": totals["step_ms"], "step_stall_ms": totals["step_stall_ms"], "stalled_ms": 2_000.0,
            "events": self._events + 5, "dropped": 0,
        }  # fmt: skip
        sites = [{"type": "site", "t": 1.0, "site": site["id"], **_without(site, "id")} for site in self.sites]
        sums = [
            {"type": "sums", "t": 2.0, "site": site["id"], **{key: site[key] for key in SUMS}} for site in self.sites
        ]
        rows = [_line(row) for row in (header, about, *sites, *sums)]
        rows += self._event_lines('{"type":"event",')
        rows += self._step_lines('{"type":"step",')
        rows += self._step_lines('{"type":"step",', late=True)
        for number, row in enumerate(self._host()):
            half = {**row, "count": row["count"] // 2, "ms": row["ms"] / 2}
            rows.append(_line({"type": "host", "t": 1.0, "host": number, **half}))
            rows.append(_line({"type": "host_sums", "t": 2.0, "host": number, "count": row["count"], "ms": row["ms"]}))
        rows += [*map(_line, sums), _line(last)] + ([_line({"type": "end", "t": 3.0})] if self.run["ended"] else [])
        file = folder / f"rank{self.rank}.jsonl"
        file.write_text("\n".join(rows) + "\n", encoding="utf-8")
        return file


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values, separators=(",", ":"))


def _without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}
