"""The line of a sync below a mode or a tensor subclass of the program's own."""

from __future__ import annotations

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

X = torch.tensor([1.0, 0.0, 3.0])


class PassApi(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class PassApiInParts(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = {} if kwargs is None else kwargs
        result = func(
            *args,
            **(kwargs if len(args) < 9 else {}),
        )
        return result if result is not NotImplemented else None


class PassOps(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with torch.no_grad():
            return func(*args, **kwargs or {})


class CheckApi(TorchFunctionMode):
    """Reads what each op returned."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.isnan().any().item():  # <- the mode's own
            raise ValueError("not a number")
        return result


class Named(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs)


@pytest.mark.parametrize("mode", [PassApi, PassApiInParts, PassOps])
def test_a_mode_that_passes_a_call_on_is_not_the_line(agent, line_of, mode):
    with mode():
        X.sum().item()  # <- below a mode
    [event] = agent.events()
    assert event.site.line == line_of("below a mode")
    assert event.site.function == "test_a_mode_that_passes_a_call_on_is_not_the_line"


def test_a_sync_that_a_mode_makes_itself_is_on_the_modes_line(agent, line_of):
    with CheckApi():
        X + 1
    assert {event.site.line for event in agent.events()} == {line_of("the mode's own")}


def test_a_subclass_that_passes_a_call_on_is_not_the_line(agent, line_of):
    X.as_subclass(Named).sum().item()  # <- of a subclass
    assert {event.site.line for event in agent.events()} == {line_of("of a subclass")}
