"""Does the agent report every wait, and only waits, and for as long as they last?

    python tests/gpu/oracle.py --detail ops|syncs --out FILE.json [--limit N] [--match TEXT]

First the physical truth of every case, with no agent; then each case once under the agent, behind the sleep; then once
more with CUPTI's callbacks on (in C: see driver.py), against which the agent's stall times are held.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import itertools
import json
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in {None, ""}:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import syncagent
from syncagent.errors import SyncAgentError
from tests.gpu import physical
from tests.gpu.corpus import CASES
from tests.gpu.corpus.names import DEVICE
from tests.gpu.driver import DriverOracle, union_ns
from tests.gpu.explore import choose, environment, save

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from syncagent.events import SyncEvent
    from syncagent.runtime.agent import ProcessAgent
    from tests.gpu.corpus import Case

__all__ = ["main"]

_LONG_NS = 200_000
"""A driver call, or a stall of the agent's, that lasts this long is a wait and no mere call."""
_QUEUEING_NS = 25_000
"""An asynchronous copy that takes less has been queued, and has waited for nothing."""
_FAR_US = 200.0
_NOTHING_MS = 1.0
"""A sync with an idle stream stalls for less than this."""
_LONGEST_MS = 1000.0
_SAVE_EVERY = 100
_EVENTS = 1_000_000
_SHOWN = 200

Rows = dict[str, dict[str, Any]]


def anchor_ns(agent: ProcessAgent) -> int:
    """Return what lies between ``perf_counter_ns`` and the epoch, from which SyncEvent counts: the agent's own word."""
    return agent._buffers.epoch_ns(0)


class Watched:
    """The agent, and the syncs it reports between two moments."""

    def __init__(self, agent: ProcessAgent) -> None:
        self._agent = agent
        self._anchor_ns = anchor_ns(agent)

    def between(self, run: physical.Timed) -> list[SyncEvent]:
        """Return what began within the timed call: waits of the harness's own lie outside of it."""
        first, last = run.start_ns + self._anchor_ns, run.end_ns + self._anchor_ns
        found = []
        for event in reversed(self._agent.events()):
            if event.start_ns < first - 1_000_000_000:
                break
            if first <= event.start_ns <= last:
                found.append(event)
        return found[::-1]


def truths(cases: Sequence[Case], rows: Rows, repeats: int, keep: Callable[[], None]) -> None:
    """The first pass: what the GPU says."""
    for index, case in enumerate(cases):
        truth = physical.measure(case, repeats=repeats)
        rows[case.name] = {
            "family": case.family, "blocks": truth.blocks, "times_ms": list(truth.times_ms),
            "sleep_ms": round(truth.sleep_ms, 1), "elsewhere": case.elsewhere, "reported": None, "events": [],
            "error": truth.error,
        }  # fmt: skip
        if index % _SAVE_EVERY == _SAVE_EVERY - 1:
            keep()


def known_truths(cases: Sequence[Case], rows: Rows, file: Path) -> None:
    """Take what the GPU said in earlier passes; a case that is not in the file is left out."""
    known = json.loads(file.read_text(encoding="utf-8"))["cases"]
    for case in cases:
        if case.name in known:
            own = {key: value for key, value in known[case.name].items() if key != "passes"}
            rows[case.name] = {**own, "elsewhere": case.elsewhere, "reported": None, "events": []}


def watched_pass(cases: Sequence[Case], rows: Rows, watched: Watched) -> None:
    """The second pass: what the agent says."""
    for case in cases:
        row = rows[case.name]
        run = _run(case, row, "under the agent")
        if run is not None:
            events = watched.between(run)
            row["reported"] = bool(events)
            row["under_agent_ms"] = round(run.ms, 3)
            row["waited_under_agent"] = run.waited
            row["events"] = [[event.op, str(event.kind), round(event.stall_ns / 1e6, 3)] for event in events]


