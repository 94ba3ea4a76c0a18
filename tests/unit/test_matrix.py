"""The matrix of versions: what it covers, what it notes, and the table that is made of it."""

from __future__ import annotations

import functools
import importlib.util
import json

import pytest

from tests.gpu import tables
from tests.matrix import minimum, results

ROOT = tables.ROOT
JUNIT = """<testsuites><testsuite>
<testcase classname="tests.unit.test_a" name="test_one"/>
<testcase classname="tests.unit.test_a" name="test_two"><failure>no</failure></testcase>
<testcase classname="tests.unit.test_a" name="test_three"><skipped/></testcase>
<testcase classname="tests.unit.test_a" name="test_four"><error>no</error></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def noted(tmp_path, monkeypatch):
    """A file of results as two runs leave it, the second of them twice."""
    file = tmp_path / "results.json"
    junit = tmp_path / "junit.xml"
    junit.write_text(JUNIT)
    for torch, python in (("2.15.0", "3.12.1"), ("2.11.0", "3.12.1"), ("2.11.0", "3.12.1")):
        result = results.of_run(junit, torch=torch, python=python, seconds=61.4)
        results.note(f"torch {torch}, Python 3.12", result, file)
    monkeypatch.setattr(tables.matrix, "load", functools.partial(results.load, file))
    return file


def test_a_run_is_noted_once_with_its_counts_and_the_names_of_what_failed(noted):
    found = json.loads(noted.read_text())
    assert list(found) == ["torch 2.11.0, Python 3.12", "torch 2.15.0, Python 3.12"]
    row = found["torch 2.11.0, Python 3.12"]
    assert (row["passed"], row["failed"], row["skipped"], row["seconds"]) == (1, 2, 1, 61)
    assert row["failures"] == ["tests.unit.test_a::test_two", "tests.unit.test_a::test_four"]


@pytest.mark.usefixtures("noted")
def test_the_table_says_what_failed_which_torch_was_on_a_gpu_and_what_was_not_tried():
    text = tables.versions()
    assert "| all tests | 2.11.0 | 3.12.1 | 1 | **2** | 1 | 84 of 84 ways of using torch, NVIDIA" in text
    assert "| all tests | 2.15.0 | 3.12.1 | 1 | **2** | 1 | no |" in text
    assert "- torch 2.15.0, Python 3.12: `tests.unit.test_a::test_two`" in text
    assert "Python 3.14 is untested." in text


def test_the_lowest_versions_are_those_that_pyproject_declares(tmp_path):
    pins = minimum.pins(ROOT / "pyproject.toml")
    assert pins["tomli"].endswith("; python_version<'3.11'")
    assert {"click", "structlog", "rich", "opentelemetry-sdk", "prometheus-client", "torch"} <= set(pins)
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["click"]\noptional-dependencies = {}\n')
    with pytest.raises(ValueError, match="'click' has no lower bound"):
        minimum.pins(tmp_path / "pyproject.toml")


def test_every_torch_and_every_supported_python_is_tried(monkeypatch):
    """And the oldest of each is the one that pyproject.toml declares."""
    pytest.importorskip("nox")
    monkeypatch.setenv("PYENV_VERSION", "")  # noxfile.py sets it
    spec = importlib.util.spec_from_file_location("noxfile", ROOT / "noxfile.py")
    noxfile = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(noxfile)
    torches, pythons = zip(*noxfile.PAIRS, strict=True)
    assert sorted(torches) == sorted(noxfile.TORCHES)
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert {f"Programming Language :: Python :: {python}" in text for python in pythons} == {True}
    assert set(pythons) == set(noxfile.PYTHONS) - {"3.14"}
    assert f"torch=={'.'.join(noxfile.TORCHES[0].split('.')[:2])}" == minimum.pins(ROOT / "pyproject.toml")["torch"]
    assert f'requires-python = ">={min(pythons)}"' in text
