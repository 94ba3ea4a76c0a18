"""Tests read what an object shows: its report, its events, its public properties, and nothing that it keeps to itself.

A module's private constants and functions may be replaced for a test (a limit, a clock); those of an object may not.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import syncagent
from tests.processes import ROOT

PACKAGE = Path(syncagent.__file__).parent
TESTS = sorted(path for kind in ("unit", "integration", "stack") for path in (ROOT / "tests" / kind).rglob("*.py"))
BY_NAME = {"getattr", "setattr", "delattr", "hasattr"}
"""Calls whose strings name attributes, ``monkeypatch``'s among them."""


OF_IPYTHON = {"_repr_html_"}
"""What IPython calls: its users cannot choose the name."""


def is_private(name):
    return name.startswith("_") and not name.endswith("__") and name not in OF_IPYTHON


def of_self(node):
    return isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}


def attributes(tree):
    """Each private attribute of the classes of a module: methods, what a class declares, what is set on ``self``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                targets = inner.targets if isinstance(inner, ast.Assign) else [getattr(inner, "target", None)]
                yield from (getattr(target, "id", "") for target in targets)
                yield getattr(inner, "name", "")
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and of_self(node):
            yield node.attr


def globals_of(tree):
    """What a module defines at its top."""
    names = {getattr(node, "name", "") for node in tree.body}
    stored = (inner for node in tree.body if isinstance(node, (ast.Assign, ast.AnnAssign)) for inner in ast.walk(node))
    return names | {node.id for node in stored if isinstance(node, ast.Name)}


def reads(tree, ours, modules):
    """Yield each place at which a test reads or replaces a private attribute of an object of ours."""
    wanted = {name for name in ours if is_private(name)} - set(attributes(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in wanted and not of_self(node):
            yield f"{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in BY_NAME:
            named = {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
            if named & (wanted - modules):
                yield f"{node.lineno}: {ast.unparse(node)}"


@pytest.fixture(scope="module")
def package():
    """The private attributes of the package's classes, and the names of its modules."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")]
    return {name for tree in trees for name in attributes(tree)}, {name for tree in trees for name in globals_of(tree)}


def test_no_test_reads_what_an_object_keeps_to_itself(package):
    found = {
        str(path.relative_to(ROOT)): places
        for path in TESTS
        if (places := list(reads(ast.parse(path.read_text(encoding="utf-8")), *package)))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("agent.OWN.threads", 1),
        ("agent.OWN = None", 1),
        ("monkeypatch.setattr(agent, 'OWN', None)", 1),
        ("agent.report().events; torch._C; sys._getframe()", 0),
        ("class Mine(Sensor):\n    def start(self):\n        self.OWN.ask()", 0),
    ],
)
def test_each_way_to_read_one_is_found(package, code, count):
    own = min(name for name in package[0] - package[1] if is_private(name))
    assert len(list(reads(ast.parse(code.replace("OWN", own)), *package))) == count
