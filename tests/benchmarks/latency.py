"""What a sync adds on the training thread at a given rate, with spans on and the collector up, slow or down.

    python tests/benchmarks/latency.py --out FILE.json [--device cuda|cpu] [--budget 190] [--quick]

Between syncs the training thread runs small torch ops, as training does.  Each lets go of the interpreter and takes it
back, so that work of the agent's own threads may hold it up for as long as ``sys.getswitchinterval()``: that is in the
tail of the syncs' durations, and in those of the ops between them.

Durations are given less the median of the same op without an agent at the same rate; "no agent" is what the machine
does by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from array import array
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

if __package__ in {None, ""}:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

_RATES = (10, 100, 1_000, 10_000)
_MODES = ("no agent", "no spans", "journal", "collector up", "collector slow", "collector down", "no agent, again")
_CELL_S = 5.0
_QUICK_S = 0.5
_SLOW_S = 2.0
_STEP_NS = 50_000_000
_LATE_NS = 1_000_000

_now = time.perf_counter_ns


# --- the collector, in a process of its own ---------------------------------------------------------------------------


class Collector(BaseHTTPRequestHandler):
    """Answers 200, at once or late, and counts spans; a GET says how many."""

    protocol_version = "HTTP/1.1"
    delay_s = 0.0
    spans = 0
    lock = threading.Lock()

    def do_POST(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        body = self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(Collector.delay_s)
        if self.path.endswith("/traces"):
            request = ExportTraceServiceRequest.FromString(body)
            count = sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans)
            with Collector.lock:
                Collector.spans += count
        self.answer(b"", "application/x-protobuf")  # an empty response is one without complaints

    def do_GET(self) -> None:
        self.answer(str(Collector.spans).encode(), "text/plain")

    def answer(self, body: bytes, kind: str) -> None:
        with contextlib.suppress(ConnectionError):  # the other side may have given up
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        pass


def receive(delay_s: float) -> None:
    Collector.delay_s = delay_s
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    print(server.server_port, flush=True)
    server.serve_forever()


@contextlib.contextmanager
def collector(mode: str) -> Iterator[str]:
    """Yield the endpoint of a collector that is up, slow or down."""
    if mode == "collector down":
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            port = closed.getsockname()[1]
        yield f"http://127.0.0.1:{port}"
        return
    delay_s = _SLOW_S if mode == "collector slow" else 0.0
    process = subprocess.Popen([sys.executable, __file__, "--receive", str(delay_s)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


# --- the training thread ----------------------------------------------------------------------------------------------


class Load(NamedTuple):
    """What the training thread did in one cell."""

    syncs: array[int]
    """Duration of each, ns."""
    steps: int
    lasted_s: float
    ops: int
    late_ops: int
    """Ops between syncs that took more than 1 ms."""
    longest_op_ns: int


def train(device: str, rate: int, seconds: float, agent: Any) -> Load:
    """Sync at a rate, in steps of 50 ms, with other ops in between."""
    import torch

    scalar = torch.ones((), device=device)
    x, y, z = torch.ones(64), torch.ones(64), torch.empty(64)
    add = torch.add
    durations = array("q")
    steps = ops = late = longest = 0
    period_ns = round(1e9 / rate)
    began = _now()
    due, ending, step_due = began, began + int(seconds * 1e9), began + _STEP_NS
    now = began
    while now < ending:
        while now < due:
            add(x, y, out=z)
            after = _now()
            took = after - now
            now = after
            ops += 1
            if took > longest:  # noqa: PLR1730 - max() takes as long as the op
                longest = took
            if took > _LATE_NS:
                late += 1
        started = _now()
        scalar.item()
        durations.append(_now() - started)
        due += period_ns
        if due < started - 10 * period_ns:  # it cannot keep up: no burst later
            due = started
        if started > step_due:
            step_due += _STEP_NS
            steps += 1
            if agent is not None:
                agent.steps.mark(None)
        now = _now()
    return Load(durations, steps, (_now() - began) / 1e9, ops, late, longest)


# --- cells ------------------------------------------------------------------------------------------------------------


def run_cell(device: str, mode: str, rate: int, seconds: float, folder: str) -> tuple[Load, dict[str, Any]]:
    """Return what was timed, and whether every sync and span is accounted for."""
    from tests.benchmarks.per_sync import begin

    if mode.startswith("no agent"):
        train(device, rate, 0.1, None)
        return train(device, rate, seconds, None), {}
    if mode == "no spans":
        agent = begin(device)
        warm, load, report = _watched(device, rate, seconds, agent)
        return load, _account(warm, load, report, None, None)
    with contextlib.ExitStack() as stack:
        endpoint = stack.enter_context(collector(mode)) if mode != "journal" else None
        agent, ends = _with_spans(device, endpoint, str(Path(folder, f"{rate}.jsonl")))
        warm, load, report = _watched(device, rate, seconds, agent)
        if ends.metrics is not None:
            ends.metrics.close(5.0)
        ends.outbox.close()
        received = None
        if mode == "collector up":
            with urllib.request.urlopen(str(endpoint)) as answer:
                received = int(answer.read())
        budget = ends.spans.budget
        return load, _account(warm, load, report, ends.outbox.stats(), received, budget)


def _with_spans(device: str, endpoint: str | None, journal: str) -> tuple[Any, Any]:
    from syncagent.runtime.sinks import build
    from syncagent.settings import sources
    from tests.benchmarks.per_sync import begin

    os.environ.pop("OTEL_EXPORTER_OTLP_ENDPOINT", None)
    if endpoint is not None:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
    ends = build(sources.load({"detail": "syncs", "journal": journal}, {}))
    assert ends.outbox is not None, ends.spans_to
    return begin(device, ends.sinks, by_hand=False, journal=journal), ends


def _watched(device: str, rate: int, seconds: float, agent: Any) -> tuple[Load, Load, Any]:
    try:
        warm = train(device, rate, 0.1, agent)
        load = train(device, rate, seconds, agent)
    finally:
        report = agent.stop()
    return warm, load, report


def _account(
    warm: Load, load: Load, report: Any, spans: dict[str, int] | None, received: int | None, budget: Any = None
) -> dict[str, Any]:
    made, steps = len(warm.syncs) + len(load.syncs), warm.steps + load.steps
    row: dict[str, Any] = {
        "syncs": made, "reported": report.totals.syncs, "dropped": report.dropped,
        "exact": made == report.totals.syncs + report.dropped, "notes": list(report.notes),
    }  # fmt: skip
    if spans is not None:
        # Each sync that was reported and each step has a span or was refused one; the step that was running at the end,
        # if it syncs.
        withheld = budget.withheld + budget.withheld_steps
        beyond = sum(spans.values()) + withheld - report.totals.syncs - steps
        row |= {"spans": spans, "withheld": withheld, "spans_exact": beyond in {0, 1}, "spans_beyond": beyond}
    if received is not None:
        row |= {"received": received, "received_exact": spans is not None and received == spans["exported"]}
    return row


def percentile(ordered: Sequence[int], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def figures(load: Load, bare_ns: float) -> dict[str, Any]:
    ordered = sorted(load.syncs)
    row = {
        name: round((percentile(ordered, share) - bare_ns) / 1e3, 1)
        for name, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0))
    }
    return row | {
        "a_second": round(len(ordered) / load.lasted_s, 1), "n": len(ordered), "ops_between": load.ops,
        "ops_over_1ms": load.late_ops, "longest_op_us": round(load.longest_op_ns / 1e3, 1),
    }  # fmt: skip


def measure(device: str, seconds: float, rows: dict[str, dict[str, Any]]) -> bool:
    """Fill in a row for each rate and mode; say whether all counts are exact."""
    print("added to each sync, µs; then the ops between syncs")
    print(
        f"{'a second':>9s} {'':16s} {'p50':>8s} {'p99':>8s} {'p99.9':>8s} {'max':>9s} {'really':>8s} "
        f"{'>1 ms':>6s} longest"
    )
    exact = True
    with tempfile.TemporaryDirectory() as folder:
        for rate in _RATES:
            bare_ns = 0.0
            for mode in _MODES:
                load, account = run_cell(device, mode, rate, seconds, folder)
                if mode == "no agent":
                    bare_ns = statistics.median(load.syncs)
                row = rows[f"{rate} a second, {mode}"] = {"bare_us": bare_ns / 1e3, **figures(load, bare_ns), **account}
                right = all(row.get(key, True) for key in ("exact", "spans_exact", "received_exact"))
                exact = exact and right
                spans = f"  spans {row['spans']}" if "spans" in row else ""
                print(
                    f"{rate:9d} {mode:16s} {row['p50']:8.1f} {row['p99']:8.1f} {row['p99.9']:8.1f} {row['max']:9.1f} "
                    f"{row['a_second']:8.0f} {row['ops_over_1ms']:6d} {row['longest_op_us']:7.0f}{spans}"
                    f"{'' if right else '  COUNTS ARE WRONG: ' + json.dumps(account)}",
                    flush=True,
                )
    return exact


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--budget", type=float, default=190.0, help="seconds in all, about (default 190)")
    parser.add_argument("--quick", action="store_true", help="half a second a cell")
    parser.add_argument("--receive", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.receive is not None:
        receive(options.receive)
        return 0
    if options.out is None:
        parser.error("--out is needed")
    for name in tuple(os.environ):
        if name.startswith(("OTEL_", "SYNCAGENT")):
            del os.environ[name]
    os.environ["NO_PROXY"] = "*"
    import torch

    from tests.benchmarks.per_sync import write

    torch.set_num_threads(1)
    began = time.perf_counter()
    cells = len(_RATES) * len(_MODES)
    closing_s = 5.0 * len(_RATES) + 0.5 * cells  # a slow collector is given 5 s at the end
    seconds = _QUICK_S if options.quick else min(_CELL_S, max((options.budget - closing_s) / cells, _QUICK_S))
    if not options.quick and seconds < _CELL_S:
        print(f"{seconds:.1f} s a cell, not {_CELL_S:g}: that is what {options.budget:g} s allow for")
    rows: dict[str, dict[str, Any]] = {}
    exact = False
    try:
        exact = measure(options.device, seconds, rows)
    finally:
        write(
            options.out,
            options.device,
            {
                "seconds_a_cell": round(seconds, 2), "exact": exact,
                "switch_interval_ms": sys.getswitchinterval() * 1e3, "cpus": os.cpu_count(),
                "took_s": round(time.perf_counter() - began, 1), "cases": rows,
            },
        )  # fmt: skip
    print("all counts are exact" if exact else "COUNTS ARE WRONG")
    return 0


if __name__ == "__main__":
    sys.exit(main())
