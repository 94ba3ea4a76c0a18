"""Between which instructions modes may come and go: not where torch's Python has just asked for them."""

from __future__ import annotations

import contextlib
import sys

import pytest
import torch
from torch.nn import functional as F

from syncagent.torchbridge.modes import acts_on_modes


def interrupted_in(functions, call):
    """The answers for the frames of these functions, as a call between two instructions would get them."""
    answers, codes = {}, {function.__code__: function for function in functions}

    def trace(frame, _event, _argument):
        if frame.f_code in codes:
            answers[codes[frame.f_code]] = acts_on_modes(frame)

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    return answers


@pytest.mark.parametrize("function", [F.layer_norm, F.dropout, torch.overrides.handle_torch_function, torch.split])
def test_torchs_python_functions_ask_and_then_act(function):
    class Passing(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, _types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    def call():
        with Passing():
            F.layer_norm(torch.ones(2, 3), (3,))
            F.dropout(torch.ones(2))
            torch.split(torch.ones(2), 1)

    assert interrupted_in([function], call) == {function: True}


def test_the_way_into_a_context_is_no_place_and_a_program_is_one():
    def program():
        with contextlib.nullcontext():
            return sum(range(3))

    enter = contextlib._GeneratorContextManager.__enter__
    assert interrupted_in([enter], own) == {enter: True}
    assert interrupted_in([program], program) == {program: False}


def own():
    @contextlib.contextmanager
    def manager():
        yield

    with manager():
        pass
