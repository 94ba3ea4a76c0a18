"""``opentelemetry-instrument python train.py``: the real command, its distro and exporters, against a real receiver."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

SCRIPT = textwrap.dedent(
    """\
    import sys

    assert "torch" not in sys.modules  # nothing of it is imported before the script does

    import torch
    from opentelemetry import baggage, context, trace
    from torch import nn

    tracer = trace.get_tracer("user")
    before = tracer.start_span("before")
    before.end()
    net = nn.Linear(16, 4).to("cuda")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    token = context.attach(baggage.set_baggage("experiment", "42"))
    for n in range(3):
        with tracer.start_as_current_span("iteration", links=[trace.Link(before.get_span_context())]):
            y = net(torch.rand(32, 16, device="cuda"))
            loss = y[y > 0].sum()  # MASK
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            assert baggage.get_baggage("experiment") == "42"
    context.detach(token)
    for n in range(2):
        loss = net(torch.rand(32, 16, device="cuda")).sum()
        loss.item()
        loss.backward()
        optimizer.step()
    sys.exit(3)
    """
)
COMMAND = (Path(sys.executable).with_name("opentelemetry-instrument"), sys.executable, "train.py")
COUNTS = {"syncs": "value", "stall.duration": "count"}


@pytest.fixture
def instrument(python, environ, tmp_path):
    def run(endpoint, protocol="http/protobuf", device="cuda", **variables):
        (tmp_path / "train.py").write_text(SCRIPT.replace('"cuda"', repr(device)))
        own = {
            "SYNCAGENT_SIMULATE": "1",
            "SYNCAGENT_REPORT": str(tmp_path / "report.json"),
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_SERVICE_NAME": "toy",
            "OMP_NUM_THREADS": "1",
            "RANK": "1",
            "WORLD_SIZE": "2",
            "TORCHELASTIC_RUN_ID": "exp7",
        }
        done = python(*COMMAND, **{name: value for name, value in (environ | own | variables).items() if value})
        assert done.returncode == 3, done.stderr
        assert not (tmp_path / ".syncagent").exists()  # what goes to the program's own providers goes nowhere else
        return done.stderr

    return run


def test_spans_and_metrics_go_through_the_programs_own_providers(receiver, instrument, tmp_path):
    """Under the program's own spans, with its service name and its detectors; nothing is printed."""
    collector = receiver()
    assert instrument(collector.endpoint, OTEL_EXPERIMENTAL_RESOURCE_DETECTORS="otel,syncagent") == ""
    assert (tmp_path / "report.json").exists()
    spans = collector.spans()
    by_id = {span["id"]: span for span in spans}
    [before] = [span for span in spans if span["name"] == "before"]
    iterations = [span for span in spans if span["name"] == "iteration"]
    steps = sorted((s for s in spans if s["name"] == "train.step"), key=lambda s: s["attributes"]["syncagent.step"])
    syncs = [span for span in spans if span["name"] == "aten::index"]
    assert (len(iterations), len(steps), len(syncs)) == (3, 5, 3)
    for iteration, step, sync in zip(iterations, steps, syncs, strict=False):
        assert by_id[step["parent"]] is iteration
        assert by_id[sync["parent"]] is step
        assert iteration["trace"] == step["trace"] == sync["trace"]
        assert iteration["start"] <= step["start"] <= sync["start"] <= sync["end"] <= step["end"]
        assert iteration["links"] == [{"trace": before["trace"], "id": before["id"]}]
    assert [step["parent"] for step in steps[3:]] == ["", ""]
    for span in (*steps, *syncs):
        assert span["scope"] == "syncagent"
        assert span["attributes"]["syncagent.rank"] == 1
        assert span["attributes"]["syncagent.job.id"] == "exp7"
        resource = span["resource"]
        assert (resource["service.name"], resource["syncagent.rank"], resource["syncagent.world_size"]) == ("toy", 1, 2)
        assert "telemetry.auto.version" in resource
    points = collector.points()
    counts = [sum(p[key] for p in points if p["name"] == f"syncagent.{name}") for name, key in COUNTS.items()]
    assert counts[0] == counts[1] > 5
    exemplars = {exemplar[1] for p in points if p["name"] == "syncagent.stall.duration" for exemplar in p["exemplars"]}
    assert exemplars & {sync["id"] for sync in syncs}


def test_over_grpc_which_is_what_the_distro_takes_by_default(receiver, instrument):
    collector = receiver("ok", "grpc")
    assert instrument(collector.endpoint, protocol="") == ""
    names = [span["name"] for span in collector.spans()]
    assert (names.count("train.step"), names.count("iteration")) == (5, 3)
    assert any(point["name"] == "syncagent.syncs" for point in collector.points())


OFF = [
    {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "requests, syncagent"},
    {"SYNCAGENT": "0"},
    {"OTEL_SDK_DISABLED": "true"},
]


