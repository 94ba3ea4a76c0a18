"""An integration is one file and one line of pyproject.toml; here is a small one for a tool that the test makes up."""

from __future__ import annotations

import importlib
import json
import pkgutil
from functools import partial
from pathlib import Path

import pytest

from syncagent import integrations
from syncagent.integrations.base import Integration
from syncagent.support.compat import load_toml

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"

TRAINER = """\
import torch
from syncagent.integrations.base import Integration


class Callback:
    \"\"\"What the trainer of this script calls.\"\"\"

    def on_train_start(self): ...
    def on_train_end(self): ...


class HostSyncCallback(Integration, Callback):
    def __init__(self, **settings):
        self.settings = settings

    def on_train_start(self):
        self.watch_process(self.settings)

    def on_train_end(self):
        self.unwatch_process()


callback = HostSyncCallback(report="report.json", simulate=True)
callback.on_train_start()
torch.ones(8, device="cuda").sum().item()
callback.on_train_end()
"""


@pytest.fixture
def run(forked, tmp_path):
    (tmp_path / "train.py").write_text(TRAINER)
    return partial(forked, "train.py")


def test_a_small_integration_watches_what_its_tool_runs(run, tmp_path):
    """The example of CONTRIBUTING: a callback."""
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
        module = importlib.import_module(found.name)
        for name in set(module.__all__) - {"Integration"}:
            kind = getattr(module, name)
            assert issubclass(kind, Integration)
            if kind.entry_point_group is not None:
                assert groups[kind.entry_point_group] == {"syncagent": f"{found.name}:{name}"}
