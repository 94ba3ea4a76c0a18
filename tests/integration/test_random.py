"""A program that has seeded its generators draws the same numbers with the agent as without it.

The cases are children of one process that has loaded torch; see ``tests/forked.py``.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.forked import fork

SCRIPT = """\
import atexit, hashlib, os, random, sys, threading, time
import numpy

{before}

def states():
    import torch
    state = numpy.random.get_state()
    drawn = repr((random.getstate(), state[1].tolist(), state[2:], torch.get_rng_state().tolist()))
    return hashlib.sha256(drawn.encode()).hexdigest()[:16]

random.seed(0)
numpy.random.seed(0)
if {watched}:
    from syncagent.runtime import autostart
    autostart.begin()  # its exit handler runs after the program's, and before that of the first lines
import torch
if not {watched}:
    from syncagent import simulate
    simulate.install()
torch.manual_seed(0)

def show(when):
    print(when, states(), random.random(), float(numpy.random.rand()), torch.rand(1).item(),
          hashlib.sha256(bytes(torch.cuda.get_rng_state().tolist())).hexdigest()[:16],
          torch.rand(1, device="cuda").item(), flush=True)

show("start")
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5)).cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(6):
    loss = model(torch.randn(8, 4, device="cuda")).relu()
    kept = loss[loss > 0]
    kept.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    for _ in range(40):  # more than a reservoir of examples takes
        kept.sum().item()
    torch.cuda.synchronize()
    if {watched}:
        import syncagent
        syncagent.current().flush()  # delivers on this thread
    {during}
    print(step, states(), kept.sum().item(), flush=True)
show("end")
"""
AT_EXIT = "atexit.register(lambda: print('exit', states(), random.random(), flush=True))"
COLLECTOR = """
import http.server
class Collector(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response({status})
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{{server.server_port}}"
"""
OWN_PROVIDER = """
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
from opentelemetry.sdk.metrics import Histogram
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation
by_instrument = {Histogram: ExponentialBucketHistogramAggregation()}
metrics.set_meter_provider(MeterProvider([InMemoryMetricReader(preferred_aggregation=by_instrument)]))
"""
HTTP = {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_LOGS_EXPORTER": "otlp", "OTEL_METRIC_EXPORT_INTERVAL": "50",
        "OTEL_BSP_SCHEDULE_DELAY": "20", "SYNCAGENT_POLICY": "warn", "PYTHONWARNINGS": "ignore"}  # fmt: skip
REFUSED = {**HTTP, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_TIMEOUT": "2"}
CASES = {
    # name: (lines at the start, in each step, variables)
    "alone": ("", "", {}),
    "journal, ops": ("", "", {"SYNCAGENT_JOURNAL": "spans.jsonl", "SYNCAGENT_DETAIL": "ops"}),
    "journal, syncs": ("", "", {"SYNCAGENT_JOURNAL": "spans.jsonl", "SYNCAGENT_DETAIL": "syncs"}),
    "a page and a cost window": (
        "", "", {"SYNCAGENT_REPORT": "report.html", "SYNCAGENT_DETAIL": "syncs", "SYNCAGENT_COST": "1"}
    ),
    "a collector that answers": (COLLECTOR.format(status=200), "time.sleep(0.1)", HTTP),
    "a collector that is busy": (COLLECTOR.format(status=503), "time.sleep(0.3)", HTTP),
    "gRPC without a collector": (
        "", "time.sleep(0.3)",
        {**REFUSED, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ),
    "Prometheus": (
        "", "time.sleep(0.1)",
        {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": "0"},
    ),
    "providers of the program's": (OWN_PROVIDER, "", {}),
}  # fmt: skip


# The first of them pays for the processes of all.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """``done(name)``: how that case ended."""
    folder = tmp_path_factory.mktemp("random")
    given = {}
    for name, (before, during, variables) in CASES.items():
        code = SCRIPT.format(before=AT_EXIT + before, during=during or "pass", watched=name != "alone")
        if "providers" in name:
            code = code.replace("autostart.begin()", "autostart.instrument({}, {'simulate': True})")
        given[name] = {"code": code, "variables": variables}
    return fork(given, folder)


@pytest.mark.parametrize("name", [name for name in CASES if name != "alone"])
def test_the_programs_random_numbers_are_what_they_are_without_the_agent(done, name):
    """Those of random, numpy, torch's CPU and the simulated device: at the start, after each step, and at the exit."""
    alone, found = done("alone"), done(name)
    assert (alone.code, found.code) == (0, 0), found.err
    assert len(alone.out.splitlines()) == 9
    assert found.out == alone.out


FRESH = """\
import hashlib, random, sys, time
import numpy
random.seed(0)
numpy.random.seed(0)
import torch
if len(sys.argv) > 1:
    from syncagent import simulate
    simulate.install()
torch.manual_seed(0)
x = torch.tensor([1.0, 0.0, 2.0], device="cuda")
for _ in range(4):
    x[x > 0].sum().item()
    time.sleep(0.4)  # the agent's thread delivers each second
print(random.random(), numpy.random.rand(), torch.rand(1).item(), torch.rand(1, device="cuda").item())
print([name for name in ("rich", "structlog") if name in sys.modules])
"""


def test_nothing_is_drawn_while_the_agents_libraries_are_loaded(environ, tmp_path):
    """Seeds are often set before torch is imported; libraries such as rich draw a number as they are loaded."""
    watched = {"SYNCAGENT": "1", "SYNCAGENT_SIMULATE": "1", "SYNCAGENT_POLICY": "warn", "SYNCAGENT_WARMUP_STEPS": "0"}
    refused = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", FRESH, *words], env=environ | variables, cwd=tmp_path,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for words, variables in ((["alone"], {}), ([], watched | refused))
    ]  # fmt: skip
    alone, found = (process.communicate(timeout=100) for process in processes)
    assert "syncagent" in found[1]
    assert found[0] == alone[0]
