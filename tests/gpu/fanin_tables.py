"""The tables of what ranks send, and how large the Collectors of nodes and their gateway have to be; see tables.py."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

__all__ = ["MAKERS"]

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "tests" / "stack" / "results" / "per_rank.json"
RANKS = (8, 64, 1_024)
A_NODE = 8
"""Ranks of one node."""
MIB = 2**20
ROOM = 1.25
"""How much more than what is computed the gateway may take: its limit is rounded up from that."""


def _result() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    return found


def _row(title: str, *values: str) -> str:
    return f"| {title} | {' | '.join(values)} |"


def _titles(found: dict[str, Any]) -> dict[str, str]:
    return {"default": "default settings", "busy": f"{found['busy_rate']:,} syncs a second"}


def sent() -> str:
    """What a rank sends in a minute, and what Collectors do with one span or one rank."""
    found = _result()
    rows = [
        _row("one rank, in a minute", "spans", "bytes of spans", "metric points", "bytes of metrics"),
        "|---" * 5 + "|",
    ]
    for name, title in _titles(found).items():
        case = found["cases"][name]
        metrics = [f"{case['metrics'][what]:,}" for what in ("points", "bytes")]
        for part in ("first", "later"):
            minute = case[f"{part}_minute"]
            rows.append(_row(f"{title}, {part} minute", f"{minute['spans']:,}", f"{minute['bytes']:,}", *metrics))
    cost = found["collectors"]
    spans, metrics_, queue = cost["spans"], cost["metrics"], cost["queue"]
    return "\n".join(rows) + (
        f"\n\nA Collector of a node takes {spans['cpu_us_a_span']['node']} µs of CPU time for a span, and its queue "
        f"{queue['bytes_a_span']:,} bytes. The gateway takes {spans['cpu_us_a_span']['gateway']} µs, and "
        f"{spans['gateway_bytes_a_span']:,} bytes of memory for as long as it has not decided on the trace, "
        f"{found['decision_s']:g} s. For the metrics of a busy rank it takes "
        f"{metrics_['gateway_bytes_a_rank']:,} bytes of memory, and serves {metrics_['bytes_a_rank']:,} bytes to "
        f"Prometheus at each scrape. Without ranks it has {spans['gateway_rss_before_mb']:.0f} MB. CPU in the place of "
        f"a GPU for the busy rank, with twenty lines, and the simulated device for the other, "
        f"torch {found['torch']}, Python {found['python']}, {found['date'][:10]}. "
        "`python tests/stack/per_rank.py --out tests/stack/results/per_rank.json`."
    )


def sizes() -> str:
    """What that is for so many ranks."""
    found = _result()
    cost = found["collectors"]
    (queue_bytes,) = map(int, re.findall(r"QUEUE_BYTES:-(\d+)", (ROOT / "otel/collector/node.yaml").read_text("utf-8")))
    rows = [
        _row("ranks, eight a node", "nodes", "KB a second", "gateway's cores", "its memory", "`MEMORY_LIMIT_MIB`",
             "a scrape", "a node's queue lasts"),
        "|---" * 8 + "|",
    ]  # fmt: skip
    for name, title in _titles(found).items():
        case = found["cases"][name]
        minute = max((case["first_minute"], case["later_minute"]), key=lambda one: one["spans"])
        spans_a_s = minute["spans"] / 60
        bytes_a_s = (minute["bytes"] + case["metrics"]["bytes"]) / 60
        for ranks in RANKS:
            memory = cost["spans"]["gateway_rss_before_mb"] * 1e6 + ranks * (
                case["most_spans_while_undecided"] * cost["spans"]["gateway_bytes_a_span"]
                + cost["metrics"]["gateway_bytes_a_rank"]
            )
            limit = max(400, math.ceil(ROOM * memory / MIB / 100) * 100)
            lasts_s = queue_bytes / (A_NODE * spans_a_s * cost["queue"]["bytes_a_span"])
            rows.append(
                _row(
                    f"{ranks:,}: {title}",
                    f"{ranks // A_NODE:,}",
                    f"{ranks * bytes_a_s / 1e3:,.0f}",
                    f"{ranks * spans_a_s * cost['spans']['cpu_us_a_span']['gateway'] / 1e6:.2f}",
                    f"{memory / 1e6:,.0f} MB",
                    f"{limit:,}",
                    f"{ranks * cost['metrics']['bytes_a_rank'] / 1e6:.1f} MB",
                    f"{lasts_s / 60:,.0f} min",
                )
            )
    return "\n".join(rows)


MAKERS = {"perrank": sent, "faninsizes": sizes}
