"""How exact the driver's own waits are: their length against CUPTI's, their lines against what really ran.

    python tests/gpu/driver_accuracy.py --out FILE.json [--parts stalls,lines] [--only TEXT] [--seconds 500]

*Stalls*: every call of the corpus behind a sleeping GPU, with the agent and CUPTI in one process.  Calls that wait: the
difference between the agent's stall and the driver's, those that wait inside cuSOLVER apart.  Calls that do not wait:
none may be reported.

*Lines*: programs whose waits are on known lines run twice, with kernels in every step (``detail="syncs"``) and then as
by default, where outside of sampled steps only the driver's waits are there and each gets its line from a look.  The
truth is ``sys.monitoring``'s account of the line that each thread stood on in the middle of each wait (Python 3.12 and
later; the agent's own kernels are held against it too).  The two runs are compared by line as well, which needs no
monitoring.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in {None, ""}:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import syncagent
from syncagent.errors import ConfigError, SyncAgentError
from tests.gpu.true_lines import AVAILABLE, TrueLines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from syncagent.events import SyncEvent

__all__ = ["main", "settings_by_default"]

_ROOT = Path(__file__).resolve().parents[2]
_TRUTH = Path(__file__).with_name("results") / "truth.json"
_USERS = (f"{_ROOT}/tests/", f"{_ROOT}/examples/")
_FIRST = 20
"""Steps that are watched whole under ``detail="auto"``."""
_EVENTS = 1_000_000
_CUSOLVER = re.compile(r"eig|svd|ldl|matrix_rank|pinv|lowrank|matrix_norm|\bcond\b|nuc|sparse_matmul", re.IGNORECASE)
_QUIET: dict[str, Any] = {"policy": "observe", "journal": "off", "summary": False, "max_events": _EVENTS}


def settings_by_default(**more: Any) -> dict[str, Any]:
    """Return the settings of ``detail="auto"``; where an earlier version knows no such thing, its default."""
    try:
        syncagent.watch(detail="auto", **more)
    except ConfigError:
        return {}
    return {"detail": "auto", **more}


# --- stalls ---------------------------------------------------------------------------------------------------------


def stalls(out: Callable[[dict[str, Any]], None], only: str, limit: int | None, seconds: float) -> dict[str, Any]:
    """Compare the agent's stall times with CUPTI's, in this process."""
    from tests.gpu import oracle, physical
    from tests.gpu.corpus import CASES
    from tests.gpu.driver import DriverOracle
    from tests.gpu.explore import choose

    faulthandler.enable()
    warnings.filterwarnings("ignore")
    ends = time.monotonic() + seconds
    rows: oracle.Rows = {}
    cases = choose(CASES, None, only or None)
    oracle.known_truths(cases, rows, _TRUTH)
    cases = sorted((case for case in cases if case.name in rows), key=lambda case: not rows[case.name]["blocks"])[
        :limit
    ]
    rows = {case.name: rows[case.name] for case in cases}
    found: dict[str, Any] = {"cases": len(cases), "not_reached": 0, "cupti": "not tried"}
    agent = syncagent.start(detail="syncs", copies="all", **_QUIET)
    driver = DriverOracle()
    try:
        watched = oracle.Watched(agent)
        try:
            driver.start()
            found["cupti"] = f"callbacks in {driver.how}"
        except SyncAgentError as error:
            found["cupti"] = str(error)
        for index, case in enumerate(cases):
            if time.monotonic() > ends:
                found["not_reached"] = len(cases) - index
                break
            oracle.watched_pass([case], rows, watched)
            driver.take()
            oracle.cupti_pass([case], rows, watched, driver)
            if index % 200 == 199:
                out(stalls_summed(found, rows))
        report = agent.report()
        found["sensors"] = [[sensor.name, sensor.live, sensor.cannot_see, sensor.detail] for sensor in report.sensors]
        found["notes"] = list(report.notes)
        found["by_sensor"] = dict(collections.Counter(event.sensor for event in agent.events()))
        found["lost"] = driver.lost
    except physical.StickyError as error:
        found["stopped"] = str(error)
    finally:
        driver.stop()
        syncagent.stop()
    return stalls_summed(found, rows)


def stalls_summed(found: dict[str, Any], rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Sum up: differences of both groups, what was missed, and what was reported though it does not wait."""
    from tests.gpu import oracle

    apart = {name for name, row in rows.items() if in_cusolver(name, row)}
    words = {name: oracle.verdict(row) for name, row in rows.items()}
    counts = collections.Counter(words.values())
    quiet = [name for name, row in rows.items() if row["blocks"] is False and not row["elsewhere"]]
    return {
        **found,
        "verdicts": dict(counts),
        "missed": sorted(name for name, word in words.items() if word == "missed"),
        "quiet_calls": len(quiet),
        "seen_as_waiting": [
            [name, rows[name]["events"][:4], rows[name].get("driver_calls", [])[:4]]
            for name in quiet
            if words[name] == "invented"
        ],
        "error_us": differences({name: row for name, row in rows.items() if name not in apart}),
        "queueing_us": spread(us for row in rows.values() for us in row.get("queueing_us", ())),
        "error_us_cusolver": differences({name: row for name, row in rows.items() if name in apart}),
        "rows": {
            name: [row["driver_us"], row["stall_us"], row["events"][:3]]
            for name, row in rows.items()
            if "error_us" in row
        },
    }  # fmt: skip


