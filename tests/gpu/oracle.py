"""Does the agent report every wait, and only waits, and for as long as they last?

    python tests/gpu/oracle.py --detail ops|syncs --out FILE.json [--limit N] [--match TEXT]

First the physical truth of every case, with no agent; then each case once under the agent, behind the sleep; then once
more with CUPTI's callbacks on, against which the agent's stall times are held.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import itertools
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in {None, ""}:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import syncagent.agent
from syncagent.errors import SyncAgentError
from syncagent.sensors.cupti import CuptiOracle
from tests.gpu import physical
from tests.gpu.corpus import CASES
from tests.gpu.corpus.names import DEVICE
from tests.gpu.explore import choose, environment, save

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from syncagent.agent import Agent
    from syncagent.event import SyncEvent
    from tests.gpu.corpus import Case

__all__ = ["main"]

_LONG_NS = 1_000_000
"""A driver call that lasts this long has waited for the sleep, not merely been made."""
_SAVE_EVERY = 100
_EVENTS = 1_000_000
_SHOWN = 200

Rows = dict[str, dict[str, Any]]


class Watched:
    """The agent, and the syncs it reports between two moments."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        # SyncEvent counts from the epoch, by an anchor that the agent took a moment ago; the closest of several tries.
        tries = []
        for _ in range(20):
            before = time.perf_counter_ns()
            epoch = time.time_ns()
            after = time.perf_counter_ns()
            tries.append((after - before, epoch - (before + after) // 2))
        self._anchor_ns = min(tries)[1]

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
            "sleep_ms": round(truth.sleep_ms, 1), "reported": None, "events": [], "error": truth.error,
        }  # fmt: skip
        if index % _SAVE_EVERY == _SAVE_EVERY - 1:
            keep()


def watched_pass(cases: Sequence[Case], rows: Rows, watched: Watched) -> None:
    """The second pass: what the agent says."""
    for case in cases:
        row = rows[case.name]
        run = _run(case, row, "under the agent")
        if run is not None:
            events = watched.between(run)
            row["reported"] = bool(events)
            row["under_agent_ms"] = round(run.ms, 3)
            row["events"] = [[event.op, str(event.kind), round(event.stall_ns / 1e6, 3)] for event in events]


def cupti_pass(cases: Sequence[Case], rows: Rows, watched: Watched, oracle: CuptiOracle) -> None:
    """The third pass: how long the driver held the host, against how long the agent says it did."""
    for case in cases:
        row = rows[case.name]
        if row["reported"] is None:
            continue
        run = _run(case, row, "under the agent and CUPTI", warm=False)
        if run is None:
            continue
        events = watched.between(run)
        calls = [call for call in oracle.calls if run.start_ns <= call.start_ns and call.end_ns <= run.end_ns]
        oracle.calls.clear()
        waits = [call for call in calls if call.end_ns - call.start_ns >= _LONG_NS]
        driver_ns = sum(call.end_ns - call.start_ns for call in waits)
        row["driver_calls"] = [[call.name, round((call.end_ns - call.start_ns) / 1e6, 3)] for call in waits]
        row["driver_blocks"] = driver_ns >= 0.4 * row["sleep_ms"] * 1e6 > 0
        if waits and events:
            stall_ns = sum(event.stall_ns for event in events)
            long_ns = sum(event.stall_ns for event in events if event.stall_ns >= _LONG_NS)
            row["driver_us"] = round(driver_ns / 1e3, 1)
            row["stall_us"] = round(stall_ns / 1e3, 1)
            row["error_us"] = round((stall_ns - driver_ns) / 1e3, 1)
            row["long_error_us"] = round((long_ns - driver_ns) / 1e3, 1)


def _run(case: Case, row: dict[str, Any], where: str, *, warm: bool = True) -> physical.Timed | None:
    if row["error"]:
        return None
    try:
        with physical.guarded(case):
            if warm:
                physical.run_case(case)
            return physical.run_case(case, row["sleep_ms"])
    except physical.StickyError:
        raise
    except Exception as error:
        row["error"] = f"{where}: {physical.describe(error)}"
        return None


# --- figures --------------------------------------------------------------------------------------------------------


def verdicts(rows: Rows) -> dict[str, Any]:
    """Count hits and faults, over all and by family."""
    families: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    missed, invented, odd, driver_missed, driver_more = [], [], [], [], []
    for name, row in rows.items():
        family = families[row["family"]]
        family["cases"] += 1
        if row["error"].startswith(physical.SKIPPED):
            family["skipped"] += 1
        elif row["blocks"] is None or row["reported"] is None:
            family["undecided"] += 1
            odd.append(name)
        else:
            family["waits"] += row["blocks"]
            family["caught"] += row["blocks"] and row["reported"]
            family["missed"] += row["blocks"] and not row["reported"]
            family["invented"] += row["reported"] and not row["blocks"]
            missed += [name] if row["blocks"] and not row["reported"] else []
            invented += [name] if row["reported"] and not row["blocks"] else []
            if "driver_blocks" in row:
                driver_missed += [name] if row["blocks"] and not row["driver_blocks"] else []
                driver_more += [name] if row["driver_blocks"] and not row["blocks"] else []
    total = sum(families.values(), collections.Counter())
    reported = total["caught"] + total["invented"]
    return {
        "totals": {
            **{key: total[key] for key in ("cases", "waits", "caught", "missed", "invented", "undecided", "skipped")},
            "recall": total["caught"] / total["waits"] if total["waits"] else None,
            "precision": total["caught"] / reported if reported else None,
        },
        "missed": missed,
        "invented": invented,
        "undecided": odd,
        "cupti_missed": driver_missed,
        "cupti_invented": driver_more,
        "families": {name: dict(counter) for name, counter in sorted(families.items())},
    }


def stall_errors(rows: Rows, key: str) -> dict[str, Any]:
    """Sum up the difference between the agent's stall and the driver's, over the cases that wait."""
    found = sorted(
        (abs(row[key]), row[key], name) for name, row in rows.items() if row["blocks"] and row.get(key) is not None
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
        "worst": [[name, error] for _, error, name in found[:-11:-1]],
    }


def tell(results: dict[str, Any]) -> None:
    """Print what a person wants to know first."""
    rows: Rows = results["cases"]
    totals = results["totals"]
    print(
        f'detail="{results["detail"]}": {totals["cases"]} cases, {totals["waits"]} wait: caught {totals["caught"]}, '
        f"missed {totals['missed']}; invented {totals['invented']}; undecided {totals['undecided']}, skipped "
        f"{totals['skipped']}; recall {_share(totals['recall'])}, precision {_share(totals['precision'])}"
    )
    for title in ("missed", "invented", "cupti_missed", "cupti_invented", "undecided"):
        print(f"\n== {title}: {len(results[title])}")
        for name in results[title][:_SHOWN]:
            row = rows[name]
            told = row["error"] or f"{row['times_ms']} events {row['events']} driver {row.get('driver_calls')}"
            print(f"{name}\n    {told}")
    print("\n== families: cases, waits, caught, missed, invented")
    for name, counter in results["families"].items():
        figures = " ".join(f"{counter.get(key, 0):5d}" for key in ("cases", "waits", "caught", "missed", "invented"))
        print(f"{name:32s} {figures}")
    print(f"\n== stall against CUPTI ({results['cupti']})")
    for title, text in (("stall_error", "all events"), ("long_stall_error", "events of 1 ms and more")):
        figures = dict(results[title])
        worst = figures.pop("worst", [])
        print(f"{text}: {figures}")
        for name, error in worst:
            print(f"    {error:10.1f} us  {name}")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description="hold the agent against the GPU and against the driver")
    parser.add_argument("--detail", choices=("ops", "syncs"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="where the results go, as JSON")
    parser.add_argument("--limit", type=int, help="only that many cases")
    parser.add_argument("--match", help="only cases whose name holds this text")
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
    return code


def _passes(cases: Sequence[Case], results: dict[str, Any], options: argparse.Namespace) -> None:
    rows: Rows = results.setdefault("cases", {})

    def keep() -> None:
        _sum_up(results, options.out)

    marks = [time.perf_counter()]
    truths(cases, rows, options.repeats, keep)
    keep()
    marks.append(time.perf_counter())
    agent = syncagent.start(detail=options.detail, policy="observe", copies="all", max_events=_EVENTS)
    oracle = CuptiOracle()
    try:
        watched = Watched(agent)
        watched_pass(cases, rows, watched)
        keep()
        marks.append(time.perf_counter())
        try:
            oracle.start()
            results["cupti"] = "on"
        except SyncAgentError as error:
            results["cupti"] = str(error)
        else:
            cupti_pass(cases, rows, watched, oracle)
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
    results["stall_error"] = stall_errors(rows, "error_us")
    results["long_stall_error"] = stall_errors(rows, "long_error_us")
    results["cases"] = rows
    save(out, results)


if __name__ == "__main__":
    sys.exit(main())
