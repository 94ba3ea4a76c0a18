"""On the simulated device what a rewrite replaces waits, and the rewrite does not."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.rewrite_examples import EXAMPLES


def waits(observed, example, code):
    names = {"torch": torch, "F": torch.nn.functional, "device": "cuda"}
    exec(example.setup, names)
    torch.cuda.synchronize()
    before = len(observed.waits)
    exec(code, names)
    return observed.waits[before:]


@pytest.mark.parametrize("name", EXAMPLES)
def test_before_waits_and_after_does_not(observed, name):
    assert waits(observed, EXAMPLES[name], EXAMPLES[name].before)
    assert not waits(observed, EXAMPLES[name], EXAMPLES[name].after)
