"""``syncagent selftest``: on the simulated device, in real processes."""

from __future__ import annotations

import json
import os
from functools import partial

import pytest

from syncagent import native

KINDS = {"dynamic_shape", "scalar_read", "copy_d2h", "copy_h2d", "check", "explicit"}


@pytest.fixture
def selftest(python):
    """``selftest(*words, **variables)``: the command in a folder of its own, nothing set but the variables."""
    return partial(python, "-m", "syncagent", "selftest")


def test_every_kind_of_sync_is_caught_and_nothing_else_whatever_is_set_around_it(selftest, tmp_path):
    """Neither a watch over the process nor a project's settings reach the test, and it leaves no file."""
    (tmp_path / "pyproject.toml").write_text(
        '[tool.syncagent]\nallow = ["<syncagent selftest>.py"]\npolicy = "raise"\n'
    )
    done = selftest("--simulate", "--format", "json", SYNCAGENT="1", SYNCAGENT_REPORT="seen.json")
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["passed"]
    assert outcome["simulated"]
    assert "simulated" in outcome["device"]
    assert outcome["native"] == {"there": not native.why_not(), "why_not": native.why_not()}
    for detail in ("syncs", "ops"):
        calls = [call for call in outcome["calls"] if call["detail"] == detail]
        waiting = [call for call in calls if call["kind"] is not None]
        assert {call["kind"] for call in waiting if call["waited"]} == KINDS
        assert all(call["found"] == call["kind"] and call["line_right"] for call in waiting if call["waited"])
        assert {call["reported"] for call in calls if call["kind"] is None} == {0}
    promised = {(promise["name"], promise["detail"]) for promise in outcome["promises"]}
    both = {(name, detail) for name in ("kinds", "stop", "raise", "allow") for detail in ("syncs", "ops")}
    assert promised == both | {("cost", None), ("spans", None)}
    assert [path.name for path in tmp_path.iterdir()] == ["pyproject.toml"]


BLIND = """
# Stands for a machine on which a part of the agent does not work: copies wait, and nothing reports it.
from syncagent.sensors import simulated

OWN = '''
after = SimulatedSensor.after

def some(self, token, start_ns, end_ns):
    if token[2].op != "aten::copy_":
        after(self, token, start_ns, end_ns)

SimulatedSensor.after = some
'''

exec(compile(OWN, simulated.__file__, "exec"), vars(simulated))
"""


def test_a_broken_promise_is_reported_and_exits_with_1(selftest, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLIND)
    path = os.pathsep.join(filter(None, [str(tmp_path / "site"), os.environ.get("PYTHONPATH")]))
    done = selftest("--simulate", PYTHONPATH=path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Simulated device: there is no GPU in this test." in done.stdout
    assert done.stdout.splitlines()[1] == (native.why_not() or "The native library is there.")
    assert "BROKEN: x.cpu() under detail=syncs: waited and was not reported\n" in done.stdout
    assert "BROKEN  no copy_d2h was caught; no copy_h2d was caught  (detail=ops)\n" in done.stdout
    assert "ok      stop() took off all" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("BROKEN: ")
