"""Two ranks under torchrun, scraped by a real Prometheus: counts are exact, and every panel's query has an answer."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import urllib.parse

import pytest
from places import OTEL, TRAIN
from span_metrics import SpanMetrics, spans

from syncagent.telemetry.metrics import MetricSink

import services  # isort: skip

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
    """What ran, and the Prometheus that watched it."""

    def __init__(self, prometheus, folder, address):
        self.prometheus = prometheus
        self.folder = folder
        self.address = address

    def ask(self, query, at=None):
        return self._get("query", query=query, **({} if at is None else {"time": at}))

    def ask_range(self, query, start, end):
        return self._get("query_range", query=query, start=start, end=end, step=1)

    def exemplars(self, query, start, end):
        return self._get("query_exemplars", query=query, start=start, end=end)

    def labels(self, series, label):
        return self._get(f"label/{label}/values", **{"match[]": series})

    def _get(self, what, **arguments):
        answer = self.prometheus.get(f"/api/v1/{what}?" + urllib.parse.urlencode(arguments))
        assert answer["status"] == "success"
        data = answer["data"]
        return data["result"] if isinstance(data, dict) else data

    def by_rank_and_line(self, metric):
        """Newest values of the job's series, by rank and line, summed over ops."""
        answer = self.ask(f'sum by (syncagent_rank, code_line_number) ({metric}{{service_name="toy"}})')
        return {
            (one["metric"]["syncagent_rank"], one["metric"].get("code_line_number")): float(one["value"][1])
            for one in answer
        }

    def steps(self):
        return [json.loads((self.folder / f"rank{rank}.json").read_text())["steps"] for rank in range(2)]


@pytest.fixture(scope="module")
def job(environ, tmp_path_factory, start_prometheus, until):
    """The job has trained for a while, stands still, and can still be scraped."""
    folder = tmp_path_factory.mktemp("job")
    first = services.free_ports(3)
    stand_in = SpanMetrics(first + 2)
    ranks = [f"127.0.0.1:{first + rank}" for rank in range(2)]
    prometheus = start_prometheus(
        tmp_path_factory.mktemp("prometheus"),
        {"agent": ranks, "collector": [stand_in.address]},
        rules=OTEL / "prometheus" / "rules.yaml",
    )
    own = {
        "SYNCAGENT_POLICY": "warn",
        "SYNCAGENT_WARMUP_STEPS": "0",
        "SYNCAGENT_JOURNAL": f"{folder}/journal/",
        "SYNCAGENT_REPORT": f"{folder}/report-{{rank}}.json",
        "OTEL_SERVICE_NAME": "toy",
        "OTEL_METRICS_EXPORTER": "prometheus",
        "OTEL_EXPORTER_PROMETHEUS_PORT": str(first),
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*torchrun, str(TRAIN), str(folder)],
            env=environ | own, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        one = Job(prometheus, folder, first)
        until(lambda: len(one.ask('up{job="agent"} == 1')) == 2)
        began = time.time()
        taken = set()
        while time.time() < began + 20:  # counts of spans have to grow, too, before they have a rate
            time.sleep(1)
            journals = set(folder.glob("journal/*"))
            if len(journals) == 2 and time.time() > began + 5 and not taken:
                assert stand_in.take(sorted(journals)) > 20
                taken = journals
            if taken and int(time.time() - began) in {10, 15}:
                stand_in.take(sorted(journals))
        (folder / "stop").touch()
        until(lambda: all((folder / f"rank{rank}.json").exists() for rank in range(2)))
        one.span = (began, time.time())
        stands_still = time.time()
        until(lambda: all(float(v["value"][1]) > stands_still + 1 for v in one.ask('timestamp(up{job="agent"})')))
        one.still = time.time()
        one.final = one.by_rank_and_line("syncagent_syncs_total")
        yield one
        (folder / "leave").touch()
        assert process.wait(60) == 0, (folder / "log").read_text()
        for rank in range(2):
            report = json.loads((folder / f"report-{rank}.json").read_text())
            assert report["totals"]["syncs"] == sum(count for (of, _), count in one.final.items() if of == str(rank))
    finally:
        stand_in.close()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_each_rank_has_a_port_of_its_own_and_the_launcher_none(job):
    up = {one["metric"]["instance"]: one["value"][1] for one in job.ask('up{job="agent"}')}
    assert up == {f"127.0.0.1:{job.address + rank}": "1" for rank in range(2)}
    told = job.ask('target_info{service_name="toy"}')
    assert {(one["metric"]["syncagent_rank"], one["metric"]["syncagent_world_size"]) for one in told} == {
        ("0", "2"),
        ("1", "2"),
    }
    assert "cannot be opened" not in (job.folder / "log").read_text()


