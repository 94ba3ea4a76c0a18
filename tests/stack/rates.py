"""What one process gets through the whole pipeline: agent, Collector, the Collector's Prometheus endpoint.

    python tests/stack/rates.py --out tests/stack/results/rates.json [--seconds 20] [--spans 42000]

The Collector has ``otel/collector/config.yaml``.  Each job is a process of its own beside it, and nothing is bound to a
core.

- Syncs: as many as the thread can make, with metrics and with spans, which are rationed.  Seconds are those of the
  loop; what counts is what Prometheus would be served in the end.
- Spans: one for every sync, without rationing.  Seconds are those from the first record to the last answer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from counting import CountingCollector

from tests import processes

STEP_S = 0.05
WAYS = {
    "HTTP": {},
    "HTTP, gzip": {"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"},
    "gRPC": {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
}


# --- the jobs ---------------------------------------------------------------------------------------------------------


def make_syncs(seconds):
    import torch

    from syncagent.runtime.sinks import build
    from syncagent.settings import sources
    from tests.benchmarks.per_sync import begin
    from tests.benchmarks.telemetry import lines

    torch.set_num_threads(1)
    ends = build(sources.load({"detail": "syncs", "summary": False}, {}))
    agent = begin("cpu", ends.sinks)
    reads, tensor, made = lines(), torch.ones(()), 0
    began = time.perf_counter()
    step_due = began + STEP_S
    while (now := time.perf_counter()) < began + seconds:
        for read in reads:
            read(tensor)
        made += len(reads)
        if now > step_due:
            step_due += STEP_S
            agent.steps.mark(None)
    lasted_s = time.perf_counter() - began
    agent.events()  # delivers, for as long as it takes
    report = agent.stop()
    ends.close()
    return {
        "made": made,
        "seconds": round(lasted_s, 2),
        "reported": report.totals.syncs,
        "dropped": report.dropped,
        "spans": ends.outbox.stats(),
        "with_span": report.totals.syncs - sum(ends.spans.without_span().values()),
        "cpu_s": round(time.process_time(), 1),
    }


def make_spans(count):
    from syncagent.telemetry.provider import build_resource, build_spans
    from syncagent.telemetry.span_budget import SpanBudget
    from syncagent.telemetry.spans import SpanSink
    from syncagent.telemetry.step_ids import process_identity
    from tests.benchmarks.telemetry import deliver

    (provider, outbox), _ = build_spans(build_resource({}), None)
    sink = SpanSink(provider, identity=process_identity, budget=SpanBudget(first=10**9))
    began, began_cpu = time.perf_counter(), time.process_time()
    made = deliver(sink, outbox, count)
    told = {
        "made": made,
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_s": round(time.process_time() - began_cpu, 2),
        "spans": outbox.stats(),
    }
    outbox.close()
    return told


# --- beside the Collector ---------------------------------------------------------------------------------------------


def run(job, amount, pipeline, **variables):
    environ = processes.environment(
        OTEL_EXPORTER_OTLP_ENDPOINT=pipeline.grpc if "OTEL_EXPORTER_OTLP_PROTOCOL" in variables else pipeline.endpoint,
        OTEL_METRIC_EXPORT_INTERVAL="5000",
        OTEL_BSP_SCHEDULE_DELAY="10" if job == "spans" else "",
        NO_PROXY="*",
        RANK="0",
        WORLD_SIZE="1",
        OMP_NUM_THREADS="1",
        **variables,
    )
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, __file__, "--job", job, "--amount", str(amount)],
            env=environ, cwd=folder, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
    return json.loads(done.stdout)


def syncs(seconds, folder):
    with CountingCollector(folder) as pipeline:
        told = run("syncs", seconds, pipeline)
        counted = settled(lambda: sum(pipeline.counted("syncagent_syncs_total").values()), told["reported"])
        calls = settled(lambda: sum(pipeline.counted("syncagent_spans_calls_total").values()), told["with_span"])
        figures = pipeline.figures()
    return {
        **told,
        "counted_at_prometheus": round(counted),
        "syncs_a_second": round(counted / told["seconds"]),
        "spans_counted_at_prometheus": round(calls),
        "collector": figures,
    }


def spans(way, count, folder):
    with CountingCollector(folder) as pipeline:
        told = run("spans", count, pipeline, **WAYS[way])
        calls = settled(lambda: sum(pipeline.counted("syncagent_spans_calls_total").values()), told["made"] // 21 * 20)
        figures = pipeline.figures()
    return {
        **told,
        "spans_a_second": round(figures["accepted spans"] / told["seconds"]),
        "spans_a_second_of_the_jobs_cpu": round(figures["accepted spans"] / told["cpu_s"]),
        "of_syncs_counted_at_prometheus": round(calls),
        "collector": figures,
    }


def settled(ask, wanted):
    until = time.monotonic() + 30
    while (value := ask()) < wanted and time.monotonic() < until:
        time.sleep(0.5)
    return value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0, help="for which syncs are made")
    parser.add_argument("--spans", type=int, default=42_000)
    parser.add_argument("--job", choices=("syncs", "spans"), help=argparse.SUPPRESS)
    parser.add_argument("--amount", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        told = make_syncs(arguments.amount) if arguments.job == "syncs" else make_spans(int(arguments.amount))
        print(json.dumps(told))
        return
    cases, load = {}, os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        cases["syncs"] = syncs(arguments.seconds, Path(folder, "syncs"))
        for way in WAYS:
            cases[f"spans, {way}"] = spans(way, arguments.spans, Path(folder, way))
    for name, row in cases.items():
        print(name, json.dumps(row))
    if arguments.out is not None:
        from tests.benchmarks.per_sync import write

        write(arguments.out, "cpu", {"cpus": len(os.sched_getaffinity(0)), "load_before": load, "cases": cases})


if __name__ == "__main__":
    main()
