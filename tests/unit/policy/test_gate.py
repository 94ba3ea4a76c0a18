"""Gates fail closed: what cannot be in force does not start, and what fails on the way is in the report."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import pytest
import torch

import syncagent
from syncagent import ConfigError, HostSyncWarning
from syncagent.delivery import pipeline
from syncagent.policy import Policy, gate
from syncagent.recording import recorder
from syncagent.rules.table import RULES
from syncagent.sensors import hooked_op, kernels
from syncagent.settings import sources
from tests.unit.tools import forbidden

X = torch.tensor([[1.0, 0.0], [0.0, 5.0]])


class Fault(Exception):
    """A mistake of the agent's own."""


def fail(*_args, **_kwargs):
    raise Fault("injected")


@pytest.fixture
def baseline(cpu_agent, tmp_path):
    """The path of a report without a sync."""
    return str(syncagent.runtime.process.release(cpu_agent()).save(tmp_path / "base.json"))


def reasons(report):
    return [note.removeprefix(gate.NOTE) for note in report.notes if note.startswith(gate.NOTE)]


# --- at the start -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["raise", "warn"])
def test_a_gate_without_its_sensor_does_not_start(cpu_agent, monkeypatch, baseline, policy):
    """In a program as a ConfigError, and nothing is left turned on; observation starts all the same."""
    monkeypatch.setattr(kernels.KernelSensor, "start", fail)
    with pytest.raises(ConfigError, match=rf"policy is '{policy}', but it cannot be in force here: .*sensor kernels"):
        cpu_agent(policy=policy, baseline=baseline)
    assert syncagent.current() is None
    agent = cpu_agent(policy="observe")
    assert agent.report().run.gate is None


def test_a_gate_needs_every_op_that_this_torch_has(cpu_agent, monkeypatch):
    """An op of another version of torch is no hole."""
    real = kernels.KernelSensor.__init__

    def with_more_rules(self, recorder, conditions, rules=RULES, *, device_key=None):
        gone = replace(next(rule for rule in rules if rule.op == "aten::nonzero"), op="aten::was_once_there")
        real(self, recorder, conditions, [*rules, gone], device_key=device_key)

    monkeypatch.setattr(kernels.KernelSensor, "__init__", with_more_rules)
    agent = cpu_agent(policy="raise")
    assert agent.report().run.gate == "held"
    syncagent.stop()
    build = kernels.watched

    def cannot_hook(recorder, rule, *rest, **options):
        return fail() if rule.op == "aten::nonzero" else build(recorder, rule, *rest, **options)

    monkeypatch.setattr(kernels, "watched", cannot_hook)
    with pytest.raises(ConfigError, match="not hooked: aten::nonzero"):
        cpu_agent(policy="raise")


@pytest.mark.parametrize(
    ("keywords", "environment", "wanted"),
    [
        ({}, {}, False),
        ({}, {"SYNCAGENT_POLICY": "observe"}, False),
        ({}, {"SYNCAGENT_POLICY": " "}, False),
        ({}, {"SYNCAGENT_POLICY": "Raise"}, True),
        ({}, {"SYNCAGENT_POLICY": "rase"}, True),
        ({}, {"SYNCAGENT_POLICY": "warn"}, False),
        ({}, {"SYNCAGENT_POLICY": "warn", "SYNCAGENT_BASELINE": "x.json"}, True),
        ({"policy": "observe"}, {"SYNCAGENT_POLICY": "raise"}, False),
        ({"policy": 3}, {}, True),
    ],
)
def test_where_settings_are_wrong_a_gate_is_what_was_asked_for(no_settings, keywords, environment, wanted):
    """A policy that is none was meant to be one."""
    assert sources.wants_gate(keywords, environment) is wanted


def test_pyproject_toml_may_ask_for_a_gate(no_settings, tmp_path):
    """As any setting may stand there."""
    (tmp_path / "pyproject.toml").write_text('[tool.syncagent]\npolicy = "raise"\n')
    assert sources.wants_gate({}, {})
    assert not sources.wants_gate({}, {"SYNCAGENT_POLICY": "observe"})


