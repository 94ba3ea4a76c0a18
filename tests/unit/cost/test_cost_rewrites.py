"""Every rewrite in the table leaves the result that the code before it left."""

from __future__ import annotations

import re

import pytest
import torch

from syncagent.cost.advice import REWRITES
from syncagent.events import SyncKind
from tests.gpu.rewrite_examples import EXAMPLES


def outcome(example, code):
    torch.manual_seed(0)
    names = {"torch": torch, "F": torch.nn.functional, "device": "cpu"}
    exec(example.setup, names)
    exec(code, names)
    if code == example.after:
        exec(example.late, names)
    return names["result"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_before_and_after_leave_the_same_result(name):
    example = EXAMPLES[name]
    torch.testing.assert_close(outcome(example, example.after), outcome(example, example.before), check_dtype=False)


def test_each_has_an_example_and_kinds_are_known():
    assert [rewrite.name for rewrite in REWRITES] == list(EXAMPLES)
    assert {kind for rewrite in REWRITES for kind in rewrite.kinds} <= {kind.value for kind in SyncKind}


@pytest.mark.parametrize("rewrite", REWRITES, ids=lambda rewrite: rewrite.name)
def test_patterns_compile_and_advice_is_one_clause(rewrite):
    re.compile(rewrite.source)
    assert not rewrite.say.endswith(".")