def in_cusolver(name: str, row: dict[str, Any]) -> bool:
    """Whether a case waits in a library that the agent cannot reach, by its ops."""
    return any(_CUSOLVER.search(event[0]) for event in row["events"]) or (
        row["family"].startswith("linalg") and _CUSOLVER.search(name) is not None
    )


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Sum up times in µs."""
    found = sorted(values)
    shares = (1, 50, 90, 99, 100) if found else ()
    return {"count": len(found), **{f"p{share}": round(found[share * (len(found) - 1) // 100], 1) for share in shares}}


def differences(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Sum up the absolute differences of the calls that wait, in µs."""
    found = sorted((abs(row["error_us"]), row["error_us"], name) for name, row in rows.items() if "error_us" in row)
    if not found:
        return {"cases": 0}
    sizes = [size for size, _, _ in found]

    def at(share: float) -> float:
        return sizes[min(int(share * len(sizes)), len(sizes) - 1)]

    return {
        "cases": len(found), "median": round(statistics.median(sizes), 1), "p90": at(0.9), "p99": at(0.99),
        "max": sizes[-1], "over_50_us": sum(size > 50 for size in sizes),
        "per_sync": spread(abs(row["error_us"]) / row["syncs"] for row in rows.values() if "error_us" in row),
        "worst": [[name, error] for _, error, name in found[:-16:-1]],
    }  # fmt: skip


# --- lines: one program, in a process of its own ----------------------------------------------------------------------


def run_program(name: str, steps: int, overhead: float, *, simulate: bool) -> dict[str, Any]:
    """Run a program twice and judge the lines of its waits."""
    faulthandler.enable()
    warnings.filterwarnings("ignore")
    more: dict[str, Any] = {"simulate": True} if simulate else {}
    holder = syncagent.start(detail="syncs", **_QUIET, **more) if simulate else None  # brings the device
    import torch

    from tests.gpu.line_programs import PROGRAMS

    torch.manual_seed(0)
    step = PROGRAMS[name]("cuda", simulate)
    for _ in range(3):
        step()
    if holder is not None:
        syncagent.stop()
    result: dict[str, Any] = {}
    passes = {"syncs": {"detail": "syncs", "copies": "all"}, "auto": settings_by_default(overhead=overhead)}
    for which, settings in passes.items():
        result[which] = one_pass(step, steps, {**settings, **_QUIET, **more})
    result["by_line"] = by_line(result["syncs"].pop("lines"), result["auto"].pop("lines"))
    return result


def one_pass(step: Callable[[], None], steps: int, settings: dict[str, Any]) -> dict[str, Any]:
    from tests.gpu.oracle import anchor_ns

    agent = syncagent.start(**settings)
    try:
        epoch_ns = anchor_ns(agent)  # type: ignore[arg-type]  # the process's own agent
        began = time.perf_counter()
        with TrueLines(_USERS) as truth:
            for _ in range(_FIRST + steps):
                step()
                syncagent.step()
        took_s = time.perf_counter() - began
        report = agent.report()
        events = [event for event in agent.events() if event.step >= _FIRST]
    finally:
        syncagent.stop()
    unplaced_ms = sum(row.stall_ms for row in report.sites if not row.file)
    return {
        **judged(events, truth, epoch_ns),
        "step_ms": round(took_s * 1e3 / (_FIRST + steps), 2),
        "of_all_steps": {"stall_ms": round(report.totals.stall_ms, 1), "without_line_ms": round(unplaced_ms, 1)},
        "sensors": [[sensor.name, sensor.live, sensor.detail] for sensor in report.sensors],
        "notes": list(report.notes), "dropped": report.dropped, "lines": lines_of(events),
    }  # fmt: skip


