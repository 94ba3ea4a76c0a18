"""What the callbacks of trainers share, with a loop in the trainer's place: none of the libraries is needed."""

from __future__ import annotations

import json

import pytest

from syncagent.errors import ConfigError

BEGIN = """\
import os
from syncagent.runtime import autostart
autostart.begin()
import pickle, syncagent, torch
from syncagent.runtime.training import SYNCS, STALL, TrainingRun
model = torch.nn.Linear(2, 1).cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
x = torch.ones(4, 2, device="cuda")
def micro_step(reads=2):
    loss = model(x).sum()
    loss.backward()
    for _ in range(reads):
        loss.item()
def train(run, steps, first=0):
    for step in range(first, first + steps):
        micro_step()
        micro_step()
        optimizer.step()
        run.step_ended(step)      # before the trainer counts it: nothing ends
        run.step_ended(step + 1)
def evaluate():
    with torch.no_grad():
        for _ in range(100):
            model(x).sum().item()
found = []
"""
"""Four syncs a step, in two micro steps; an evaluation has a hundred."""


@pytest.fixture
def run(forked, tmp_path):
    """``run(program)`` runs it and returns what it printed, a JSON value a line, and what it said."""

    def run(program, **variables):
        (tmp_path / "train.py").write_text(BEGIN + program, encoding="utf-8")
        variables = {"SYNCAGENT_SIMULATE": "1", "SYNCAGENT_CAPTURE": "off", "SYNCAGENT_DETAIL": "syncs", **variables}
        done = forked("train.py", **variables)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()], done.stderr

    return run


def test_figures_are_those_of_the_steps_since_the_last_ones_without_evaluations(run):
    """The first step is not timed, and a call without a new step gives nothing."""
    printed, _ = run("""
import json
run = TrainingRun("a callback", {})
run.begin(0)
evaluate()
run.steps_follow(0)
train(run, 3)
run.log(found.append)
run.log(found.append)
evaluate()
run.steps_follow(3)
train(run, 2, first=3)
run.log(found.append)
report = syncagent.current().report()
run.end()
print(json.dumps([figures.metrics[SYNCS] for figures in found]))
print(json.dumps([figures.metrics[STALL] > 0 for figures in found]))
print(json.dumps([figures.worst for figures in found]))
print(json.dumps([[row.step for row in report.step_times], report.totals.syncs, syncagent.current() is None]))
""")
    syncs, stalls, worst, (steps, total, is_over) = printed
    assert syncs == [4.0, 4.0]
    assert stalls == [True, True]
    assert [text.partition(" for ")[0] for text in worst] == ["train.py:13: loss.item() stalls a step"] * 2
    assert (steps, total, is_over) == ([0, 1, 2, 3, 4], 220, True)


def test_under_sampled_steps_syncs_per_step_are_those_of_the_run_so_far(run):
    """``detail="auto"``, the default: some steps have no named sync, and no single point goes by them."""
    printed, _ = run(
        """
import json
run = TrainingRun("a callback", {})
run.begin(0)
for part in range(20):
    train(run, 5, first=5 * part)
    run.log(found.append)
run.end()
print(json.dumps([figures.metrics[SYNCS] for figures in found]))
""",
        SYNCAGENT_DETAIL="auto",
    )
    assert printed == [pytest.approx([4.0] * 20)]


def test_an_agent_that_is_running_is_joined_and_follows_optimizers_again_afterwards(run):
    printed, _ = run(
        """
import json
agent = syncagent.current()
run = TrainingRun("a callback", {})
run.begin(7)
train(run, 2, first=7)
run.end()
micro_step()
optimizer.step()
print(json.dumps([agent is syncagent.current(), agent.report().run.steps, agent.steps.current]))
""",
        SYNCAGENT="1",
    )
    assert printed == [[True, 3, 10]]


def test_without_numbers_optimizers_mark_the_steps(run):
    printed, _ = run("""
import json
run = TrainingRun("a tracker", {})
run.begin()
for _ in range(3):
    micro_step()
    optimizer.step()
    evaluate()
    run.steps_follow()
run.log(found.append)
print(json.dumps([found[0].metrics[SYNCS], syncagent.current().steps.count]))
run.end()
""")
    assert printed == [[2.0, 3]]


def test_a_fault_is_logged_once_and_ends_the_watch_alone(run):
    printed, said = run("""
import json
def write(figures):
    raise OSError("a disk is full")
run = TrainingRun("a callback", {})
run.begin(0)
train(run, 3)
run.log(write)
train(run, 3)
run.log(write)
run.begin(0)
print(json.dumps([syncagent.current() is None, run.is_running]))
""")
    assert printed == [[True, False]]
    assert said.count("a callback failed and is off; training goes on") == 1
    assert "a disk is full" in said


def test_a_run_that_nobody_ends_ends_with_the_process(run, tmp_path):
    """As after an error in training, of which transformers tells its callbacks nothing."""
    run("""
run = TrainingRun("a callback", {"report": "own.json"})
run.begin(0)
train(run, 3)
""")
    assert json.loads((tmp_path / "own.json").read_text())["run"]["steps"] == 3


def test_it_can_be_handed_to_another_process(run):
    printed, _ = run("""
import json
run = TrainingRun("a callback", {"max_events": 7})
run.begin(0)
copy = pickle.loads(pickle.dumps(run))
print(json.dumps([copy.is_running, copy._settings.max_events, copy._callback]))
run.end()
""")
    assert printed == [[False, 7, "a callback"]]


def test_the_user_can_turn_it_off(run):
    printed, _ = run(
        """
import json
run = TrainingRun("a callback", {})
run.begin(0)
train(run, 2)
run.log(found.append)
run.end()
print(json.dumps([found, syncagent.current() is None]))
""",
        SYNCAGENT="0",
    )
    assert printed == [[[], True]]


@pytest.mark.usefixtures("no_settings")
def test_a_setting_that_is_not_allowed_is_an_error_at_once():
    from syncagent.runtime.training import TrainingRun

    with pytest.raises(ConfigError, match="obsrve"):
        TrainingRun("a callback", {"policy": "obsrve"})
