"""A host that waits for the GPU must not stop the other Python threads, whether the agent watches or not.

    python tests/gpu/gil.py --out FILE.json

A thread ticks every millisecond while the main thread waits about 200 ms in calls of several kinds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in {None, ""}:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

import syncagent
from tests.gpu import physical
from tests.gpu.explore import environment

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

_SLEEP_MS = 200.0
_RUNS = 3


class Ticker:
    """Counts milliseconds, about, on a thread of its own."""

    def __init__(self) -> None:
        self.ticks = 0
        self._ending = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._ending:
            time.sleep(0.001)
            self.ticks += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        self._thread.join()


def calls() -> dict[str, Callable[[], Any]]:
    """Return what waits; ``once`` prepares each one again."""
    g = torch.rand(999, device="cuda")
    w = torch.rand(999, device="cuda").requires_grad_()
    m = g > 0.5
    return {
        "item": lambda: g[0].item(),
        "nonzero": lambda: torch.nonzero(m),
        "mask": lambda: g[m],
        "cpu": lambda: g.cpu(),
        "synchronize": torch.cuda.synchronize,
        "backward": lambda: (w * 2).masked_select(m).sum().backward(),
        "hook in backward": lambda: _hooked(w).backward(),
    }


def _hooked(w: torch.Tensor) -> torch.Tensor:
    v = w * 2
    v.register_hook(lambda d: d * d.sum().item())
    return v.sum()


def once(call: Callable[[], Any], ticker: Ticker) -> dict[str, float]:
    """Wait once; say how long, and how often the other thread got its turn meanwhile."""
    call()
    physical._synchronize()
    torch.cuda._sleep(int(_SLEEP_MS * physical._cycles_per_ms()))
    ticks, started = ticker.ticks, time.perf_counter()
    call()
    return {"ticks": ticker.ticks - ticks, "ms": round((time.perf_counter() - started) * 1e3, 1)}


def measure() -> dict[str, dict[str, float]]:
    found = {}
    for name, call in calls().items():
        with Ticker() as ticker:
            runs = [once(call, ticker) for _ in range(_RUNS)]
        found[name] = {key: statistics.median(run[key] for run in runs) for key in ("ticks", "ms")}
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    physical._cycles_per_ms()
    runs = {"bare": measure()}
    for detail in ("syncs", "ops"):
        syncagent.start(detail=detail, copies="all")
        try:
            runs[detail] = measure()
        finally:
            syncagent.stop()
    runs["bare again"] = measure()
    rows = []
    for detail in ("syncs", "ops"):
        for name, row in runs[detail].items():
            bare = runs["bare"][name]
            # Per millisecond waited, since the agent may add to the wait.
            share = (row["ticks"] / row["ms"]) / (bare["ticks"] / bare["ms"]) if bare["ticks"] else None
            waited = row["ms"] >= 0.6 * _SLEEP_MS
            rows.append({"detail": detail, "call": name, **row, "bare": bare, "share": share and round(share, 3),
                         "ok": bool(waited and share and share >= 0.5)})  # fmt: skip
    good = all(row["ok"] for row in rows)
    results = {**environment(), "sleep_ms": _SLEEP_MS, "ok": good, "rows": rows, "runs": runs}
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(row)
    print("other threads go on" if good else "OTHER THREADS STAND STILL")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
