"""A script under the agent on the simulated device: its metrics at a real receiver, which may not be well."""

from __future__ import annotations

import json
import textwrap
import time

import pytest

SCRIPT = textwrap.dedent(
    """\
    import torch
    from torch import nn

    import syncagent

    net = nn.Linear(16, 4).to("cuda")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(4):
        x = torch.rand(32, 16, device="cuda")
        y = net(x)
        loss = y[y > 0].sum()  # MASK
        with syncagent.allow("many"):
            for _ in range(200):
                x[0, 0].item()  # MANY
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    raise SystemExit(3)
    """
)


def line_of(mark):
    return next(n for n, text in enumerate(SCRIPT.splitlines(), 1) if text.endswith(f"# {mark}"))


@pytest.fixture
def train(forked, tmp_path):
    def run(endpoint, **variables):
        (tmp_path / "train.py").write_text(SCRIPT)
        own = {
            "SYNCAGENT": "1",
            "SYNCAGENT_SIMULATE": "1",
            "SYNCAGENT_DETAIL": "syncs",
            "SYNCAGENT_REPORT": str(tmp_path / "report.json"),
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "RANK": "0",
            "WORLD_SIZE": "1",
            "OMP_NUM_THREADS": "1",
        }
        began = time.monotonic()
        done = forked("train.py", **own | variables)
        assert done.returncode == 3, done.stderr
        assert "Traceback" not in done.stderr
        lines = [line for line in done.stderr.splitlines() if line.startswith("[syncagent]")]
        return json.loads((tmp_path / "report.json").read_text()), lines, time.monotonic() - began

    return run


def latest(points):
    """The newest point of each series: each export has everything since the start."""
    return {(p["name"], tuple(sorted(p["attributes"].items()))): p for p in points}.values()


def test_the_collector_counts_what_the_report_counts(receiver, train):
    collector = receiver()
    report, said, _ = train(collector.endpoint, OTEL_METRIC_EXPORT_INTERVAL="200", OTEL_SERVICE_NAME="toy")
    assert said == []
    points = list(latest(collector.points()))
    by_name = {}
    for point in points:
        by_name.setdefault((point["name"], point["unit"], point["type"]), []).append(point)
    assert by_name.keys() == {
        ("syncagent.syncs", "{sync}", "sum"),
        ("syncagent.stall.duration", "s", "histogram"),
        ("syncagent.step.duration", "s", "histogram"),
        ("syncagent.step.stall_ratio", "1", "gauge"),
        ("syncagent.events.dropped", "{sync}", "sum"),
        ("syncagent.series.folded", "{series}", "sum"),
        ("syncagent.attributes.cut", "{attribute}", "sum"),
        ("syncagent.spans.dropped", "{span}", "sum"),
        ("syncagent.spans.withheld", "{sync}", "sum"),
    }
    syncs = by_name["syncagent.syncs", "{sync}", "sum"]
    stalls = by_name["syncagent.stall.duration", "s", "histogram"]
    assert report["totals"]["syncs"] > 800
    assert sum(p["value"] for p in syncs) == sum(p["count"] for p in stalls) == report["totals"]["syncs"]
    assert sum(p["sum"] for p in stalls) * 1e3 == pytest.approx(report["totals"]["stall_ms"])
    spans = collector.spans()
    without = sum(p["value"] for p in by_name["syncagent.spans.withheld", "{sync}", "sum"])
    assert without + sum(span["name"] != "train.step" for span in spans) == report["totals"]["syncs"]
    exemplars = {span for p in stalls for _, span in p["exemplars"]}
    assert exemplars <= {span["id"] for span in spans}
    for point in stalls:
        assert sum(point["buckets"]) == point["count"]
    of_line = {
        p["attributes"].get("code.line.number"): p for p in syncs if p["attributes"]["syncagent.phase"] != "backward"
    }
    many, mask = of_line[line_of("MANY")], of_line[line_of("MASK")]
    assert (many["value"], mask["value"]) == (800, 4)
    assert many["attributes"]["syncagent.allowed"] is True
    assert mask["attributes"]["code.file.path"].endswith("train.py")
    del mask["attributes"]["code.file.path"]
    assert mask["attributes"] == {
        "syncagent.op": "aten::index",
        "syncagent.kind": "dynamic_shape",
        "syncagent.phase": "forward",
        "syncagent.violation": False,
        "syncagent.allowed": False,
        "code.line.number": line_of("MASK"),
        "code.function.name": "<module>",
    }
    assert [p["count"] for p in by_name["syncagent.step.duration", "s", "histogram"]] == [report["run"]["steps"] - 1]
    assert 0 <= by_name["syncagent.step.stall_ratio", "1", "gauge"][0]["value"] <= 1
    assert mask["scope"] == "syncagent"
    assert (mask["resource"]["service.name"], mask["resource"]["syncagent.rank"]) == ("toy", 0)
    assert mask["start"] < mask["time"]


