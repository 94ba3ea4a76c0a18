"""Does the agent stay out of the way?  Each case runs without it, then under each value of ``detail``.

    python tests/gpu/compat.py --out FILE.json [--match TEXT] [--device cuda|cpu] [--pretend]

Under the agent a case must give the same bytes, report the syncs that it names and no other, compile as it does
without, and leave nothing behind once the agent has stopped.  Without a GPU no sync can be seen; ``--pretend`` has the
agent take ops of the CPU for waits (it needs a torch that is built with CUDA), so that most of it can be tried; where
torch reads a value of the CPU for itself, as Dynamo does to specialise on one, that is then reported too.
"""

from __future__ import annotations

import argparse
import atexit
import collections
import concurrent.futures
import contextlib
import faulthandler
import functools
import gc
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in {None, ""}:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# Without it cuBLAS may answer differently twice; it is read when CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

import syncagent
from syncagent import native
from syncagent.rules.table import RULES
from tests.gpu.compat_cases import (  # the modules for the cases that they hold
    CASES,
    HERE,
    MODES,
    Run,
    SkipCase,
    compiled,  # noqa: F401 - this and those below register their cases
    content,
    policy,  # noqa: F401
    process,  # noqa: F401
    tensors,  # noqa: F401
    training,  # noqa: F401
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import FrameType

    from syncagent.events import SyncEvent
    from tests.gpu.compat_cases import Case, Window

__all__ = ["main"]

_HANGS_S = 240
_SHOWN = 6


# --- what must be the same afterwards -------------------------------------------------------------------------------


def snapshot() -> dict[str, Any]:
    """Take all that the agent may have touched: kernels, modes, hooks, patched names, filters, tools, threads."""
    found: dict[str, Any] = {
        f"kernels of {op}": torch._C._dispatch_dump(op) for op in sorted({rule.op for rule in RULES})
    }
    found["function modes"] = torch._C._len_torch_function_stack()
    found["dispatch modes"] = torch._C._len_torch_dispatch_stack()
    found["python kernels"] = frozenset(torch.library._impls)
    found["libraries"] = frozenset(torch.library._defs)
    found["optimizer hooks"] = _sizes(sys.modules["torch.optim.optimizer"], "_global_optimizer_")
    found["module hooks"] = _sizes(sys.modules["torch.nn.modules.module"], "_global_")
    found["warnings.filters"] = list(warnings.filters)
    monitoring: Any = getattr(sys, "monitoring", None)
    found["sys.monitoring"] = [monitoring.get_tool(number) for number in range(6)] if monitoring else []
    found["threads"] = sorted(thread.name for thread in threading.enumerate() if "syncagent" in thread.name)
    found["signals"] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    found["hooks of sys"] = (
        sys.excepthook, threading.excepthook, sys.gettrace(), sys.getprofile(), list(sys.meta_path), list(gc.callbacks)
    )  # fmt: skip
    found["atexit"] = getattr(atexit, "_ncallbacks", int)()
    found["grad"] = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    for place, holder in _holders().items():
        for name, value in list(vars(holder).items()):
            if callable(value) or isinstance(value, (property, classmethod, staticmethod)):
                found[f"{place}.{name}"] = value
    return found


def _sizes(holder: Any, prefix: str) -> dict[str, int]:
    hooks = {name: value for name, value in vars(holder).items() if name.startswith(prefix)}
    return {name: len(value) for name, value in hooks.items() if isinstance(value, dict)}


def _holders() -> dict[str, Any]:
    return {
        "torch": torch, "torch._C": torch._C, "torch.cuda": torch.cuda, "torch.Tensor": torch.Tensor,
        "torch.Stream": torch.Stream, "torch.Event": torch.Event,
        "torch.cuda.Stream": torch.cuda.Stream, "torch.cuda.Event": torch.cuda.Event,
        "torch.accelerator": torch.accelerator, "torch.amp.GradScaler": torch.amp.GradScaler,
        "torch.optim.Optimizer": torch.optim.Optimizer, "torch.nn.Module": torch.nn.Module,
        "torch.autograd.graph": torch.autograd.graph, "record_function": torch.profiler.record_function,
        "torch.overrides": torch.overrides, "threading.Thread": threading.Thread, "torch.library": torch.library,
    }  # fmt: skip


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Name what is not as it was; what torch itself has loaded meanwhile does not count, what is ours does."""
    found = [name for name, value in before.items() if name not in after or not _same(value, after[name])]
    new = (name for name in after if name not in before)
    found += [name for name in new if str(getattr(after[name], "__module__", "")).startswith("syncagent")]
    return [_change(name, before.get(name), after.get(name)) for name in found]


def _change(name: str, one: Any, other: Any) -> str:
    if isinstance(one, frozenset) and isinstance(other, frozenset):
        return f"{name}: without {sorted(one - other)!r:.200}, with {sorted(other - one)!r:.200}"
    return f"{name}: {one!r:.150} -> {other!r:.150}"


def _same(one: Any, other: Any) -> bool:
    return one is other if callable(one) else bool(one == other)


# --- what was compiled ----------------------------------------------------------------------------------------------


def _forget_compiled() -> None:
    import torch._dynamo
    import torch._dynamo.utils

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def _compiled(case: Case) -> dict[str, int]:
    """Count what torch.compile has done: a recompilation is one more frame and one more graph."""
    from torch._dynamo.utils import counters

    counted = _COUNTED + (_COUNTED_FRESH if case.fresh else ())
    found = {f"{group} {name}": int(counters[group][name]) for group, name in counted}
    found["graph breaks"] = sum(counters["graph_break"].values())
    found["recompile limit"] = sum(counters["recompile_limit"].values())
    return found


_COUNTED = (
    ("frames", "total"), ("frames", "ok"), ("stats", "unique_graphs"), ("stats", "calls_captured"),
    ("inductor", "cudagraph_skips"),
)  # fmt: skip
_COUNTED_FRESH = (("aot_autograd", "total"), ("aot_autograd", "ok"), ("aot_autograd", "not_ok"))


@contextlib.contextmanager
def _fresh_compiler(case: Case) -> Iterator[None]:
    """Forget what was compiled; where a case asks for it, the caches on disk too."""
    if not case.compiled:
        yield
        return
    if not case.fresh:
        _forget_compiled()
        yield
        return
    import torch._inductor.config
    import torch._inductor.utils

    fresh: Any = getattr(torch._inductor.utils, "fresh_cache", None) or torch._inductor.utils.fresh_inductor_cache
    _forget_compiled()
    try:
        with tempfile.TemporaryDirectory(prefix="torchinductor_") as folder, fresh(dir=folder):
            yield
    finally:
        torch._dynamo.reset()


# --- one run --------------------------------------------------------------------------------------------------------


def run_once(case: Case, mode: str, device: str, *, sees: bool) -> tuple[Run, dict[str, Any], Any]:
    """Run a case in one mode; returns the run, what goes into the results, and the result that must be the same."""
    run = Run(case, mode, device, sees=sees)
    row: dict[str, Any] = {}
    result: Any = None
    began = time.perf_counter()
    with contextlib.ExitStack() as around:
        if not case.process:
            around.enter_context(_limited(case.limit_s))
            around.enter_context(_fresh_compiler(case))
            _reset(case)
        before = None if case.process else snapshot()
        try:
            with run.watching() if case.watched else contextlib.nullcontext():
                value = case.run(run)
            result = content(value)
            del value
        except SkipCase as skipped:
            row["skipped"] = str(skipped)
        except Exception as error:
            row["error"] = _describe(error)
        finally:
            if not case.process and syncagent.current() is not None:
                syncagent.stop()
                run.wrong.append("the agent was still running")
        if before is not None:
            changed = differences(before, snapshot())
            row["clean"] = not changed
            if not run.bare:  # the bare run comes first, and torch loads what it needs
                run.wrong += [f"not as before: {what}" for what in changed[:_SHOWN]]
        if case.compiled:
            row["compiled"] = _compiled(case)
    row["s"] = round(time.perf_counter() - began, 2)
    if "error" in row:
        run.wrong.insert(0, row["error"])
    if not run.bare and not case.process:
        _look_at(run, row)
    if run.notes:
        row["notes"] = run.notes
    return run, row, result


def _reset(case: Case) -> None:
    torch.manual_seed(0)
    random.seed(0)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    torch.use_deterministic_algorithms(case.deterministic, warn_only=True)


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """End a case that takes too long, as soon as it comes back to Python; one that never does ends the process."""

    def too_long(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"took more than {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(_HANGS_S, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _describe(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    places = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(HERE)]
    where = f" ({os.path.basename(places[-1].filename)}:{places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {lines[0].strip() if lines else ''}"[:300] + where


# --- what the agent has seen ----------------------------------------------------------------------------------------


def _look_at(run: Run, row: dict[str, Any]) -> None:
    """Compare what the agent reported with what the case expected."""
    agent = run.agent
    if agent is None:
        return
    events = agent.events()
    anchor = agent._buffers.epoch_ns(0)
    row["syncs"] = dict(collections.Counter(event.op for event in events))
    row["windows"] = len(run.windows)
    gave_way = run.mode == "auto" and any(note.startswith("torch.compile") for note in agent.report().notes)
    for window in () if gave_way else run.windows:  # from torch.compile on, only the driver sees waits
        inside = [e for e in events if window.began + anchor <= e.start_ns <= window.ended + anchor]
        run.wrong.extend(_judge(window, inside, sees=run.sees))
    run.wrong.extend(f"noted: {note}" for note in agent.report().notes if not note.startswith(_EXPECTED_NOTES))
    if agent._buffers.lost:
        run.wrong.append(f"lost: {agent._buffers.lost}")
    if run.mode == "ops":
        counted: collections.Counter[str] = collections.Counter()
        for op in agent._buffers.ops():
            counted[op.op] += op.count
        row["ops counted"] = sum(counted.values())
        one_by_one = {op: counted[op] for op in run.case.fused if counted[op]}
        run.check(not one_by_one, f"compiled code ran op by op: {one_by_one}")


_EXPECTED_NOTES = (
    "there is no NVIDIA driver", "this torch is built without CUDA", "left out: ", "the kernels are", "line known for",
    "the first ", "torch.compile is in use",
)  # fmt: skip


def _judge(window: Window, events: Sequence[SyncEvent], *, sees: bool) -> list[str]:
    if not sees:
        return [f"syncs were seen where none can be: {_places(events)}"] if events else []
    wrong = []
    known: set[str] = set()
    for names, count in window.expected.items():
        either = names.split("|")
        known.update(either)
        found = [event for event in events if event.op in either]
        if len(found) != count:
            wrong.append(f"{names}: {len(found)} reported, {count} expected: {_places(found)}")
        elsewhere = [e for e in found if e.site is None or not e.site.file.startswith(HERE)]
        elsewhere += [e for e in found if e.site is not None and window.at not in e.site.source and e not in elsewhere]
        if elsewhere:
            wrong.append(f"{names}: not at a line with {window.at!r}: {_places(elsewhere)}")
    others = [] if window.others else [event for event in events if event.op not in known]
    if others:
        wrong.append(f"charged though nothing of the program's waits: {_places(others)}")
    return wrong


def _places(events: Sequence[SyncEvent]) -> str:
    found = collections.Counter(
        f"{event.op} at {_short(event.site)}" + (f" in {_short(event.library_site)}" if event.library_site else "")
        for event in events
    )
    return ", ".join(f"{place} x{count}" for place, count in found.most_common(_SHOWN)) or "none"


def _short(site: Any) -> str:
    return "nowhere" if site is None else f"{'/'.join(Path(site.file).parts[-2:])}:{site.line}"


# --- one case -------------------------------------------------------------------------------------------------------


def run_case(case: Case, device: str, *, sees: bool) -> dict[str, Any]:
    """Run a case in all modes and judge it."""
    if case.needs == "cuda" and device != "cuda":
        return {"ok": None, "why": "skipped: needs CUDA"}
    if case.process:
        with concurrent.futures.ThreadPoolExecutor(len(MODES) if _cores() >= 8 else 1) as pool:
            outcomes = list(pool.map(lambda mode: run_once(case, mode, device, sees=sees), MODES))
    else:
        outcomes = [run_once(case, mode, device, sees=sees) for mode in MODES]
    _, bare, expected = outcomes[0]
    if "skipped" in bare:
        return {"ok": None, "why": f"skipped: {bare['skipped']}"}
    why: list[str] = []
    rows: dict[str, Any] = {}
    for mode, (run, row, result) in zip(MODES, outcomes, strict=True):
        if mode != "bare" and "error" not in bare and "error" not in row:
            row["identical"] = result == expected
            run.check(row["identical"], f"another result: {_first_difference(expected, result)}")
            if case.compiled:
                _compare_compiled(run, bare["compiled"], row)
        row["ok"] = not run.wrong
        if run.wrong:
            row["wrong"] = run.wrong
            why += [f"{mode}: {text}" for text in run.wrong]
        rows[mode] = row
    return {**rows, "ok": not why, "why": "; ".join(why)}


def _compare_compiled(run: Run, without: Mapping[str, int], row: dict[str, Any]) -> None:
    """The same graphs, and under ``detail="syncs"`` no frame or break more.

    Under ``"ops"`` there may be: any function mode brings its own code before Dynamo.
    """
    under: dict[str, int] = row["compiled"]
    changed = {key: (count, under[key]) for key, count in without.items() if count != under[key]}
    if changed:
        row["compiled otherwise"] = changed
    graphs = [key for key in changed if key.startswith(("stats", "aot_autograd", "inductor"))]
    more = [key for key in changed if key not in graphs and under[key] > without[key]]
    judged = {key: changed[key] for key in (graphs if run.mode != "syncs" else graphs + more)}
    run.check(not judged, f"compiled otherwise (without, with): {judged}")


def _first_difference(one: Any, other: Any, path: str = "result") -> str:
    if type(one) is not type(other):
        return f"{path}: {type(one).__name__} and {type(other).__name__}"
    if isinstance(one, (list, tuple)) and len(one) == len(other):
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            if left != right:
                return _first_difference(left, right, f"{path}[{index}]")
    if isinstance(one, dict) and one.keys() == other.keys():
        for key, left in one.items():
            if left != other[key]:
                return _first_difference(left, other[key], f"{path}[{key!r}]")
    return f"{path}: {one!r:.120} and {other!r:.120}"


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def pretend() -> None:
    """Have every agent treat CPU ops as waits, and never ask a driver."""
    from syncagent.sensors.kernels import KernelSensor
    from syncagent.torchbridge import internals

    look_up = internals.look_up
    internals.look_up = lambda **_: look_up(simulated=True)
    made: Any = KernelSensor.__init__
    sensor: Any = KernelSensor
    on_gpu = tuple(rule for rule in RULES if rule.keys == ("CUDA",))
    sensor.__init__ = functools.partialmethod(made, rules=on_gpu, device_key="CPU")


# --- all of them ----------------------------------------------------------------------------------------------------


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description="prove that the agent stays out of the way")
    parser.add_argument("--out", type=Path, required=True, help="where the results go, as JSON")
    parser.add_argument(
        "--match", default="", help="only cases whose name holds this text, or one of several with | between them"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--pretend", action="store_true", help="on the CPU: take its ops for waits")
    options = parser.parse_args()
    faulthandler.enable()
    warnings.filterwarnings("ignore")
    os.environ["CORPUS_DEVICE"] = options.device  # read by what the next line imports
    from tests.gpu.explore import environment, save

    sees = options.device == "cuda"
    if options.pretend:
        if sees or torch.version.cuda is None:
            parser.error("--pretend is for --device cpu, with a torch that is built with CUDA")
        pretend()
        sees = True
    chosen = [case for case in CASES if any(text in case.name for text in options.match.split("|"))]
    # From the first torch.compile in a process on, the default samples no step.
    chosen.sort(key=lambda case: "compile" in case.name or case.name == "export")
    native.load()  # once in a process, for good
    rows: dict[str, dict[str, Any]] = {}
    began = time.perf_counter()

    def keep() -> None:
        outcomes = [row["ok"] for row in rows.values()]
        counts = {"ok": outcomes.count(True), "failed": outcomes.count(False), "skipped": outcomes.count(None)}
        seconds = round(time.perf_counter() - began, 1)
        save(options.out, {**environment(), "device": options.device, "pretended": options.pretend,
                           "seconds": seconds, **counts, "cases": rows})  # fmt: skip

    def done(case: Case, row: dict[str, Any]) -> None:
        rows[case.name] = row
        print(f"{time.perf_counter() - began:6.1f} s  {_word(row):7}  {case.name}", flush=True)
        keep()

    work = functools.partial(_guarded, device=options.device, sees=sees)
    apart = [case for case in chosen if case.process]
    with tempfile.TemporaryDirectory(prefix="torchinductor_") as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # nothing that an earlier run has compiled
        with concurrent.futures.ThreadPoolExecutor(max(1, min(5, _cores() // 3))) as pool:
            for case, row in zip(apart, pool.map(work, apart), strict=True):
                done(case, row)
        for case in chosen:
            if not case.process:
                done(case, work(case))
    _tell(rows)
    print(f"{time.perf_counter() - began:.0f} s")
    return 1 if any(row["ok"] is False for row in rows.values()) else 0


def _guarded(case: Case, *, device: str, sees: bool) -> dict[str, Any]:
    try:
        return run_case(case, device, sees=sees)
    except Exception as error:  # the harness's own
        return {"ok": False, "why": f"the harness failed: {_describe(error)}"}


def _word(row: Mapping[str, Any]) -> str:
    return {True: "ok", False: "FAILED", None: "skipped"}[row["ok"]]


def _tell(rows: Mapping[str, Mapping[str, Any]]) -> None:
    order = {False: 0, None: 1, True: 2}
    print()
    for name, row in sorted(rows.items(), key=lambda entry: order[entry[1]["ok"]]):
        seconds = " ".join(f"{row[mode]['s']:6.2f}" if mode in row else "     -" for mode in MODES)
        print(f"{_word(row):7}  {seconds}  {name}")
        for reason in str(row["why"]).split("; ") if row["why"] else ():
            print(f"         {'':20}    {reason}")
    counts = collections.Counter(_word(row) for row in rows.values())
    print("\n" + ", ".join(f"{counts[word]} {word}" for word in ("ok", "FAILED", "skipped")))


if __name__ == "__main__":
    sys.exit(main())
