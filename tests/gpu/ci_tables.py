"""The figures of the pages about tests and CI: what they take, and what holds on a GPU; see tables.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["MAKERS"]

RESULTS = Path(__file__).with_name("results")
SESSIONS = {
    "blocked": "without the plugin (`-p no:syncagent`)",
    "blocked, again": "the same again",
    "there": "nothing asked for",
    "simulated device": "`--syncagent-simulate` alone",
    "marker": "`--syncagent-simulate`, a test with the marker",
    "fixture": "`--syncagent-simulate`, a test with the fixture",
    "raise": "`--syncagent-simulate --syncagent=raise`, a test with the marker",
}

GATE = "python tests/gpu/gate.py --out FILE"
PROMISED = {
    "docs/testing.md": "this page: the plugin, `assert_no_syncs`",
    "docs/trainers.md": "[the trainers](trainers.md): the page's programs, and runs with and without the callback",
    "docs/ci.md": "[CI](ci.md): the page's commands, `check`, `--fail-on`, the example",
    "docs/production.md": "[a long job](production.md#a-job-that-runs-for-days): its log, a report at a signal",
}
"""By the page that promises it."""
TRAINERS = ("lightning", "pytorch-lightning", "transformers", "accelerate")
NAMED = ("pytest", "pytest-xdist", *TRAINERS)


def _load(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def session() -> str:
    """What the plugin adds to a session of one test."""
    result = _load("plugin")
    rows = ["| a session of one test | CPU time | more than without | quartiles |", "|---|--:|--:|--:|"]
    for name, title in SESSIONS.items():
        row = result["sessions"][name]
        low, high = row["more_cpu_ms_quartiles"]
        more = ["", ""] if name == "blocked" else [f"{round(row['more_cpu_ms'])} ms", f"{low:.0f} to {high:.0f} ms"]
        rows.append(f"| {title} | {row['cpu_ms']:.0f} ms | {' | '.join(more)} |")
    return "\n".join(rows) + (
        f"\n\nMedians of {result['rounds']} sessions each, taken in turn, with torch and pytest imported before. "
        f"pytest {result['pytest']}, torch {result['torch']}, Python {result['python']}, {result['date']}, "
        f"{result['cores']} cores, load {result['load']:.0f}: what else runs on the cores makes all of them longer. "
        "`python tests/benchmarks/plugin.py --result FILE`." + _session_on_gpu()
    )


def _session_on_gpu() -> str:
    result = _load("plugin_gpu")
    rows = result["sessions"]
    (low, high), (again_low, again_high) = (
        rows[name]["more_cpu_ms_quartiles"] for name in ("marker", "blocked, again")
    )
    return (
        f"\n\nOn a GPU a test with the marker takes {rows['marker']['more_cpu_ms']:.0f} ms ({low:.0f} to {high:.0f}) "
        f"more than the {rows['blocked']['cpu_ms']:.0f} ms without the plugin, on a machine where the same again takes "
        f"{rows['blocked, again']['more_cpu_ms']:.0f} ms ({again_low:.0f} to {again_high:.0f}) more; CUDA's context is "
        f"made before. {result['gpu']}, torch {result['torch']}, Python {result['python']}, {result['date']}, "
        f"{result['rounds']} sessions each. `python tests/benchmarks/plugin.py --real --result FILE`."
    )


def check_time() -> str:
    """How long a check takes with few lines and with many, the slowest form of each."""
    result = _load("check")
    few, _, many = (max(forms.values()) for forms in result["seconds"].values())
    return (
        f"takes {few:.2f} s; with 500 lines and a time line of 10,000 syncs, {many:.2f} s (the slowest of four forms, "
        f"medians of {result['rounds']}; Python {result['python']}, torch {result['torch']} installed, "
        f"{result['date']}; `python tests/benchmarks/check.py --result FILE`)"
    )


def on_gpu() -> str:
    """How much of what the pages about tests, trainers, CI and long jobs promise was seen to hold on a GPU."""
    if not _is_measured("gate"):
        return f"Not measured yet: `{GATE}`."
    result = _load("gate")
    rows = ["| | checks | hold |", "|---|--:|--:|"]
    for page, title in PROMISED.items():
        found = [check["ok"] for check in result["checks"] if check["page"] == page]
        rows.append(f"| {title} | {len(found)} | {sum(found)} |")
    failed = [f"- {check['name']}" for check in result["checks"] if not check["ok"]]
    left_out = [f"- {each['name']}: {each['why']}" for each in result["left_out"]]
    named = ", ".join(f"{name} {result['versions'][name]}" for name in NAMED if name in result["versions"])
    return "\n".join(rows) + (
        ("\n\nThose that do not:\n\n" + "\n".join(failed) if failed else "")
        + ("\n\nNot tried:\n\n" + "\n".join(left_out) if left_out else "")
        + f"\n\n{_machine(result)}, {named}. `{GATE}`."
    )


def trainers_on_gpu() -> str:
    """Whether the callbacks were run on a GPU."""
    if not _is_measured("gate"):
        return "The callbacks were not run on a GPU."
    result = _load("gate")
    found = [check["ok"] for check in result["checks"] if check["page"] == "docs/trainers.md"]
    named = ", ".join(f"{name} {result['versions'][name]}" for name in TRAINERS if name in result["versions"])
    return (
        f"On a GPU, {sum(found)} of {len(found)} checks of the callbacks and of this page's programs hold, "
        f"with {named} ({_machine(result)}; `{GATE}`)."
    )


def _is_measured(name: str) -> bool:
    return (RESULTS / f"{name}.json").exists()


def _machine(result: dict[str, Any]) -> str:
    device = result["gpu"] or "simulated device"
    return f"{device}, torch {result['torch']}, Python {result['python']}, {result['date'][:10]}"


MAKERS = {
    "pluginsession": session, "checktime": check_time, "ongpu": on_gpu, "trainersongpu": trainers_on_gpu,
}  # fmt: skip
