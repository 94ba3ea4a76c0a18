"""The Collector's files as the Collector sees them: each is valid, and a node's hands over to its gateway."""

from __future__ import annotations

import re
import subprocess
import urllib.request

import pytest
import yaml
from counting import summed
from jobs import spans_of, torchrun
from places import OTEL, ROOT

import programs  # isort: skip
import services  # isort: skip

pytestmark = pytest.mark.timeout(400)  # a busy machine takes its time

FILES = sorted(OTEL.glob("collector/*.yaml"))


def validate(*files, environ=None):
    if not services.has("collector"):
        pytest.skip("the Collector is not built: `make test-stack` does that where Go is installed.")
    command = [str(programs.path("collector")), "validate", *(f"--config={file}" for file in files)]
    return subprocess.run(command, env=environ or {}, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_each_file_is_valid(file, tmp_path):
    done = validate(file)
    assert (done.returncode, done.stderr) == (0, "")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(file.read_text().replace("[memory_limiter", "[memory_limitr, memory_limiter", 1))
    assert validate(wrong).returncode == 1


def collectors():
    """Every Collector of a manifest: the arguments and the environment of its container."""
    for manifest in sorted(OTEL.glob("kubernetes/*.yaml")):
        for one in yaml.safe_load_all(manifest.read_text()):
            for container in one["spec"].get("template", {}).get("spec", {}).get("containers", ()):
                if "collector" in container["image"]:
                    environ = {each["name"]: each["value"] for each in container["env"]}
                    yield pytest.param(container["args"], environ, id=manifest.name)


@pytest.mark.parametrize(("arguments", "environ"), list(collectors()))
def test_each_manifest_starts_a_file_that_is_valid_with_its_environment(arguments, environ):
    """``kubectl create configmap`` as the manifest has it puts files of ``otel/collector`` under the names it reads."""
    mapped = dict(re.findall(r"--from-file=([\w.]+)=otel/(\S+)", (OTEL / "kubernetes" / "collector.yaml").read_text()))
    (named,) = (re.fullmatch(r"--config=/etc/otelcol/(.+)", word)[1] for word in arguments)
    done = validate(OTEL / mapped[named], environ=environ)
    assert (done.returncode, done.stderr) == (0, "")


def commands():
    """How docs/telemetry.md starts Collectors: what it exports before, and the file."""
    page = (ROOT / "docs" / "telemetry.md").read_text()
    found = re.findall(r"^export (.+)\notelcol-contrib --config=otel/(\S+)", page, re.MULTILINE)
    return [pytest.param(dict(one.split("=") for one in exported.split()), file, id=file) for exported, file in found]


@pytest.mark.parametrize(("environ", "file"), commands())
def test_each_command_of_the_page_starts_a_file_that_is_valid_with_what_it_exports(environ, file):
    assert set(re.findall(r"\$\{env:(\w+)", (OTEL / file).read_text())) >= environ.keys()
    done = validate(OTEL / file, environ=environ)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def node(start, pipeline, tmp_path_factory):
    """A node's Collector, which passes all on to the pipeline's."""
    folder = tmp_path_factory.mktemp("node")
    environ = {"GATEWAY_ENDPOINT": pipeline.collector.grpc, "QUEUE_DIRECTORY": str(folder / "queue")}
    return start(services.collector, folder, OTEL / "collector" / "node.yaml", services.Ports(), environ)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_nodes_collector_passes_spans_and_metrics_on(environ, node, pipeline, tmp_path, until, protocol):
    if protocol == "grpc":
        pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="pip install 'syncagent[grpc]'")
    script = tmp_path / "quick.py"
    script.write_text(
        "import torch, syncagent\n"
        "x = torch.ones(3, device='cuda')\n"
        "for step in range(20):\n"
        "    x.sum().item()\n"
        "    syncagent.step()\n"
    )
    service = f"nodes-{protocol[:4]}"
    own = {
        "OTEL_SERVICE_NAME": service,
        "OTEL_EXPORTER_OTLP_ENDPOINT": node.grpc if protocol == "grpc" else node.otlp,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
    }
    with torchrun(script, tmp_path, environ | own) as process:
        assert process.wait(120) == 0, (tmp_path / "log").read_text()

    def arrived():
        return [span for span in spans_of(pipeline.arrived, service).values() if "syncagent.op" in span["attributes"]]

    until(lambda: len(arrived()) == 40)

    def counted():
        found = summed(pipeline.ports.metrics, "syncagent_syncs_total", ("service_name", "syncagent_op"))
        return found.get((service, "aten::_local_scalar_dense"), 0)

    assert until(lambda: counted() == 40)


def test_spans_that_a_store_does_not_take_are_counted_under_the_alerts_name(start, tmp_path, until):
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    ports = services.Ports()
    overrides = {
        "processors": {"tail_sampling": {"decision_wait": "1s"}, "batch": {"timeout": "100ms"}},
        "exporters": {"otlp_grpc/jaeger": {"retry_on_failure": {"enabled": False}, "timeout": "1s"}},
        "service": {
            "pipelines": {
                "traces/kept": {"exporters": ["otlp_grpc/jaeger"]},
                "traces/exemplars": {"receivers": ["otlp"]},  # nothing feeds its connector here
            }
        },
    }
    environ = {"JAEGER_ENDPOINT": f"127.0.0.1:{services.port()}", "TRACE_PERCENT": "100"}
    collector = start(services.collector, tmp_path, OTEL / "collector" / "config.yaml", ports, environ, overrides)
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{collector.otlp}/v1/traces")))
    provider.get_tracer("test").start_span("lost").end()
    provider.shutdown()

    rules = (OTEL / "prometheus" / "rules.yaml").read_text()
    (asked,) = re.findall(r'__name__=~"(otelcol_exporter_\S+?)"', rules)

    def counted():
        with urllib.request.urlopen(f"http://127.0.0.1:{ports.own}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return [line.split()[-1] for line in lines if re.match(rf"{asked}\{{", line) and "jaeger" in line]

    until(lambda: counted() == ["1"])
