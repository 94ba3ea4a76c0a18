"""Writes the tables of the documents from the committed results, so that no number is typed by hand.

python tests/gpu/tables.py [--check]
"""

from __future__ import annotations

import functools
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from tests.gpu import ci_tables, driver_tables, fanin_tables, rank_tables, simulation_tables
from tests.gpu.gallery import gallery
from tests.gpu.modelled_table import modelled, modelled_pairs
from tests.matrix import results as matrix
from tests.programs.table import programs as simulated_programs

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results")
PAGES = tuple(
    page.relative_to(ROOT).as_posix()
    for page in (
        ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*/README.md")),
        ROOT / "otel" / "README.md",
    )
)  # fmt: skip


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
        "Made with `python tests/gpu/oracle.py --detail ops|syncs --truth tests/gpu/results/truth.json --out FILE`.\n\n"
        f"{_later()}"
    )


def _later() -> str:
    """Later runs of the corpus, which had grown, each with a truth of its own."""
    runs = {detail: load(f"oracle_{detail}_h200") for detail in ("syncs", "ops")}
    sentences = []
    for detail, result in runs.items():
        totals, error, silent = result["totals"], result["stall_error"], physically_silent(result)
        waits = totals["waits"] + len(result["not_waiting_under_agent"])
        quiet = f", {len(silent)} do not wait under the agent" if silent else ""
        sentences.append(
            f"Under `{detail}` {totals['caught']} of the {waits} that wait are reported{quiet}, and "
            f"{totals['invented']} others; stall error {error['median_us']:.0f} µs at the median, "
            f"{error['p90_us']:.0f} µs at p90, {error['p99_us']:,.0f} µs at p99 "
            f"(`tests/gpu/results/oracle_{detail}_h200.json`)."
        )
    result = runs["syncs"]
    return (
        f"Again on another machine ({where(result)}), {result['totals']['cases']:,} calls, with a truth that each run "
        f"measured itself. {' '.join(sentences)}"
    )


