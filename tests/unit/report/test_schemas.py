"""The published JSON Schemas say what reports and captures hold, and are made of the code's own list of fields."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from training_run import report_of, sync, whole_report

from syncagent.events import CallSite
from syncagent.report.merge import merge
from syncagent.report.model import CostRow, OrderRow

ROOT = Path(__file__).resolve().parents[3]
SCHEMAS = ROOT / "docs" / "schemas"
OLD_FILES = ROOT / "tests" / "fixtures" / "reports"


def validator(name):
    schema = json.loads((SCHEMAS / name).read_text(encoding="utf-8"))
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    return kind(schema)


@pytest.fixture(scope="module")
def report_schema():
    return validator("report.schema.json")


@pytest.fixture(scope="module")
def capture_schema():
    return validator("capture.schema.json")


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate_schemas", SCHEMAS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["report.schema.json", "capture.schema.json"])
def test_they_are_those_of_the_code(generate, name):
    written = (SCHEMAS / name).read_text(encoding="utf-8")
    assert written == generate.texts()[name], "run: python docs/schemas/generate.py"


def with_cost():
    report = report_of(sync(stack=(CallSite("a.py", 1, "f", "g()"),)), steps=2)
    site = replace(report.sites[0], gain_ms=1.0, idle_ms=0.5, advice="write this")
    return replace(report, sites=(site,), cost=CostRow(5, 20.0, 20.1, 1.0, None, (OrderRow(site.id, 1.0),), ("note",)))


@pytest.mark.parametrize(
    "report",
    [whole_report(), report_of(), with_cost(), merge([whole_report(rank=rank) for rank in (0, 1)])],
    ids=["one of everything", "nothing", "cost", "merged"],
)
def test_reports_are_what_their_schema_says(report_schema, report):
    report_schema.validate(report.to_dict())


@pytest.mark.parametrize("change", [{"sites": [{}]}, {"schema": 2}, {"dropped": "3"}, {"run": None}])
def test_what_is_no_report_is_not(report_schema, change):
    assert not report_schema.is_valid({**whole_report().to_dict(), **change})


@pytest.mark.parametrize("path", sorted(OLD_FILES.glob("*.json")), ids=lambda path: path.stem)
def test_old_reports_are_what_the_schema_says(report_schema, path):
    report_schema.validate(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", sorted(OLD_FILES.glob("*.jsonl")), ids=lambda path: path.stem)
def test_captures_are_what_their_schema_says(capture_schema, path):
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {line["type"] for line in lines} >= {"header", "run", "site", "totals", "event", "step", "end"}
    for line in lines:
        capture_schema.validate(line)
    assert not capture_schema.is_valid({"type": "totals"})
    assert not capture_schema.is_valid({"type": "other"})
