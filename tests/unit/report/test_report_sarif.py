from __future__ import annotations

import json
from urllib.parse import unquote, urlparse

import pytest
from training_run import CWD, report_of, sync, whole_report

from syncagent.events import CallSite, SyncKind
from syncagent.report.formats import sarif


def check_essentials(log):
    """What SARIF 2.1.0 demands of the parts that are used here."""
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    for root in run.get("originalUriBaseIds", {}).values():
        assert root["uri"].endswith("/")
    for result in run["results"]:
        assert result["message"]["text"]
        assert result["level"] in {"none", "note", "warning", "error"}
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        for location in [*result["locations"], *result.get("relatedLocations", [])]:
            physical = location["physicalLocation"]
            assert " " not in physical["artifactLocation"]["uri"]
            assert physical.get("region", {"startLine": 1})["startLine"] >= 1
        for suppression in result.get("suppressions", []):
            assert suppression["kind"] in {"inSource", "external"}
        assert all(isinstance(value, str) for value in result["partialFingerprints"].values())
    json.dumps(log, allow_nan=False)


@pytest.fixture
def results():
    log = sarif.log(whole_report())
    check_essentials(log)
    return log["runs"][0]["results"]


def test_there_is_a_rule_for_each_kind():
    rules = sarif.log(report_of())["runs"][0]["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [f"syncagent/{kind}" for kind in SyncKind]


def test_there_is_a_result_for_each_site(results):
    assert [result["ruleId"] for result in results] == [
        "syncagent/dynamic_shape",
        "syncagent/dynamic_shape",
        "syncagent/explicit",
        "syncagent/scalar_read",
    ]
    assert (
        results[0]["message"]["text"] == "aten::nonzero stalled the host for 40.0 ms in 1 sync, 0.5 per step (forward)."
    )


def test_a_file_of_the_project_is_relative_to_its_root(results):
    (location,) = results[0]["locations"]
    assert location["physicalLocation"] == {
        "artifactLocation": {"uri": "loss.py", "uriBaseId": "%SRCROOT%"},
        "region": {"startLine": 41, "snippet": {"text": "torch.nonzero(labels == 9)"}},
    }


def test_a_backward_sync_points_at_the_forward_line_too(results):
    (related,) = results[1]["relatedLocations"]
    assert related["physicalLocation"]["region"]["startLine"] == 57


def test_an_allowed_site_is_suppressed(results):
    assert results[2]["suppressions"] == [{"kind": "external", "justification": "warm-up"}]
    assert results[2]["locations"] == []


@pytest.mark.parametrize("file", ["/elsewhere/a b.py", "<stdin>", "/tmp/ipykernel_1/2.py", f"{CWD}/ü#1.py"])
def test_any_file_name_becomes_an_address(file):
    log = sarif.log(report_of(sync(CallSite(file, 0, "f"))))
    check_essentials(log)
    uri = log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert file.endswith(unquote(urlparse(uri).path))


def test_a_site_is_known_again_when_its_line_has_moved():
    def fingerprint(line, source="x.item()"):
        site = CallSite(f"{CWD}/a.py", line, "f", source)
        return sarif.log(report_of(sync(site)))["runs"][0]["results"][0]["partialFingerprints"]

    assert fingerprint(1) == fingerprint(9)
    assert fingerprint(1) != fingerprint(1, "y.item()")
