"""What one sync costs the training thread, hooked and bare, in tight loops over a scalar that is ready to be read.

    python tests/benchmarks/per_sync.py --out FILE.json [--device cuda|cpu] [--rounds 40]

In each round every variant comes once, in random order; the agent is started and stopped outside of what is timed.
"Behind work" is a read that has to wait: a GPU kernel of 80 µs is queued before each, and what the agent does before
the wait costs nothing then.  "Recorded" is the training thread's own work: what it records is delivered after the loop,
so that no other thread asks for the interpreter meanwhile.  "Whole agent" has its thread at work beside the loop.  With
``--device cpu`` the agent hooks the CPU's kernels instead of CUDA's.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import random
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if __package__ in {None, ""}:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import opentelemetry.trace  # noqa: F401 - as in a run that makes spans: the agent asks for the user's span, if it is there
import torch

import syncagent
from syncagent.events import SyncKind
from syncagent.runtime import agent as runtime_agent
from syncagent.runtime.agent import ProcessAgent
from syncagent.sensors.kernels import KernelSensor
from syncagent.sensors.registry import SENSORS, SensorSet
from syncagent.settings import schema, sources
from syncagent.torchbridge.internals import look_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from syncagent.delivery.sink import Sink
    from syncagent.recording.recorder import Recorder
    from syncagent.sensors.base import Conditions

__all__ = ["begin", "bootstrap", "finish", "write"]

_WARM = 100
_CALLS = 2_000
_FEW = 500
_LONG = 5
"""Times ``_CALLS``: a loop must be long enough for the agent's thread to run during it (ten times a second)."""
_DEPTH = 30
_CYCLES = 150_000
"""Of the GPU: some 80 µs, more than the host needs for one round."""
_RESAMPLES = 2_000

_now = time.perf_counter_ns
# Taken before any agent is started, so that the benchmarks' own waits are not among those it reports.
_synchronize: Callable[[], None] | None = getattr(torch._C, "_cuda_synchronize", None)


# --- an agent to measure (other benchmarks use these, too) ------------------------------------------------------------


class _OnCpu(ProcessAgent):
    """Watches the CPU's kernels, so that a benchmark can be worked on without a GPU."""

    key = "CPU"

    def __init__(self, settings: schema.Settings, sinks: tuple[Sink, ...] = ()) -> None:
        super().__init__(settings, sinks)
        runtime_agent.note_without_gpu = lambda **_: None  # there is one: the CPU stands for it
        self._recorder.locator.internals = look_up(simulated=True)  # a torch built for CUDA may have no driver here
        key = self.key

        class Kernels(KernelSensor):
            def __init__(self, recorder: Recorder, conditions: Conditions) -> None:
                super().__init__(recorder, conditions, device_key=key)

        kinds = [Kernels if kind is KernelSensor else kind for kind in SENSORS]
        self.sensors = SensorSet(self._recorder, replace(self.sensors.conditions, has_cuda=True), kinds)


class _OnNeither(_OnCpu):
    """To this one a CPU tensor is one on the host, as it is to an agent on a GPU."""

    key = "CUDA"


_AGENTS = {"cuda": ProcessAgent, "cpu": _OnCpu, "neither": _OnNeither}


def begin(device: str, sinks: tuple[Sink, ...] = (), *, by_hand: bool = False, **settings: Any) -> ProcessAgent:
    """Start an agent that ignores the environment."""
    loaded = sources.load({"detail": "syncs", **settings}, {})
    agent = _AGENTS[device](loaded, sinks)
    if by_hand:
        agent._pipeline.start = lambda: None  # type: ignore[method-assign]  # delivers when it is told to
    agent.start()
    return agent


def finish(device: str) -> None:
    """Wait for the GPU without the agent noticing."""
    if device == "cuda" and _synchronize is not None:
        _synchronize()