def test_a_gate_watches_every_copy(no_settings, tmp_path):
    """Not one step in 16."""
    assert sources.load({"policy": "warn", "baseline": "x.json"}, {}).copies_timed == "all"
    assert sources.load({"policy": "warn"}, {}).copies_timed == "sampled"


# --- while it runs ----------------------------------------------------------------------------------------------------


def test_a_gate_that_was_in_force_held(cpu_agent, baseline):
    """Also where it stopped something."""
    cpu_agent(policy="raise", baseline=baseline)
    assert forbidden(X.nonzero)
    report = syncagent.stop()
    assert (report.run.gate, reasons(report)) == ("held", [])


@pytest.mark.parametrize("part", ["judge", "forbids"])
def test_a_policy_that_fails_lets_the_job_run_and_the_gate_has_failed(cpu_agent, monkeypatch, part):
    """The report says so, and why."""
    cpu_agent(policy="raise")
    monkeypatch.setattr(Policy, part, fail)
    if part == "forbids":
        monkeypatch.setattr(Policy, "judge", lambda *_: None)
    assert not forbidden(X.nonzero)
    report = syncagent.stop()
    assert report.run.gate == "failed"
    assert "the policy failed" in reasons(report)


def test_a_rule_or_a_record_that_fails_is_a_hole(cpu_agent, monkeypatch):
    """What was not seen was not judged."""
    agent = cpu_agent(policy="warn", baseline=None)
    agent.policy = "raise"
    agent.faults.add("the rule of aten::nonzero", Fault("injected"))
    assert reasons(agent.report()) == ["the rule of aten::nonzero failed"]
    agent.faults.add("sink spans", Fault("injected"))
    agent.faults.add("the rank", Fault("injected"))
    assert reasons(agent.report()) == ["the rule of aten::nonzero failed"]


def test_dropped_syncs_leave_a_gates_report_unfit(cpu_agent, monkeypatch):
    """Their sites may be missing in it."""
    monkeypatch.setattr(recorder, "_BUFFER", 5)
    monkeypatch.setattr(recorder, "_TALLIES", 0)
    monkeypatch.setattr(pipeline, "_ROUND_S", 3600.0)  # nothing is delivered meanwhile
    agent = cpu_agent(policy="raise", allow_kinds=["dynamic_shape"])
    for _ in range(8):
        X.nonzero()
    assert reasons(agent.report()) == ["3 syncs were dropped, and their sites may be missing here"]


def test_a_gate_that_was_lifted_did_not_hold(cpu_agent):
    """By the program, the file or the signal; one that was put up later is one from then on."""
    agent = cpu_agent(policy="observe", detail="syncs")
    assert agent.report().run.gate is None
    agent.policy = "raise"
    assert agent.report().run.gate == "held"
    agent.policy = "observe"
    assert reasons(agent.report()) == ["the policy was changed to observe by the program"]


# --- what it counts ---------------------------------------------------------------------------------------------------


class Waitable:
    """A stream or an event that says whether it is done."""

    def __init__(self, *, done):
        self.query = lambda: done

    def synchronize(self):
        return sum(range(1000))


@pytest.fixture
def waitables(monkeypatch):
    """Agents that start now take these for CUDA's events."""
    monkeypatch.setattr(torch.cuda, "Event", Waitable)


def test_an_explicit_wait_counts_with_and_without_work_to_wait_for(waitables, cpu_agent):
    """Which of the two it is, the race with the GPU decides; without, the stall is 0."""
    agent = cpu_agent()
    for done in (True, False):
        assert Waitable(done=done).synchronize() == 499500
    idle, busy = agent.events()
    assert (idle.op, idle.kind, idle.stall_ns) == ("torch.cuda.Event.synchronize", "explicit", 0)
    assert busy.stall_ns > 0