def test_counts_are_exact(job, line_of):
    """Each line's count is that of its steps, by the counter and by the histogram, as in the report at the end."""
    syncs = job.final
    assert syncs == job.by_rank_and_line("syncagent_stall_duration_seconds_count")
    for rank, steps in enumerate(job.steps()):
        assert syncs[str(rank), line_of("MASK")] == steps
        assert syncs[str(rank), line_of("BACKWARD")] == steps
        assert syncs[str(rank), line_of("LOGGED")] == 3 * steps
        assert syncs.get((str(rank), line_of("SECOND RANK ONLY")), 0) == rank * steps
        assert job.by_rank_and_line("syncagent_step_duration_seconds_count")[str(rank), None] == steps - 1
    assert job.by_rank_and_line("syncagent_events_dropped_total") == {("0", None): 0, ("1", None): 0}


def test_what_is_allowed_and_what_is_against_the_policy_are_distinguished(job, line_of):
    allowed = job.ask('sum by (code_line_number) (syncagent_syncs_total{syncagent_allowed="true"})')
    assert {one["metric"]["code_line_number"] for one in allowed} == {line_of("LOGGED")}
    against = job.ask('sum by (code_line_number) (syncagent_syncs_total{syncagent_violation="true"})')
    assert line_of("MASK") in {one["metric"]["code_line_number"] for one in against}
    assert line_of("LOGGED") not in {one["metric"]["code_line_number"] for one in against}


def test_the_series_are_those_that_the_dashboards_name(job):
    """``test_otel_stack.py`` holds dashboards and rules against names; here the names are those of a store."""
    assert set(job.labels('{job="agent"}', "__name__")) >= {
        "syncagent_stall_duration_seconds_bucket",
        "syncagent_stall_duration_seconds_count",
        "syncagent_stall_duration_seconds_sum",
        "syncagent_step_duration_seconds_bucket",
        "syncagent_step_duration_seconds_count",
        "syncagent_step_duration_seconds_sum",
        "syncagent_syncs_total",
        "syncagent_step_stall_ratio",
        "syncagent_events_dropped_total",
        "syncagent_series_folded_total",
    }


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

    def fill(query):
        query = re.sub(r"\$\{?(\w+)(?::raw)?\}?", lambda found: values[found[1]], query)
        assert "$" not in query
        return query

    return fill


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_dashboards_variable_has_values(job, filled, variable):
    series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", VARIABLES[variable]).groups()
    assert filled(f"${variable}").strip("()").split("|")[0] in job.labels(filled(series), label)


@pytest.mark.parametrize(("panel", "target"), TARGETS)
def test_a_panels_query_is_answered_with_data(job, filled, panel, target):
    """Over the time in which the job trained; what asks for a day ago is asked a day later."""
    if "expr" not in target:
        pytest.skip(f"{target['queryType']} is asked of Tempo, which cannot be had here")
    query = filled(target["expr"])
    later = DAY_S if target["legendFormat"].endswith("a day ago") else 0
    if target.get("instant"):
        numbers = [one["value"][1] for one in job.ask(query, job.still + later)]
    else:
        series = job.ask_range(query, job.span[0] + later, job.span[1] + later)
        numbers = [number for one in series for _, number in one["values"]]
    real = [float(number) for number in numbers if not math.isnan(float(number))]
    assert real, query
    if "vector(0)" in query or panel["title"] not in EMPTY_IS_WELL:
        assert max(real) > 0, query


EMPTY_IS_WELL = {"Dropped"}
"""Panels that may show zero."""


def test_exemplars_lead_to_spans(job, filled):
    """From a dot on the panel to a trace: by the stand-in's exemplars, which are the agents' spans."""
    targets = [target for board in DASHBOARDS.values() for panel in board["panels"] for target in panel["targets"]]
    (query,) = {target["expr"] for target in targets if target.get("exemplar")}
    found = job.exemplars(filled(query), *job.span)
    ids = {one["labels"]["trace_id"] for series in found for one in series["exemplars"]}
    assert ids
    assert ids <= {span["traceId"] for span, _, _ in spans(sorted(job.folder.glob("journal/*")))}


def test_the_agents_own_exemplars_lead_to_its_spans(job):
    """Without a collector: what is scraped from a rank carries them."""
    if not hasattr(MetricSink(), "spans"):
        pytest.skip("histograms carry no exemplars in this version")
    found = job.exemplars("syncagent_stall_duration_seconds_bucket", *job.span)
    ids = {one["labels"]["span_id"] for series in found for one in series["exemplars"]}
    assert ids
    assert ids <= {span["spanId"] for span, _, _ in spans(sorted(job.folder.glob("journal/*")))}


def test_rules_are_loaded_and_an_alert_is_on_its_way(job):
    groups = job.prometheus.get("/api/v1/rules")["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}
    assert {rule["name"] for rule in rules if rule["type"] == "alerting" and rule["state"] != "inactive"} >= {
        "SyncPolicyViolated"
    }