def cupti_pass(cases: Sequence[Case], rows: Rows, watched: Watched, oracle: DriverOracle) -> None:
    """The third pass: how long the driver held the host, against how long the agent says it did."""
    for case in cases:
        row = rows[case.name]
        if row["reported"] is None:
            continue
        run = _run(case, row, "under the agent and CUPTI", warm=False)
        calls = oracle.take()
        if run is None:
            continue
        events = watched.between(run)
        waits = [
            call for call in calls
            if run.start_ns <= call.start_ns and call.end_ns <= run.end_ns
            and (call.name.endswith("Synchronize") or call.ns >= _QUEUEING_NS)
        ]  # fmt: skip
        driver_ns = union_ns(waits)
        queued = [call for call in calls if "Async" in call.name and call.ns < _QUEUEING_NS]
        row["queueing_us"] = [round(call.ns / 1e3, 1) for call in queued]
        row["driver_calls"] = [[call.name, round(call.ns / 1e6, 3)] for call in waits if call.ns >= _LONG_NS]
        row["driver_blocks"] = driver_ns >= 0.4 * row["sleep_under_agent_ms"] * 1e6 > 0
        if row["driver_calls"] and events:
            stall_ns = sum(event.stall_ns for event in events)
            row["syncs"] = len(events)
            row["driver_us"] = round(driver_ns / 1e3, 1)
            row["stall_us"] = round(stall_ns / 1e3, 1)
            row["error_us"] = round((stall_ns - driver_ns) / 1e3, 1)


def _run(case: Case, row: dict[str, Any], where: str, *, warm: bool = True) -> physical.Timed | None:
    if row["error"]:
        return None
    try:
        with physical.guarded(case):
            sleep_ms = row.get("sleep_under_agent_ms", row["sleep_ms"])
            if warm:
                physical.run_case(case)
                host_ms = physical.run_case(case).ms
                if host_ms > sleep_ms / 4:  # the agent's own work must not pass for a wait
                    sleep_ms = min(max(sleep_ms, 4 * host_ms), _LONGEST_MS)
                row["sleep_under_agent_ms"] = round(sleep_ms, 1)
            return physical.run_case(case, sleep_ms)
    except physical.StickyError:
        raise
    except Exception as error:
        row["error"] = f"{where}: {physical.describe(error)}"
        return None


# --- figures --------------------------------------------------------------------------------------------------------


_LISTS = (
    "missed", "invented", "not_waiting_under_agent", "waiting_only_under_agent", "broken_by_agent", "cupti_missed",
    "cupti_invented", "undecided",
)  # fmt: skip
_COUNTS = ("cases", "waits", "caught", "missed", "invented", "not_waiting_under_agent", "undecided", "skipped")


def verdict(row: dict[str, Any]) -> str:
    """Judge one case in one word.

    The agent can change what a call does: some of torch's formulas take another path under a mode.  Where a call that
    waits no longer does, there is nothing to catch: ``not_waiting_under_agent``.
    """
    blocks, reported = row["blocks"], row["reported"]
    if row["error"].startswith(physical.SKIPPED):
        return "skipped"
    if blocks is None or reported is None:
        return "undecided"
    if blocks:
        if not row["waited_under_agent"]:
            return "not_waiting_under_agent"
        return "caught" if reported else "missed"
    if row["elsewhere"]:
        return "invented" if _stall_ms(row) >= _NOTHING_MS else "idle_stream"
    return "invented" if reported else "quiet"


def _stall_ms(row: dict[str, Any]) -> float:
    return max((stall for _, _, stall in row["events"]), default=0.0)


