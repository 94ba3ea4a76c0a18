"""A Collector that keeps all it takes in files, as OTLP JSON, and what is in them.

Nothing of it is queued: its exporter writes each request to disk before the request is answered, so what a sender has
an answer for is there, even if the Collector is killed.
"""

from __future__ import annotations

import json
from pathlib import Path

import services  # isort: skip


def config(folder, receivers, *, processors=None):
    """A configuration whose pipelines of all signals go from these receivers to files in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    signals = ("traces", "metrics", "logs")
    content = {
        "extensions": {"health_check": {}},
        "receivers": {"otlp": {"protocols": {"grpc": {}, "http": {}}}, **receivers},
        "processors": processors or {},
        # With rotation there is no buffer between it and the file.
        "exporters": {
            f"file/{signal}": {"path": str(folder / f"{signal}.jsonl"), "rotation": {"max_megabytes": 1000}}
            for signal in signals
        },
        "service": {
            "extensions": ["health_check"],
            "pipelines": {
                signal: {
                    "receivers": ["otlp", *receivers],
                    "processors": list(processors or ()),
                    "exporters": [f"file/{signal}"],
                }
                for signal in signals
            },
        },
    }
    file = folder / "config.yaml"
    file.write_text(json.dumps(content, indent=2))  # YAML takes JSON
    return file


def start(folder, ports=None, receivers=None, **options):
    """Start one; skips the test where it cannot be had."""
    import pytest  # not at once: machines with GPUs read files with this, and need not have it

    try:
        return services.collector(folder, config(folder, receivers or {}, **options), ports or services.Ports())
    except services.NotHereError as why:
        pytest.skip(str(why))


class Kept:
    """What Collectors have written to these folders, in the order in which it came."""

    def __init__(self, *folders):
        self._folders = folders

    def spans(self):
        return [span for one in self._requests("traces") for span in spans_of(one)]

    def points(self):
        return [point for one in self._requests("metrics") for point in points_of(one)]

    def records(self):
        return [record for one in self._requests("logs") for record in records_of(one)]

    def _requests(self, signal):
        return [one for folder in self._folders for one in whole_lines(Path(folder, f"{signal}.jsonl"))]


def whole_lines(file):
    """Each line's JSON; one that was cut off is not there."""
    if not file.exists():
        return []
    *lines, rest = file.read_text().split("\n")
    found = [json.loads(line) for line in lines if line and not _is_torn(line)]
    return found if not rest or _is_torn(rest) else [*found, json.loads(rest)]


def _is_torn(line):
    try:
        json.loads(line)
    except ValueError:
        return True
    return False


def spans_of(request):
    """Each span with all that a request says of it, in one form whoever has written it."""
    return [
        {
            "name": span["name"],
            "trace": span["traceId"],
            "id": span["spanId"],
            "parent": span.get("parentSpanId", ""),
            "state": span.get("traceState", ""),
            "kind": span["kind"],
            "flags": span.get("flags", 0),
            "start": int(span["startTimeUnixNano"]),
            "end": int(span["endTimeUnixNano"]),
            "attributes": attributes(span),
            "events": [
                (event["name"], int(event["timeUnixNano"]), attributes(event)) for event in span.get("events", ())
            ],
            "links": [
                (link["traceId"], link["spanId"], link.get("flags", 0), attributes(link))
                for link in span.get("links", ())
            ],
            "status": span.get("status", {}),
            "resource": attributes(of_resource["resource"]),
            "scope": (of_scope["scope"]["name"], of_scope["scope"].get("version", "")),
            "schemas": (of_resource.get("schemaUrl", ""), of_scope.get("schemaUrl", "")),
        }
        for of_resource in request["resourceSpans"]
        for of_scope in of_resource["scopeSpans"]
        for span in of_scope["spans"]
    ]


def points_of(request):
    return [
        {
            "name": metric["name"],
            "attributes": attributes(point),
            "resource": attributes(of_resource["resource"]),
            "time": int(point["timeUnixNano"]),
            "count": int(point["count"]) if "count" in point else None,
            "value": number(point),
        }
        for of_resource in request["resourceMetrics"]
        for of_scope in of_resource["scopeMetrics"]
        for metric in of_scope["metrics"]
        for kind in ("sum", "gauge", "histogram")
        for point in metric.get(kind, {}).get("dataPoints", ())
    ]


def records_of(request):
    return [
        {
            "body": plain(record["body"]),
            "severity": record["severityText"],
            "trace": record["traceId"],
            "span": record["spanId"],
            "attributes": attributes(record),
            "resource": attributes(of_resource["resource"]),
        }
        for of_resource in request["resourceLogs"]
        for of_scope in of_resource["scopeLogs"]
        for record in of_scope["logRecords"]
    ]


def newest(points):
    """The last point of each series: each export has everything since the start."""
    by_series = {}
    for point in sorted(points, key=lambda point: point["time"]):
        by_series[point["name"], tuple(sorted(point["attributes"].items()))] = point
    return list(by_series.values())


def total(points, name):
    """The sum of a metric over its series, at its last export."""
    return sum(point["value"] for point in newest(points) if point["name"] == name)


def attributes(of):
    return {pair["key"]: plain(pair["value"]) for pair in of.get("attributes", ())}


def number(point):
    return int(point["asInt"]) if "asInt" in point else point.get("asDouble")


def plain(value):
    if not value:
        return None
    ((kind, content),) = value.items()
    if kind == "arrayValue":
        return [plain(item) for item in content.get("values", ())]
    return int(content) if kind == "intValue" else content
