"""The findings of a check as SARIF 2.1.0, for code scanning: an error at each line that is new or waits more often."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from syncagent.report.compare import Change, Comparison
from syncagent.report.compared import words
from syncagent.report.formats import sarif
from syncagent.report.model import Report

_STATES = {"new": "new", "grown": "updated"}


def render(comparison: Comparison, report: Report) -> str:
    """The log of the findings alone, indented; ``report`` is the one that was checked."""
    found = {id(report.sites[change.latest.row]): change for change in comparison.findings()}
    chosen = replace(report, sites=tuple(site for site in report.sites if id(site) in found))
    log = sarif.log(chosen)
    results: list[dict[str, Any]] = log["runs"][0]["results"]
    for site, result in zip(chosen.sites, results, strict=True):
        change = found[id(site)]
        result["message"]["text"] = f"{_what(comparison, change)} {result['message']['text']}"
        result.pop("suppressions", None)  # the baseline of its run knows a line that has grown
        result |= {"level": "error", "baselineState": _STATES[change.verdict]}
    return json.dumps(log, indent=1) + "\n"


def _what(comparison: Comparison, change: Change) -> str:
    if change.old is None:
        return "This host sync is not in the baseline."
    return f"This line waits more often than in the baseline: {words.before_and_after(change, comparison.simulated)}."
