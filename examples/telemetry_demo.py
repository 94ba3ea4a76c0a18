"""``make telemetry-demo``: the masked loss as two ranks, whose spans and metrics go through a Collector into stores.

Collector, Jaeger, Phoenix and Prometheus are started here, on loopback, and forget everything at the end. What is not
installed is left out; without the Collector the ranks send to Phoenix and are scraped by Prometheus. It goes on until
Ctrl-C, or for ``DEMO_SECONDS`` once each has the data of both ranks.
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

import services
from services import NotHereError

if TYPE_CHECKING:
    from collections.abc import Callable

    from services import Service

RANKS = 2
SCRAPED_S = 2
"""How often Prometheus asks for metrics."""
JOB = "masked_loss"
"""Its service's name, and that of its project in Phoenix."""
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


class Stack:
    """What has been started; ``None`` for what is not installed, and for stores of traces if they are not wanted."""

    def __init__(self, at_end: ExitStack, folder: Path, *, traces: bool = True) -> None:
        self._at_end = at_end
        self.scrape_port = services.free_ports(RANKS, 9464)
        ports = services.Ports(grpc=4317, http=4318, metrics=8889)
        self.jaeger = self.phoenix = None
        if traces:
            self.jaeger = self._start("Jaeger", lambda: services.jaeger(folder / "jaeger", http=16686))
            self.phoenix = self._start("Phoenix", lambda: services.phoenix(folder / "phoenix", http=6006))
        self.collector = self._start("Collector", lambda: self._collector(folder / "collector", ports))
        ranks = [f"127.0.0.1:{self.scrape_port + rank}" for rank in range(RANKS)]
        targets = {"syncagent": ranks}
        if self.collector is not None:
            targets = {"syncagent": [f"127.0.0.1:{ports.metrics}"], "collector": [f"127.0.0.1:{ports.own}"]}
        rules = ROOT / "otel" / "prometheus" / "rules.yaml"
        self.prometheus = self._start(
            "Prometheus",
            lambda: services.prometheus(folder / "prometheus", targets, http=9090, interval_s=SCRAPED_S, rules=rules),
        )

    def _start(self, name: str, start: Callable[[], Service]) -> Service | None:
        try:
            return self._at_end.enter_context(start())
        except NotHereError as why:
            print(f"No {name}: {why}", file=sys.stderr)
            return None

    def _collector(self, folder: Path, ports: services.Ports) -> Service:
        """By the file for production, except that every trace is kept, and sooner; Phoenix takes Tempo's place."""
        stores = {"otlp_grpc/tempo": self.phoenix, "otlp_grpc/jaeger": self.jaeger}
        overrides = {
            "processors": {"tail_sampling": {"decision_wait": "3s"}},
            "connectors": {f"span_metrics/{which}": {"metrics_flush_interval": "2s"} for which in ("counted", "kept")},
            "service": {
                "pipelines": {
                    "traces/kept": {"exporters": [*(name for name, store in stores.items() if store), "forward/kept"]}
                }
            },
        }
        environ = {"TRACE_PERCENT": "100"}
        environ |= {"TEMPO_ENDPOINT": self.phoenix.grpc} if self.phoenix else {}
        environ |= {"JAEGER_ENDPOINT": self.jaeger.grpc} if self.jaeger else {}
        config = ROOT / "otel" / "collector" / "config.yaml"
        return services.collector(folder, config, ports, environ, overrides)

    def variables(self) -> dict[str, str]:
        """How the job sends to it."""
        if self.collector is not None:
            return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.collector.otlp, "OTEL_METRIC_EXPORT_INTERVAL": "2000"}
        scraped = {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": str(self.scrape_port)}
        if self.phoenix is None:
            return scraped | {"OTEL_TRACES_EXPORTER": "none"}
        return scraped | {"OTEL_EXPORTER_OTLP_ENDPOINT": self.phoenix.otlp}

    def checks(self) -> dict[str, Callable[[], bool]]:
        """Whether both ranks' data have arrived, by the name of each store."""
        found = {}
        if self.jaeger is not None and self.collector is not None:
            found["Jaeger"] = lambda: ranks_in_jaeger(self.jaeger) >= set(range(RANKS))
        if self.phoenix is not None:
            found["Phoenix"] = lambda: ranks_in_phoenix(self.phoenix) >= set(range(RANKS))
        if self.prometheus is not None:
            found["Prometheus"] = lambda: len(ask(self.prometheus, "syncagent:stall_share:ratio_rate5m")) >= RANKS
        return found


def main() -> int:
    seconds = float(os.environ.get("DEMO_SECONDS") or "inf")
    with ExitStack() as at_end:
        folder = Path(at_end.enter_context(tempfile.TemporaryDirectory(prefix="syncagent-demo-")))
        stack = Stack(at_end, folder)
        if not stack.checks():
            return 1
        simulate = not torch.cuda.is_available()
        if simulate:
            print("No GPU here: the simulated CUDA device stands in; its waits are real, its times are this CPU's.")
        job = train(at_end, folder, stack, simulate=simulate)
        if not has_data(stack, job, folder):
            return 1
        tell(stack)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if job.poll() is not None:
                return ended_early(job, folder)
            time.sleep(0.2)
    return 0


def train(at_end: ExitStack, folder: Path, stack: Stack, *, simulate: bool) -> subprocess.Popen[bytes]:
    """The job; all that is about the agent is in its environment."""
    own = {
        "SYNCAGENT": "1",
        "SYNCAGENT_DETAIL": "syncs",
        "SYNCAGENT_COPIES": "all",
        "SYNCAGENT_SUMMARY": "off",
        "OTEL_SERVICE_NAME": JOB,
        "OTEL_RESOURCE_ATTRIBUTES": f"openinference.project.name={JOB}",  # Phoenix's name for where traces go
        "OMP_NUM_THREADS": "1",
        **stack.variables(),
    }
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


def has_data(stack: Stack, job: subprocess.Popen[bytes], folder: Path, timeout_s: float = 180) -> bool:
    """Whether the data of each rank are in every store, in time."""
    print(f"training as {RANKS} ranks; waiting for their data ...", flush=True)
    lacking = stack.checks()
    until = time.monotonic() + timeout_s
    while lacking and time.monotonic() < until:
        if job.poll() is not None:
            ended_early(job, folder)
            return False
        time.sleep(1)
        lacking = {name: arrived for name, arrived in lacking.items() if not arrived()}
    if lacking:
        print(f"nothing arrived in {timeout_s:.0f} s: {' and '.join(lacking)}", file=sys.stderr)
    return not lacking


def ranks_in_jaeger(jaeger: Service) -> set[int]:
    traces = jaeger.get(f"/api/traces?service={JOB}&limit=20")["data"] or []
    tags = [tag for trace in traces for span in trace["spans"] for tag in span["tags"]]
    return {tag["value"] for tag in tags if tag["key"] == "syncagent.rank"}


def ranks_in_phoenix(phoenix: Service) -> set[int]:
    try:
        spans = phoenix.get(f"/v1/projects/{JOB}/spans?limit=200")
    except OSError:  # there is no such project before its first span
        return set()
    return {span["attributes"].get("syncagent.rank") for span in spans["data"]}


def fullest(phoenix: Service) -> str:
    """The trace with most spans, of the newest thousand; the first step holds the copies of the weights."""
    spans = phoenix.get(f"/v1/projects/{JOB}/spans?limit=1000")["data"]
    steps = [span for span in spans if "syncagent.step" in span["attributes"]]
    later = [span["context"]["trace_id"] for span in steps if span["attributes"]["syncagent.step"]]
    ((trace_id, _),) = Counter(later or [span["context"]["trace_id"] for span in steps]).most_common(1)
    return trace_id


def alerts(prometheus: Service) -> str:
    """Where the alerts are shown: Debian's package has the older pages only."""
    try:
        with urlopen(prometheus.url + "/alerts", timeout=10):
            return "/alerts"
    except OSError:
        return "/classic/alerts"


def ask(prometheus: Service, query: str) -> list[object]:
    return prometheus.get("/api/v1/query?" + urlencode({"query": query}))["data"]["result"]


def tell(stack: Stack) -> None:
    if stack.collector is not None:
        print("\nCollector   by otel/collector/config.yaml; a job of your own sends here, too, with")
        print(f"            OTEL_EXPORTER_OTLP_ENDPOINT={stack.collector.otlp}")
    if stack.phoenix is not None:
        url, project = stack.phoenix.url, stack.phoenix.get(f"/v1/projects/{JOB}")["data"]["id"]
        print(f"\nPhoenix     {url}/projects/{quote(project)}/traces")
        print("            one trace per training step; its syncs have op, line and stall_ms as attributes. A step")
        print("            of the first hundred, all of whose syncs have spans (later on tens a second have):")
        print(f"            {url}/projects/{quote(project)}/traces/{fullest(stack.phoenix)}")
    if stack.jaeger is not None and stack.collector is not None:
        print(f"\nJaeger      {stack.jaeger.url}/api/traces?service={JOB}&limit=5")
        print("            the same traces as JSON; only its container has the page for people.")
    if stack.prometheus is not None:
        print(f"\nPrometheus  {stack.prometheus.url}")
        for what, query in GRAPHS.items():
            graph = {"g0.expr": query, "g0.tab": "0", "g0.range_input": "10m"}
            print(f"            {what}:\n            {stack.prometheus.url}/graph?{urlencode(graph)}")
        page = stack.prometheus.url + alerts(stack.prometheus)
        print(f"            alerts of otel/prometheus/rules.yaml:\n            {page}")
    print("\nCtrl-C ends it all.", flush=True)


if __name__ == "__main__":
    direct = filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1"))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(direct)  # all of it is on this machine
    # A terminal that is closed ends it, too; and Ctrl-C does where a shell has started it in the background.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nstopped")
