"""What runs on a commit, in CI and at a release is what anyone can run: targets of the Makefile."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter

import pytest

from tests.processes import ROOT

yaml = pytest.importorskip("yaml")

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))

pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="needs the checkout")


def commands(node, key):
    """The value of each entry of that name, however deep."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from [value] if name == key and isinstance(value, str) else commands(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from commands(value, key)


def is_target(command):
    return re.fullmatch(r"make ([a-z-]+)( [A-Z]+=\S+| [A-Z]+=\$\{\{ [\w.]+ \}\})*", command)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_targets_of_the_makefile_and_nothing_else(path):
    found = list(commands(yaml.safe_load(path.read_text(encoding="utf-8")), "run"))
    assert found
    assert [command for command in found if not is_target(command)] == []
    assert {is_target(command)[1] for command in found} <= TARGETS


def test_so_do_the_hooks_of_a_commit():
    found = list(commands(yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")), "entry"))
    assert found
    assert {is_target(command)[1] for command in found} <= TARGETS


def test_no_two_files_of_tests_have_the_same_name():
    """pytest does not collect the second one, and CI runs the folders apart: ``make test`` runs them all at once."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


@pytest.fixture
def missing(tmp_path, monkeypatch):
    """``missing(tag)``: what a release of a small checkout under that tag lacks."""
    spec = importlib.util.spec_from_file_location("release_check", ROOT / ".ci" / "release_check.py")
    release_check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(release_check)
    monkeypatch.setattr(release_check, "ROOT", tmp_path)
    for folder in ("syncagent", "news"):
        (tmp_path / folder).mkdir()
    (tmp_path / "syncagent" / "_version.py").write_text('__version__ = "1.2.0"\n')
    (tmp_path / "pyproject.toml").write_text('Source = "https://host.example"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.0 (2027-01-02)\n")
    (tmp_path / "news" / "README.md").write_text("")
    return release_check.missing


def test_a_release_has_its_tag_its_address_and_its_notes(missing, tmp_path):
    """Each thing that is missing is named, with what to do."""
    assert missing("v1.2.0") == []
    (tmp_path / "news" / "+left.fix.md").write_text("A fix.\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.0 (unreleased)\n")
    (tmp_path / "pyproject.toml").write_text('Source = "https://syncagent.invalid"\n')
    tag, address, notes, news = missing("v1.3.0")
    assert "has to be 'v1.2.0'" in tag
    assert "no public address" in address
    assert "make changelog VERSION=1.2.0" in notes
    assert "+left.fix.md" in news