def verdicts(rows: Rows) -> dict[str, Any]:
    """Count hits and faults, over all and by family."""
    families: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    lists: dict[str, list[str]] = {title: [] for title in _LISTS}
    for name, row in rows.items():
        word = row["verdict"] = verdict(row)
        family = families[row["family"]]
        family["cases"] += 1
        family[word] += 1
        family["waits"] += word in {"caught", "missed"}
        if word in lists:
            lists[word].append(name)
        if row["blocks"] is not None and row["error"].startswith("under the agent:"):
            lists["broken_by_agent"].append(name)  # it ran without; counted as undecided
        if row["blocks"] is False and row.get("waited_under_agent"):
            lists["waiting_only_under_agent"].append(name)
        if "driver_blocks" in row and word != "not_waiting_under_agent" and row["driver_blocks"] != row["blocks"]:
            lists["cupti_missed" if row["blocks"] else "cupti_invented"].append(name)
    total = sum(families.values(), collections.Counter())
    idle = [row for row in rows.values() if row["elsewhere"] and row["blocks"] is False and row["reported"] is not None]
    reported = total["caught"] + total["invented"]
    return {
        "totals": {
            **{key: total[key] for key in _COUNTS},
            "recall": total["caught"] / total["waits"] if total["waits"] else None,
            "precision": total["caught"] / reported if reported else None,
        },
        "idle_stream": {
            "cases": len(idle),
            "reported": sum(row["reported"] for row in idle),
            "max_stall_ms": max(map(_stall_ms, idle), default=0.0),
        },
        **lists,
        "families": {name: dict(counter) for name, counter in sorted(families.items())},
    }


def stall_errors(rows: Rows) -> dict[str, Any]:
    """Sum up the difference between the agent's stall and the driver's, over the cases that wait."""
    found = sorted(
        (abs(row["error_us"]), row["error_us"], name)
        for name, row in rows.items()
        if row["blocks"] and "error_us" in row
    )
    if not found:
        return {"cases": 0}
    sizes = [size for size, _, _ in found]
    return {
        "cases": len(found),
        "median_us": round(statistics.median(sizes), 1),
        "p90_us": sizes[min(int(0.9 * len(sizes)), len(sizes) - 1)],
        "p99_us": sizes[min(int(0.99 * len(sizes)), len(sizes) - 1)],
        "max_us": sizes[-1],
        "over_200_us": sum(size > _FAR_US for size in sizes),
        "worst": [[name, error] for _, error, name in found[:-11:-1]],
    }


def tell(results: dict[str, Any]) -> None:
    """Print the most important results."""
    rows: Rows = results["cases"]
    totals = results["totals"]
    print(
        f'detail="{results["detail"]}": {totals["cases"]} cases, {totals["waits"]} wait: caught {totals["caught"]}, '
        f"missed {totals['missed']}; invented {totals['invented']}; no longer waiting under the agent "
        f"{totals['not_waiting_under_agent']}; undecided {totals['undecided']}, skipped {totals['skipped']}; "
        f"recall {_share(totals['recall'])}, precision {_share(totals['precision'])}"
    )
    print(f"syncs with an idle stream: {results['idle_stream']}")
    for title in _LISTS:
        print(f"\n== {title}: {len(results[title])}")
        for name in results[title][:_SHOWN]:
            row = rows[name]
            told = row["error"] or (
                f"{row['times_ms']} under the agent {row.get('under_agent_ms')} events {_short(row['events'])} "
                f"driver {_short(row.get('driver_calls', []))}"
            )
            print(f"{name}\n    {told}")
    print("\n== families: cases, waits, caught, missed, invented")
    for name, counter in results["families"].items():
        figures = " ".join(f"{counter.get(key, 0):5d}" for key in ("cases", "waits", "caught", "missed", "invented"))
        print(f"{name:32s} {figures}")
    figures = dict(results["stall_error"])
    worst = figures.pop("worst", [])
    print(f"\n== stall against CUPTI ({results['cupti']}), waits of 0.2 ms and more: {figures}")
    for name, error in worst:
        row = rows[name]
        print(f"{error:10.1f} us  {name}\n    driver {_short(row['driver_calls'])} events {_short(row['events'])}")


_KEPT = ("under_agent_ms", "waited_under_agent", "driver_us", "stall_us", "error_us")
_EVENTS_KEPT = 4


def kept(row: dict[str, Any]) -> dict[str, Any]:
    """What is committed of a case: what the agent and the driver said, without what the truth's file has."""
    events = row["events"]
    more = {"events_more": len(events) - _EVENTS_KEPT} if len(events) > _EVENTS_KEPT else {}
    elsewhere = {"elsewhere": row["elsewhere"]} if row["elsewhere"] else {}
    return {
        "family": row["family"], "blocks": row["blocks"], **elsewhere, "reported": row["reported"],
        "events": events[:_EVENTS_KEPT], **more, **{key: row[key] for key in _KEPT if key in row},
    }  # fmt: skip