def hot_path() -> str:
    """The same benchmarks of the version before and of this one, in turn."""
    result = load("hot_path")
    before, after = result["before"], result["after"]
    rows = ["| | before | now |", "|---|---|---|"]
    for name in before["per_sync"]:
        if "bare" not in name:
            cells = [
                ", ".join(
                    f"{run['beyond_bare_us']:.1f} ({run['ci95_us'][0]:.1f} to {run['ci95_us'][1]:.1f})"
                    for run in side["per_sync"][name]
                )
                for side in (before, after)
            ]
            rows.append(f"| one call, µs: {name} | {cells[0]} | {cells[1]} |")
    for name in before["step"]:
        cells = [
            f"{found['ratio']:.3f} ({found['ci95'][0]:.3f} to {found['ci95'][1]:.3f})"
            for found in (before["step"][name], after["step"][name])
        ]
        rows.append(f"| a host-bound step, times: {name} | {cells[0]} | {cells[1]} |")
    return "\n".join(rows) + (
        "\n\nBeyond the call without the agent, two runs of each, with 95 % intervals. "
        f"{where(result)}. {result['what']}."
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


def not_yet(name: str, command: str) -> str:
    """Say so where a result is not there."""
    return "" if (RESULTS / f"{name}.json").exists() else f"Not measured yet: `{command}`."


def span(row: dict[str, Any]) -> str:
    """A ratio with its 95 % interval."""
    low, high = row["ci95"]
    return f"{row['ratio']:.3f} ({low:.3f} to {high:.3f})"


_BESIDE = {
    "syncs": '`detail="syncs"`',
    "bare against bare": "without, against itself",
    "ops": '`detail="ops"`',
    "modes that do nothing": "two modes that do nothing",
    "torch.profiler with stacks": "torch.profiler with stacks",
}
_OVER = {
    "ops over modes that do nothing": "`ops`, in the same turns: times two modes that do nothing",
    "ops over torch.profiler": "`ops`: times torch.profiler with stacks",
    "nothing over torch.profiler": "two modes that do nothing: times torch.profiler with stacks",
}  # fmt: skip


def overhead() -> str:
    command = "python tests/benchmarks/overhead.py --cpus 2 --out FILE"
    if said := not_yet("overhead", command):
        return said
    result = load("overhead")
    cases = result["cases"]
    heads = [name.replace("gpu", "GPU") for name in cases]
    bare = [f"{case['syncs']['bare_ms']:.2f} ms" for case in cases.values()]
    rows = [f"| a training step | {' | '.join(heads)} |", "|---" * (len(cases) + 1) + "|"]
    rows.append(f"| without | {' | '.join(bare)} |")
    for name, shown in (_BESIDE | _OVER).items():
        rows.append(f"| {shown} | {' | '.join(span(case[name]) for case in cases.values())} |")
    calls = " / ".join(f"{case['dispatcher_calls']:,}" for case in cases.values())
    windows = [4 * case["syncs"]["rounds"] for case in cases.values()]
    return "\n".join(rows) + (
        "\n\nFrom the second row on: how many times as long as without the agent, or as what the row names, with 95 % "
        "interval. A transformer with "
        f"{result['optimizer'].replace('adamw', 'AdamW').replace('sgd', 'SGD')} and one `.item()` per step, "
        f"{calls} calls into the dispatcher; alternating in one process, {min(windows)} to {max(windows)} windows of "
        f"16 steps each for `syncs`, fewer and shorter ones for the rows below; on {result['cpus']} cores. "
        f"{where(result)}. `{command}`."
    )


_PER_SYNC = {
    "behind work, recorded": "a sync that waits",
    "behind work, 30 frames deep": "a sync that waits, 30 frames deep",
    "behind work, whole agent": "a sync that waits, with the agent's own thread at work beside it",
    "passed on": "a Python kernel that only passes the call on",
    "recorded": "a sync that finds nothing to wait for",
    "recorded, 30 frames deep": "the same, 30 frames deep",
    "recorded, collector on": "the same, with Python's garbage collector on",
    "whole agent": "the same, with the agent's own thread at work beside it",
    "allowed by with": "a sync allowed by `with syncagent.allow(...)`",
    "allowed by file:line": "a sync allowed by `SYNCAGENT_ALLOW=file:line`",
    "of a host tensor, hooked": "no sync: `.item()` of a host tensor",
    "does not wait, hooked": "no sync: an op that may wait and does not",
}


def per_sync() -> str:
    command = "python tests/benchmarks/per_sync.py --out FILE"
    if said := not_yet("per_sync", command):
        return said
    result = load("per_sync")
    rows = [
        "| a call, in µs | more than without the agent | 95 % | more than passed on | the report says |",
        "|---|---|---|---|---|",
    ]
    for name, shown in _PER_SYNC.items():
        row = result["cases"].get(name)
        if row is None:
            continue
        low, high = row["ci95_us"]
        own = f"{row['beyond_passed_on_us']:.1f}" if "beyond_passed_on_us" in row and name != "passed on" else ""
        says = f"{row['says_us']:.1f}" if "says_us" in row else ""
        rows.append(f"| {shown} | {row['beyond_bare_us']:.1f} | {low:.1f} to {high:.1f} | {own} | {says} |")
    return "\n".join(rows) + (
        '\n\nTight loops. "Waits": a GPU kernel of 80 µs is queued before each read, and what the agent does before '
        "the wait is hidden by it. The others read a scalar that is ready: nothing is hidden. "
        f"{where(result)}. `{command}`."
    )


def busy() -> str:
    """The same calls on a machine that others kept busy."""
    cases = load("per_sync_busy")["cases"]
    waits, ready = (cases[name]["beyond_bare_us"] for name in ("behind work, recorded", "recorded"))
    return f"{waits:.1f} µs where it waits and {ready:.1f} µs where it does not"


def far() -> str:
    """How many stalls under ``syncs`` are off by more than 200 µs."""
    cases = load("oracle_syncs")["cases"].values()
    wrong = [case["family"] for case in cases if abs(case.get("error_us") or 0.0) > 200]
    told = sum(1 for case in cases if case.get("error_us") is not None)
    linalg = wrong.count("linalg")
    return f"of {told} stalls under `syncs`, {len(wrong)} are further off than that, {linalg} of them linear algebra"


def again() -> str:
    """The other detail once more, on a slower machine."""
    result = load("oracle_ops_again")
    totals, error = result["totals"], result["stall_error"]
    return (
        f"reported {totals['caught']} once more and {totals['invented'] or 'none'} that do not wait; there the stalls "
        f"were told {error['median_us']:.0f} µs wrong at the median, {error['p90_us']:.0f} at the 90th percentile and "
        f"{error['p99_us']:,.0f} at the 99th"
    )


def verdict(limits: list[tuple[float, float]], most: float) -> str:
    """Is a limit kept, by the low and high ends of what was measured?"""
    if all(high <= most for _, high in limits):
        return "met"
    return "**not met**" if any(low > most for low, _ in limits) else "open: the limit is inside the interval"


def targets() -> str:
    if not_yet("overhead", "") or not_yet("per_sync", ""):
        return "Not measured yet."
    cases, calls = load("overhead")["cases"], load("per_sync")["cases"]
    rows = ["| | wanted | measured | |", "|---|---|---|---|"]
    for kind, most in (("host-bound", 1.01), ("gpu-bound", 1.002)):
        found = {name: case["syncs"] for name, case in cases.items() if name.startswith(kind)}
        control = [span(case["bare against bare"]) for name, case in cases.items() if name in found]
        rows.append(
            f"| step time under `syncs`, {kind.replace('gpu', 'GPU')} | {most:g} times at most | "
            f"{'; '.join(map(span, found.values()))}; without, against itself: {'; '.join(control)} | "
            f"{verdict([row['ci95'] for row in found.values()], most)} |"
        )
    busier = load("per_sync_busy")["cases"]

    def both(names: list[str], most: float, key: str = "beyond_bare_us") -> tuple[str, str]:
        """What was measured, and the verdict: on this machine and on one that others kept busy."""
        texts, verdicts = [], []
        for cases in (calls, busier):
            rows = [cases[name] for name in names]
            ends = [tuple(row["ci95_us"]) if key == "beyond_bare_us" else (row[key], row[key]) for row in rows]
            texts.append(", ".join(f"{row[key]:.1f}" for row in rows))
            verdicts.append(verdict(ends, most))
        said = verdicts[0] if verdicts[0] == verdicts[1] else f"{verdicts[0]}; busier: {verdicts[1]}"
        return f"{texts[0]} µs; on a busier machine {texts[1]}", said

    for what, names, most, key in (
        ("a sync that waits, beyond the wait; the same 30 frames deep",
         ["behind work, recorded", "behind work, 30 frames deep"], 8, "beyond_bare_us"),
        ("a sync that finds nothing to wait for", ["recorded"], 8, "beyond_bare_us"),
        ("a sync at a line allowed by `with`, by `SYNCAGENT_ALLOW`, beyond a kernel that only passes it on",
         ["allowed by with", "allowed by file:line"], 1, "beyond_passed_on_us"),
    ):  # fmt: skip
        measured, said = both(names, most, key)
        rows.append(f"| {what} | {most} µs at most | {measured} | {said} |")
    found = [case["ops over modes that do nothing"] for case in cases.values()]
    rows.append(
        f"| step time under `ops`, against two modes that do nothing | 1.15 times at most | "
        f"{'; '.join(map(span, found))} | {verdict([row['ci95'] for row in found], 1.15)} |"
    )
    found = [case["ops over torch.profiler"] for case in cases.values()]
    floor = [case["nothing over torch.profiler"] for case in cases.values()]
    why = " (modes that do nothing already cost more than it)" if min(row["ci95"][0] for row in floor) > 1 else ""
    rows.append(
        f"| step time under `ops`, against torch.profiler with stacks | less | {'; '.join(map(span, found))} times; "
        f"two modes that do nothing: {'; '.join(map(span, floor))} | "
        f"{verdict([row['ci95'] for row in found], 1)}{why} |"
    )
    tails = [
        [load(name)["cases"][f"1000 a second, {mode}"]["p99.9"] for mode in _COLLECTOR]
        for name in ("latency", "latency_cpu")
    ]
    texts = [" / ".join(f"{us:.0f}" for us in found) for found in tails]
    verdicts = [verdict([(us, us) for us in found], 200) for found in tails]
    rows.append(
        "| 99.9th percentile of what a sync takes longer, at 1,000 a second, collector up / slow / down | "
        f"200 µs at most | {texts[0]} µs on the machine with the GPU; on two CPU cores {texts[1]} | "
        f"{verdicts[0]}; CPU: {verdicts[1]} |"
    )
    return "\n".join(rows)


_COLLECTOR = ("collector up", "collector slow", "collector down")


def latency(name: str = "latency") -> str:
    command = "python tests/benchmarks/latency.py --out FILE"
    if said := not_yet(name, command):
        return said
    result = load(name)
    if not result["gpu"]:
        command = command.replace(" --out", " --device cpu --out")
    cells = {tuple(name.split(" a second, ", 1)): row for name, row in result["cases"].items()}
    rates = list(dict.fromkeys(rate for rate, _ in cells))
    modes = list(dict.fromkeys(mode for _, mode in cells))
    rows = [f"| syncs a second | {' | '.join(f'{int(rate):,}' for rate in rates)} |", "|---" * (len(rates) + 1) + "|"]
    for mode in modes:
        found = [cells.get((rate, mode)) for rate in rates]
        texts = [" · ".join(f"{round(c[key]):,}" for key in ("p50", "p99", "p99.9", "max")) if c else "" for c in found]
        rows.append(f"| {mode} | {' | '.join(texts)} |")
    short = [
        f"{mode} {row['a_second']:,.0f} of {int(rate):,}"
        for (rate, mode), row in cells.items()
        if row["a_second"] < 0.95 * int(rate) and not mode.startswith("no agent")
    ]
    lost = [
        f"{mode} at {int(rate):,} {spans['dropped'] / sum(spans.values()):.0%}"
        for (rate, mode), row in cells.items()
        if (spans := row.get("spans")) and spans["dropped"]
    ]
    return "\n".join(rows) + (
        "\n\nµs that a sync takes beyond the median without an agent: median · 99th percentile · 99.9th · longest. "
        + (f"Rates not reached: {', '.join(short)}. " if short else "")
        + (f"Spans dropped, and counted: {', '.join(lost)}. " if lost else "")
        + ("Every sync and span is accounted for. " if result["exact"] else "**Some counts are wrong.** ")
        + f"{device(result)}. `{command}`."
    )


def latency_cpu() -> str:
    return latency("latency_cpu")


def memory() -> str:
    command = "python tests/benchmarks/memory.py --out FILE"
    if said := not_yet("memory", command):
        return said
    result = load("memory")
    texts = [
        f"After {row['syncs']:,} syncs at {row['sites']:,} lines in {row['steps']:,} steps, {name}: "
        f"{row['end_above_bare_mb']:.0f} MB more than before the agent's first import (never more than "
        f"{row['most_above_bare_mb']:.0f} MB), {row['growth_since_half_mb']:+.1f} MB from the second quarter to the "
        f"last; {'every sync is counted' if row['exact'] else '**counts are wrong**'}, {row['dropped']:,} dropped."
        for name, row in result["cases"].items()
    ]
    return "\n".join([*texts, f"{device(result)}. `{command}`."])


def page() -> str:
    command = "python tests/benchmarks/page.py --result FILE"
    if said := not_yet("page", command):
        return said
    result = load("page")
    ms = {name: figures["median"] for name, figures in result["ms"].items()}
    return (
        f"With 2,000 lines, 1,000 steps and 10,000 waits it has {result['bytes'] / 1e6:.1f} MB, and is loaded and "
        f"drawn after {ms['until it is loaded and drawn'] / 1e3:.1f} s. A search takes {ms['a search']:.0f} ms (the "
        f"first one {ms['the first search']:.0f} ms), another order {ms['another order']:.0f} ms, groups "
        f"{ms['groups by file']:.0f} ms, and a frame of the time line {ms['a frame of the time line']:.0f} ms. "
        f"Chromium {result['chromium']} without a GPU, on two cores, medians of {result['runs']} runs, "
        f"{result['date']}. `{command}`."
    )


def telemetry() -> str:
    command = "python tests/benchmarks/telemetry.py --out FILE"
    if said := not_yet("telemetry", command):
        return said
    result = load("telemetry")
    parts = {
        part: [row for row in result["cases"].values() if row["part"] == part] for part in ("events", "spans", "jobs")
    }
    rows = ["| the agent's own threads, on one core | a second | CPU time each | bytes each |", "|---|---|---|---|"]
    rows += [
        f"| syncs: {row['case']} | {row['events_a_second']:,} | {row['us_an_event']:.0f} µs | |"
        for row in parts["events"]
    ]
    rows += [
        f"| spans: {row['case']} | {row['spans_a_second']:,} | {row['us_a_span']} µs | {row['bytes_a_span']:,} |"
        for row in parts["spans"]
    ]
    jobs = parts["jobs"]

    def line(title: str, values: Any) -> str:
        return f"| {title} | {' | '.join(f'{value:,}' for value in values)} |"

    rows += ["", line("a job at so many syncs a second", (row["rate"] for row in jobs)), "|---" * (len(jobs) + 1) + "|"]
    rows += [
        line("spans a second", (round(row["spans_a_second"]) for row in jobs)),
        line("bytes a sync, spans and metrics", (round(row["bytes_an_event"]) for row in jobs)),
        line("syncs made", (row["made"] for row in jobs)),
        line("of these not counted at the collector", (row["made"] - row["counted_at_the_collector"] for row in jobs)),
    ]
    short = [
        f"{row['made_a_second']:,} of {row['rate']:,}" for row in jobs if row["made_a_second"] < 0.95 * row["rate"]
    ]
    return "\n".join(rows) + (
        "\n\nThe spans of the first table are of one line, which flatters gzip. "
        f"Jobs of {result['seconds_a_job']:g} s with 20 lines; the first hundred syncs of each have a span. "
        + (f"Rates not reached: {', '.join(short)}. " if short else "")
        + f"{device(result)}. `{command}`.{soak()}"
    )


def soak() -> str:
    if not (RESULTS / "soak.json").exists():
        return ""
    result = load("soak")
    [row] = result["cases"].values()
    memory = row["rss_mb"]
    growth = max(end - third for end, third in zip(memory["at the end"], memory["after a third"], strict=True))
    return (
        f"\n\n{row['ranks']} ranks on two cores, {min(row['syncs_a_second']):,} syncs a second each for "
        f"{row['seconds']:g} s: {row['syncs']:,} syncs, each line's count exact at the collector, "
        f"{max(row['spans_a_second']):.0f} spans a second from a rank at most, none lost; memory of a rank "
        f"{max(memory['at the end']):.0f} MB at the end, {growth:.1f} MB more than after a third. "
        f"{row['steps_after_the_first']['of all ranks']} of the later steps have spans of all ranks. {device(result)}. "
        f"`SOAK_SECONDS={row['seconds']:g} SOAK_RESULT=FILE make test-telemetry`."
    )


def pipeline() -> str:
    """What went through a real Collector: as fast as one process can, eight ranks for minutes, two ranks on GPUs."""
    stack = ROOT / "tests" / "stack" / "results"
    rates, soaked = (json.loads((stack / f"{name}.json").read_text("utf-8")) for name in ("rates", "soak"))
    gpu = load("pipeline")
    syncs, *ways = rates["cases"].items()
    [long] = soaked["cases"].values()
    collector = long["collector"]

    def row(title: str, *values: str) -> str:
        return f"| {title} | {' | '.join(values)} |"

    def memory(of: dict[str, Any]) -> str:
        return f"{of['collector']['rss_mb']:.0f} MB"

    arrived = f"{syncs[1]['counted_at_prometheus']:,} of {syncs[1]['made']:,}"
    rows = [
        row("one process, as fast as it can", "a second", "arrived, of those made", "memory of the Collector"),
        "|---" * 4 + "|",
        row("syncs, with metrics, few spans", f"{syncs[1]['syncs_a_second']:,}", arrived, memory(syncs[1])),
    ]
    for way, one in ways:
        arrived = f"{one['collector']['accepted spans']:,} of {one['made']:,}"
        rows.append(row(f"{way}, one for every sync", f"{one['spans_a_second']:,}", arrived, memory(one)))
    counted, reported = (sum(of[f"syncs_{what}"] for of in gpu["ranks"]) for what in ("counted", "reported"))
    what_is_fast = (
        f"Job and Collector on the same {rates['cpus']} cores. {device(rates)}, load {rates['load_before']:.1f}. "
        "`python tests/stack/rates.py --seconds 15 --spans 21000 --out FILE`."
    )
    what_lasts = (
        f"{long['ranks']} ranks, {long['wanted_syncs_a_second']:,.0f} syncs a second each for {long['seconds']:g} s, "
        f"on the same {soaked['cpus']} cores: {long['syncs_counted_at_prometheus']:,} of {long['syncs']:,} syncs "
        f"counted at the Collector's Prometheus endpoint, {long['spans']:,} spans sent and "
        f"{collector['spans_accepted']:,} taken, none refused. The Collector had "
        f"{collector['rss_mb_max']:.0f} MB at most, {collector['rss_mb_last']:.0f} MB in the end, and "
        f"took {100 * collector['cpu_share_of_one_core']:.1f} % of a core. {device(soaked)}. "
        "`tests/stack/test_soak.py` says how."
    )
    on_gpus = (
        f"Two ranks on {gpu['gpus']} {gpu['gpu']}: {counted:,.0f} syncs counted of {reported:,} reported, "
        f"{gpu['spans_arrived']:,} spans arrived, each sync with a span or counted as one without. {where(gpu)}. "
        f"`{gpu['command']} --out FILE`."
    )
    return "\n\n".join(["\n".join(rows), what_is_fast, what_lasts, on_gpus])


def device(result: dict[str, Any]) -> str:
    if result["gpu"]:
        return where(result)
    return f"CPU in the place of a GPU, torch {result['torch']}, Python {result['python']}, {result['date'][:10]}"


def compat() -> str:
    command = "python tests/gpu/compat.py --out FILE"
    if said := not_yet("compat", command):
        return said
    result = load("compat")
    tried = result["ok"] + result["failed"]
    lines = [
        f"{result['ok']} of {tried} hold"
        + (f", {result['skipped']} were skipped" if result["skipped"] else "")
        + f". {device(result)}. `{command}`."
    ]
    wrong: dict[str, list[str]] = {}
    for name, row in result["cases"].items():
        if row["ok"] is False:
            what = re.sub(r" of aten::.*| without \[.*", "", " ".join(row["why"].split()).replace("`", "'"))
            wrong.setdefault(what[:160], []).append(name)
    if wrong:
        lines += ["", "Those that do not:", ""]
        lines += [f"- {'; '.join(names)}: `{why}`" for why, names in wrong.items()]
    return "\n".join(lines)


def times() -> dict[str, Any]:
    return {name: row for name, row in load("example")["times"].items() if isinstance(row, dict)}


def cost() -> str:
    rows = ['| | without | `detail="syncs"` | `detail="ops"` |', "|---|---|---|---|"]
    for name, row in times().items():
        own = row["agent"]
        cells = [f"{own[d]['end_to_end_ms']:.2f} ms ({own[d]['ratio']:.3f} times)" for d in ("syncs", "ops")]
        rows.append(f"| the example, {name} | {own['bare']['end_to_end_ms']:.2f} ms per step | {' | '.join(cells)} |")
    shares = [row["share"] for row in load("gil")["rows"]]
    is_older = not not_yet("overhead", "") and load("example")["date"] < load("overhead")["date"]
    row = load("example_earlier")["times"]["batch 8 variant 0"]["agent"]
    earlier = " and ".join(f"{row[detail]['ratio']:.2f}" for detail in ("syncs", "ops"))
    return "\n".join(rows) + (
        f"\n\n{where(load('example'))}{', before the runs above' * is_older}; spans go to a journal, runs alternate "
        "in one process: `python tests/gpu/example.py --out DIR`. Where the host is the bottleneck the ratios vary "
        f"from run to run: an earlier pass gave {earlier} for the first row (`tests/gpu/results/example_earlier.json`)."
        "\n\nWhile the host waits, other Python threads run: a thread that ticks every millisecond made "
        f"{min(shares):.0%} to {max(shares):.0%} of the ticks that it makes without the agent (`python tests/gpu/"
        "gil.py --out FILE`)."
    )


def startup() -> str:
    result = load("startup")
    rows = ["| | median |", "|---|---|"]
    rows += [f"| `{name}` | {row['median_ms']:.1f} ms |" for name, row in result["variants"].items()]
    return "\n".join(rows) + (
        f"\n\nThe line in the `.pth` file itself takes {result['pth_line_us']:.1f} µs. Python {result['python']}, "
        "2 cores, `make bench-startup`."
    )


def debug_mode() -> str:
    cases = load("sync_debug_mode")
    return f"{cases['warned']} of {cases['wait']}"


def gain(batch: int, key: str) -> float:
    """How many times sooner the example's last variant is done than its first."""
    table = times()
    first, last = (table[f"batch {batch} variant {v}"]["times"][key] for v in (0, 3))
    return float(first / last)


def gains() -> str:
    return (
        f"a host that is done {gain(256, 'host_ms'):.0f} times sooner finishes the work only "
        f"{gain(256, 'end_to_end_ms'):.2f} times sooner"
    )


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

    return "\n".join(rows) + (
        f"\n\n{where(load('example'))}; milliseconds per step, `python tests/gpu/example.py --out DIR`. Host time is "
        "of four steps from an idle GPU, so that the launch queue (about 1,000 kernels) does not fill.\n\n"
        f"From variant 0 to 3 the host is done {gain(256, 'host_ms'):.0f} times sooner at batch 256, and the work "
        f"{gain(256, 'end_to_end_ms'):.2f} times; at batch 8 {gain(8, 'host_ms'):.1f} and "
        f"{gain(8, 'end_to_end_ms'):.2f} times."
    )


def programs() -> str:
    rows = [
        "| program | syncs per step | waits in the driver, 50 µs and longer | inside a reported sync | worst sites |",
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


def output(name: str = "h200") -> str:
    """What the example printed, word for word, up to the end of the worst site."""
    text = (ROOT / f"examples/masked_loss/output/{name}.txt").read_text(encoding="utf-8")
    command = re.findall(r"^command: (.*)$", text, re.MULTILINE)[0]
    head, worst = text.partition("--- stderr ---\n")[2].strip("\n").split("\n\n")[:2]
    return f"```console\n$ {command}\n{head}\n\n{worst}\n\n...\n```"


def accuracy_in_short() -> str:
    """The later run of the corpus under ``syncs``, and how close predicted savings are, in three rows."""
    result, exact = load("oracle_syncs_h200"), load("driver_accuracy")
    error = exact["stalls"]["error_us"]
    totals = result["totals"]
    waits = totals["waits"] + len(result["not_waiting_under_agent"])
    silent = totals["cases"] - waits
    pairs = load("cost_pairs")["pairs"]
    right = sum(pair["saving_ok"] for pair in pairs.values())
    rows = [
        ("calls of torch that wait for the GPU",
         f"{totals['caught']} of {waits} reported; of {silent:,} that do not wait, {totals['invented'] or 'none'}"),
        ("how far the stall of a call is off, of about 10 ms",
         f"{error['median']:.0f} µs at the median, {error['p90']:.0f} at p90, {error['p99']:.0f} at p99"),
        ("the predicted gain of fixing all syncs", f"within 20 % or 0.3 ms in {right} of {len(pairs)} programs"),
    ]  # fmt: skip
    return "\n".join(["| | measured |", "|---|---|", *(f"| {what} | {said} |" for what, said in rows)]) + (
        f'\n\n{where(result)}, second row {exact["date"][:10]}, `detail="syncs"`. Last row: '
        f"{where(load('cost_pairs'))}; the prediction was fitted "
        "to these programs."
    )


def overhead_in_short() -> str:
    """How much longer a step of three programs takes by default."""
    result = load("overhead_default")
    rows = ["| a training program | a step without | by default | without, against itself |", "|---|---|---|---|"]
    for name in ("trainer", "resnet", "bert"):
        row = result["programs"][name]
        watched, itself = (
            driver_tables.spanned(row[f"{way} against bare"]["wall_ms"]) for way in ("default", "bare again")
        )
        title, time_ms = driver_tables.PROGRAMS[name], row["ms_a_step"]["bare"]
        rows.append(f"| {title} | {time_ms:.1f} ms | {watched} times | {itself} times |")
    return "\n".join(rows) + f"\n\nIn brackets: 95 % intervals. {where(result)}."


def cost_pairs() -> str:
    command = "python tests/gpu/cost_pairs.py --out FILE"
    if said := not_yet("cost_pairs", command):
        return said
    result = load("cost_pairs")
    heads = ("program", "with syncs", "saved without", "95 % interval", "predicted", "step off by")
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    pairs = result["pairs"]
    for name, row in sorted(pairs.items(), key=lambda item: -item[1]["saves_ms"] / item[1]["with_ms"]):
        low, high = row["saves_ci95"]
        missed = "" if row["saving_ok"] else " (missed)"
        off = f"{row['step_error']:+.1%}{'' if row['step_ok'] else ' (missed)'}"
        rows.append(
            f"| {name.replace('_', ' ')} | {row['with_ms']:.2f} ms | {row['saves_ms']:.2f} ms | "
            f"{low:.2f} to {high:.2f} | {row['predicted_saving_ms']:.2f} ms{missed} | {off} |"
        )
    savings, steps = (sum(row[key] for row in pairs.values()) for key in ("saving_ok", "step_ok"))
    within = sum(row["saving_ok_within_truth"] for row in pairs.values())
    worst = max(abs(row["reproduces_without"]) for row in pairs.values())
    slowest = max(row["priced_s"] for row in pairs.values())
    largest = max(row["gpu_ops"] for row in pairs.values())
    return "\n".join(rows) + (
        f"\n\nThe saving is within 20 % or 0.3 ms, whichever is larger, in {savings} of {len(pairs)} pairs "
        f"({savings / len(pairs):.0%}; in {within} if the truth's own interval is counted), the step time within 3 % "
        f"in {steps} of {len(pairs)}; the replay answered for all of them. "
        f"The programs without syncs are reproduced within {worst:.1%}. Without reading the trace, a window of up "
        f"to {largest:,} GPU ops takes {slowest:.2f} s at most. {where(result)}. "
        f"`{command.replace('FILE', 'FOLDER')}`, then `python tests/gpu/cost_verdict.py FOLDER --out FILE`."
    )


def cost_shares() -> str:
    pairs = load("cost_pairs")["pairs"].values()
    savings, steps = (sum(row[key] for row in pairs) for key in ("saving_ok", "step_ok"))
    whole = f"{savings} of {len(pairs)} pairs of programs with and without their syncs"
    return f"{whole}, and the step time within 3 % in {steps}"


def replay_time() -> str:
    found = load("replay")
    return (
        f"a window of {found['gpu_ops']:,} GPU ops and {found['sites']} sites, with every single gain and the whole "
        f"order, takes {found['read_s'] + found['priced_s']:.1f} s in Python {found['python']} "
        "(`python tests/benchmarks/replay.py --out FILE`)"
    )


def after_window() -> str:
    found = load("cost_after")
    names = ("before", "after, given back", "after, given back again", "after, kept")
    return ", ".join(f"{name} {statistics.median(found[name]):.1f} ms" for name in names)


def _costly_sites(run: dict[str, Any]) -> list[str]:
    rows = ["| gain | idle | stall | line |", "|---|---|---|---|"]
    for site in run["sites"]:
        if site["gain_ms"] is None and site["idle_ms"] is None:
            continue
        gain, idle, stall = (
            f"{value:.2f} ms" for value in (site["gain_ms"] or 0.0, site["idle_ms"], site["stall_ms"] / run["steps"])
        )
        line = site["forward"] or site
        backward = " (backward)" if site["forward"] else ""
        rows.append(f"| {gain} | {idle} | {stall} | {line['line']}{backward}: `{line['source']}` |")
    return rows


def loss_costs() -> str:
    runs = load("cost_examples")
    parts = []
    for batch in (8, 256):
        run = runs[f"masked_{batch}"]
        cost = run["cost"]
        whole = f"would gain {cost['gain_all_ms']:.2f} ms" if cost["gain_all_ms"] else "would gain nothing"
        parts.append(
            f"Batch {batch}: a step takes {cost['measured_step_ms']:.1f} ms and {whole} if nothing waited.\n\n"
            + "\n".join(_costly_sites(run))
        )
    run = runs["masked_8"]
    return "\n\n".join(parts) + (
        f"\n\nAll in milliseconds per step. {run['gpu']}, torch {run['torch']}, {run['date'][:10]}; "
        "`SYNCAGENT=1 SYNCAGENT_COST=1 python train.py --batch 8 --steps 100`, and `--batch 256 --steps 40`."
    )


def loss_fixed() -> str:
    runs = load("cost_examples")
    old, new = runs["masked_8"]["cost"], runs["masked_8_mended"]["cost"]
    return (
        f"{old['measured_step_ms']:.1f} to {new['measured_step_ms']:.1f} ms, "
        f"{old['measured_step_ms'] - new['measured_step_ms']:.1f} ms less, "
        f"of which {old['gain_all_ms']:.1f} ms were predicted"
    )


def log_costs() -> str:
    run = load("cost_examples")["logging_1"]
    return "\n".join(_costly_sites(run)) + (
        f"\n\nAll in milliseconds per step; stall under the agent, gain and idle from the window. {run['gpu']}, "
        f"torch {run['torch']}, {run['date'][:10]}; `SYNCAGENT=1 SYNCAGENT_COST=1 python train.py`."
    )


def log_fixed() -> str:
    runs = load("cost_examples")
    rows = ["| | as written | fixed | saved | predicted |", "|---|---|---|---|---|"]
    for number in (1, 2):
        old, new = runs[f"logging_{number}"]["cost"], runs[f"logging_{number}_mended"]["cost"]
        before, after = old["measured_step_ms"], new["measured_step_ms"]
        rows.append(
            f"| two runs, try {number} | {before:.1f} ms | {after:.1f} ms | {before - after:.1f} ms | "
            f"{old['gain_all_ms']:.1f} ms |"
        )
    pair = load("cost_pairs")["pairs"]["example_logging_item"]
    rows.append(
        f"| in turn in one process | {pair['with_ms']:.1f} ms | {pair['without_ms']:.1f} ms | "
        f"{pair['saves_ms']:.1f} ms | {pair['predicted_saving_ms']:.1f} ms |"
    )
    return "\n".join(rows)


def late_log() -> str:
    run = load("cost_examples")["logging_1_mended"]
    (site,) = [site for site in run["sites"] if site["op"] == "torch.cuda.Event.synchronize"]
    return f"{site['stall_ms'] / run['steps']:.1f} ms per step"


def before_after() -> str:
    """Fifteen scripts as written and as the advice leaves them."""
    command = "python tests/gpu/before_after.py --out FILE"
    if said := not_yet("before_after", command):
        return said
    result = load("before_after")
    rows = [
        "| script | lines with advice | syncs per step | step as written | with the advice | gained | predicted |",
        "|---|---|---|---|---|---|---|",
    ]
    failed = []
    for name, row in result["scripts"].items():
        errors = [part["error"] for part in row.values() if isinstance(part, dict) and "error" in part]
        if errors or "times" not in row:
            failed.append(f"- {name}: {errors[0].splitlines()[0] if errors else 'not measured'}")
            continue
        times, cost, before, after = (row[part] for part in ("times", "cost", "before", "after"))
        advised = {(site["file"], site["line"]) for site in before["sites"] if site["named"] and site["advice"]}
        low, high = times["gain_ci95"]
        gained = f"{times['gain_ms']:.2f} ms ({low:.2f} to {high:.2f})"
        if low <= 0 <= high:
            gained += ", none"
        predicted = "not known" if cost["gain_all_ms"] is None else f"{cost['gain_all_ms']:.2f} ms"
        rows.append(
            f"| {name.replace('_', ' ')} | {len(advised)} | {before['per_step']:.3g} → {after['per_step']:.3g} | "
            f"{times['before_ms']:.2f} ms | {times['after_ms']:.2f} ms | {gained} | {predicted} |"
        )
    return "\n".join(rows) + (
        ("\n\nNot in the table:\n\n" + "\n".join(failed) if failed else "")
        + f"\n\nBlocks of both variants in turn in one process, {result['repeats']} of each, without the agent: medians"
        " and the 95 % interval of the difference. Predicted is what a step would gain if nothing waited, from a run "
        f"of the script as written under `SYNCAGENT_COST=1`. {_alike(result)}{where(result)}. `{command}`."
    )


def _alike(result: dict[str, Any]) -> str:
    """How far apart the variants' losses or weights are at the end, where that is more than a script allows."""
    apart = [
        f"{name.replace('_', ' ')} {row['times']['differs_by']:.1g} (the same variant, from run to run: "
        f"{row['times']['differs_from_itself_by']:.1g})"
        for name, row in result["scripts"].items()
        if row.get("times", {}).get("differs_by", 0.0) > row["tolerance"]
    ]
    if not apart:
        return "Both variants of each train to the same, within what the script states. "
    return f"Variants that end further apart than their scripts state, relatively: {'; '.join(apart)}. "


def versions() -> str:
    """What was tried of torch and Python; ``nox`` writes the results."""
    found = matrix.load()
    if not found:
        return "Not run yet: `nox`."
    on_gpu = load("compat") if (RESULTS / "compat.json").exists() else None
    rows = ["| | torch | Python | tests passed | failed | skipped | on a GPU |", "|---|---|---|---|---|---|---|"]
    pairs = sorted(
        (name for name in found if name.startswith("torch ")), key=lambda name: numbers(found[name]["torch"])
    )
    for name in (*pairs, *sorted(found.keys() - set(pairs))):
        row = found[name]
        gpu = "no"
        if on_gpu and name in pairs and numbers(on_gpu["torch"].partition("+")[0]) == numbers(row["torch"]):
            tried = on_gpu["ok"] + on_gpu["failed"]
            gpu = f"{on_gpu['ok']} of {tried} ways of using torch, {on_gpu['gpu']}"
        what = "all tests" if name in pairs else name
        failed = f"**{row['failed']}**" if row["failed"] else "0"
        rows.append(
            f"| {what} | {row['torch']} | {row['python']} | {row['passed']:,} | {failed} | {row['skipped']} | {gpu} |"
        )
    failures = [f"- {name}: `{test}`" for name in found for test in found[name]["failures"]]
    tried = {tuple(row["python"].split(".")[:2]) for row in found.values()}
    untested = "" if ("3", "14") in tried else " Python 3.14 is untested."
    dates = sorted(row["date"][:10] for row in found.values())
    span_ = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return "\n".join(rows) + (
        ("\n\nThose that fail:\n\n" + "\n".join(failures) if failures else "")
        + f"\n\nLinux without a GPU, {span_}, in the environments that `nox` makes; skipped is what needs a library, a "
        f"Python or a torch that is not there.{untested}"
    )


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


MAKERS = {
    "costpairs": cost_pairs, "costshares": cost_shares, "replaytime": replay_time, "afterwindow": after_window,
    "gallery": gallery, "losscosts": loss_costs, "lossfixed": loss_fixed,
    "logcosts": log_costs, "logfixed": log_fixed, "latelog": late_log,
    "oracle": oracle, "differences": differences, "cost": cost, "startup": startup, "debugmode": debug_mode,
    "honest": honest, "variants": variants,
    "example": output, "simulatedexample": functools.partial(output, "simulated"),
    "accuracyinshort": accuracy_in_short, "overheadinshort": overhead_in_short,
    "programs": programs, "overhead": overhead, "persync": per_sync, "targets": targets, "latency": latency,
    "latencycpu": latency_cpu, "memory": memory, "page": page, "telemetry": telemetry, "compat": compat,
    "gains": gains, "busy": busy, "far": far, "again": again, "versions": versions, "hotpath": hot_path,
    "pipeline": pipeline, "beforeafter": before_after, "simulatedprograms": simulated_programs,
    "fidelity": simulation_tables.fidelity, "steptimes": simulation_tables.step_times, "modelled": modelled,
    "modelled_pairs": modelled_pairs, **driver_tables.MAKERS, **fanin_tables.MAKERS, **rank_tables.MAKERS,
    **ci_tables.MAKERS,
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