@pytest.mark.parametrize("variables", OFF, ids=lambda variables: next(iter(variables)))
def test_it_can_be_turned_off(receiver, instrument, tmp_path, variables):
    """The program's own spans go on, but for the switch that turns off all of OpenTelemetry."""
    collector = receiver()
    instrument(collector.endpoint, device="cpu", **variables)  # it is the agent that installs the simulated device
    names = {span["name"] for span in collector.spans()}
    assert names == (set() if "OTEL_SDK_DISABLED" in variables else {"before", "iteration"})
    assert collector.points() == []
    assert not (tmp_path / "report.json").exists()


def test_with_the_variable_set_too_there_is_one_agent(receiver, instrument):
    """The program's own providers get what it sees, once."""
    collector = receiver()
    instrument(collector.endpoint, SYNCAGENT="1")
    names = [span["name"] for span in collector.spans()]
    assert (names.count("train.step"), names.count("iteration")) == (5, 3)


def test_steps_that_the_sampler_leaves_out_are_counted_all_the_same(receiver, instrument):
    collector = receiver()
    instrument(collector.endpoint, OTEL_TRACES_SAMPLER="always_off")
    assert collector.spans() == []
    assert sum(point["value"] for point in collector.points() if point["name"] == "syncagent.syncs") > 5


BY_HAND = """\
import os, signal, sys
import torch
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from syncagent.integrations.opentelemetry import SyncAgentInstrumentor

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
SyncAgentInstrumentor().instrument(tracer_provider=provider, detail="syncs", simulate=True)
x = torch.ones(8, device="cuda")
x[0].item()
SyncAgentInstrumentor().uninstrument()
names = [span.name for span in exporter.get_finished_spans()]
assert names.count("train.step") == 1 and "aten::_local_scalar_dense" in names, names
x[0].item()
assert len(exporter.get_finished_spans()) == len(names)
SyncAgentInstrumentor().instrument(detail="all of it")
print("goes on")
"""


BY_HAND_AND_TOLD_TO_END = """\
import os, signal, sys
import torch
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from syncagent.integrations.opentelemetry import SyncAgentInstrumentor

class Says(SpanExporter):
    def export(self, spans):
        os.write(1, b"sent\\n")
        return SpanExportResult.SUCCESS

provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(BatchSpanProcessor(Says(), schedule_delay_millis=60_000))
SyncAgentInstrumentor().instrument(tracer_provider=provider, detail="syncs", simulate=True)
torch.ones(8, device="cuda")[0].item()
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_program_may_instrument_itself(forked, tmp_path):
    """With a provider that is not the global one, and with settings; a wrong one is a sentence, no more."""
    (tmp_path / "train.py").write_text(BY_HAND)
    done = forked("train.py")
    assert (done.returncode, done.stdout) == (0, "goes on\n"), done.stderr
    (line,) = done.stderr.splitlines()
    assert "setting detail is 'all of it'" in line


def test_a_job_that_gets_sigterm_still_sends_what_it_has(receiver, python, environ, tmp_path):
    """SIGTERM skips the exit handlers that the SDK relies on."""
    collector = receiver()
    ending = "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n"
    (tmp_path / "train.py").write_text(SCRIPT.replace("sys.exit(3)\n", ending))
    own = {
        "SYNCAGENT_SIMULATE": "1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_BLRP_SCHEDULE_DELAY": "60000",
        "SYNCAGENT_POLICY": "warn",
        "SYNCAGENT_WARMUP_STEPS": "0",
        "OMP_NUM_THREADS": "1",
    }
    done = python(*COMMAND, **environ | own)
    assert done.returncode == -15
    assert [span["name"] for span in collector.spans()].count("train.step") == 5
    assert any(point["name"] == "syncagent.syncs" for point in collector.points())
    assert any(record["body"] == "host sync against the policy" for record in collector.log_records())


def test_one_with_a_provider_of_its_own_sends_what_it_has_on_sigterm(forked, tmp_path):
    """It is that one which has the spans."""
    (tmp_path / "train.py").write_text(BY_HAND_AND_TOLD_TO_END)
    done = forked("train.py")
    assert (done.returncode, done.stdout) == (-15, "sent\n"), done.stderr


def test_violations_are_in_the_programs_own_logs_in_their_spans(receiver, instrument):
    collector = receiver()
    variables = {"SYNCAGENT_POLICY": "warn", "SYNCAGENT_WARMUP_STEPS": "0", "PYTHONWARNINGS": "ignore"}
    instrument(collector.endpoint, OTEL_LOGS_EXPORTER="otlp", **variables)
    records = [r for r in collector.log_records() if r["body"] == "host sync against the policy"]
    spans = {(span["trace"], span["id"]): span for span in collector.spans()}
    assert records
    for record in records:
        assert spans[record["trace"], record["span"]]["name"] == record["attributes"]["syncagent.op"]
