"""Every rewrite in the table leaves the result that the code before it left."""

from __future__ import annotations

import re

import pytest
import torch

from syncagent.cost.rewrites import REWRITES
from syncagent.events import SyncKind


def outcome(rewrite, code, device="cpu"):
    torch.manual_seed(0)
    names = {"torch": torch, "F": torch.nn.functional, "device": device}
    exec(rewrite.setup, names)
    exec(code, names)
    if code == rewrite.after:
        exec(rewrite.late, names)
    return names["result"]


@pytest.mark.parametrize("rewrite", REWRITES, ids=lambda rewrite: rewrite.name)
def test_before_and_after_leave_the_same_result(rewrite):
    torch.testing.assert_close(outcome(rewrite, rewrite.after), outcome(rewrite, rewrite.before), check_dtype=False)


def test_names_are_unique_and_kinds_are_known():
    assert len({rewrite.name for rewrite in REWRITES}) == len(REWRITES)
    assert {kind for rewrite in REWRITES for kind in rewrite.kinds} <= {kind.value for kind in SyncKind}


@pytest.mark.parametrize("rewrite", REWRITES, ids=lambda rewrite: rewrite.name)
def test_patterns_compile_and_advice_is_one_clause(rewrite):
    re.compile(rewrite.source)
    assert not rewrite.say.endswith(".")
