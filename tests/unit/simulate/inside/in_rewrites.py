"""On the simulated device what a rewrite replaces waits, and the rewrite does not."""

from __future__ import annotations

import pytest
import torch

from syncagent.cost.rewrites import REWRITES


def waits(observed, rewrite, code):
    names = {"torch": torch, "F": torch.nn.functional, "device": "cuda"}
    exec(rewrite.setup, names)
    torch.cuda.synchronize()
    before = len(observed.waits)
    exec(code, names)
    return observed.waits[before:]


@pytest.mark.parametrize("rewrite", REWRITES, ids=lambda rewrite: rewrite.name)
def test_before_waits_and_after_does_not(observed, rewrite):
    assert waits(observed, rewrite, rewrite.before)
    assert not waits(observed, rewrite, rewrite.after)
