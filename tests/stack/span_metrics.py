"""A stand-in for the collector's ``span_metrics`` connectors: makes of journals what these document that they make.

Source: https://github.com/open-telemetry/opentelemetry-collector-contrib/tree/main/connector/spanmetricsconnector.  It
goes by the connectors' settings in ``otel/collector/config.yaml``: a series for each set of ``dimensions`` (of the
span, else of the resource; one that is absent is left out) beside ``service.name``, ``calls`` counted, ``duration`` as
a histogram with the span as its exemplar.  It is no collector: every trace counts as kept.
"""

from __future__ import annotations

import json
import re

import yaml
from places import OTEL
from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server

CONFIG = OTEL / "collector" / "config.yaml"
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def spans(journals):
    """Each span of a sync, as filter/syncs leaves them, with its resource's attributes and its own."""
    for journal in journals:
        for line in journal.read_text().splitlines():
            for of_resource in json.loads(line)["resourceSpans"]:
                resource = _attributes(of_resource["resource"])
                for of_scope in of_resource["scopeSpans"]:
                    for span in of_scope["spans"]:
                        own = _attributes(span)
                        if "syncagent.op" in own:
                            yield span, resource, own


class SpanMetrics:
    """Serves the series of both connectors at ``address``; :meth:`take` adds the spans of more journals."""

    def __init__(self, port):
        self._registry = CollectorRegistry()
        self.address = f"127.0.0.1:{port}"
        connectors = yaml.safe_load(CONFIG.read_text())["connectors"]
        counted, kept = connectors["span_metrics/counted"], connectors["span_metrics/kept"]
        self._dimensions = [[one["name"] for one in connector["dimensions"]] for connector in (counted, kept)]
        self.calls = Counter(
            _underscored(f"{counted['namespace']}.calls"), "", self._labels(0), registry=self._registry
        )
        buckets = [_seconds(text) for text in kept["histogram"]["explicit"]["buckets"]]
        self.duration = Histogram(
            _underscored(f"{kept['namespace']}.duration") + "_seconds",
            "", self._labels(1), buckets=buckets, registry=self._registry,
        )  # fmt: skip
        self._server, _ = start_http_server(port, "127.0.0.1", self._registry)

    def take(self, journals):
        taken = 0
        for span, resource, own in spans(journals):
            self.calls.labels(*self._values(0, resource, own)).inc()
            duration_s = (int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"])) / 1e9
            where = {"trace_id": span["traceId"], "span_id": span["spanId"]}
            self.duration.labels(*self._values(1, resource, own)).observe(duration_s, where)
            taken += 1
        return taken

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def _labels(self, n):
        return ["service_name", *map(_underscored, self._dimensions[n])]

    def _values(self, n, resource, own):
        both = resource | own
        return [resource["service.name"], *(both.get(name, "") for name in self._dimensions[n])]


def _attributes(of):
    return {pair["key"]: _text(next(iter(pair["value"].values()))) for pair in of["attributes"]}


def _text(value):
    return str(value).lower() if isinstance(value, bool) else str(value)


def _underscored(name):
    return re.sub(r"\W", "_", name)


def _seconds(text):
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()
    return float(number) * _SECONDS[unit]
