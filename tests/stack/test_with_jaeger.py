"""Two ranks' spans, through the Collector into a real Jaeger: which are kept, and what is asked back of each."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from urllib.parse import urlencode

import pytest
from jobs import spans_in, spans_of, torchrun
from places import OTEL, ROOT

import services  # isort: skip

pytestmark = pytest.mark.timeout(400)  # a busy machine takes its time

ALONE = range(1, 22)
"""The steps outside of the program's own span."""
SCRIPT = ROOT / "tests" / "stack" / "sampled.py"


@pytest.fixture(scope="module")
def arrived(environ, pipeline, tmp_path_factory, until):
    """All spans that the Collector got, by id; sampling has decided."""
    folder = tmp_path_factory.mktemp("sampled")
    own = {
        "SYNCAGENT_DETAIL": "ops",
        "SYNCAGENT_POLICY": "warn",
        "SYNCAGENT_WARMUP_STEPS": "0",
        "SYNCAGENT_STACKS": "1",
        **pipeline.variables("sampled"),
    }
    with torchrun(SCRIPT, folder, environ | own) as process:
        assert process.wait(120) == 0, (folder / "log").read_text()
    until(lambda: spans_of(pipeline.kept, "sampled").keys() >= pipeline.wanted("sampled").keys())
    return spans_of(pipeline.arrived, "sampled")


@pytest.fixture(scope="module")
def steps(arrived):
    """What arrived, by step and then by rank."""
    found = defaultdict(lambda: defaultdict(list))
    for span in arrived.values():
        if "syncagent.step" in span["attributes"]:
            found[span["attributes"]["syncagent.step"]][span["attributes"]["syncagent.rank"]].append(span)
    return found


def of_jaeger(jaeger, trace):
    return {span["id"]: span for span in spans_in(jaeger.get(f"/api/v3/traces/{trace}")["result"])}


def test_sampling_keeps_whole_traces_with_long_stalls_and_violations_and_no_others(arrived, pipeline, steps):
    kept = spans_of(pipeline.kept, "sampled")
    assert kept == pipeline.wanted("sampled")
    assert kept.keys() < arrived.keys()
    for number in ALONE:
        of_step = [span for spans in steps[number].values() for span in spans]
        assert {span["resource"]["syncagent.rank"] for span in of_step} == {0, 1}
        if number % 3 != 2:
            assert {span["id"] for span in of_step} <= kept.keys(), number
    assert any({span["id"] for span in steps[n][0]}.isdisjoint(kept) for n in ALONE if n % 3 == 2)


def test_the_share_of_the_others_that_is_asked_for_is_kept(environ, start, tmp_path, until):
    """With 50 % about half of a hundred traces without anything special; all ranks come to one decision."""
    kept, ports = tmp_path / "kept.jsonl", services.Ports()
    overrides = {
        "processors": {"tail_sampling": {"decision_wait": "1s"}, "batch": {"timeout": "100ms"}},
        "exporters": {"file": {"path": str(kept)}},
        "service": {"pipelines": {"traces/kept": {"exporters": ["file", "forward/kept"]}}},
    }
    config = OTEL / "collector" / "config.yaml"
    collector = start(
        services.collector, tmp_path / "collector", config, ports, {"TRACE_PERCENT": "50"}, overrides
    )  # fmt: skip
    script = tmp_path / "quick.py"
    script.write_text(
        "import torch, syncagent\n"
        "x = torch.ones(3, device='cuda')\n"
        "for step in range(101):\n"
        "    syncagent.step(step)\n"
        "    x.sum().item()\n"
    )
    own = {"OTEL_SERVICE_NAME": "quick", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.otlp}
    with torchrun(script, tmp_path, environ | own) as process:
        assert process.wait(120) == 0, (tmp_path / "log").read_text()

    def traces():
        found = defaultdict(set)
        for span in spans_of(kept, "quick").values():
            found[span["trace"]].add(span["resource"]["syncagent.rank"])
        return [ranks == {0, 1} for ranks in found.values()]

    until(lambda: len(traces()) >= 25 and all(traces()))
    time.sleep(3)  # for decisions on those that came last
    assert len(traces()) <= 75