def test_an_explicit_wait_is_judged_with_and_without_work_to_wait_for(waitables, cpu_agent):
    """And recorded once, where it was stopped."""
    agent = cpu_agent(policy="raise")
    for done in (True, False):
        assert forbidden(Waitable(done=done).synchronize)
    assert [(event.violation, event.stall_ns, event.sensor) for event in agent.events()] == [(True, 0, "explicit")] * 2


@pytest.fixture
def late(monkeypatch, host):
    """Copies to the device wait by the driver's state alone."""
    monkeypatch.setattr(hooked_op, "_LATE_NS", -1)

    def is_late(args, _kwargs, _lasted_ns):
        return syncagent.SyncKind.COPY_H2D if args[1] in host else None

    real = kernels.KernelSensor.__init__

    def with_late_rules(self, recorder, conditions, rules=RULES, *, device_key=None):
        rules = [replace(rule, late=is_late) if rule.op == "aten::copy_" else rule for rule in rules]
        real(self, recorder, conditions, rules, device_key=device_key)

    monkeypatch.setattr(kernels.KernelSensor, "__init__", with_late_rules)


def test_a_copy_that_waits_by_the_drivers_state_is_reported_and_no_gate_counts_it(late, cpu_agent, host, baseline):
    """Neither the policy nor a budget nor the check: the next run need not have it."""
    from syncagent.report.compare import compare
    from syncagent.report.model import Report

    agent = cpu_agent(policy="raise", max_syncs_per_step=0, baseline=baseline)
    target = torch.zeros(4)
    target.copy_(host(torch.ones(4)), non_blocking=True)
    [event] = agent.events()
    assert (event.conditional, event.violation, event.kind) == (True, False, "copy_h2d")
    report = syncagent.stop()
    [row] = report.sites
    assert (row.conditional, row.count) == (True, 1)
    comparison = compare(Report.load(baseline), report)
    assert comparison.findings() == ()
    assert any("1 sync that depended on the driver's state alone" in note for note in comparison.notes)
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_nor_is_anybody_warned_of_it(late, cpu_agent, host):
    """Under ``warn``."""
    agent = cpu_agent(policy="warn", copies="all")
    with warnings.catch_warnings():
        warnings.simplefilter("error", HostSyncWarning)
        torch.zeros(4).copy_(host(torch.ones(4)), non_blocking=True)
    assert [event.conditional for event in agent.events()] == [True]


def test_a_gate_that_slept_all_the_time_did_not_hold(cpu_agent):
    """Without an optimizer nothing marks a step, and the warm-up never ends."""
    agent = cpu_agent(policy="raise", warmup_steps=3)
    X.nonzero()
    report = syncagent.runtime.process.release(agent)
    assert report.run.gate == "failed"
    assert reasons(report) == ["the policy was never active: the first 3 steps pass (warmup_steps), and 0 ended"]
    agent = cpu_agent(policy="raise", warmup_steps=3)
    assert syncagent.runtime.process.release(agent).run.gate == "held"  # there was nothing to judge
    agent = cpu_agent(policy="raise", warmup_steps=1)
    syncagent.step()
    assert syncagent.runtime.process.release(agent).run.gate == "held"


def test_start_cannot_put_a_gate_into_a_process_that_is_watched(cpu_agent):
    """A region can."""
    agent = cpu_agent(policy="observe")
    with pytest.raises(ConfigError, match="policy is 'raise', but this process is watched already, under 'observe'"):
        syncagent.start(policy="raise")
    assert syncagent.start() is agent
    X.nonzero()
    assert syncagent.stop().totals.syncs == 1
    assert syncagent.current() is agent  # what start() has joined goes on
    syncagent.stop()
    assert syncagent.current() is None


def test_a_watch_ends_what_it_began_though_start_has_joined_it(cpu_device):
    with syncagent.watch() as agent:
        assert syncagent.start() is agent
    assert syncagent.current() is None
    assert not agent.running
