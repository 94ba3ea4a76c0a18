"""Writes the tables of the READMEs from the committed results, so that no number is typed by hand.

python tests/gpu/tables.py [--check]
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results")
PAGES = ("README.md", "examples/masked_loss/README.md")


def load(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def where(result: dict[str, Any]) -> str:
    return f"{result['gpu']}, torch {result['torch']}, Python {result['python']}, {result['date'][:10]}"


def physically_silent(result: dict[str, Any]) -> list[str]:
    """Cases that wait in bare runs, but not under the agent: no event, and the driver did not wait either."""
    silent = list(result["not_waiting_under_agent"])
    return silent + [n for n in result["missed"] if not result["cases"][n].get("driver_us") and n not in silent]


def oracle() -> str:
    heads = (
        "`detail`", "calls", "that wait", "reported", "missed", "do not wait under the agent",
        "reported, but do not wait", "stall error, median", "p90", "p99",
    )  # fmt: skip
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for detail in ("ops", "syncs"):
        result = load(f"oracle_{detail}")
        totals, error = result["totals"], result["stall_error"]
        silent = physically_silent(result)
        waits = totals["waits"] + len(result["not_waiting_under_agent"])
        missed = [name for name in result["missed"] if name not in silent]
        rows.append(
            f"| `{detail}` | {totals['cases']:,} | {waits} | {totals['caught']} | {len(missed)} | {len(silent)} | "
            f"{totals['invented']} | {error['median_us']:.0f} µs | {error['p90_us']:.0f} µs | "
            f"{error['p99_us']:,.0f} µs |"
        )
    result = load("oracle_ops")
    return "\n".join(rows) + (
        f"\n\n{where(result)}. The truth: `tests/gpu/results/truth.json`, three passes that agree on every call. The "
        "driver's own waiting time: CUPTI callbacks.\n"
        "Made with `python tests/gpu/oracle.py --detail ops|syncs --truth tests/gpu/results/truth.json --out FILE`."
    )


def differences() -> str:
    lines = []
    for detail in ("ops", "syncs"):
        result = load(f"oracle_{detail}")
        for name in physically_silent(result):
            lines.append(f"- `{detail}`, does not wait under the agent: `{name}`")
        for name in result["invented"]:
            lines.append(f"- `{detail}`, reported but does not wait: `{name}`")
    return "\n".join(lines)


def times() -> dict[str, Any]:
    return {name: row for name, row in load("example")["times"].items() if isinstance(row, dict)}


def cost() -> str:
    rows = ['| | without | `detail="syncs"` | `detail="ops"` |', "|---|---|---|---|"]
    for name, row in times().items():
        own = row["agent"]
        cells = [f"{own[d]['end_to_end_ms']:.2f} ms ({own[d]['ratio']:.3f} times)" for d in ("syncs", "ops")]
        rows.append(f"| the example, {name} | {own['bare']['end_to_end_ms']:.2f} ms a step | {' | '.join(cells)} |")
    shares = [row["share"] for row in load("gil")["rows"]]
    return "\n".join(rows) + (
        f"\n\n{where(load('example'))}; spans go to a journal, runs turn about in one process: `python tests/gpu/"
        "example.py --out DIR`.\n\nWhile the host waits, other Python threads go on: a thread that ticks every "
        f"millisecond made {min(shares):.0%} to {max(shares):.0%} of the ticks that it makes without the agent "
        "(`python tests/gpu/gil.py --out FILE`)."
    )


def startup() -> str:
    result = load("startup")
    rows = ["| | median |", "|---|---|"]
    rows += [f"| `{name}` | {row['median_ms']:.1f} ms |" for name, row in result["variants"].items()]
    return "\n".join(rows) + (
        f"\n\nThe line of the `.pth` itself takes {result['pth_line_us']:.1f} µs. Python {result['python']}, 2 cores, "
        "`make bench-startup`."
    )


def debug_mode() -> str:
    cases = load("sync_debug_mode")
    return f"{cases['warned']} of {cases['wait']}"


def honest() -> str:
    rows = [
        "| | host, until the step's code returns | end to end | GPU busy |",
        "|---|---|---|---|",
    ]
    table = times()
    for name, row in table.items():
        own, gpu = row["times"], row["gpu"]
        rows.append(
            f"| {name} | {own['host_ms']:.1f} ms | {own['end_to_end_ms']:.1f} ms | {min(gpu['busy'], 1.0):.0%} |"
        )

    def gain(batch: int, key: str) -> float:
        first, last = (table[f"batch {batch} variant {v}"]["times"][key] for v in (0, 3))
        return first / last

    return "\n".join(rows) + (
        f"\n\n{where(load('example'))}; milliseconds a step, `python tests/gpu/example.py --out DIR`. Host time is of "
        "four steps from an idle GPU, so that the launch queue (about 1,000 kernels) does not fill.\n\n"
        f"From variant 0 to 3 the host is done {gain(256, 'host_ms'):.0f} times sooner at batch 256, and the work "
        f"{gain(256, 'end_to_end_ms'):.2f} times; at batch 8 {gain(8, 'host_ms'):.1f} and "
        f"{gain(8, 'end_to_end_ms'):.2f} times."
    )


def programs() -> str:
    rows = [
        "| program | syncs a step | waits of the driver, 50 µs and more | inside a sync of ours | worst sites |",
        "|---|---|---|---|---|",
    ]
    for name, found in load("real_programs")["programs"].items():
        match, watched = found["cupti_and_agent"]["match"], found["syncs"]
        per_step = watched["totals"]["syncs"] / watched["run"]["steps"]
        lines = []
        for site in watched["top"][:3]:
            line = site["library"] or site
            file = line["file"].rpartition("-packages/")[2]
            lines.append(f"`{file}:{line['line']}`")
        rows.append(f"| `{name}` | {per_step:.1f} | {match['waits']} | {match['contained']} | {', '.join(lines)} |")
    return "\n".join(rows)


def variants() -> str:
    rows = ["| variant | op | line | phase | count | stall in all |", "|---|---|---|---|---|---|"]
    watched = load("example")["watched"]
    for variant in range(4):
        sites = [s for s in watched[f"variant {variant} batch 8 ops"]["sites"] if s["phase"] in ("forward", "backward")]
        rows += [
            f"| {variant} | `{s['op']}` | `{s['source']}` | {s['phase']} | {s['count']} | {s['stall_ms']:.1f} ms |"
            for s in sites
        ]
        if not sites:
            rows.append(f"| {variant} | none | | | | |")
    return "\n".join(rows)


def output() -> str:
    text = (ROOT / "examples/masked_loss/output/variant0_batch8_ops.txt").read_text(encoding="utf-8")
    table = text.partition("--- stderr ---\n")[2].strip("\n").splitlines()
    end = next(i for i, line in enumerate(table) if line.startswith("Host time"))
    return "\n".join(["```console", "$ SYNCAGENT=1 python examples/masked_loss/train.py", *table[:end], "...", "```"])


MAKERS = {
    "oracle": oracle, "differences": differences, "cost": cost, "startup": startup, "debugmode": debug_mode,
    "honest": honest, "example": output, "variants": variants,
    "programs": programs,
}  # fmt: skip


def filled(text: str) -> str:
    def fill(found: re.Match[str]) -> str:
        kind, name = found["kind"], found["name"]
        made = MAKERS[name]()
        body = made if "\n" not in made else f"\n{made}\n"
        return f"<!-- {kind}: {name} -->{body}<!-- /{kind} -->"

    return re.sub(r"<!-- (?P<kind>table|output): (?P<name>\w+) -->.*?<!-- /(?P=kind) -->", fill, text, flags=re.DOTALL)


def main() -> int:
    stale = []
    for name in PAGES:
        page = ROOT / name
        old = page.read_text(encoding="utf-8")
        new = filled(old)
        if new != old:
            stale.append(name)
            if "--check" not in sys.argv:
                page.write_text(new, encoding="utf-8")
    print("changed:" if stale else "up to date", *stale)
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
