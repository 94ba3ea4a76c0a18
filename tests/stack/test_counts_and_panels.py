"""Two ranks send to the real Collector; a real Prometheus scrapes it: counts are exact, and every panel has an answer.

A second job of two ranks has collectives, for which one of the two is late; the panels of collectives are asked of it.
Whoever adds a metric or a panel finds it asked here: the queries are those of the dashboards' own files.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections import Counter
from typing import NamedTuple

import pytest
from jobs import FROM_SPANS, SERIES, check_counts, spans_of, torchrun
from places import OTEL, ROOT, TRAIN

import drawing  # isort: skip - places has made these two importable
import queries  # isort: skip

pytestmark = pytest.mark.timeout(400)  # a busy machine takes its time

DAY_S = 86_400
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(OTEL.glob("grafana/dashboards/*.json"))}
TARGETS = [
    pytest.param(panel, target, id=f"{name}-{panel['title']}-{target['refId']}")
    for name, board in DASHBOARDS.items()
    for panel in board["panels"]
    for target in panel["targets"]
]
VARIABLES = {
    variable["name"]: variable["definition"]
    for board in DASHBOARDS.values()
    for variable in board["templating"]["list"]
}


class Job:
    """What ran, and the store that has its metrics."""

    def __init__(self, folder, pipeline, began, ended):
        self.store = pipeline.prometheus
        self.pipeline = pipeline
        self.span = began, ended
        self.steps = [json.loads((folder / f"rank{rank}.json").read_text())["steps"] for rank in range(2)]
        self.reports = [json.loads((folder / f"report-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def job(environ, pipeline, tmp_path_factory, until):
    """It has trained for twenty seconds, and ended; Prometheus has its last counts."""
    folder = tmp_path_factory.mktemp("job")
    store = pipeline.prometheus
    own = {
        "SYNCAGENT_POLICY": "warn",
        "SYNCAGENT_WARMUP_STEPS": "0",
        "SYNCAGENT_REPORT": f"{folder}/report-{{rank}}.json",
        **pipeline.variables("toy"),
    }
    (folder / "leave").touch()
    with torchrun(TRAIN, folder, environ | own) as process:
        until(lambda: len(store.by_rank_and_line("syncagent_step_duration_seconds_count")) == 2)
        began = time.time()
        while time.time() < began + 20:  # rates want some time, and spans arrive seconds later than metrics
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.5)
        (folder / "stop").touch()
        assert process.wait(60) == 0, (folder / "log").read_text()
    one = Job(folder, pipeline, began, time.time())
    totals = {str(rank): report["totals"]["syncs"] for rank, report in enumerate(one.reports)}
    asked = 'sum by (syncagent_rank) (syncagent_syncs_total{service_name="toy"})'
    until(lambda: totals == {found["metric"]["syncagent_rank"]: float(found["value"][1]) for found in store.ask(asked)})
    until(lambda: spans_of(pipeline.kept, "toy").keys() >= pipeline.wanted("toy").keys())
    return one


class LateJob(NamedTuple):
    """Its service, and when it trained."""

    service: str
    span: tuple[float, float]


@pytest.fixture(scope="module")
def late_job(environ, pipeline, tmp_path_factory, until):
    """Data-parallel training for which rank 1 is late in each step, until the rules have seen it for ten seconds."""
    folder = tmp_path_factory.mktemp("late")
    script = ROOT / "tests" / "integration" / "late_ranks.py"
    with torchrun(script, folder, environ | pipeline.variables("late"), "ddp", "sleep", "1000000") as process:
        until(lambda: pipeline.prometheus.ask('syncagent:rank_lateness:ratio_mean5m{service_name="late"}'))
        began = time.time()
        while time.time() < began + 10:
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.5)
    return LateJob("late", (began, time.time()))


def test_counts_are_exact(job, line_of):
    """To the last one."""
    check_counts(job.store, job.store.by_rank_and_line("syncagent_syncs_total"), job.steps, line_of)


def test_every_sync_has_a_span_or_is_counted_as_one_without(job):
    """What arrived at the Collector and what the agent withheld or lost are together what it saw."""
    store, arrived = job.store, spans_of(job.pipeline.arrived, "toy").values()
    for rank, report in enumerate(job.reports):
        there = sum(
            span["resource"]["syncagent.rank"] == rank and "syncagent.op" in span["attributes"] for span in arrived
        )
        withheld = store.by_rank_and_line("syncagent_spans_withheld_total")[str(rank), None]
        assert there + withheld == report["totals"]["syncs"]
        assert store.by_rank_and_line("syncagent_spans_dropped_total")[str(rank), None] == 0


def test_the_collector_counts_each_span_of_a_sync(job, until):
    """Before and after sampling, by the dimensions that the dashboards ask for."""
    arrived, kept = (
        [span for span in spans_of(file, "toy").values() if "syncagent.op" in span["attributes"]]
        for file in (job.pipeline.arrived, job.pipeline.kept)
    )
    for metric, spans in (("spans_calls_total", arrived), ("kept_duration_seconds_count", kept)):
        wanted = Counter(
            (str(span["resource"]["syncagent.rank"]), str(span["attributes"]["code.line.number"])) for span in spans
        )
        until(lambda: job.store.by_rank_and_line(f"syncagent_{metric}") == wanted)  # noqa: B023 - called at once
    allowed = (
        'sum(syncagent_spans_calls_total{service_name="toy", syncagent_allowed="logging", syncagent_policy="warn"})'
    )
    marked = [span for span in arrived if span["attributes"].get("syncagent.allowed") == "logging"]
    assert [float(one["value"][1]) for one in job.store.ask(allowed)] == [len(marked)]


def test_the_series_are_those_that_the_documents_name(job):
    assert job.store.series("toy") == SERIES | FROM_SPANS


def test_a_ranks_resource_is_told_by_target_info(job):
    told = {one["metric"]["syncagent_rank"]: one["metric"] for one in job.store.ask('target_info{job="toy"}')}
    assert told.keys() == {"0", "1"}
    assert {one["syncagent_world_size"] for one in told.values()} == {"2"}
    assert len({one["instance"] for one in told.values()}) == 2


def test_what_is_allowed_and_what_is_against_the_policy_are_distinguished(job, line_of):
    allowed = job.store.ask(
        'sum by (code_line_number) (syncagent_syncs_total{service_name="toy", syncagent_allowed="true"})'
    )
    assert {one["metric"]["code_line_number"] for one in allowed} == {line_of("LOGGED")}
    against = job.store.ask(
        'sum by (code_line_number) (syncagent_syncs_total{service_name="toy", syncagent_violation="true"})'
    )
    assert line_of("MASK") in {one["metric"]["code_line_number"] for one in against}
    assert line_of("LOGGED") not in {one["metric"]["code_line_number"] for one in against}


@pytest.fixture(scope="module")
def filled(line_of):
    """A query as Grafana sends it: with its variables' values."""
    values = {
        "__rate_interval": "8s",
        "__range": "1m",
        "service": "toy",
        "rank": "(0|1)",
        "file": str(TRAIN),
        "line": line_of("MASK"),
    }

    def fill(query, **others):
        query = re.sub(r"\$\{?(\w+)(?::raw)?\}?", lambda found: (values | others)[found[1]], query)
        assert "$" not in query
        return query

    return fill


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_dashboards_variable_has_values(job, filled, variable):
    series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", VARIABLES[variable]).groups()
    assert filled(f"${variable}").strip("()").split("|")[0] in job.store.labels(filled(series), label)


