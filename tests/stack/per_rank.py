"""What one rank sends in a minute, and what that costs the Collectors of ``otel/collector``.

    python tests/stack/per_rank.py --out tests/stack/results/per_rank.json [--seconds 130] [--spans 60000]

- Ranks: processes with the simulated device, or with CPU tensors in its place where the rate is given, send for some
  minutes to a receiver that counts.  The first minute is one case, since the first hundred syncs of each line have
  spans; the minutes after it are the other.
- Collectors, of a node and its gateway: what the busy rank has sent is sent again, under other ids and ranks, as fast
  as it is taken, with the gateway's decisions so late that it holds everything at the end; then with the gateway gone.
"""

from __future__ import annotations

import argparse
import json
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from levels import Levels
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests import processes
from tests.benchmarks.per_sync import write

TRACES, METRICS = "/v1/traces", "/v1/metrics"
MINUTE_S = 60.0
DECISION_S = 30.0
"""How long the gateway holds a span, by ``config.yaml``."""
BUSY_RATE = 1_000
"""Syncs a second."""
MANY = 256
"""Ranks whose metrics the gateway is given."""


# --- what ranks send --------------------------------------------------------------------------------------------------


class Receiver:
    """Takes OTLP over HTTP, and keeps each request: when it came, at which path, and its body."""

    def __init__(self):
        self.requests = requests = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                requests.append((time.monotonic(), self.path, self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self):
        self._server.shutdown()


def of_default_settings(seconds, folder, environ):
    """The training script of these tests on the simulated device, with no setting of the agent's."""
    script = [sys.executable, str(ROOT / "tests" / "stack" / "train.py"), str(folder)]
    settings = {"SYNCAGENT": "1", "SYNCAGENT_SIMULATE": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(script, env=environ | settings, cwd=folder, stderr=subprocess.DEVNULL) as process:
        time.sleep(seconds)
        (folder / "stop").touch()
        (folder / "leave").touch()
        process.wait(60)


def of_a_busy_rank(seconds, folder, environ):
    """A thousand syncs a second at twenty lines, twenty steps a second."""
    script = ROOT / "tests" / "integration" / "telemetry" / "rank.py"
    command = [sys.executable, str(script), str(BUSY_RATE), str(seconds)]
    subprocess.run(command, env=environ, cwd=folder, stdout=subprocess.DEVNULL, check=True)


def sent_by(job, seconds):
    """Return what the receiver has got of a job, and its figures."""
    receiver = Receiver()
    with tempfile.TemporaryDirectory() as folder:
        environ = processes.environment(
            OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint, NO_PROXY="*", OMP_NUM_THREADS="1",
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", TORCHELASTIC_RUN_ID="job",
        )  # fmt: skip
        job(seconds, Path(folder), environ)
    receiver.stop()
    return receiver.requests, figures(receiver.requests, seconds)


def figures(requests, seconds):
    """Spans of the first minute, of one after it, and at most in the time that the gateway holds them.

    Metrics are those of one export, of which there is one a minute.
    """
    began = min(at for at, _, _ in requests)
    spans = [(at - began, len(body), count_spans(body)) for at, path, body in requests if path == TRACES]
    early = [one for one in spans if one[0] < MINUTE_S]
    late = [one for one in spans if MINUTE_S <= one[0] < seconds - 5]
    minutes = (seconds - 5 - MINUTE_S) / MINUTE_S
    last = max(at for at, path, _ in requests if path == METRICS)
    export = [body for at, path, body in requests if path == METRICS and at > last - 5]
    return {
        "first_minute": {"spans": sum(one[2] for one in early), "bytes": sum(one[1] for one in early)},
        "later_minute": {
            "spans": round(sum(one[2] for one in late) / minutes),
            "bytes": round(sum(one[1] for one in late) / minutes),
        },
        "most_spans_while_undecided": max(
            sum(count for at, _, count in spans if since <= at < since + DECISION_S) for since, _, _ in spans
        ),
        "metrics": {"points": sum(map(count_points, export)), "bytes": sum(map(len, export))},
        "bytes_a_span": round(sum(one[1] for one in spans) / sum(one[2] for one in spans)),
    }


def count_spans(body):
    request = ExportTraceServiceRequest.FromString(body)
    return sum(len(scope.spans) for of_resource in request.resource_spans for scope in of_resource.scope_spans)


def count_points(body):
    request = ExportMetricsServiceRequest.FromString(body)
    return sum(
        len(getattr(metric, metric.WhichOneof("data")).data_points)
        for of_resource in request.resource_metrics
        for scope in of_resource.scope_metrics
        for metric in scope.metrics
    )


# --- what Collectors do with it ---------------------------------------------------------------------------------------


def of_rank(resource, rank):
    """Make a resource that of another process."""
    for pair in resource.attributes:
        if pair.key in {"syncagent.rank", "process.pid"}:
            pair.value.int_value = rank if pair.key == "syncagent.rank" else 1000 + rank
        elif pair.key == "service.instance.id":
            pair.value.string_value = str(rank)


def spans_again(bodies, count):
    """The same spans with other ids, of 64 ranks, again and again until there are so many: bodies, and how many."""
    made = 0
    while made < count:
        for body in bodies:
            request = ExportTraceServiceRequest.FromString(body)
            for of_resource in request.resource_spans:
                of_rank(of_resource.resource, made % 64)
                for scope in of_resource.scope_spans:
                    for span in scope.spans:
                        span.span_id, span.trace_id = secrets.token_bytes(8), span.trace_id[:12] + made.to_bytes(4)
                    made += len(scope.spans)
            yield request.SerializeToString()
            if made >= count:
                return


def post(endpoint, path, body):
    request = urllib.request.Request(endpoint + path, body, {"Content-Type": "application/x-protobuf"})
    urllib.request.urlopen(request, timeout=30).close()


def collectors(requests, count):
    bodies = [body for _, path, body in requests if path == TRACES]
    last = max(at for at, path, _ in requests if path == METRICS)
    export = [body for at, path, body in requests if path == METRICS and at > last - 5]
    with tempfile.TemporaryDirectory() as folder:
        levels = Levels(Path(folder), 1, decides_after_s=600)
        try:
            return {"spans": held(levels, bodies, count), "metrics": served(levels, export), **kept(levels, bodies)}
        finally:
            levels.stop()


def held(levels, bodies, count):
    """Spans go through the node's, and stay in the gateway's memory."""
    ready = list(spans_again(bodies, count))
    sent = sum(map(count_spans, ready))
    before = {level: usage(levels, level) for level in (0, "gateway")}
    began = time.monotonic()
    for body in ready:
        post(levels.endpoint(0), TRACES, body)
    while sum(levels.own("gateway", "receiver_accepted_spans").values()) < sent:
        time.sleep(0.2)
    after = {level: usage(levels, level) for level in (0, "gateway")}
    refused = sum(levels.own("gateway", "receiver_refused_spans").values())
    return {
        "sent": sent,
        "seconds": round(time.monotonic() - began, 1),
        "refused_by_the_gateway": round(refused),
        "cpu_us_a_span": {
            name: round(1e6 * (after[level]["cpu_s"] - before[level]["cpu_s"]) / sent)
            for name, level in (("node", 0), ("gateway", "gateway"))
        },
        "gateway_bytes_a_span": round((after["gateway"]["rss"] - before["gateway"]["rss"]) / sent),
        "gateway_rss_before_mb": round(before["gateway"]["rss"] / 1e6, 1),
        "node_rss_mb": round(after[0]["rss"] / 1e6, 1),
    }


def usage(levels, level):
    return {
        "cpu_s": sum(levels.own(level, "process_cpu_seconds").values()),
        "rss": sum(levels.own(level, "process_memory_rss").values()),
    }


def served(levels, export):
    """Metrics of many ranks, and what the gateway then serves to Prometheus."""
    before = usage(levels, "gateway")["rss"]
    for rank in range(MANY):
        for body in export:
            request = ExportMetricsServiceRequest.FromString(body)
            for of_resource in request.resource_metrics:
                of_rank(of_resource.resource, rank)
            post(levels.endpoint(0), METRICS, request.SerializeToString())
    while len(levels.counted("syncagent_syncs_total", "syncagent_rank")) < MANY:
        time.sleep(0.5)
    began = time.monotonic()
    size, lines = levels.page()
    return {
        "ranks": MANY,
        "lines_a_rank": round(lines / MANY),
        "bytes_a_rank": round(size / MANY),
        "gateway_bytes_a_rank": round((usage(levels, "gateway")["rss"] - before) / MANY),
        "seconds_of_a_scrape": round(time.monotonic() - began, 2),
    }


def kept(levels, bodies):
    """Spans wait on the node's disk while there is no gateway."""
    levels.end("gateway", 15)
    ready = list(spans_again(bodies, 20_000))
    for body in ready:
        post(levels.endpoint(0), TRACES, body)
    sent = sum(map(count_spans, ready))
    return {
        "queue": {
            "spans": sent,
            "bytes_a_span": round(levels.queued(0, "traces") / sent),
            "bytes_of_file_a_span": round(levels.queue_file(0).stat().st_size / sent),
        }
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=130.0, help="of each rank")
    parser.add_argument("--spans", type=int, default=60_000, help="that the gateway is given to hold")
    arguments = parser.parse_args()
    jobs = {"default": of_default_settings, "busy": of_a_busy_rank}
    sent, cases = {}, {}

    def rank(name):
        sent[name], cases[name] = sent_by(jobs[name], arguments.seconds)
        print(json.dumps({name: cases[name]}), flush=True)

    both = [threading.Thread(target=rank, args=(name,)) for name in jobs]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    costs = collectors(sent["busy"], arguments.spans)
    print(json.dumps(costs), flush=True)
    if arguments.out is not None:
        told = {"seconds": arguments.seconds, "busy_rate": BUSY_RATE, "decision_s": DECISION_S, "collectors": costs}
        write(arguments.out, "cpu", {**told, "cases": cases})


if __name__ == "__main__":
    main()
