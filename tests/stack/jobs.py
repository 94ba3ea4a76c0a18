"""Jobs under torchrun, the pipeline that they send to, and what Prometheus and OTLP files say of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.parse
from contextlib import contextmanager

from places import OTEL

import keeping  # isort: skip - places has made services importable
import services  # isort: skip

LONG_STALL_MS = 50
"""The default of ``otel/collector/config.yaml``."""


@contextmanager
def torchrun(script, folder, environ, *arguments):
    """Two ranks, whose output is in ``folder/log``; they are killed if they outlive the block.

    The script's arguments are ``arguments``, else the folder.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, str(script), *(arguments or (str(folder),))],
            env=environ, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()  # torchrun kills its ranks, which have sessions of their own
            try:
                process.wait(45)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


class Pipeline:
    """The Collector with ``otel/collector/config.yaml``, Prometheus with its rules, and Jaeger where it is built.

    Changed are only addresses, how long things take, and that of the traces without anything special none is kept;
    Tempo's spans go to a file, ``kept``, and all spans that arrive to another, ``arrived``.
    """

    def __init__(self, start, folder):
        self.arrived, self.kept = folder / "arrived.jsonl", folder / "kept.jsonl"
        self.jaeger = start(services.jaeger, folder / "jaeger") if services.has("jaeger") else None
        self.ports = services.Ports()
        traces = ["file/kept", "forward/kept", *(["otlp_grpc/jaeger"] if self.jaeger else [])]
        overrides = {
            "processors": {"tail_sampling": {"decision_wait": "8s"}, "batch": {"timeout": "200ms"}},
            "connectors": {f"span_metrics/{one}": {"metrics_flush_interval": "1s"} for one in ("counted", "kept")},
            "exporters": {f"file/{path.stem}": {"path": str(path)} for path in (self.arrived, self.kept)},
            "service": {
                "pipelines": {
                    "traces/arrived": {"receivers": ["otlp"], "exporters": ["file/arrived"]},
                    "traces/kept": {"exporters": traces},
                }
            },
        }
        environ = {"TRACE_PERCENT": "0", **({"JAEGER_ENDPOINT": self.jaeger.grpc} if self.jaeger else {})}
        config = OTEL / "collector" / "config.yaml"
        self.collector = start(services.collector, folder / "collector", config, self.ports, environ, overrides)
        targets = {"syncagent": [f"127.0.0.1:{self.ports.metrics}"], "collector": [f"127.0.0.1:{self.ports.own}"]}
        rules = OTEL / "prometheus" / "rules.yaml"
        self.prometheus = Store(start(services.prometheus, folder / "prometheus", targets, rules=rules))

    def variables(self, service):
        """What a job sets to send here."""
        return {
            "OTEL_SERVICE_NAME": service,
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.collector.otlp,
            "OTEL_METRIC_EXPORT_INTERVAL": "1000",
            "OTEL_BSP_SCHEDULE_DELAY": "500",
        }

    def wanted(self, service):
        """The spans that sampling should keep of what arrived: whole traces with a violation or a long stall."""
        arrived = spans_of(self.arrived, service)
        traces = {span["trace"] for span in arrived.values() if _is_wanted(span["attributes"])}
        return {number: span for number, span in arrived.items() if span["trace"] in traces}


def _is_wanted(attributes):
    return attributes.get("syncagent.violation") or attributes.get("syncagent.stall_ms", 0) >= LONG_STALL_MS


SERIES = {
    *(f"syncagent_stall_duration_seconds_{part}" for part in ("bucket", "count", "sum")),
    *(f"syncagent_step_duration_seconds_{part}" for part in ("bucket", "count", "sum")),
    "syncagent_syncs_total",
    "syncagent_step_stall_ratio",
    "syncagent_events_dropped_total",
    "syncagent_series_folded_total",
    "syncagent_spans_dropped_total",
    "syncagent_spans_withheld_total",
    "syncagent_attributes_cut_total",
}
"""The agent's, in Prometheus; ``FROM_SPANS`` are made by the Collector of the spans that it gets."""

FROM_SPANS = {
    "syncagent_spans_calls_total",
    "syncagent_kept_calls_total",
    *(f"syncagent_kept_duration_seconds_{part}" for part in ("bucket", "count", "sum")),
}


class Store:
    """What a Prometheus answers."""

    def __init__(self, service):
        self.service = service

    def ask(self, query, at=None):
        return self.get("query", query=query, **({} if at is None else {"time": at}))

    def ask_range(self, query, start, end):
        return self.get("query_range", query=query, start=start, end=end, step=1)

    def exemplars(self, query, start, end):
        return self.get("query_exemplars", query=query, start=start, end=end)

    def labels(self, series, label):
        return self.get(f"label/{label}/values", **{"match[]": series})

    def series(self, service):
        """The names of the agent's series."""
        found = self.labels(f'{{service_name="{service}"}}', "__name__")
        return {name for name in found if name.startswith("syncagent_")}

    def by_rank_and_line(self, metric, service="toy"):
        """Newest values of the job's series, by rank and line, summed over ops."""
        answer = self.ask(f'sum by (syncagent_rank, code_line_number) ({metric}{{service_name="{service}"}})')
        return {
            (one["metric"]["syncagent_rank"], one["metric"].get("code_line_number")): float(one["value"][1])
            for one in answer
        }

    def get(self, what, **arguments):
        """The result of a path of its API."""
        answer = self.service.get(f"/api/v1/{what}?" + urllib.parse.urlencode(arguments))
        assert answer["status"] == "success"
        data = answer["data"]
        return data["result"] if isinstance(data, dict) else data


def check_counts(store, syncs, steps_of_ranks, line_of):
    """Each line's count is that of its steps, by the counter (``syncs``) and by the histogram."""
    assert syncs == store.by_rank_and_line("syncagent_stall_duration_seconds_count")
    for rank, steps in enumerate(steps_of_ranks):
        assert syncs[str(rank), line_of("MASK")] == steps
        assert syncs[str(rank), line_of("BACKWARD")] == steps
        assert syncs[str(rank), line_of("LOGGED")] == 3 * steps
        assert syncs.get((str(rank), line_of("SECOND RANK ONLY")), 0) == rank * steps
        assert store.by_rank_and_line("syncagent_step_duration_seconds_count")[str(rank), None] == steps - 1
    assert store.by_rank_and_line("syncagent_events_dropped_total") == {("0", None): 0, ("1", None): 0}


def spans_in(otlp):
    """Each span of an OTLP message in JSON, flat: resource, attributes and links are dictionaries."""
    for of_resource in otlp["resourceSpans"]:
        resource = keeping.attributes(of_resource["resource"])
        for of_scope in of_resource["scopeSpans"]:
            for span in of_scope["spans"]:
                yield {
                    "id": span["spanId"],
                    "trace": span["traceId"],
                    "parent": span.get("parentSpanId") or None,
                    "name": span["name"],
                    "kind": span["kind"],
                    "start_ns": int(span["startTimeUnixNano"]),
                    "end_ns": int(span["endTimeUnixNano"]),
                    "attributes": keeping.attributes(span),
                    "resource": resource,
                    "scope": of_scope["scope"],
                }


def spans_of(file, service):
    """Those of one service in a file of the Collector's file exporter, or in a journal, by their id."""
    found = [span for request in keeping.whole_lines(file) for span in spans_in(request)]
    return {span["id"]: span for span in found if span["resource"]["service.name"] == service}
