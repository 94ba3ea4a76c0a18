"""What telemetry carries: events and spans a second per core, bytes on the wire, and what is lost on the way.

    python tests/benchmarks/telemetry.py --out FILE.json [--seconds 60] [--quick]

The process is kept on one core, and the collector, a process of its own that decodes all that it takes, on another.
CPU tensors stand for CUDA's: none of this depends on a GPU.

- Throughput: syncs are made and left in the buffer; then the draining is timed alone, by the CPU time of its thread
  (events) or of the whole process (spans: building, encoding and sending are two threads).
- On the wire: a job syncs at a rate for some seconds, with spans and metrics on.  Bytes are those of request bodies.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from syncagent.telemetry.outbox import Outbox
    from syncagent.telemetry.spans import SpanSink

if __package__ in {None, ""}:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.latency import Collector as Answering

_RATES = (10, 100, 1_000, 10_000)
_FILL = 8_000
"""Syncs that are left in the buffer and drained in one go; it takes 16,384."""
_ROUNDS = 5
_LINES = 20
_STEP_S = 0.05


# --- the collector ----------------------------------------------------------------------------------------------------


class Collector(Answering):
    """Counts bytes, spans and, by series, syncs; a GET says how many."""

    bytes: Counter[str] = Counter()
    requests: Counter[str] = Counter()
    spans = 0
    syncs: dict[str, int] = {}
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        plain = gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body
        with Collector.lock:
            Collector.bytes[self.path] += len(body)
            Collector.requests[self.path] += 1
            (self.take_spans if self.path.endswith("/traces") else self.take_metrics)(plain)
        self.answer(b"", "application/x-protobuf")

    def take_spans(self, body: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        request = ExportTraceServiceRequest.FromString(body)
        Collector.spans += sum(
            len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans
        )

    def take_metrics(self, body: bytes) -> None:
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                if metric.name == "syncagent.syncs":
                    Collector.syncs.update({str(point.attributes): point.as_int for point in metric.sum.data_points})

    def do_GET(self) -> None:
        told = {
            "bytes": Collector.bytes,
            "requests": Collector.requests,
            "spans": Collector.spans,
            "syncs": sum(Collector.syncs.values()),
        }
        self.answer(json.dumps(told).encode(), "application/json")


def receive() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    print(server.server_port, flush=True)
    server.serve_forever()


@contextlib.contextmanager
def collector(core: int, **variables: str) -> Iterator[Callable[[], dict[str, Any]]]:
    """Start one, have the environment name it, and yield what says what it took."""
    process = subprocess.Popen([sys.executable, __file__, "--receive"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    os.sched_setaffinity(process.pid, {core})
    endpoint = f"http://127.0.0.1:{int(process.stdout.readline())}"
    own = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "NO_PROXY": "*"}
    before = dict(os.environ)
    os.environ.update(own | variables)

    def told() -> dict[str, Any]:
        with urllib.request.urlopen(endpoint) as answer:
            result: dict[str, Any] = json.load(answer)
            return result

    try:
        yield told
    finally:
        os.environ.clear()
        os.environ.update(before)
        process.kill()
        process.communicate()


# --- throughput -------------------------------------------------------------------------------------------------------


def lines() -> list[Callable[[Any], object]]:
    """Functions that sync, each at a line of its own."""
    space: dict[str, Any] = {}
    source = "".join(f"def read_{n}(t): return t.item()\n" for n in range(_LINES))
    exec(compile(source, "/app/lines.py", "exec"), space)
    return [space[f"read_{n}"] for n in range(_LINES)]


def drained(sinks: tuple[Any, ...], per_step: int) -> dict[str, Any]:
    """Return how many events a second of its own CPU time the draining thread takes, and the counts."""
    import torch

    from tests.benchmarks.per_sync import begin

    agent = begin("cpu", sinks, by_hand=True)
    reads, tensor, rates, made = lines(), torch.ones(()), [], 0
    for _ in range(_ROUNDS):
        for n in range(_FILL):
            reads[n % _LINES](tensor)
            if not n % per_step:
                agent.steps.mark(None)
        began = time.thread_time()
        agent._pipeline.drain()
        rates.append(_FILL / (time.thread_time() - began))
        made += _FILL
    report = agent.stop()
    return {
        "events_a_second": round(statistics.median(rates)),
        "us_an_event": round(1e6 / statistics.median(rates), 1),
        "made": made,
        "counted": report.totals.syncs,
    }


def throughput(cores: tuple[int, int]) -> Iterator[dict[str, Any]]:
    from syncagent.runtime.sinks import build
    from syncagent.settings import sources
    from syncagent.telemetry.metrics import MetricSink

    per_step = int(1_000 * _STEP_S)
    yield {"case": "summary alone"} | drained((), per_step)
    yield {"case": "and metrics"} | drained((MetricSink(),), per_step)
    with collector(cores[1]):
        ends = build(sources.load({"detail": "syncs"}, {}))
        yield {"case": "and spans, rationed"} | drained(ends.sinks, per_step)
        ends.close()
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    sink = MetricSink(MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False))
    yield {"case": "summary, and the SDK's own histogram"} | drained((sink,), per_step)


def deliver(sink: SpanSink, outbox: Outbox, count: int) -> int:
    """Hand over steps of twenty syncs, about that many spans in all; return how many, once all are sent."""
    from syncagent.events import CallSite, Phase, StepRecord, SyncEvent, SyncKind

    site = CallSite("/app/train/loss.py", 120, "MaskedLoss.forward", "target = torch.nonzero(labels > 0)")
    at = time.time_ns()
    for step in range(count // 21):
        events = [
            SyncEvent(
                "aten::nonzero", "torch.nonzero", SyncKind.DYNAMIC_SHAPE, at + n * 2_000_000, 1_500_000, site,
                Phase.FORWARD, step, 0, "cuda:0", 0, "MainThread", "kernels", ((64, 3, 32, 32),),
            )
            for n in range(20)
        ]  # fmt: skip
        sink.events(events)
        sink.step(StepRecord(step, at, at + 50_000_000, 0))
        at += 50_000_000
        while not step % 20 and sum(outbox.stats().values()) < step * 21:  # or the queue runs over
            time.sleep(0.005)
    sink.close()
    while sum(outbox.stats().values()) < count // 21 * 21:
        time.sleep(0.005)
    return count // 21 * 21


def spans(cores: tuple[int, int], count: int) -> Iterator[dict[str, Any]]:
    """Spans of every sync, from records to the collector or the journal: without a span budget."""
    from syncagent.telemetry.provider import build_resource, build_spans
    from syncagent.telemetry.span_budget import SpanBudget
    from syncagent.telemetry.spans import SpanSink
    from syncagent.telemetry.step_ids import process_identity

    def run(journal: Path | None) -> dict[str, Any]:
        built, _ = build_spans(build_resource({}), journal)
        assert built is not None
        provider, outbox = built
        sink = SpanSink(provider, identity=process_identity, budget=SpanBudget(first=10**9))
        began_s = time.process_time()
        made = deliver(sink, outbox, count)
        took_s = time.process_time() - began_s
        stats = outbox.stats()
        outbox.close()
        return {
            "spans_a_second": round(made / took_s),
            "us_a_span": round(1e6 * took_s / made),
            "made": made,
            "sent": stats["exported"],
        }

    os.environ["OTEL_BSP_SCHEDULE_DELAY"] = "10"
    for compression in ("none", "gzip"):
        with collector(cores[1], OTEL_EXPORTER_OTLP_COMPRESSION=compression) as told:
            row = {"case": f"OTLP, compression {compression}"} | run(None)
            taken = told()
            yield row | {"arrived": taken["spans"], "bytes_a_span": round(taken["bytes"]["/v1/traces"] / row["made"])}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "journal.jsonl")
        row = {"case": "journal"} | run(file)
        del os.environ["OTEL_BSP_SCHEDULE_DELAY"]
        yield row | {"arrived": row["sent"], "bytes_a_span": round(file.stat().st_size / row["made"])}


# --- on the wire ------------------------------------------------------------------------------------------------------


def job(cores: tuple[int, int], rate: int, seconds: float) -> dict[str, Any]:
    """A job at a rate: bytes an event, spans a second, and whether every sync is counted at the collector."""
    import torch

    from syncagent.runtime.sinks import build
    from syncagent.settings import sources
    from tests.benchmarks.per_sync import begin

    with collector(cores[1]) as told:
        ends = build(sources.load({"detail": "syncs"}, {}))
        agent = begin("cpu", ends.sinks)
        reads, tensor, made = lines(), torch.ones(()), 0
        began = time.perf_counter()
        step_due = began + _STEP_S
        while (now := time.perf_counter()) < began + seconds:
            if made >= (now - began) * rate:
                time.sleep(min(1 / rate, 0.01))
                continue
            reads[made % _LINES](tensor)
            made += 1
            if now > step_due:
                step_due += _STEP_S
                agent.steps.mark(None)
        lasted_s = time.perf_counter() - began
        report = agent.stop()
        ends.close()
        taken = told()
    bytes_ = taken["bytes"]
    return {
        "rate": rate,
        "made": made,
        "made_a_second": round(made / lasted_s),
        "reported": report.totals.syncs,
        "counted_at_the_collector": taken["syncs"],
        "dropped": report.dropped,
        "spans_sent": ends.outbox.stats()["exported"] if ends.outbox is not None else 0,
        "spans_arrived": taken["spans"],
        "spans_a_second": round(taken["spans"] / lasted_s, 1),
        "bytes_of_spans": bytes_.get("/v1/traces", 0),
        "bytes_of_metrics": bytes_.get("/v1/metrics", 0),
        "metric_requests": taken["requests"].get("/v1/metrics", 0),
        "bytes_an_event": round(sum(bytes_.values()) / made, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the job at each rate")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--receive", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.receive:
        receive()
        return 0
    for name in [name for name in os.environ if name.startswith(("OTEL_", "SYNCAGENT"))]:
        del os.environ[name]
    available = sorted(os.sched_getaffinity(0))
    cores = available[0], available[-1]
    os.sched_setaffinity(0, {cores[0]})

    import torch

    torch.set_num_threads(1)
    seconds = 2.0 if arguments.quick else arguments.seconds
    cases: dict[str, dict[str, Any]] = {}

    def add(part: str, name: object, row: dict[str, Any]) -> None:
        cases[f"{part}, {name}"] = {"part": part, **row}
        print(json.dumps(cases[f"{part}, {name}"]), flush=True)

    for row in throughput(cores):
        add("events", row["case"], row)
    for row in spans(cores, 2_100 if arguments.quick else 21_000):
        add("spans", row["case"], row)
    for rate in _RATES:
        add("jobs", rate, job(cores, rate, seconds))
    if arguments.out is not None:
        from tests.benchmarks.per_sync import write

        write(arguments.out, "cpu", {"seconds_a_job": seconds, "cases": cases})
    return 0


if __name__ == "__main__":
    sys.exit(main())