def brief(row: dict[str, Any]) -> dict[str, Any]:
    """What is committed of a case where the run measured the truth itself: the details only of calls that wait."""
    always = {key: row[key] for key in ("family", "blocks", "reported")}
    if not (row["blocks"] or row["reported"]):
        return always
    measured = {key: row[key] for key in ("driver_us", "stall_us", "error_us") if key in row}
    return {**always, "times_ms": row["times_ms"], "events": row["events"][:_EVENTS_KEPT], **measured}


def _short(rows: list[Any]) -> str:
    """Show the longest, in their order."""
    longest = sorted(rows, key=lambda row: -row[-1])[:5]
    shown = [row for row in rows if row in longest][:5]
    return f"{shown}" + (f" and {len(rows) - len(shown)} more" if len(rows) > len(shown) else "")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description="hold the agent against the GPU and against the driver")
    parser.add_argument("--detail", choices=("ops", "syncs"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="where the results go, as JSON")
    parser.add_argument("--limit", type=int, help="only that many cases")
    parser.add_argument("--match", help="only cases whose name holds this text")
    parser.add_argument("--truth", type=Path, help="take the truth from this file (results/truth.json)")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each case for the truth (default 2)")
    options = parser.parse_args()
    faulthandler.enable()
    warnings.filterwarnings("ignore")
    cases = choose(CASES, options.limit, options.match)
    results: dict[str, Any] = {**environment(), "device": DEVICE, "detail": options.detail, "cupti": "not tried"}
    code = 0
    try:
        _passes(cases, results, options)
    except physical.StickyError as error:
        print(f"STOPPED: {error}")
        code = 1
    finally:
        _sum_up(results, options.out)
    tell(results)
    if options.truth is not None:  # which has the rest
        results["truth"] = options.truth.name
    shortened = brief if options.truth is None else kept
    save(options.out, {**results, "cases": {name: shortened(row) for name, row in results["cases"].items()}})
    return code


def _passes(cases: Sequence[Case], results: dict[str, Any], options: argparse.Namespace) -> None:
    rows: Rows = results.setdefault("cases", {})

    def keep() -> None:
        _sum_up(results, options.out)

    marks = [time.perf_counter()]
    if options.truth is not None:
        known_truths(cases, rows, options.truth)
        cases = [case for case in cases if case.name in rows]
    else:
        truths(cases, rows, options.repeats, keep)
    keep()
    marks.append(time.perf_counter())
    agent = syncagent.start(detail=options.detail, policy="observe", copies="all", max_events=_EVENTS)
    oracle = DriverOracle()
    try:
        watched = Watched(agent)
        watched_pass(cases, rows, watched)
        keep()
        marks.append(time.perf_counter())
        try:
            oracle.start()
            results["cupti"] = f"callbacks in {oracle.how}"
        except SyncAgentError as error:
            results["cupti"] = str(error)
        else:
            cupti_pass(cases, rows, watched, oracle)
        if oracle.lost:
            results["cupti"] += f", {oracle.lost} calls lost"
        report = agent.report()
        results["sensors"] = [[sensor.name, sensor.live, sensor.cannot_see] for sensor in report.sensors]
        results["notes"] = list(report.notes)
    finally:
        oracle.stop()
        syncagent.stop()
    marks.append(time.perf_counter())
    spent = [after - before for before, after in itertools.pairwise(marks)]
    print(f"truth {spent[0]:.0f} s, agent {spent[1]:.0f} s, CUPTI {spent[2]:.0f} s")


def _sum_up(results: dict[str, Any], out: Path) -> None:
    rows: Rows = results.pop("cases", {})
    results.update(verdicts(rows))
    results["stall_error"] = stall_errors(rows)
    results["cases"] = rows
    save(out, results)


if __name__ == "__main__":
    sys.exit(main())
