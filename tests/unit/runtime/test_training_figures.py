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
