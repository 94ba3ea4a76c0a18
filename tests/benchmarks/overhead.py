"""What watching costs a training step: with and without the agent, alternating in one process.

    python tests/benchmarks/overhead.py --out FILE.json [--device cuda|cpu] [--budget 150] [--rounds 100] [--cpus N]

A window is 16 steps, from an idle GPU to an idle GPU.  A round is four windows without and four with
``detail="syncs"`` and spans to a journal, as ``SYNCAGENT=1`` has it, in the order ABBA BAAB: a machine that gets
slower, or is disturbed for some seconds, hits both alike.  Longer windows tell less: the machines' unrest is about as
large over two seconds as over a quarter of one.  The same windows without, put the same way, are the control (A/A), at
no extra cost.

Why four: a run that is some time old has its copies watched in one step of 64.  Each window has a fresh agent, told
that a thousand steps and the windows before are behind it, and runs four steps untimed; of the 64 steps of a round one
is sampled, with the arming before and the disarming after it: just the share of a long run.  So it is with the agent's
own thread, which delivers about once a second: it does in one of the four, what 64 steps and syncs have left.

``detail="ops"`` takes turns with two modes that do nothing and with nothing, in shorter windows, and then with
``torch.profiler`` with stacks as well.  The profiler comes last: it leaves traces in the process.

``--device cpu`` is for work on this script: reads of tensors on the host are syncs then, and the ratios tell nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if __package__ in {None, ""}:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from syncagent.delivery import pipeline
from syncagent.runtime.sinks import build
from syncagent.settings import sources
from syncagent.telemetry.span_budget import SpanBudget
from tests.benchmarks.per_sync import begin, bootstrap, finish, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from syncagent.runtime.agent import ProcessAgent

    Step = Callable[..., float]
    Around = Callable[[], contextlib.AbstractContextManager[ProcessAgent | None]]

_WINDOW = 16
_ORDER = (False, True, True, False, True, False, False, True)
"""Whether a window of a round is watched."""
_WARM, _WARM_BARE = 4, 2
_BEHIND = 1024
"""How many steps the agent has seen when a window begins."""
_DELIVERED = 48
"""Steps of which the agent's thread finds the records beside those of the window itself, in every fourth."""
_SHORT = 4
_EXTRA = 0.25
"""Share of the budget for the comparisons."""


# --- workloads --------------------------------------------------------------------------------------------------------


class Size(NamedTuple):
    layers: int
    width: int
    heads: int
    batch: int
    tokens: int


SIZES = {
    "cuda": {
        "host-bound fp32": Size(8, 256, 4, 2, 64),
        "host-bound bf16 autocast": Size(7, 256, 4, 2, 64),
        "gpu-bound bf16 autocast": Size(4, 2048, 16, 8, 512),
    },
    "cpu": {
        "host-bound fp32": Size(8, 16, 2, 1, 8),
        "host-bound bf16 autocast": Size(7, 16, 2, 1, 8),
        "gpu-bound bf16 autocast": Size(2, 64, 2, 4, 64),
    },
}
_VOCABULARY = 1000


