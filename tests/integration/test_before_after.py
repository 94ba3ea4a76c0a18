"""The scripts whose gains are measured on a GPU: they train to the same in both variants, and are named as they say."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest

from tests.gpu import before_after

STEPS = 2
NAMES = before_after.NAMES


def known(name):
    """The script's own text and what it declares, without running it."""
    return before_after.declared(before_after.FOLDER / f"{name}.py")


@pytest.fixture(params=NAMES)
def name(request):
    for library in known(request.param).libraries:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    return request.param


@pytest.fixture
def train(forked, tmp_path):
    """``train(name, variant)``: the checksum it ends with, and the report of a run on the simulated device."""
    for file in before_after.FOLDER.glob("*.py"):
        shutil.copy(file, tmp_path)

    def run(name, variant):
        report = tmp_path / f"{variant}.json"
        words = (f"{name}.py", "--variant", variant, "--steps", STEPS, "--small")
        done = forked(*words, HF_HUB_OFFLINE="1", **before_after.watched(report, simulate=True))
        assert done.returncode == 0, done.stderr[-3000:]
        return before_after.printed(done.stdout)["checksum"], json.loads(report.read_text())

    return run


@pytest.mark.timeout(300)
def test_it_trains_to_the_same_and_the_report_names_what_the_script_says(name, train):
    """Each of those lines has an advice, and with what was done a step waits less often."""
    script = known(name)
    before, report = train(name, "before")
    after, later = train(name, "after")
    assert before == pytest.approx(after, rel=script.tolerance, abs=0)
    for text in script.named:
        assert " ".join(text.split()) in " ".join(script.text.split()), text
        rows = [site for site in report["sites"] if text in site["source"]]
        assert rows, f"no site at {text!r}: {[site['source'] for site in report['sites']]}"
        assert all(site["advice"] for site in rows), text
    assert before_after.steady(later, STEPS) < before_after.steady(report, STEPS)