def test_jaeger_has_what_was_kept(arrived, jaeger, pipeline, until):
    assert "sampled" in jaeger.get("/api/services")["data"]
    traces = {span["trace"] for span in pipeline.wanted("sampled").values()}
    for trace in traces:
        wanted = {number: span for number, span in arrived.items() if span["trace"] == trace}
        assert until(lambda wanted=wanted, trace=trace: of_jaeger(jaeger, trace) == wanted)
    found = jaeger.get("/api/traces?service=sampled&limit=1000")["data"]
    assert {trace["traceID"] for trace in found} == traces


def test_jaeger_finds_traces_by_what_a_person_would_look_for(jaeger, steps):
    """By op, and by tags: the line, the reason, what is against the policy."""
    (forbidden,) = {
        str(span["attributes"]["code.line.number"])
        for number in ALONE
        for span in steps[number][0]
        if "syncagent.violation" in span["attributes"]
    }
    wanted = {span["trace"] for n in ALONE if n % 3 == 1 for spans in steps[n].values() for span in spans}
    tags = [{"syncagent.violation": "true"}, {"code.line.number": forbidden}, {"syncagent.allowed": "wanted"}]
    asked = [{"operation": "aten::index"}, *({"tags": json.dumps(one)} for one in tags)]
    for one in asked:
        found = jaeger.get(f"/api/traces?{urlencode({'service': 'sampled', 'limit': 1000, **one})}")["data"]
        assert {trace["traceID"] for trace in found} >= wanted, one
    operations = {one["name"] for one in jaeger.get("/api/v3/operations?service=sampled")["operations"]}
    assert {"train.step", "aten::index", "aten::_local_scalar_dense", "last steps"} <= operations


NOT_HERE = {"syncagent.stream"}
"""What the simulated device does not tell."""


def test_every_attribute_of_the_conventions_comes_through(arrived):
    """With the values that were sent, by the test above."""
    names = {name for span in arrived.values() for name in span["attributes"]}
    assert names - NOT_HERE >= ATTRIBUTES - NOT_HERE


ATTRIBUTES = {
    "code.file.path", "code.line.number", "code.function.name", "code.stacktrace", "thread.name",
    "syncagent.op", "syncagent.api", "syncagent.kind", "syncagent.phase", "syncagent.step", "syncagent.device",
    "syncagent.stall_ms", "syncagent.rank", "syncagent.allowed", "syncagent.policy", "syncagent.violation",
    "syncagent.sensor", "syncagent.source", "syncagent.shapes", "syncagent.ranges", "syncagent.module",
    "syncagent.local_rank", "syncagent.world_size", "syncagent.job.id",
    "syncagent.forward.file.path", "syncagent.forward.line.number", "syncagent.forward.function.name",
    "syncagent.library.file.path", "syncagent.library.line.number", "syncagent.library.function.name",
    "syncagent.step.syncs", "syncagent.step.stall_ms",
}  # fmt: skip


def test_a_step_is_one_trace_over_all_ranks(steps):
    """With a root for each rank, inside of which the rank's syncs lie."""
    for number in ALONE:
        spans = [span for of_rank in steps[number].values() for span in of_rank]
        assert len({span["trace"] for span in spans}) == 1
        roots = {span["attributes"]["syncagent.rank"]: span for span in spans if span["name"] == "train.step"}
        assert roots.keys() == {0, 1}
        for span in spans:
            if span["name"] != "train.step":
                root = roots[span["attributes"]["syncagent.rank"]]
                assert span["parent"] == root["id"]
                assert root["start_ns"] <= span["start_ns"] <= span["end_ns"] <= root["end_ns"]
            else:
                assert span["parent"] is None
    assert len({steps[number][0][0]["trace"] for number in ALONE}) == len(ALONE)


def test_the_programs_own_span_is_the_parent_of_its_steps(arrived, steps):
    of_program = {span["id"]: span for span in arrived.values() if span["name"] == "last steps"}
    assert {span["resource"]["syncagent.rank"] for span in of_program.values()} == {0, 1}
    for number in (22, 23, 24):
        for rank in (0, 1):
            (root,) = [span for span in steps[number][rank] if span["name"] == "train.step"]
            parent = of_program[root["parent"]]
            assert (parent["resource"]["syncagent.rank"], parent["trace"]) == (rank, root["trace"])