class Block(nn.Module):
    """One layer of a transformer, as people write it."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.before, self.after = nn.LayerNorm(size.width), nn.LayerNorm(size.width)
        self.qkv, self.out = nn.Linear(size.width, 3 * size.width), nn.Linear(size.width, size.width)
        self.wide, self.narrow = nn.Linear(size.width, 4 * size.width), nn.Linear(4 * size.width, size.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.before(x)).chunk(3, dim=-1)
        q, k, v = (t.view(batch, tokens, self.heads, -1).transpose(1, 2) for t in (q, k, v))
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, tokens, width))
        wide: torch.Tensor = self.wide(self.after(x))
        narrow: torch.Tensor = self.narrow(nn.functional.gelu(wide))
        return x + narrow


class Net(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed = nn.Embedding(_VOCABULARY, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.head = nn.Linear(size.width, _VOCABULARY)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        scores: torch.Tensor = self.head(x)
        return scores


def stepper(size: Size, device: str, optimizer_name: str, *, autocast: bool) -> Step:
    """Return one training step, with one sync: the loss is read, as for a log.

    AdamW reads its step counts, tensors on the host, twice per parameter: calls of a hooked op that do not wait.
    """
    torch.manual_seed(0)
    net = Net(size).to(device)
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(net.parameters(), lr=1e-4, foreach=True)
        if optimizer_name == "adamw"
        else torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, foreach=True)
    )
    tokens = torch.randint(_VOCABULARY, (size.batch, size.tokens), device=device)

    def step(*, read: bool = True) -> float:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            loss = nn.functional.cross_entropy(net(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()
        return loss.item() if read else 0.0

    return step


class Count(TorchDispatchMode):
    """Counts the ops that reach a backend."""

    ops = 0
    host_reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops += 1
        self.host_reads += func is torch.ops.aten._local_scalar_dense.default and args[0].is_cpu
        return func(*args, **(kwargs or {}))


# --- variants ---------------------------------------------------------------------------------------------------------


class PassFunction(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class PassDispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Variants:
    """Ways to run a step; entering and leaving one is never timed."""

    def __init__(self, device: str, folder: str) -> None:
        self._device = device
        self._folder = folder
        self._made = 0
        self.syncs: dict[str, int] = {}
        self.steps: dict[str, int] = {}

    def watched(self, detail: str) -> Around:
        @contextlib.contextmanager
        def around() -> Iterator[ProcessAgent | None]:
            self._made += 1
            chosen = {"detail": detail, "journal": str(Path(self._folder, f"{self._made}.jsonl"))}
            ends = build(sources.load(chosen, {}))
            if ends.spans is not None:
                ends.spans.budget = SpanBudget(first=0)  # as in a long run: the spans of its start are behind it
            agent = begin(self._device, ends.sinks, by_hand=False, **chosen)
            place = self._made % (len(_ORDER) // 2)
            agent.steps.current = _BEHIND + _WINDOW * place - _WARM
            try:
                yield agent if detail == "syncs" and place == 0 else None
            finally:
                report = agent.stop()
                if ends.outbox is not None:
                    ends.outbox.close()
            reads = sum(row.count for row in report.sites if row.op == "aten::_local_scalar_dense")
            self.syncs[detail] = self.syncs.get(detail, 0) + reads
            self.steps[detail] = self.steps.get(detail, 0) + (report.run.steps or 0)

        return around

    @contextlib.contextmanager
    def nothing(self) -> Iterator[None]:
        with PassFunction(), PassDispatch():  # type: ignore[no-untyped-call]  # torch's __init__
            yield

    @contextlib.contextmanager
    def profiler(self) -> Iterator[None]:
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._device == "cuda" else [])]
        with profile(activities=activities, with_stack=True):
            yield


def leave_records(agent: ProcessAgent) -> None:
    """Do as if more steps had just ended, each with its sync."""
    [state] = [state for state in agent._recorder.threads.all if state.buffer]
    number, start_ns, end_ns, context = agent._buffers.ended_steps[0]
    seen = state.buffer[0]
    for back in range(1, _DELIVERED + 1):
        ns = back * (end_ns - start_ns)
        agent._buffers.ended_steps.appendleft((number - back, start_ns - ns, end_ns - ns, context))
        state.buffer.appendleft(seen._replace(step=number - back, start_ns=seen.start_ns - ns))


def window(step: Step, around: Around, device: str, steps: int, warm: int) -> float:
    """Return ms per step, from an idle GPU to an idle GPU."""
    with around() as agent:
        for _ in range(warm):
            step()
        if agent is not None:
            leave_records(agent)
        gc.collect()
        gc.disable()
        try:
            finish(device)
            began = time.perf_counter_ns()
            for _ in range(steps):
                step()
            finish(device)
            return (time.perf_counter_ns() - began) / 1e6 / steps
        finally:
            gc.enable()


def turns(step: Step, arounds: Mapping[str, Around], device: str, rounds: int, until: float) -> dict[str, list[float]]:
    """Return, for each way, one short window per round; the order rotates."""
    found: dict[str, list[float]] = {name: [] for name in arounds}
    names = list(arounds)
    for turn in range(rounds):
        place = turn % len(names)
        for name in (*names[place:], *names[:place]):
            found[name].append(window(step, arounds[name], device, _SHORT, _WARM_BARE))
        if time.perf_counter() > until and turn >= 2:
            break
    return found


def rounds_of(
    step: Step, around: Around, device: str, rounds: int, until: float
) -> tuple[list[list[float]], list[list[float]]]:
    """Return, for each round, the windows without the agent and those with it."""
    plain: Around = contextlib.nullcontext
    bare: list[list[float]] = []
    watched: list[list[float]] = []
    for turn in range(rounds):
        found: dict[bool, list[float]] = {False: [], True: []}
        for place in _ORDER:
            is_watched = place != (turn % 2 == 1)
            way, warm = (around, _WARM) if is_watched else (plain, _WARM_BARE)
            found[is_watched].append(window(step, way, device, _WINDOW, warm))
        bare.append(found[False])
        watched.append(found[True])
        if time.perf_counter() > until and turn >= 3:
            break
    return bare, watched


def compared(bare: Sequence[float], other: Sequence[float], steps: int) -> dict[str, Any]:
    ratios = [b / a for a, b in zip(bare, other, strict=True)]
    low, high = bootstrap(ratios)
    plain, watched = statistics.median(bare), statistics.median(other)
    return {
        "ratio": round(statistics.median(ratios), 5), "ci95": [round(low, 5), round(high, 5)],
        "ratio_of_medians": round(watched / plain, 5), "ratio_of_means": round(sum(other) / sum(bare), 5),
        "bare_ms": round(plain, 4), "with_ms": round(watched, 4), "rounds": len(ratios), "steps_a_round": steps,
    }  # fmt: skip


def control(bare: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Compare the bare windows of two rounds with each other, in the order in which bare and watched ones are."""
    firsts, seconds = [], []
    for one, other in zip(bare[::2], bare[1::2], strict=False):
        windows = [*one, *other]
        firsts.append(statistics.mean(w for w, place in zip(windows, _ORDER, strict=True) if not place))
        seconds.append(statistics.mean(w for w, place in zip(windows, _ORDER, strict=True) if place))
    return compared(firsts, seconds, _WINDOW * len(_ORDER) // 2)


# --- the run ----------------------------------------------------------------------------------------------------------


class Run:
    """All workloads within a budget."""

    def __init__(self, device: str, budget_s: float, rounds: int, only: str, optimizer: str) -> None:
        self.device, self.budget_s, self.rounds = device, budget_s, rounds
        self.began = time.perf_counter()
        self.rows: dict[str, dict[str, Any]] = {}
        self.notes: list[str] = []
        self.steps: dict[str, Step] = {}
        for name, size in SIZES[device].items():
            if only in name:
                self.steps[name] = stepper(size, device, optimizer, autocast="autocast" in name)

    def left_s(self) -> float:
        return self.budget_s - (time.perf_counter() - self.began)

    def warm(self, variants: Variants) -> None:
        for name, step in self.steps.items():
            for _ in range(5):
                step()
            with Count() as count:  # type: ignore[no-untyped-call]  # torch's __init__
                step()
            once = window(step, contextlib.nullcontext, self.device, _SHORT, _WARM_BARE)
            window(step, variants.watched("syncs"), self.device, 1, 1)
            row = self.rows[name] = {
                "dispatcher_calls": count.ops, "reads_of_host_tensors": count.host_reads,
                "step_ms": round(once, 3), "host_ms": round(self._host_ms(step), 3),
            }  # fmt: skip
            print(f"{name}: {row}", flush=True)
        gc.collect()
        gc.freeze()  # so that collecting between windows is quick

    def _host_ms(self, step: Step) -> float:
        """Return how long a step takes to be queued, without its sync."""
        finish(self.device)
        began = time.perf_counter()
        step(read=False)
        host_ms = (time.perf_counter() - began) * 1e3
        finish(self.device)
        return host_ms

    def note(self, text: str) -> None:
        self.notes.append(text)
        print(f"NOTE: {text}", flush=True)

    def measure(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            variants = Variants(self.device, folder)
            self.warm(variants)
            variants.syncs.clear()
            variants.steps.clear()
            share_s = self.left_s() * (1 - _EXTRA) / max(len(self.steps), 1)
            for name, step in self.steps.items():
                until = time.perf_counter() + share_s
                bare, watched = rounds_of(step, variants.watched("syncs"), self.device, self.rounds, until)
                both = ([statistics.mean(windows) for windows in column] for column in (bare, watched))
                self.put(name, "syncs", compared(*both, _WINDOW * len(_ORDER) // 2), bare, watched)
                self.put(name, "bare against bare", control(bare))
                if len(bare) < self.rounds:
                    self.note(f"{name}: time for {len(bare)} rounds, not {self.rounds}")
            read, made = variants.syncs.get("syncs", 0), variants.steps.get("syncs", 0)
            if self.device == "cuda" and read != made:
                self.note(f"{read} reads reported, {made} made")
            self.compare(variants)

    def compare(self, variants: Variants) -> None:
        """Put the two modes of ``detail="ops"`` beside two that do nothing, and beside the profiler."""
        three: dict[str, Around] = {
            "bare": contextlib.nullcontext, "nothing": variants.nothing, "ops": variants.watched("ops"),
        }  # fmt: skip
        four = {**three, "profiler": variants.profiler}
        for share, rounds, arounds in ((0.75, 100, three), (1.0, 12, four)):
            each_s = share * max(self.left_s(), 10.0) / max(len(self.steps), 1)
            for name, step in self.steps.items():
                ms = turns(step, arounds, self.device, rounds, time.perf_counter() + each_s)
                if arounds is three:
                    self.put(name, "ops", compared(ms["bare"], ms["ops"], _SHORT))
                    self.put(name, "modes that do nothing", compared(ms["bare"], ms["nothing"], _SHORT))
                    self.put(name, "ops over modes that do nothing", compared(ms["nothing"], ms["ops"], _SHORT))
                else:
                    self.put(name, "torch.profiler with stacks", compared(ms["bare"], ms["profiler"], _SHORT))
                    self.put(name, "ops over torch.profiler", compared(ms["profiler"], ms["ops"], _SHORT))
                    self.put(name, "nothing over torch.profiler", compared(ms["profiler"], ms["nothing"], _SHORT))

    def put(self, name: str, title: str, row: dict[str, Any], *windows: list[list[float]]) -> None:
        self.rows[name][title] = row
        if windows:
            row["windows_ms"] = [[[round(ms, 3) for ms in windows] for windows in column] for column in windows]
        low, high = row["ci95"]
        print(
            f"{name:26s} {title:28s} {row['ratio']:8.4f} ({low:.4f} to {high:.4f})"
            f"  medians {row['ratio_of_medians']:.4f}  {row['bare_ms']:.3f} -> {row['with_ms']:.3f} ms"
            f"  {row['rounds']} rounds",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--budget", type=float, default=150.0, help="seconds in all, about (default 150)")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--workload", default="", help="only those whose name holds this text")
    parser.add_argument("--add", action="store_true", help="keep the other workloads that the file has already")
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "sgd"))
    parser.add_argument("--cpus", type=int, default=0, help="run on so many cores only, the last ones: steadier")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.cpus:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-options.cpus :])  # later threads inherit it
    if options.device == "cpu":
        torch.set_num_threads(1)
    # Without the records that are put there, a window does not come to so many; with them, they are delivered in it.
    pipeline._ROUND_S, pipeline._BUSY = 0.1, 2 * _DELIVERED
    run = Run(options.device, options.budget, options.rounds, options.workload, options.optimizer)
    code = 1
    try:
        run.measure()
        code = 0
    finally:  # a run that is cut short still has results
        before = json.loads(options.out.read_text()) if options.add and options.out.exists() else {}
        content: Mapping[str, Any] = {
            "optimizer": options.optimizer, "cpus": len(os.sched_getaffinity(0)),
            "took_s": round(time.perf_counter() - run.began + before.get("took_s", 0.0), 1),
            "notes": [*before.get("notes", ()), *run.notes], "cases": {**before.get("cases", {}), **run.rows},
        }  # fmt: skip
        write(options.out, options.device, dict(content))
    print(f"took {time.perf_counter() - run.began:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main())
