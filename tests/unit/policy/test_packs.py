"""Allow-packs name places that exist in the libraries, each with a reason, and take packs of other distributions."""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from importlib.metadata import EntryPoint, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from syncagent.events import CallSite
from syncagent.policy import packs
from syncagent.policy.allowances import Entry
from syncagent.settings import sources

EVERY = [(name, entry) for name, entries in packs.PACKS.items() for entry in entries]


@cache
def installed(package: str) -> Path | None:
    """Where a package's source is; it is not imported."""
    spec = find_spec(package)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def source_of(module: str) -> Path | None:
    top, *rest = module.split(".")
    place = installed(top)
    if place is None:
        pytest.skip(f"{top} is not installed")
    below = place.joinpath(*rest)
    return next((file for file in (below.with_suffix(".py"), below / "__init__.py") if file.is_file()), None)


def is_older(package: str) -> bool:
    """Is the installed version older than the one that the packs were checked against?"""
    distribution = {"pytorch_lightning": "pytorch-lightning", "lightning_fabric": "pytorch-lightning"}.get(
        package, package
    )
    here, checked = (
        [int(part) for part in re.findall(r"\d+", text)[:3]]
        for text in (version(distribution), packs.CHECKED[distribution])
    )
    return here < checked


@cache
def functions_of(file: Path) -> frozenset[str]:
    """The qualified names of all functions in a file, as code objects have them."""
    found: set[str] = set()

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found.add(prefix + child.name)
                visit(child, f"{prefix}{child.name}.<locals>.")
            else:
                visit(child, f"{prefix}{child.name}." if isinstance(child, ast.ClassDef) else prefix)

    visit(ast.parse(file.read_text(encoding="utf-8")), "")
    return frozenset(found)


@pytest.mark.parametrize(("name", "entry"), EVERY, ids=lambda value: getattr(value, "where", value))
def test_each_entry_names_a_module_and_function_that_exist(name, entry):
    """As far as the library is installed here; a policy that parses the entry finds the function's lines by it."""
    module, _, function = entry.where.partition(":")
    file = source_of(module)
    if (entry.since or entry.until) and not entry.is_of(version(module.partition(".")[0])):
        pytest.skip(f"this version has another function in the place of {entry.where}")
    if (file is None or (function and function not in functions_of(file))) and is_older(module.partition(".")[0]):
        pytest.skip(f"{entry.where} came with a newer version")
    assert file is not None, f"{module} is gone"
    assert not function or function in functions_of(file), f"{module} has no {function}"
    line = CallSite(str(file), 1, function or "anything", "")
    assert Entry.parse(entry.where, "").covers(line)


def test_a_function_that_the_library_in_use_does_not_have_is_reported(monkeypatch):
    """Modules that are not loaded are not mentioned, nor functions that this version is known to lack."""
    library, inner = ModuleType("lib"), ModuleType("lib.loop")
    library.__version__, inner.Loop = "2.15.0", type("Loop", (), {"log": print})
    monkeypatch.setitem(sys.modules, "lib", library)
    monkeypatch.setitem(sys.modules, "lib.loop", inner)
    entries = ["lib.loop", "lib.loop:Loop.log", "lib.loop:Loop.gone", "lib.other:gone", "lib.loop:Loop.<locals>.f"]
    known = (packs.Allowance("lib.loop:old", "", until="2.15"), packs.Allowance("lib.loop:new", "", since="2.16"))
    monkeypatch.setattr(packs, "PACKS", {"lib": (*(packs.Allowance(where, "") for where in entries), *known)})
    (said,) = packs.gone(["lib", "of another distribution"])
    assert said.startswith("lib.loop:Loop.gone is not in lib 2.15.0: ")


def test_a_report_names_the_functions_of_a_pack_that_do_not_exist(cpu_agent, monkeypatch):
    monkeypatch.setattr(packs, "PACKS", {"torch": (packs.Allowance("torch.functional:gone", "it waits by design."),)})
    agent = cpu_agent(allow_packs=("torch",))
    assert any("torch.functional:gone is not in torch" in note for note in agent.report().notes)


def test_each_entry_has_the_format_of_the_allow_setting_and_a_sentence_for_a_reason():
    for name, entry in EVERY:
        assert re.fullmatch(r"\w+(\.\w+)*(:[\w.<>]+)?", entry.where), entry
        assert sources.load({"allow": [entry.where]}, {}).allow == (entry.where,)
        assert re.fullmatch(r"\S+( \S+){3,}\.", entry.reason), entry
        assert len(entry.reason) < 150, (name, entry)
        assert packs.pack(name) == packs.PACKS[name]


def test_the_versions_that_were_checked_are_those_of_the_packages_that_entries_name():
    packages = {entry.where.partition(".")[0] for _, entry in EVERY}
    assert {package.replace("_", "-") for package in packages} - {"lightning-fabric"} == set(packs.CHECKED)


def test_no_place_is_twice_in_a_pack():
    for entries in packs.PACKS.values():
        assert len({entry.where for entry in entries}) == len(entries)


@pytest.fixture
def brought(monkeypatch):
    """``brought(name, value)``: another distribution's entry point, of which ``value`` is what it loads."""
    found: dict[str, object] = {}

    class Brought(EntryPoint):
        def load(self):
            if isinstance(found[self.name], BaseException):
                raise found[self.name]
            return found[self.name]

    def entry_points(*, group, name=None):
        assert group == packs.GROUP
        return [Brought(key, f"{key}_lib:packs", group) for key in found if name in (None, key)]

    monkeypatch.setattr(packs, "entry_points", entry_points)
    return found.__setitem__


def test_another_distribution_brings_a_pack(brought):
    """An iterable of pairs or a callable that returns one; names alone load nothing, and built-in names stay ours."""
    brought("ours", [("lib.loop:Loop.log", "it logs now and then.")])
    brought("lazy", lambda: iter([["lib.loop", "it logs now and then."]]))
    brought("torch", ImportError("not to be loaded"))
    assert packs.names() == (*packs.PACKS, "lazy", "ours")
    assert packs.pack("ours") == (packs.Allowance("lib.loop:Loop.log", "it logs now and then."),)
    assert packs.pack("lazy") == (packs.Allowance("lib.loop", "it logs now and then."),)
    assert packs.pack("torch") is packs.PACKS["torch"]


def test_a_name_without_a_pack_is_a_key_error_that_lists_the_packs(brought):
    brought("ours", ImportError("not to be loaded"))
    with pytest.raises(KeyError, match=r"no allow-pack 'touch'; there are torch, torch\.distributed, .*, ours"):
        packs.pack("touch")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (ImportError("no module named lib"), "no module named lib"),
        (lambda: 1 / 0, "division by zero"),
        (5, "not iterable"),
        (["lib.loop"], "unpack"),
        ([("lib/loop.py", "a file.")], r"'lib/loop\.py' is not package\.module or package\.module:function"),
        ([("lib.loop:", "no name.")], "is not package.module"),
        ([(b"lib.loop", "bytes.")], "is not package.module"),
        ([("lib.loop", " ")], "lib.loop has no reason"),
        ([("lib.loop", None)], "lib.loop has no reason"),
    ],
)
def test_a_broken_pack_is_a_value_error_that_names_it(brought, value, problem):
    brought("theirs", value)
    with pytest.raises(ValueError, match=rf"the allow-pack 'theirs' \(theirs_lib:packs\) cannot be used: .*{problem}"):
        packs.pack("theirs")