OF_COLLECTIVES = {"Wait for collectives by rank", "Rank that holds the others up"}


@pytest.mark.parametrize(("panel", "target"), TARGETS)
def test_a_panels_query_is_answered_with_data(job, filled, panel, target, request):
    """Over the time in which the job trained; what asks for a day ago is asked a day later."""
    if "expr" not in target:
        pytest.skip(f"not run: {target['queryType']} is asked of Tempo, which is not part of what is built here")
    trained = job.span
    query = filled(target["expr"])
    if panel["title"] in OF_COLLECTIVES:
        late_job = request.getfixturevalue("late_job")
        trained = late_job.span
        query = filled(target["expr"], service=late_job.service)
    later = DAY_S if target["legendFormat"].endswith("a day ago") else 0
    if target.get("instant"):
        numbers = [one["value"][1] for one in job.store.ask(query, trained[1] + later)]
    else:
        series = job.store.ask_range(query, trained[0] + later, trained[1] + later)
        numbers = [number for one in series for _, number in one["values"]]
    real = [float(number) for number in numbers if not math.isnan(float(number))]
    assert real, query
    if "vector(0)" in query or panel["title"] not in EMPTY_IS_WELL:
        assert max(real) > 0, query


EMPTY_IS_WELL = {"Dropped"}
"""Panels that may show zero."""