def judged(events: Sequence[SyncEvent], truth: TrueLines, epoch_ns: int) -> dict[str, Any]:
    """Hold each event's line against the line that its thread stood on in the middle of the wait."""
    groups: dict[str, collections.Counter[str]] = {}
    wrong: collections.Counter[tuple[str, ...]] = collections.Counter()
    missing: collections.Counter[tuple[str, ...]] = collections.Counter()
    for event in events:
        place = truth.at(event.thread, event.start_ns - epoch_ns + event.stall_ns // 2) if AVAILABLE else None
        site = event.site
        if kind_of(event) == "driver, shared out":
            verdict = "not judged"  # it stands for many waits, short ones
        elif site is None or not site.line:
            verdict = "no line"
            missing[event.op, event.thread, str(place)] += event.stall_ns
        elif place is None:
            verdict = "not judged"
        elif site.line == place.line and Path(site.file).name == Path(place.file).name:
            verdict = "right"
        else:
            verdict = "wrong"
            wrong[event.op, str(site), str(place), event.thread] += event.stall_ns
        kind = kind_of(event)
        groups.setdefault(kind, collections.Counter())[verdict] += event.stall_ns
    result: dict[str, Any] = {
        "events": dict(collections.Counter(event.sensor for event in events)),
        "wrong": [[*key, round(ns / 1e6, 3)] for key, ns in wrong.most_common(8)],
        "no_line": [[*key, round(ns / 1e6, 3)] for key, ns in missing.most_common(8)],
    }
    for kind, counter in groups.items():
        whole = counter.total()
        result[kind] = {
            "wait_ms": round(whole / 1e6, 2),
            **{verdict: round(ns / whole, 5) if whole else 0.0 for verdict, ns in counter.items()},
        }
    return result


def kind_of(event: SyncEvent) -> str:
    """Tell waits that had to be looked at from those that a sensor named, and from sums that were shared out."""
    if event.sensor != "driver":
        return "other sensors"
    return "driver, shared out" if getattr(event, "estimated", False) else "driver"


def lines_of(events: Iterable[SyncEvent]) -> dict[str, float]:
    """Return the wait in ms of each line."""
    found: collections.Counter[str] = collections.Counter()
    for event in events:
        found["" if event.site is None else f"{Path(event.site.file).name}:{event.site.line}"] += event.stall_ns
    return {line: round(ns / 1e6, 3) for line, ns in found.most_common()}


def by_line(truth: dict[str, float], seen: dict[str, float]) -> dict[str, Any]:
    """Compare two runs of the same work: what the second gives to lines that never waited in the first is wrong."""
    whole = sum(seen.values()) or 1.0
    foreign = {line: ms for line, ms in seen.items() if line and line not in truth}
    return {
        "kernels_ms": truth, "driver_ms": seen,
        "total_ratio": round(sum(seen.values()) / (sum(truth.values()) or 1.0), 4),
        "no_line": round(seen.get("", 0.0) / whole, 5), "on_other_lines": round(sum(foreign.values()) / whole, 5),
        "other_lines": foreign,
    }  # fmt: skip


# --- the whole --------------------------------------------------------------------------------------------------------


def children(options: argparse.Namespace, keep: Callable[[str, dict[str, Any]], None], ends: float) -> int:
    """Run each program in a process of its own."""
    from tests.gpu.line_programs import PROGRAMS

    failed = 0
    for name in PROGRAMS:
        if options.only not in name:
            continue
        left = ends - time.monotonic()
        if left < 5:
            keep(name, {"error": "not reached in the time that was allowed"})
            continue
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder, "part.json")
            words = [sys.executable, str(Path(__file__)), "--program", name, "--out", str(part)]
            words += ["--steps", str(options.steps), "--overhead", str(options.overhead)]
            words += ["--simulate"] if options.simulate else []
            environment = {key: value for key, value in os.environ.items() if not key.startswith("SYNCAGENT")}
            if options.simulate:
                environment["SLEEPING_RUNTIME"] = "1"
            try:
                done = subprocess.run(
                    words, cwd=folder, env=environment, capture_output=True, text=True, timeout=left + 20, check=False
                )
                tail = done.stderr.strip().splitlines()[-6:]
                code: Any = done.returncode
            except subprocess.TimeoutExpired:
                tail, code = [], "out of time"
            row = json.loads(part.read_text(encoding="utf-8")) if part.exists() else {"error": tail, "exit": code}
        failed += "error" in row
        keep(name, row)
    return failed


