"""Two ranks under torchrun, which a real Prometheus scrapes itself: what holds without a Collector between."""

from __future__ import annotations

import json
import time

import pytest
from jobs import SERIES, Store, check_counts, spans_of, torchrun
from places import OTEL, TRAIN

import services  # isort: skip

pytestmark = pytest.mark.timeout(400)  # a busy machine takes its time


class Job:
    """What ran, and the Prometheus that watched it."""

    def __init__(self, store, folder, port):
        self.store = store
        self.folder = folder
        self.port = port

    def steps(self):
        return [json.loads((self.folder / f"rank{rank}.json").read_text())["steps"] for rank in range(2)]


@pytest.fixture(scope="module")
def job(environ, tmp_path_factory, start, until):
    """The job has trained for a while, stands still, and can still be scraped."""
    folder = tmp_path_factory.mktemp("job")
    first = services.free_ports(2)
    ranks = [f"127.0.0.1:{first + rank}" for rank in range(2)]
    rules = OTEL / "prometheus" / "rules.yaml"
    store = Store(start(services.prometheus, folder / "prometheus", {"agent": ranks}, rules=rules))
    own = {
        "SYNCAGENT_JOURNAL": f"{folder}/journal/",
        "SYNCAGENT_REPORT": f"{folder}/report-{{rank}}.json",
        "OTEL_SERVICE_NAME": "toy",
        "OTEL_METRICS_EXPORTER": "prometheus",
        "OTEL_EXPORTER_PROMETHEUS_PORT": str(first),
    }
    with torchrun(TRAIN, folder, environ | own) as process:
        one = Job(store, folder, first)
        until(lambda: len(store.ask('up{job="agent"} == 1')) == 2)
        began = time.time()
        time.sleep(8)
        (folder / "stop").touch()
        until(lambda: all((folder / f"rank{rank}.json").exists() for rank in range(2)))
        stands_still = time.time()
        one.span = (began, stands_still)
        until(lambda: all(float(v["value"][1]) > stands_still + 1 for v in store.ask('timestamp(up{job="agent"})')))
        one.final = store.by_rank_and_line("syncagent_syncs_total")
        yield one
        (folder / "leave").touch()
        assert process.wait(60) == 0, (folder / "log").read_text()
        for rank in range(2):
            report = json.loads((folder / f"report-{rank}.json").read_text())
            assert report["totals"]["syncs"] == sum(count for (of, _), count in one.final.items() if of == str(rank))


def test_each_rank_has_a_port_of_its_own_and_the_launcher_none(job):
    up = {one["metric"]["instance"]: one["value"][1] for one in job.store.ask('up{job="agent"}')}
    assert up == {f"127.0.0.1:{job.port + rank}": "1" for rank in range(2)}
    told = job.store.ask('target_info{service_name="toy"}')
    assert {(one["metric"]["syncagent_rank"], one["metric"]["syncagent_world_size"]) for one in told} == {
        ("0", "2"),
        ("1", "2"),
    }
    assert "cannot be opened" not in (job.folder / "log").read_text()


def test_counts_are_exact(job, line_of):
    """And those of the report at the end, which the fixture compares."""
    check_counts(job.store, job.final, job.steps(), line_of)


def test_the_series_are_those_that_a_collector_passes_on(job):
    assert job.store.series("toy") == SERIES


def test_the_agents_own_exemplars_lead_to_its_spans(job):
    found = job.store.exemplars("syncagent_stall_duration_seconds_bucket", *job.span)
    ids = {one["labels"]["span_id"] for series in found for one in series["exemplars"]}
    assert ids
    journals = [spans_of(file, "toy") for file in sorted(job.folder.glob("journal/*"))]
    assert ids <= {number for journal in journals for number in journal}
