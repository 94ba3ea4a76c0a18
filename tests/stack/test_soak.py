"""The ranks of a job at the Collector of ``otel/``: what its Prometheus endpoint serves is exact, and nothing is lost.

Short here; with 8 ranks at 1,000 syncs a second each, for five minutes::

    SOAK_RANKS=8 SOAK_RATE=1000 SOAK_SECONDS=300 SOAK_RESULT=tests/stack/results/soak.json \
        python -m pytest tests/stack/test_soak.py
"""

from __future__ import annotations

import time

import pytest
from counting import CountingCollector
from places import ROOT

from tests import processes, soak
from tests.soak import RANKS, SECONDS

import services  # isort: skip

SAMPLES = 60


@pytest.fixture
def pipeline(tmp_path):
    try:
        one = CountingCollector(tmp_path / "collector")
    except services.NotHereError as why:
        pytest.skip(str(why))
    with one:
        yield one


@pytest.mark.timeout(soak.TIMEOUT_S)
def test_every_sync_of_every_rank_is_counted_and_every_span_accepted(pipeline, tmp_path, until):
    figures = []
    began = time.monotonic()

    def look():
        figures.append({"at_s": round(time.monotonic() - began), **pipeline.figures()})
        time.sleep(max(1.0, SECONDS / SAMPLES))

    environ = processes.environment(PYTHONPATH=str(ROOT), NO_PROXY="*", OTEL_SERVICE_NAME="soak")
    ranks = soak.run(pipeline.endpoint, environ, tmp_path, meanwhile=look)
    syncs = sum(told["reported"] for told in ranks)
    spans = sum(told["spans"]["exported"] for told in ranks)
    with_span = {str(told["rank"]): told["reported"] - sum(told["without_span"].values()) for told in ranks}
    until(lambda: sum(pipeline.counted("syncagent_syncs_total").values()) >= syncs)
    until(lambda: sum(pipeline.counted("syncagent_spans_calls_total").values()) >= sum(with_span.values()))

    lines = {
        (str(told["rank"]), str(line)): count for told in ranks for line, count in enumerate(told["counts"], start=1)
    }
    assert sum(lines.values()) == syncs
    by_line = ("syncagent_rank", "code_line_number")
    assert pipeline.counted("syncagent_syncs_total", *by_line) == lines
    assert pipeline.counted("syncagent_stall_duration_seconds_count", *by_line) == lines
    steps = {(str(told["rank"]),): told["steps"] - 1 for told in ranks}  # from one end of a step to the next
    assert pipeline.counted("syncagent_step_duration_seconds_count", "syncagent_rank") == steps
    for name in ("syncagent_events_dropped_total", "syncagent_spans_dropped_total", "syncagent_series_folded_total"):
        assert set(pipeline.counted(name, "syncagent_rank").values()) == {0}

    assert [(told["dropped"], told["spans"]["failed"], told["spans"]["dropped"]) for told in ranks] == [
        (0, 0, 0)
    ] * RANKS
    assert pipeline.counted("syncagent_spans_calls_total", "syncagent_rank") == {
        (rank,): count for rank, count in with_span.items()
    }
    last = pipeline.figures()
    assert last["accepted spans"] == spans
    for what in ("spans", "metric points"):
        assert last[f"refused {what}"] == last[f"failed {what}"] == 0
    assert sum(pipeline.own("processor_tail_sampling_sampling_trace_dropped_too_early_total").values()) == 0

    lasted_s = max(told["seconds"] for told in ranks)
    memory = [one["rss_mb"] for one in figures]
    soak.keep(
        f"{RANKS} ranks",
        {
            "ranks": RANKS,
            "seconds": SECONDS,
            "wanted_syncs_a_second": soak.RATE,
            "syncs": syncs,
            "syncs_counted_at_prometheus": round(sum(pipeline.counted("syncagent_syncs_total").values())),
            "syncs_a_second": round(syncs / lasted_s),
            "spans": spans,
            "spans_a_second": round(spans / lasted_s, 1),
            "agents_cpu_s": [round(told["cpu_s"], 1) for told in ranks],
            "agents_rss_mb": [round(told["rss_mb"][-1]) for told in ranks],
            "collector": {
                "version": pipeline.version(),
                "rss_mb_max": max(memory),
                "rss_mb_last": last["rss_mb"],
                "cpu_s": last["cpu_s"],
                "cpu_share_of_one_core": round(figures[-1]["cpu_s"] / figures[-1]["at_s"], 3),
                "spans_accepted": last["accepted spans"],
                "spans_refused": last["refused spans"],
                "metric_points_accepted": last["accepted metric points"],
                "metric_points_refused": last["refused metric points"],
                "rss_mb_each": {f"{one['at_s']} s": one["rss_mb"] for one in figures},
            },
        },
    )
