"""Asks a Prometheus what the panels of a Grafana dashboard ask, with the times and steps that Grafana would choose."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

OPTIONS = {
    "stat": {"reduceOptions", "graphMode", "colorMode"},
    "table": {"showHeader", "sortBy"},
    "timeseries": {"legend", "tooltip"},
}
"""The types of panels that ``panels.tsx`` draws, each with its options; a tooltip is not seen in a picture."""
PROPERTIES = ["color", "unit", "decimals", "min", "max", "thresholds", "links", "custom.width"]
"""What a field can have, besides what is ``custom``: that of a timeseries is all known to Grafana's component."""
TRANSFORMATIONS = {"merge", "organize"}
PANEL = {
    "id",
    "type",
    "title",
    "description",
    "datasource",
    "gridPos",
    "fieldConfig",
    "options",
    "targets",
    "transformations",
}
TARGET = {"refId", "datasource", "expr", "legendFormat", "format", "instant"}


def check(board: dict[str, Any]) -> None:
    """End with a sentence if something in a dashboard's file would not be in the picture as Grafana shows it."""
    for panel in board["panels"]:
        if panel["type"] not in OPTIONS:
            raise SystemExit(
                f"The panel {panel['title']!r} of {board['title']!r} is a {panel['type']}; what can be drawn with the "
                f"components that Grafana publishes is {', '.join(OPTIONS)}."
            )
        config = panel["fieldConfig"]
        allowed = [
            ("field", panel, PANEL),
            ("option", panel["options"], OPTIONS[panel["type"]]),
            ("default of a field", config["defaults"], {*PROPERTIES, *(["custom"] * (panel["type"] == "timeseries"))}),
            *(
                ("override of a field", [one["id"] for one in override["properties"]], PROPERTIES)
                for override in config["overrides"]
            ),
            *(("part of a query", target, TARGET) for target in panel["targets"]),
            ("transformation", [one["id"] for one in panel.get("transformations", [])], TRANSFORMATIONS),
        ]
        for what, found, known in allowed:
            for unknown in set(found).difference(known):
                raise SystemExit(
                    f"The panel {panel['title']!r} of {board['title']!r} has the {what} {unknown!r}, which the picture "
                    "would lack."
                )


def step_s(begin: float, end: float, width: float, scraped_s: float) -> int:
    """The time between two points of a panel of that width, in px: no more points than px, nor than were scraped."""
    return max(round((end - begin) / width), round(scraped_s), 1)


def filled(query: str, board: dict[str, Any], values: dict[str, str]) -> str:
    """The query with every variable replaced: the board's own by what stands for all of its values."""
    values = {variable["name"]: variable["allValue"] for variable in board["templating"]["list"]} | values
    return re.sub(r"\$\{?(\w+)\}?", lambda found: values[found[1]], query)


def answers(
    board: dict[str, Any],
    get: Callable[[str, dict[str, Any]], Any],
    begin: float,
    end: float,
    width: int,
    scraped_s: int,
) -> dict[str, Any]:
    """What ``panels.tsx`` draws: the board, and the answers to its queries by panel and query; times in s.

    ``get`` asks Prometheus: with a path of its API and arguments, for the result.
    """
    found: dict[int, dict[str, Any]] = {}
    steps = {}
    for panel in board["panels"]:
        step = step_s(begin, end, width * panel["gridPos"]["w"] / 24, scraped_s)
        steps[panel["id"]] = step * 1000
        rate_s = max(step + scraped_s, 4 * scraped_s)
        values = {"__rate_interval": f"{rate_s}s", "__range": f"{round(end - begin)}s"}
        found[panel["id"]] = {}
        for target in panel["targets"]:
            query = filled(target["expr"], board, values)
            if target.get("instant"):
                asked = get("query", {"query": query, "time": end})
            else:
                whole = {"start": begin // step * step, "end": end // step * step, "step": step}
                asked = get("query_range", {"query": query} | whole)
            if not asked:
                raise SystemExit(f"Prometheus has no data for the panel {panel['title']!r}: {query}")
            found[panel["id"]][target["refId"]] = asked
    return {
        "board": board,
        "answers": found,
        "steps": steps,
        "properties": PROPERTIES,
        "from": begin * 1000,
        "to": end * 1000,
        "width": width,
    }
