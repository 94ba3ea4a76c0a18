"""The figures of the pages about tests and CI: what the pytest plugin and ``syncagent check`` take; see tables.py."""

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


def _load(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def session() -> str:
    """What the plugin adds to a session of one test."""
    result = _load("plugin")
    rows = ["| a session of one test | CPU time | more than without | quartiles |", "|---|--:|--:|--:|"]
    for name, title in SESSIONS.items():
        row = result["sessions"][name]
        low, high = row["more_cpu_ms_quartiles"]
        more = ["", ""] if name == "blocked" else [f"{row['more_cpu_ms']:.0f} ms", f"{low:.0f} to {high:.0f} ms"]
        rows.append(f"| {title} | {row['cpu_ms']:.0f} ms | {' | '.join(more)} |")
    return "\n".join(rows) + (
        f"\n\nMedians of {result['rounds']} sessions each, taken in turn, with torch and pytest imported before. "
        f"pytest {result['pytest']}, torch {result['torch']}, Python {result['python']}, {result['date']}, "
        f"{result['cores']} cores, load {result['load']:.0f}: what else runs on the cores makes all of them longer. "
        "`python tests/benchmarks/plugin.py --result FILE`."
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


MAKERS = {"pluginsession": session, "checktime": check_time}
