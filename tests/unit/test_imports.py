"""No two modules of the package need each other, directly or by way of others.

That rooms import in one direction is a contract in pyproject.toml, which ``make layers`` checks.  This test looks at
single modules, also within a room; what is imported inside of a function or under ``TYPE_CHECKING`` counts as well.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import syncagent

PACKAGE = Path(syncagent.__file__).parent


def modules_of(folder):
    """Dotted name of each module in the folder of a package -> its file."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_by(name, path, modules):
    """The modules that a module imports, wherever in it the import statement stands."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    wanted = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = package[: len(package) + 1 - node.level] if node.level else []
            origin = ".".join([*origin, *filter(None, [node.module])])
            wanted |= {inner if (inner := f"{origin}.{alias.name}") in modules else origin for alias in node.names}
    return (wanted & modules.keys()) - {name}


def circles(folder):
    """Each group of modules that reach one another by their imports."""
    modules = modules_of(folder)
    imports = {name: imported_by(name, path, modules) for name, path in modules.items()}

    def reach(start):
        seen, ahead = set(), [start]
        while ahead:
            new = imports[ahead.pop()] - seen
            seen |= new
            ahead += new
        return seen

    reached = {name: reach(name) for name in modules}
    groups = {frozenset(b for b in reached[a] if a in reached[b]) for a in modules}
    return sorted(sorted(group) for group in groups if group)


def test_no_module_of_the_package_imports_itself_by_way_of_others():
    assert circles(PACKAGE) == []


CIRCLES = {
    "at the top": ("from pkg import b\n", "import pkg.a\n"),
    "in a function": ("from pkg.b import name\n", "def name():\n    from pkg import a\n"),
    "for annotations alone": (
        "from pkg.b import name\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pkg.a import other\n",
    ),
    "by relative names": ("from .b import name\n", "from . import a\n"),
}


@pytest.mark.parametrize("where", CIRCLES)
def test_a_circle_is_found_wherever_its_imports_stand(tmp_path, where):
    """Also by way of a third module; modules that only use the circle are not part of it."""
    folder = tmp_path / "pkg"
    folder.mkdir()
    one, other = CIRCLES[where]
    files = {"__init__": "", "a": one, "b": other, "user": "from pkg import a, b\n"}
    for name, source in files.items():
        (folder / f"{name}.py").write_text(source)
    assert circles(folder) == [["pkg.a", "pkg.b"]]
    (folder / "b.py").write_text("import pkg.c\n")
    (folder / "c.py").write_text(other)
    assert circles(folder) == [["pkg.a", "pkg.b", "pkg.c"]]
    (folder / "c.py").write_text("import pkg\n")
    assert circles(folder) == []
