"""Run a program with the driver's waits timed: alone, or beside the agent, wait against event.

python tests/gpu/programs/under_cupti.py --out FILE.json [--agent] [--detail ops|syncs] SCRIPT [ARGUMENTS ...]
"""

from __future__ import annotations

import argparse
import bisect
import collections
import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch  # before CUPTI is looked for: it brings its own

from tests.gpu.driver import Call, DriverOracle, thread_name, union_ns

_WAIT_NS = 50_000
_SLACK_NS = 20_000
_NEST_NS = 500_000
"""Between an op's waits lies no more than this and its stall."""
_LISTED = 60


def by_call(calls: list[Call]) -> dict[str, dict[str, float]]:
    """Count waiting calls and their time, per call of the runtime."""
    found: dict[str, list[int]] = collections.defaultdict(list)
    for call in calls:
        found[call.name].append(call.ns)
    return {
        name: {"count": len(times), "total_ms": round(sum(times) / 1e6, 3), "max_ms": round(max(times) / 1e6, 3)}
        for name, times in sorted(found.items(), key=lambda entry: -sum(entry[1]))
    }


def match(waits: list[Call], events: list[Any], anchor_ns: int, began_ns: int) -> dict[str, Any]:
    """Give each wait to the agent's event that contains it.

    An op that waits several times is one event, whose stall is the sum of its waits and whose end is not kept: a wait
    that lies a little further on is its too (``within_nest``) as long as all of them are no longer than its stall.
    """
    threads = {number: thread_name(number) for number in {call.thread for call in waits}}
    own = [call for call in waits if threads[call.thread] == "main" or threads[call.thread].startswith("pt_autograd")]
    kinds: dict[bool, list[Any]] = {True: [], False: []}
    for event in events:
        kinds[event.thread == "MainThread"].append(event)
    starts = {kind: [event.start_ns - anchor_ns for event in found] for kind, found in kinds.items()}
    given: dict[int, list[Call]] = collections.defaultdict(list)
    by_id = {id(event): event for event in events}
    unmatched = []
    contained = nested = 0
    for call in sorted(own, key=lambda call: call.start_ns):
        kind = threads[call.thread] == "main"
        place = bisect.bisect_right(starts[kind], call.start_ns) - 1
        event = kinds[kind][place] if place >= 0 else None
        if event is not None:
            started = starts[kind][place]
            taken_ns = sum(other.ns for other in given[id(event)])
            if call.end_ns <= started + event.stall_ns + _SLACK_NS:
                contained += 1
            elif (
                taken_ns + call.ns <= event.stall_ns + _SLACK_NS
                and call.start_ns <= started + 2 * event.stall_ns + _NEST_NS
            ):
                nested += 1
            else:
                unmatched.append((call, event))
                continue
            given[id(event)].append(call)
        else:
            unmatched.append((call, None))
    sites: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0, 0, 0, 0])
    for event in events:
        row = sites[event.op, str(event.site)]
        waited = given.get(id(event), [])
        row[0] += 1
        row[1] += event.stall_ns
        row[2] += len(waited)
        row[3] += union_ns(waited)
    top = sorted(sites.items(), key=lambda entry: -entry[1][1])[:15]
    others = collections.Counter(threads[call.thread] for call in waits if call not in set(own))
    return {
        "waits": len(own), "matched": contained + nested, "contained": contained, "within_nest": nested,
        "unmatched": len(unmatched), "on_other_threads": dict(others),
        "driver_ms": round(union_ns(own) / 1e6, 3),
        "unmatched_ms": round(sum(call.ns for call, _ in unmatched) / 1e6, 3),
        "events": len(by_id), "stall_ms": round(sum(event.stall_ns for event in events) / 1e6, 3),
        "events_without_a_wait": sum(not given.get(id(event)) for event in events),
        "unmatched_list": [
            {
                "call": call.name, "ms": round(call.ns / 1e6, 3), "at_ms": round((call.start_ns - began_ns) / 1e6, 1),
                "thread": threads[call.thread], "after": None if event is None else f"{event.op} {event.site}",
            }
            for call, event in sorted(unmatched, key=lambda entry: -entry[0].ns)[:_LISTED]
        ],
        "top_sites": [
            {
                "op": op, "site": site, "count": int(row[0]), "stall_ms": round(row[1] / 1e6, 3),
                "driver_waits": int(row[2]), "driver_ms": round(row[3] / 1e6, 3),
            }
            for (op, site), row in top
        ],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--agent", action="store_true", help="the agent watches too, and is held against the driver")
    parser.add_argument("--detail", choices=("ops", "syncs"), default="ops")
    parser.add_argument("words", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    results: dict[str, Any] = {"torch": torch.__version__, "script": Path(options.words[0]).name, "error": None}
    agent = None
    if options.agent:
        import syncagent

        agent = syncagent.start(detail=options.detail, copies="all", max_events=1_000_000)
        results["detail"] = options.detail
    oracle = DriverOracle()
    try:
        oracle.start()
        results["cupti"] = f"callbacks in {oracle.how}"
    except Exception as error:
        results["cupti"] = f"{error}"
    sys.argv = options.words
    sys.path[0] = str(Path(options.words[0]).resolve().parent)
    began = time.perf_counter_ns()
    try:
        runpy.run_path(options.words[0], run_name="__main__")
    except SystemExit as ended:
        results["error"] = f"exit code {ended.code}" if ended.code else None
    except Exception as error:
        results["error"] = repr(error)[:500]
    finally:
        results["wall_s"] = round((time.perf_counter_ns() - began) / 1e9, 3)
        calls = oracle.take()
        results["lost"] = oracle.lost
        waits = [call for call in calls if call.ns >= _WAIT_NS]
        results["calls"] = len(calls)
        results["waiting_calls"] = by_call(waits)
        if agent is not None:
            events = list(agent.events())
            anchor = agent._buffers.epoch_ns(0)
            results["match"] = match(waits, events, anchor, began)
            import syncagent

            oracle.stop()
            report = syncagent.stop()
            results["notes"] = list(report.notes)
        oracle.stop()
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