def write(out: Path, device: str, content: dict[str, Any]) -> None:
    """Save results as JSON, with what they were got with; ``content`` has its rows under ``cases``."""
    os.environ.setdefault("CORPUS_DEVICE", device)  # asked for by tests.gpu, whose CUDA is not in every torch
    from tests.gpu.explore import environment, save

    save(out, {**environment(), "device": device, **content})


def bootstrap(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % confidence interval of the median, by resampling."""
    dice = random.Random(seed)
    medians = sorted(statistics.median(dice.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    return medians[int(0.025 * _RESAMPLES)], medians[int(0.975 * _RESAMPLES) - 1]


# --- loops ------------------------------------------------------------------------------------------------------------


def items(tensor: torch.Tensor, calls: int) -> float:
    """Return the time of one read, in µs."""
    began = _now()
    for _ in range(calls):
        tensor.item()  # <- listed
    return (_now() - began) / calls / 1e3


def picks(tensor: torch.Tensor, calls: int) -> float:
    """As ``items``, of an op that is hooked and does not wait."""
    pick, index = torch.ops.aten.index.Tensor, [torch.zeros((), dtype=torch.int64, device=tensor.device)]
    row = tensor.reshape(1)
    began = _now()
    for _ in range(calls):
        pick(row, index)
    return (_now() - began) / calls / 1e3


def waits(tensor: torch.Tensor, calls: int) -> float:
    """As ``items``, each behind a GPU kernel of 80 µs: the host has to wait."""
    sleep: Callable[[int], None] = torch.cuda._sleep
    began = _now()
    for _ in range(calls):
        sleep(_CYCLES)
        tensor.item()
    return (_now() - began) / calls / 1e3


def deep_waits(tensor: torch.Tensor, calls: int, depth: int = _DEPTH) -> float:
    """As ``waits``, thirty frames further from the script's first one."""
    return deep_waits(tensor, calls, depth - 1) if depth else waits(tensor, calls)


def host_items(_tensor: torch.Tensor, calls: int) -> float:
    """As ``items``, of a tensor on the host, which waits for nothing: AdamW reads two for each parameter."""
    return items(torch.ones(()), calls)


def deep(tensor: torch.Tensor, calls: int, depth: int = _DEPTH) -> float:
    """As ``items``, further from the script's first frame: real training has some thirty frames above it."""
    return deep(tensor, calls, depth - 1) if depth else items(tensor, calls)


# --- variants ---------------------------------------------------------------------------------------------------------


class Account(NamedTuple):
    """What an agent reported at its end."""

    syncs: int
    allowed: int
    dropped: int
    own_us: float
    """The overhead per sync that it reports."""


class Bench:
    """The variants, and what their agents reported."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.accounts: dict[str, list[Account]] = {}

    @contextlib.contextmanager
    def passing(self, _name: str) -> Iterator[None]:
        """A Python kernel where the agent has its own, that only passes the call on."""
        key = torch._C.DispatchKey.BackendSelect
        op: Any = torch.ops.aten._local_scalar_dense.default
        call = getattr(getattr(op, "_handle", None), "redispatch_boxed", op.redispatch)

        def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            return call(keyset.remove(key), *args, **kwargs)

        library = torch.library.Library("aten", "IMPL")
        library.impl("_local_scalar_dense", kernel, "BackendSelect", with_keyset=True)
        try:
            yield
        finally:
            library._destroy()

    def watched(
        self, *, by_hand: bool = True, device: str = "", **settings: Any
    ) -> Callable[[str], contextlib.AbstractContextManager[None]]:
        @contextlib.contextmanager
        def around(name: str) -> Iterator[None]:
            agent = begin(device or self.device, by_hand=by_hand, **settings)
            try:
                yield
            finally:
                report = agent.stop()
            syncs = report.totals.syncs
            own_us = (report.overhead.share or 0.0) * report.run.duration_s * 1e6 / max(syncs, 1)
            allowed = sum(site.allowed_count for site in report.sites)
            self.accounts.setdefault(name, []).append(Account(syncs, allowed, report.dropped, own_us))
            if report.notes:
                print(f"{name}: {report.notes}")

        return around

    @contextlib.contextmanager
    def allowed(self, name: str) -> Iterator[None]:
        with self.watched()(name), syncagent.allow("x"):
            yield


class Variant(NamedTuple):
    around: Callable[[str], contextlib.AbstractContextManager[None]]
    loop: Callable[[torch.Tensor, int], float] = items
    against: str = "bare"
    calls: int = _CALLS
    collects: bool = False
    """Whether Python's garbage collector may run."""


def bare(_name: str) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def variants(bench: Bench) -> dict[str, Variant]:
    behind_work = {
        "behind work, bare": Variant(bare, waits, calls=_FEW),
        "behind work, recorded": Variant(bench.watched(), waits, against="behind work, bare", calls=_FEW),
        "behind work, 30 frames deep": Variant(bench.watched(), deep_waits, against="behind work, bare", calls=_FEW),
        "behind work, whole agent": Variant(
            bench.watched(by_hand=False), waits, against="behind work, bare", calls=_LONG * _FEW
        ),
    }
    return {
        **(behind_work if bench.device == "cuda" else {}),
        "bare": Variant(bare),
        "bare again": Variant(bare),
        "passed on": Variant(bench.passing),
        "recorded": Variant(bench.watched()),
        "recorded, 30 frames deep": Variant(bench.watched(), deep),
        "recorded, collector on": Variant(bench.watched(), collects=True),
        "allowed by with": Variant(bench.allowed),
        "allowed by file:line": Variant(bench.watched(allow=(_listed(),))),
        "whole agent": Variant(bench.watched(by_hand=False), calls=_LONG * _CALLS),
        "of a host tensor, bare": Variant(bare, host_items),
        "of a host tensor, hooked": Variant(
            bench.watched(device="neither" if bench.device == "cpu" else ""),
            host_items,
            against="of a host tensor, bare",
        ),
        "does not wait, bare": Variant(bare, picks),
        "does not wait, hooked": Variant(bench.watched(), picks, against="does not wait, bare"),
    }


def _listed() -> str:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    [number] = [number for number, line in enumerate(lines, 1) if line.endswith("# <- listed")]
    return f"{Path(__file__).name}:{number}"


def measure(device: str, rounds: int) -> tuple[dict[str, list[float]], Bench, dict[str, Variant]]:
    """Return µs per call of each variant, round by round."""
    bench = Bench(device)
    plan = variants(bench)
    tensor = torch.ones((), device=device)
    times: dict[str, list[float]] = {name: [] for name in plan}
    dice = random.Random(0)
    for _ in range(rounds):
        gc.collect()
        for name in dice.sample(list(plan), len(plan)):
            variant = plan[name]
            with variant.around(name):
                variant.loop(tensor, _WARM)
                finish(device)
                if not variant.collects:
                    gc.disable()
                times[name].append(variant.loop(tensor, variant.calls))
                gc.enable()
                finish(device)
    return times, bench, plan


# --- pieces -----------------------------------------------------------------------------------------------------------


def pieces(device: str) -> dict[str, float]:
    """Return the µs of what a sync goes through, each part called by itself."""
    agent = begin(device, by_hand=True)
    listing = begin(device, by_hand=True, allow=(_listed(),))
    tensor = torch.ones((), device=device)
    found: dict[str, float] = {}
    try:
        recorder, policy = agent._recorder, agent._policy
        state, listing_state = recorder.threads.current(), listing._recorder.threads.current()
        frame, op, kind = sys._getframe(), "aten::_local_scalar_dense", SyncKind.SCALAR_READ
        times = (_now(), 1, _now())
        args = (tensor,)
        context = recorder.describe(state, op, kind, frame, args, "kernels")
        parts: dict[str, Callable[[], Any]] = {
            "an empty call": lambda: None,
            "policy: nothing is allowed": lambda: policy.judge(op, kind, frame, state),
            "policy: one line is allowed": lambda: listing._policy.judge(op, kind, frame, listing_state),
            "recorder: the line": lambda: recorder.locator.locate(state, frame),
            "recorder: what is known before the wait": lambda: recorder.describe(
                state, op, kind, frame, args, "kernels"
            ),
            "recorder: the record": lambda: recorder.settle(state, context, kind, *times),
            "the clock": _now,
        }
        for name, part in parts.items():
            found[name] = statistics.median(_per_call(part) for _ in range(15))
            state.buffer.clear()
    finally:
        listing.stop()
        agent.stop()
    empty = found.pop("an empty call")
    return {name: max(us - empty, 0.0) for name, us in found.items()}


def _per_call(part: Callable[[], Any], calls: int = 1_000) -> float:
    began = _now()
    for _ in range(calls):
        part()
    return (_now() - began) / calls / 1e3


# --- results ----------------------------------------------------------------------------------------------------------


def rows(
    times: Mapping[str, list[float]], accounts: Mapping[str, list[Account]], plan: Mapping[str, Variant]
) -> dict[str, dict[str, Any]]:
    """Return one row per variant, each with its difference to the bare loop of the same round."""
    table: dict[str, dict[str, Any]] = {}
    for name, column in times.items():
        variant = plan[name]
        beyond = [a - b for a, b in zip(column, times[variant.against], strict=True)]
        low, high = bootstrap(beyond)
        row = table[name] = {
            "us": round(statistics.median(column), 3), "beyond_bare_us": round(statistics.median(beyond), 3),
            "ci95_us": [round(low, 3), round(high, 3)], "rounds": len(column), "calls": variant.calls,
        }  # fmt: skip
        if variant.against == "bare":
            over = [a - b for a, b in zip(column, times["passed on"], strict=True)]
            row["beyond_passed_on_us"] = round(statistics.median(over), 3)
        if name in accounts:
            syncs = 0 if variant.loop in {picks, host_items} else variant.calls + _WARM
            expected = [(syncs, syncs if name.startswith("allowed") else 0)] * len(accounts[name])
            row["counts_exact"] = [(a.syncs + a.dropped, a.allowed) for a in accounts[name]] == expected
            row["dropped"] = sum(account.dropped for account in accounts[name])
            if syncs:
                row["says_us"] = round(statistics.median(account.own_us for account in accounts[name]), 3)
    return table


def tell(table: Mapping[str, Mapping[str, Any]], parts: Mapping[str, float]) -> None:
    print(f"{'a call, µs (median)':28s} {'':>8s} {'beyond bare':>12s} {'95 %':>16s} {'beyond passed on':>17s}  it says")
    for name, row in table.items():
        low, high = row["ci95_us"]
        over = f"{row['beyond_passed_on_us']:17.2f}" if "beyond_passed_on_us" in row else " " * 17
        says = f"{row['says_us']:9.2f}" if "says_us" in row else ""
        wrong = "" if row.get("counts_exact", True) else "  COUNTS ARE WRONG"
        interval = f"{low:.2f} to {high:.2f}"
        print(f"{name:28s} {row['us']:8.2f} {row['beyond_bare_us']:12.2f} {interval:>16s} {over}{says}{wrong}")
    print("\nparts, called by themselves, µs")
    for name, us in parts.items():
        print(f"{name:38s} {us:8.2f}")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--budget", type=float, default=90.0, help="seconds in all, about (default 90)")
    options = parser.parse_args()
    began = time.perf_counter()
    measure(options.device, 1)
    once_s = time.perf_counter() - began
    rounds = max(min(options.rounds, int((options.budget - once_s) / once_s)), 5)
    if rounds < options.rounds:
        print(f"{rounds} rounds instead of {options.rounds}: that is what {options.budget:g} s allow for")
    times, bench, plan = measure(options.device, rounds)
    table, parts = rows(times, bench.accounts, plan), pieces(options.device)
    tell(table, parts)
    write(
        options.out,
        options.device,
        {
            "took_s": round(time.perf_counter() - began, 1),
            "parts_us": {name: round(us, 3) for name, us in parts.items()}, "cases": table,
        },
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
