"""What a trainer's callback logs: figures of its own training run, whatever the process did before."""

from __future__ import annotations

import pytest
import torch

import syncagent
from syncagent.runtime.training import SYNCS, TrainingRun

X = torch.tensor([[1.0, 0.0], [0.0, 5.0]])
SETTINGS = {"detail": "syncs", "journal": "off", "capture": "off", "summary": False}

pytestmark = pytest.mark.usefixtures("cpu_device")


def trained(syncs_by_step):
    """Train under a callback; return what it logs at the end of it all."""
    run, points = TrainingRun("the callback", SETTINGS), []
    run.begin(0)
    for step, syncs in enumerate(syncs_by_step):
        for _ in range(syncs):
            torch.nonzero(X)
        run.step_ended(step + 1)
    run.log(lambda figures: points.append(figures.metrics[SYNCS]))
    run.end()
    return points


def test_the_first_step_of_a_process_is_not_counted():
    assert trained([9, 2, 2, 2]) == [2.0]


def test_steps_before_the_run_are_not_in_its_first_point():
    with syncagent.watch(**SETTINGS):
        for _ in range(6):
            for _ in range(7):
                torch.nonzero(X)
            syncagent.step()
        assert trained([2, 2, 2, 2]) == [2.0]
        assert trained([3, 3]) == [3.0]


def test_the_optimizer_of_an_earlier_run_that_is_still_alive_does_not_hold_up_the_steps_of_this_one():
    def trained_by(optimizer, syncs):
        run, points = TrainingRun("the callback", SETTINGS), []
        run.begin()
        for _ in range(3):
            for _ in range(syncs):
                torch.nonzero(X)
            optimizer.step()
        run.log(lambda figures: points.append(figures.metrics[SYNCS]))
        run.end()
        return points

    first, second = (torch.optim.SGD([torch.ones(1, requires_grad=True)]) for _ in range(2))
    with syncagent.watch(**SETTINGS) as agent:
        assert trained_by(first, 2) == [2.0]
        assert trained_by(second, 3) == [3.0]
        assert agent.steps.count == 6
