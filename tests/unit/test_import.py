"""What importing the package costs and brings."""

from __future__ import annotations

import json

import pytest

import syncagent

SCRIPT = """
import json, sys
import syncagent
facts = {"package": sorted(m for m in sys.modules if m.startswith(("torch", "opentelemetry", "structlog", "rich")))}
facts["all"] = all(hasattr(syncagent, name) for name in syncagent.__all__)
facts["names"] = sorted(m for m in sys.modules if m.startswith(("torch", "opentelemetry")))
with syncagent.allow("nothing runs"):
    syncagent.step()
facts["current"] = syncagent.current()
watched = syncagent.watch(policy="warn")(lambda: None)
facts["used"] = sorted(m for m in sys.modules if m.startswith(("torch", "opentelemetry")))
import syncagent.cli, syncagent.runtime.autostart, syncagent.settings.sources
facts["parts"] = sorted(m for m in sys.modules if m.startswith(("torch", "opentelemetry")))
print(json.dumps(facts))
"""


def test_importing_and_preparing_imports_neither_torch_nor_opentelemetry(python):
    """Nor do the public names, an allowance, a mark of a step or a decorated function; starting an agent does."""
    done = python("-c", SCRIPT)
    facts = json.loads(done.stdout)
    assert facts == {"package": [], "all": True, "names": [], "current": None, "used": [], "parts": []}
    assert done.stderr == ""


def test_the_public_names_are_those_of_the_design():
    """No more than a dozen and a half, each of which exists."""
    assert {"watch", "start", "stop", "current", "allow", "step"} <= set(syncagent.__all__)
    assert {"SyncEvent", "CallSite", "HostSyncError", "HostSyncWarning", "Report"} <= set(syncagent.__all__)
    assert dir(syncagent) == sorted(syncagent.__all__)
    assert all(getattr(syncagent, name) is not None for name in syncagent.__all__)


def test_a_name_that_does_not_exist_gets_pythons_own_message():
    """With the module's name and the attribute's."""
    with pytest.raises(AttributeError, match=r"^module 'syncagent' has no attribute 'wach'$"):
        syncagent.wach


def test_two_who_wait_for_one_import_do_not_ask_each_other(python, tmp_path):
    """As under opentelemetry-instrument with SYNCAGENT_SIMULATE=1: both are called, once, the later asked first."""
    (tmp_path / "awaited.py").write_text("")
    code = (
        "import sys; from syncagent.support.import_hook import ImportHook; said = []\n"
        "sys.meta_path[:0] = [ImportHook('awaited', lambda name=name: said.append(name)) for name in 'ab']\n"
        "import awaited; print(*sorted(said), [f for f in sys.meta_path if isinstance(f, ImportHook)])"
    )
    done = python("-c", code)
    assert done.stdout == "a b []\n"
