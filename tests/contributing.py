"""The examples of CONTRIBUTING.md as tests run them, so that their code stands there and nowhere else."""

from __future__ import annotations

import importlib.util
import re

from tests.processes import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def example(name):
    """The code below ``<!-- example: name -->``."""
    [code] = re.findall(rf"<!-- example: {re.escape(name)} -->\n```\w+\n(.*?)```\n", TEXT, re.DOTALL)
    return code


def module(name, folder):
    """An example as a module that was imported from a file in ``folder``."""
    path = folder / f"example_{name}.py"
    path.write_text(example(name), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def entries(name, names):
    """What an example adds to a registry; ``names`` are those that its line may use."""
    code = example(f"{name} line")
    found = dict(names)
    exec(code, found)
    return found[code.partition(" = ")[0]]