_KINDS = ("driver", "driver, shared out", "other sensors")


def tell(name: str, row: dict[str, Any]) -> None:
    if "error" in row:
        print(f"{name}: {row['error']}", flush=True)
        return
    for which in ("syncs", "auto"):
        part = row[which]
        shown = {kind: part[kind] for kind in _KINDS if kind in part}
        print(f"{name}, {which}: {part['events']} {shown}", flush=True)
        for entry in part["wrong"][:4]:
            print("    wrong:", *entry)
        for entry in part["no_line"][:4]:
            print("    no line:", *entry)
    compared = row["by_line"]
    print("    by line:", {key: value for key, value in compared.items() if not key.endswith("_ms")}, flush=True)


def shares(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Sum up the driver's wait time over all programs, the compiled one apart."""
    result: dict[str, Any] = {}
    for title, wanted in (("eager", False), ("compiled", True)):
        ms: collections.Counter[str] = collections.Counter()
        for name, row in rows.items():
            part = row.get("auto", {}).get("driver")
            if part and (name == "compiled") is wanted:
                for verdict in ("right", "wrong", "no line", "not judged"):
                    ms[verdict] += part["wait_ms"] * part.get(verdict, 0.0)
        whole = ms.total()
        if whole:
            result[title] = {"wait_ms": round(whole, 1), **{key: round(value / whole, 5) for key, value in ms.items()}}
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description="hold the driver's own waits against CUPTI and against what really ran"
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "."), "driver_accuracy.json"))
    parser.add_argument("--parts", default="lines,stalls", help="of lines, stalls; both by default")
    parser.add_argument("--only", default="", help="only programs (lines) or cases (stalls) whose name holds this text")
    parser.add_argument("--limit", type=int, help="of cases, for stalls")
    parser.add_argument("--seconds", type=float, default=500.0, help="for everything (default 500)")
    parser.add_argument("--steps", type=int, default=60, help="after the first 20 (default 60)")
    parser.add_argument("--overhead", type=float, default=0.01, help="the setting, of the second run (default 0.01)")
    parser.add_argument("--simulate", action="store_true", help="lines only: on the simulated device, with small sizes")
    parser.add_argument("--program", help=argparse.SUPPRESS)
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := [part for part in parts if part not in {"lines", "stalls"}]:
        parser.error(f"--parts: {unknown[0]!r} is neither lines nor stalls")
    if options.program is not None:
        found = run_program(options.program, options.steps, options.overhead, simulate=options.simulate)
        options.out.write_text(json.dumps(found), encoding="utf-8")
        return 0
    options.out = options.out.resolve()
    from tests.gpu.explore import environment

    ends = time.monotonic() + options.seconds
    content: dict[str, Any] = {**environment(), "simulated": options.simulate, "monitoring": AVAILABLE}
    failed = 0

    def write() -> None:
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    if "lines" in parts:
        rows = content["lines"] = {}

        def keep(name: str, row: dict[str, Any]) -> None:
            rows[name] = row
            content["line_shares"] = shares(rows)
            tell(name, row)
            write()

        share = 0.6 if "stalls" in parts else 1.0
        failed += children(options, keep, time.monotonic() + share * options.seconds)
        print("driver's wait time by its lines:", content.get("line_shares"), flush=True)
    if "stalls" in parts:

        def part(found: dict[str, Any]) -> None:
            content["stalls"] = found
            write()

        part(stalls(part, options.only, options.limit, max(ends - time.monotonic(), 5.0)))
        found = content["stalls"]
        shown = ("cases", "not_reached", "cupti", "verdicts", "missed", "quiet_calls", "error_us", "error_us_cusolver")
        for key in shown:
            print(f"{key}: {found[key]}")
        print(f"seen as waiting though they do not: {found['seen_as_waiting'][:20]}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
