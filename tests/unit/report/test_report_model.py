from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from training_run import BACKWARD, MASK, report_of, sync, whole_report

from syncagent.errors import SyncAgentError
from syncagent.report.model import Report

RUN = [
    "started",
    "duration_s",
    "torch",
    "cuda",
    "device",
    "host",
    "rank",
    "world_size",
    "steps",
    "policy",
    "detail",
    "simulated",
]
SITE = [
    "op",
    "api",
    "kind",
    "file",
    "line",
    "function",
    "source",
    "phase",
    "count",
    "per_step",
    "stall_ms",
    "stall_ms_p50",
    "stall_ms_max",
    "sampled",
    "allowed",
    "idle_ms",
    "gain_ms",
    "advice",
]


class TestSchema:
    """The JSON that others read; its keys and their order are fixed, others may follow them."""

    def test_top_level(self):
        keys = list(whole_report().to_dict())
        assert keys[:7] == ["schema", "run", "sensors", "overhead", "dropped", "totals", "sites"]

    def test_rows(self):
        values = whole_report().to_dict()
        assert values["schema"] == 1
        assert list(values["run"])[: len(RUN)] == RUN
        assert list(values["sensors"][0])[:3] == ["name", "live", "cannot_see"]
        assert list(values["overhead"]) == ["agent_ms_per_step", "share", "budget"]
        assert list(values["totals"])[:3] == ["syncs", "stall_ms", "stall_share"]
        assert list(values["sites"][0])[: len(SITE)] == SITE

    def test_it_is_plain_json_and_comes_back_whole(self):
        report = whole_report(rank=3, world_size=8)
        assert Report.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False))) == report

    def test_a_number_that_json_cannot_write_is_null(self):
        report = report_of(sync())
        report = replace(report, sites=(replace(report.sites[0], gain_ms=math.nan),))
        assert report.to_dict()["sites"][0]["gain_ms"] is None

    def test_keys_of_a_later_version_are_passed_over(self):
        values = whole_report().to_dict()
        values["sites"][0]["mood"] = values["mood"] = "good"
        assert Report.from_dict(values) == whole_report()

    def test_keys_beyond_the_binding_ones_may_be_missing(self):
        values = whole_report().to_dict()
        for key in set(values["sites"][0]) - set(SITE):
            del values["sites"][0][key]
        for key in ("ops", "notes", "events", "step_times"):
            del values[key]
        assert Report.from_dict(values).sites[0].forward is None


class TestOrder:
    def test_what_removing_a_site_gains_comes_before_its_stall(self):
        report = report_of(sync(ms=9), sync(MASK, ms=5, op="aten::unique"), sync(BACKWARD, ms=1, op="aten::item"))
        costs = {"aten::nonzero": (None, None), "aten::unique": (2.0, 1.0), "aten::item": (1.0, 4.0)}
        rows = [replace(row, idle_ms=costs[row.op][0], gain_ms=costs[row.op][1]) for row in report.sites]
        assert [row.op for row in replace(report, sites=tuple(rows)).sites] == [
            "aten::item",
            "aten::unique",
            "aten::nonzero",
        ]


def _without(key):
    return lambda values: values.pop(key)


def _set(value, *path):
    def change(values):
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = value

    return change


class TestMalformed:
    """Whatever is wrong with a report's dictionary is reported in one sentence that names the place."""

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            (_without("schema"), 'x is not a syncagent report: it has no key "schema"'),
            (_set(2, "schema"), "x has schema 2, but this version of syncagent reads schema 1 only"),
            (_without("run"), 'x is not a whole syncagent report: it has no key "run"'),
            (_set([], "run"), "x is not a whole syncagent report: run should be an object"),
            (
                _set("2", "sites", 1, "count"),
                "x is not a whole syncagent report: sites[1].count should be a whole number",
            ),
            (_set(True, "dropped"), "x is not a whole syncagent report: dropped should be a whole number"),
            (_set({}, "sites"), "x is not a whole syncagent report: sites should be a list"),
            (_set(None, "run", "started"), "x is not a whole syncagent report: run.started should be a string"),
            (
                lambda values: values["sites"][0].pop("kind"),
                'x is not a whole syncagent report: sites[0] has no key "kind"',
            ),
        ],
    )
    def test_it_is_named(self, change, sentence):
        values = whole_report().to_dict()
        change(values)
        with pytest.raises(SyncAgentError) as caught:
            Report.from_dict(values, name="x")
        assert str(caught.value) == sentence

    @pytest.mark.parametrize("values", [[], "report", 3, None])
    def test_it_has_to_be_an_object(self, values):
        with pytest.raises(SyncAgentError, match="this is not a syncagent report: it is not an object with keys"):
            Report.from_dict(values)
