"""An integration is one file and one line of pyproject.toml; that of CONTRIBUTING.md is tried with a made-up tool."""

from __future__ import annotations

import importlib
import io
import json
import pkgutil
from functools import partial
from pathlib import Path

import pytest

from syncagent import integrations
from syncagent.integrations.base import Integration
from syncagent.support.compat import load_toml
from tests import contributing

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"

TOOL = """\
from importlib.metadata import entry_points


class Callback:
    def on_train_start(self): ...
    def on_train_end(self): ...


def fit(step):
    callbacks = [
        point.load()(report="report.json", simulate=True) for point in entry_points(group="mytool.callbacks")
    ]
    for callback in callbacks:
        callback.on_train_start()
    step()
    for callback in callbacks:
        callback.on_train_end()
"""
"""Calls whatever is registered under its group of entry points."""

SCRIPT = """\
import mytool
import torch
import syncagent.integrations

syncagent.integrations.__path__.append("integrations")  # as if the new file were among them
mytool.fit(lambda: torch.ones(8, device="cuda").sum().item())
"""


@pytest.fixture
def run(forked, tmp_path):
    """A script that uses the tool, with the integration of CONTRIBUTING.md and its line in pyproject.toml."""
    (tmp_path / "integrations").mkdir()
    (tmp_path / "integrations" / "mytool.py").write_text(contributing.example("integration"))
    (tmp_path / "mytool.py").write_text(TOOL)
    (tmp_path / "train.py").write_text(SCRIPT)
    document = load_toml(io.BytesIO(contributing.example("integration line").encode()))
    [(group, points)] = document["project"]["entry-points"].items()
    installed = tmp_path / "mytool-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Name: mytool\nVersion: 1.0\n")
    lines = [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (installed / "entry_points.txt").write_text("\n".join(lines))
    return partial(forked, "train.py")


def test_a_small_integration_watches_what_its_tool_runs(run, tmp_path):
    """The example of CONTRIBUTING.md: a callback."""
    done = run()
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    [site] = report["sites"]
    assert (site["op"], Path(site["file"]).name) == ("aten::_local_scalar_dense", "train.py")


def test_the_user_can_turn_an_integration_off(run, tmp_path):
    """``SYNCAGENT=0`` runs the script unwatched."""
    done = run(SYNCAGENT="0", SYNCAGENT_SIMULATE="1")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "report.json").exists()


@pytest.mark.skipif(not PYPROJECT.exists(), reason="needs the checkout")
def test_each_integration_is_registered_where_its_tool_looks():
    with PYPROJECT.open("rb") as stream:
        groups = load_toml(stream)["project"]["entry-points"]
    for found in pkgutil.iter_modules(integrations.__path__, "syncagent.integrations."):
        try:
            module = importlib.import_module(found.name)
        except ModuleNotFoundError as error:  # the tool is not installed
            if (error.name or "").startswith("syncagent"):
                raise
            continue
        own = {name: kind for name, kind in vars(module).items() if getattr(kind, "__module__", "") == found.name}
        for name, kind in own.items():
            if kind is Integration or name.startswith("_") or not isinstance(kind, type):
                continue
            assert issubclass(kind, Integration)
            if kind.entry_point_group is not None:
                assert groups[kind.entry_point_group] == {"syncagent": f"{found.name}:{name}"}