@pytest.mark.parametrize("mode", ["refuse", "hang", "500"])
def test_a_collector_that_is_not_well_costs_one_line_for_spans_and_metrics_together(receiver, train, mode):
    report, said, took_s = train(receiver(mode).endpoint)
    assert report["totals"]["syncs"] > 800
    (line,) = said
    assert "spans are being lost" in line
    assert took_s < 60


def test_metrics_alone_can_be_refused(receiver, train):
    collector, other = receiver(), receiver("refuse")
    _, (line,), _ = train(collector.endpoint, OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"{other.endpoint}/v1/metrics")
    assert "metrics do not arrive" in line
    assert f"to={other.endpoint}/v1/metrics" in line
    assert "refused" in line
    assert collector.points() == []
    assert collector.spans()


def test_exemplars_can_be_off(receiver, train):
    collector = receiver()
    _, said, _ = train(collector.endpoint, OTEL_METRICS_EXEMPLAR_FILTER="always_off")
    histograms = [point for point in collector.points() if point["type"] == "histogram"]
    assert (said, bool(histograms)) == ([], True)
    assert not any(point["exemplars"] for point in histograms)


def test_metrics_can_be_off(receiver, train):
    collector = receiver()
    _, said, _ = train(collector.endpoint, OTEL_METRICS_EXPORTER="none")
    assert (said, collector.points()) == ([], [])
    assert collector.spans()


def test_what_is_wrong_with_spans_alone_costs_spans_alone(receiver, train):
    collector = receiver()
    report, (line,), _ = train(collector.endpoint, OTEL_TRACES_EXPORTER="zipkin")
    assert "OTEL_TRACES_EXPORTER='zipkin' is not allowed; allowed: otlp" in line
    assert line.endswith("none. No spans are sent; the run is still watched.")
    counts = [point["value"] for point in latest(collector.points()) if point["name"] == "syncagent.syncs"]
    assert sum(counts) == report["totals"]["syncs"]
    assert collector.spans() == []


def test_what_is_wrong_with_spans_and_metrics_is_one_sentence(train):
    _, (line,), _ = train("collector")
    assert "OTEL_EXPORTER_OTLP_ENDPOINT='collector' is not allowed" in line
    assert line.endswith("No spans or metrics are sent; the run is still watched.")


OWN = """\
import torch
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

import syncagent

reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
total = 0
for _ in range(2):
    with syncagent.watch(simulate=True, detail="syncs") as agent:
        x = torch.ones(8, device="cuda")
        for _ in range(20):
            x[0].item()
    total += agent.report().totals.syncs
(of_resource,) = reader.get_metrics_data().resource_metrics
of_ours = {scope.scope.name: scope.metrics for scope in of_resource.scope_metrics}["syncagent"]
points = {metric.name: metric.data.data_points for metric in of_ours}
counts = sum(p.value for p in points["syncagent.syncs"]), sum(p.count for p in points["syncagent.stall.duration"])
assert counts == (total, total) and total >= 40, (counts, total)
"""


def test_a_program_with_a_meter_provider_finds_all_its_watches_there(python, environ):
    done = python("-W", "error", "-c", OWN, **environ)
    assert (done.returncode, done.stderr) == (0, "")
