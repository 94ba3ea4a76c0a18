"""``make telemetry-demo``: the masked loss as two ranks, its traces in Phoenix and its metrics in Prometheus.

Both are started here, on loopback, with stores that are deleted at the end, and no collector between.  It goes on until
Ctrl-C, or for ``DEMO_SECONDS`` once both have data.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "otel" / "local"))

from services import NotHereError, free_ports, phoenix, prometheus

if TYPE_CHECKING:
    from services import Service

RANKS = 2
PROJECT = "masked_loss"
GRAPHS = {
    "share of step time stalled": "syncagent:stall_share:ratio_rate5m",
    "syncs a second, by line": "sum by (code_line_number, syncagent_op) (rate(syncagent_syncs_total[1m]))",
    "longest stalls (99 %), by line": (
        "histogram_quantile(0.99, sum by (le, code_line_number) (rate(syncagent_stall_duration_seconds_bucket[1m])))"
    ),
}


def main() -> int:
    seconds = float(os.environ.get("DEMO_SECONDS") or "inf")
    with ExitStack() as at_end:
        folder = Path(at_end.enter_context(tempfile.TemporaryDirectory(prefix="syncagent-demo-")))
        scrape_port = free_ports(RANKS, 9464)
        traces, metrics = started(at_end, folder, [f"127.0.0.1:{scrape_port + rank}" for rank in range(RANKS)])
        if traces is None and metrics is None:
            return 1
        simulate = not torch.cuda.is_available()
        if simulate:
            print("No GPU here: the simulated CUDA device stands in; its waits are real, its times are this CPU's.")
        ranks = [train(at_end, rank, folder, traces, scrape_port, simulate=simulate) for rank in range(RANKS)]
        if not has_data(traces, metrics, ranks):
            return 1
        tell(traces, metrics)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if any(rank.poll() is not None for rank in ranks):
                print("a rank has ended early", file=sys.stderr)
                return 1
            time.sleep(0.2)
    return 0


def started(at_end: ExitStack, folder: Path, targets: list[str]) -> tuple[Service | None, Service | None]:
    """Phoenix and Prometheus, at their usual ports where these are free."""
    traces = metrics = None
    try:
        traces = at_end.enter_context(phoenix(folder / "phoenix", http=6006, grpc=4317))
    except NotHereError as why:
        print(f"No traces: {why}", file=sys.stderr)
    try:
        rules = ROOT / "otel" / "prometheus" / "rules.yaml"
        metrics = at_end.enter_context(
            prometheus(folder / "prometheus", {"syncagent": targets}, http=9090, interval_s=2, rules=rules)
        )
    except NotHereError as why:
        print(f"No metrics: {why}", file=sys.stderr)
    return traces, metrics


def train(
    at_end: ExitStack, rank: int, folder: Path, traces: Service | None, scrape_port: int, *, simulate: bool
) -> subprocess.Popen[bytes]:
    """One rank of the job; all that is about the agent is in its environment."""
    own = {
        "SYNCAGENT": "1",
        "SYNCAGENT_DETAIL": "syncs",
        "SYNCAGENT_COPIES": "all",
        "SYNCAGENT_SUMMARY": "off",
        "OTEL_SERVICE_NAME": "masked_loss",
        "OTEL_RESOURCE_ATTRIBUTES": f"openinference.project.name={PROJECT}",  # Phoenix's name for where traces go
        "OTEL_METRICS_EXPORTER": "prometheus",
        "OTEL_EXPORTER_PROMETHEUS_PORT": str(scrape_port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(RANKS),
        "OMP_NUM_THREADS": "1",
    }
    if traces is None:
        own["OTEL_TRACES_EXPORTER"] = "none"
    else:
        own["OTEL_EXPORTER_OTLP_ENDPOINT"] = traces.url
    if simulate:
        own["SYNCAGENT_SIMULATE"] = "1"
    size = ["--batch", "1", "--size", "96"] if simulate else ["--batch", "8"]
    script = ROOT / "examples" / "masked_loss" / "train.py"
    log = at_end.enter_context((folder / f"rank{rank}.log").open("wb"))
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "SYNCAGENT"))}
    process = subprocess.Popen(
        [sys.executable, str(script), "--device", "cuda", "--steps", "1000000", *size],
        env=environ | own, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    at_end.callback(end, process)
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def has_data(
    traces: Service | None, metrics: Service | None, ranks: list[subprocess.Popen[bytes]], timeout_s: float = 180
) -> bool:
    """Whether each rank's spans are in Phoenix and its series in Prometheus, in time."""
    print(f"training as {RANKS} ranks; waiting for their data ...", flush=True)
    lacking = "Phoenix" * (traces is not None), "Prometheus" * (metrics is not None)
    until = time.monotonic() + timeout_s
    while any(lacking) and time.monotonic() < until:
        if any(rank.poll() is not None for rank in ranks):
            print("a rank has ended early", file=sys.stderr)
            return False
        time.sleep(1)
        if lacking[0] and span_ranks(traces) >= set(range(RANKS)):
            lacking = "", lacking[1]
        if lacking[1] and len(ask(metrics, "syncagent:stall_share:ratio_rate5m")) >= RANKS:
            lacking = lacking[0], ""
    if any(lacking):
        print(f"nothing arrived in {timeout_s:.0f} s: {' and '.join(filter(None, lacking))}", file=sys.stderr)
    return not any(lacking)


def span_ranks(traces: Service) -> set[int]:
    try:
        spans = traces.get(f"/v1/projects/{PROJECT}/spans?limit=200")
    except OSError:  # there is no such project before its first span
        return set()
    return {span["attributes"].get("syncagent.rank") for span in spans["data"]}


def ask(metrics: Service, query: str) -> list[object]:
    return metrics.get("/api/v1/query?" + urlencode({"query": query}))["data"]["result"]


def tell(traces: Service | None, metrics: Service | None) -> None:
    if traces is not None:
        projects = traces.get("/v1/projects")["data"]
        number = next(project["id"] for project in projects if project["name"] == PROJECT)
        print(f"\nPhoenix     {traces.url}/projects/{quote(number)}/traces")
        print("            one trace a training step: open a train.step; its children are the syncs, with op, line and")
        print("            stall_ms among their attributes. The toggle `Spans` lists all, to be sorted by latency")
    if metrics is not None:
        print(f"\nPrometheus  {metrics.url}")
        for what, query in GRAPHS.items():
            graph = {"g0.expr": query, "g0.tab": "0", "g0.range_input": "10m"}
            print(f"            {what}:\n            {metrics.url}/graph?{urlencode(graph)}")
        print(f"            alerts of otel/prometheus/rules.yaml: {metrics.url}/alerts")
    print("\nCtrl-C ends it all.", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nstopped")
