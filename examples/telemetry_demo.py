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
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode
from urllib.request import urlopen

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "otel" / "local"))

from services import NotHereError, free_ports, phoenix, prometheus

if TYPE_CHECKING:
    from services import Service

RANKS = 2
PROJECT = "masked_loss"
LOG = "job.log"
GRAPHS = {
    "share of step time stalled": "syncagent:stall_share:ratio_rate5m",
    "seconds waited a second, by line": (
        'sum by (code_line_number, syncagent_op) (rate(syncagent_stall_duration_seconds_sum{syncagent_rank="0"}[1m]))'
    ),
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
        job = train(at_end, folder, traces, scrape_port, simulate=simulate)
        if not has_data(traces, metrics, job, folder):
            return 1
        tell(traces, metrics)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if job.poll() is not None:
                return ended_early(job, folder)
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
    at_end: ExitStack, folder: Path, traces: Service | None, scrape_port: int, *, simulate: bool
) -> subprocess.Popen[bytes]:
    """The job; all that is about the agent is in its environment."""
    own = {
        "SYNCAGENT": "1",
        "SYNCAGENT_DETAIL": "syncs",
        "SYNCAGENT_COPIES": "all",
        "SYNCAGENT_SUMMARY": "off",
        "OTEL_SERVICE_NAME": "masked_loss",
        "OTEL_RESOURCE_ATTRIBUTES": f"openinference.project.name={PROJECT}",  # Phoenix's name for where traces go
        "OTEL_METRICS_EXPORTER": "prometheus",
        "OTEL_EXPORTER_PROMETHEUS_PORT": str(scrape_port),
        "OMP_NUM_THREADS": "1",
    }
    if traces is None:
        own["OTEL_TRACES_EXPORTER"] = "none"
    else:
        own["OTEL_EXPORTER_OTLP_ENDPOINT"] = traces.url
    if simulate:
        own["SYNCAGENT_SIMULATE"] = "1"
    size = ["--batch", "1", "--size", "96"] if simulate else ["--batch", "8"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    script = ROOT / "examples" / "masked_loss" / "ranks.py"
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "SYNCAGENT"))}
    log = at_end.enter_context((folder / LOG).open("wb"))
    process = subprocess.Popen(
        [*torchrun, str(script), "--device", "cuda", "--steps", "1000000", *size],
        env=environ | own, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    at_end.callback(end, process)
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """torchrun passes the signal on to its ranks, whose agents send what is left."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ended_early(job: subprocess.Popen[bytes], folder: Path) -> int:
    said = (folder / LOG).read_text("utf-8", "replace")
    print(f"the job has ended early, with exit code {job.returncode}:\n{said[-3000:]}", file=sys.stderr)
    return 1


def has_data(
    traces: Service | None, metrics: Service | None, job: subprocess.Popen[bytes], folder: Path, timeout_s: float = 180
) -> bool:
    """Whether each rank's spans are in Phoenix and its series in Prometheus, in time."""
    print(f"training as {RANKS} ranks; waiting for their data ...", flush=True)
    lacking = "Phoenix" * (traces is not None), "Prometheus" * (metrics is not None)
    until = time.monotonic() + timeout_s
    while any(lacking) and time.monotonic() < until:
        if job.poll() is not None:
            ended_early(job, folder)
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


def fullest(traces: Service) -> str:
    """The trace with most spans, of the newest thousand; the first step holds the copies of the weights."""
    spans = traces.get(f"/v1/projects/{PROJECT}/spans?limit=1000")["data"]
    later = [span["context"]["trace_id"] for span in spans if span["attributes"].get("syncagent.step")]
    ((trace_id, _),) = Counter(later).most_common(1)
    return trace_id


def alerts(metrics: Service) -> str:
    """Where the alerts are shown: Debian's package has the older pages only."""
    try:
        with urlopen(metrics.url + "/alerts", timeout=10):
            return "/alerts"
    except OSError:
        return "/classic/alerts"


def ask(metrics: Service, query: str) -> list[object]:
    return metrics.get("/api/v1/query?" + urlencode({"query": query}))["data"]["result"]


def tell(traces: Service | None, metrics: Service | None) -> None:
    if traces is not None:
        projects = traces.get("/v1/projects")["data"]
        number = next(project["id"] for project in projects if project["name"] == PROJECT)
        print(f"\nPhoenix     {traces.url}/projects/{quote(number)}/traces")
        print("            one trace per training step; its syncs have op, line and stall_ms as attributes. A step")
        print("            of the first hundred, all of whose syncs have spans (later on tens a second have):")
        print(f"            {traces.url}/projects/{quote(number)}/traces/{fullest(traces)}")
    if metrics is not None:
        print(f"\nPrometheus  {metrics.url}")
        for what, query in GRAPHS.items():
            graph = {"g0.expr": query, "g0.tab": "0", "g0.range_input": "10m"}
            print(f"            {what}:\n            {metrics.url}/graph?{urlencode(graph)}")
        print(f"            alerts of otel/prometheus/rules.yaml:\n            {metrics.url}{alerts(metrics)}")
    print("\nCtrl-C ends it all.", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nstopped")