def test_the_rank_that_holds_the_others_up_is_the_late_one(job, late_job):
    """It waits less for collectives, as the heat map shows, and it alone is late, as the time series does."""
    waits = job.store.ask(f'syncagent:collective_wait_seconds:mean5m{{service_name="{late_job.service}"}}')
    in_order = sorted(waits, key=lambda one: float(one["value"][1]))
    assert [one["metric"]["syncagent_rank"] for one in in_order] == ["1", "0"]
    late = job.store.ask(f'syncagent:rank_lateness:ratio_mean5m{{service_name="{late_job.service}"}}')
    assert [one["metric"]["syncagent_rank"] for one in late] == ["1"]


def test_grafanas_components_draw_the_overview(job, tmp_path):
    """As ``docs/pictures.py`` has them do; an error in their page is one here."""
    pytest.importorskip("playwright")
    browser = shutil.which("chromium")
    if browser is None or not drawing.folder_of_packages().exists():
        pytest.skip("not run: needs Chromium, and what `python docs/pictures.py dashboard` fetches")
    board = DASHBOARDS["overview"]
    shown = queries.answers(board, lambda what, asked: job.store.get(what, **asked), *job.span, width=1280, scraped_s=1)
    drawing.draw(shown, drawing.packages(), tmp_path / "overview.png", browser)
    assert (tmp_path / "overview.png").stat().st_size > 50_000


def test_a_panels_exemplars_are_kept_traces(job, filled):
    targets = [target for board in DASHBOARDS.values() for panel in board["panels"] for target in panel["targets"]]
    (query,) = {target["expr"] for target in targets if target.get("exemplar")}
    found = [one for series in job.store.exemplars(filled(query), *job.span) for one in series["exemplars"]]
    assert found
    kept = spans_of(job.pipeline.kept, "toy")
    for one in found:
        assert kept[one["labels"]["span_id"]]["trace"] == one["labels"]["trace_id"]
    if job.pipeline.jaeger is not None:  # the way of a click in Grafana
        trace = job.pipeline.jaeger.get(f"/api/traces/{found[0]['labels']['trace_id']}")["data"][0]
        assert found[0]["labels"]["span_id"] in {span["spanID"] for span in trace["spans"]}


def test_rules_are_loaded_and_an_alert_is_on_its_way(job):
    groups = job.store.service.get("/api/v1/rules")["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}
    assert {rule["name"] for rule in rules if rule["type"] == "alerting" and rule["state"] != "inactive"} >= {
        "SyncPolicyViolated"
    }


def test_the_collectors_own_counters_have_the_names_that_alerts_ask_for(job):
    """Those of failures come into being with the first one; what was sent is spelled the same way."""
    names = set(job.store.labels('{job="collector"}', "__name__"))
    assert names >= {
        "otelcol_receiver_refused_spans",
        "otelcol_exporter_sent_spans",
        "otelcol_processor_tail_sampling_sampling_trace_dropped_too_early",
        "up",
    }
