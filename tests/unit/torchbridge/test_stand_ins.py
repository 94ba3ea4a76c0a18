"""What goes by Python's stack finds the program's line under ``detail="ops"``, as it does without the agent."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import syncagent
from syncagent import HostSyncError
from syncagent.runtime.process import release
from syncagent.torchbridge.frames import StandIns, is_own_fault, leave_out_own_frames

AGENT = os.path.dirname(syncagent.__file__) + os.sep
X = torch.ones(3, requires_grad=True)


CLEAN = pytest.mark.skipif(sys.version_info < (3, 11), reason="an entry for the agent's own frame stays in Python 3.10")

WARNS = {
    "C++, in a method": lambda: torch.ones(1).std(),
    "C++, in a function": lambda: torch.std(torch.ones(1)),
    "C++, of an out": lambda: torch.add(torch.ones(3), 1, out=torch.ones(2)),
    "C++, in an attribute": lambda: (X * 2).grad,
    "Python, of a function": lambda: F.softmax(torch.ones(3, 3)),
    "Python, of a function with a level": lambda: F.mse_loss(torch.ones(3, 1), torch.ones(3)),
    "Python, of a module": lambda: nn.MSELoss()(torch.ones(3, 1), torch.ones(3)),
    "the tracer": lambda: torch.jit.trace(lambda x: x if x.sum() > 0 else -x, torch.ones(2)),
    "a constructor": lambda: torch.tensor(torch.ones(2)),
}


def places(call):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call()
    return [(warning.filename, warning.lineno, str(warning.message)) for warning in seen]


@pytest.mark.parametrize("name", WARNS)
def test_a_warning_names_the_same_line_as_without(agent, name):
    under = places(WARNS[name])
    agent.stop()
    assert under == places(WARNS[name])
    assert under


def test_a_warning_is_shown_as_often_as_without(agent):
    """Once for each line: two lines that cause the same one are both named, and a loop is named once."""

    def program():
        for _ in range(3):
            torch.ones(1).std()
            torch.ones(1).std()

    counts = []
    for _ in range(2):
        globals().pop("__warningregistry__", None)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("default")
            program()
        counts.append(Counter(warning.lineno for warning in seen))
        agent.stop()
    assert counts[0] == counts[1]
    assert len(counts[0]) == 2
    assert set(counts[0].values()) == {1}


def test_a_filter_by_module_applies(agent):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module=__name__.replace(".", r"\."))
        torch.ones(1).std()


RAISES = {
    "shapes": lambda: torch.ones(2) + torch.ones(3),
    "in place": lambda: torch.ones(2).copy_(torch.ones(3)),
    "linalg": lambda: torch.linalg.cholesky(-torch.eye(2)),
    "index": lambda: torch.ones(2)[torch.tensor([5])],
    "no value": lambda: torch.ones(2).item(),
    "a custom function": lambda: Fails.apply(X),
}


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, later=False):
        return x * 2 if later else x + torch.ones(7)

    @staticmethod
    def backward(ctx, grad):
        return grad + torch.ones(3) + torch.ones(2), None  # <- fails in backward


def test_the_last_line_of_a_traceback_is_the_programs_in_every_python(cpu_agent, line_of):
    running = cpu_agent(detail="ops", policy="raise")
    with pytest.raises(HostSyncError) as raised:
        X.detach().sum().item()  # <- last
    release(running)
    last = traceback.extract_tb(raised.tb)[-1]
    assert (last.filename, last.lineno) == (__file__, line_of("last"))


@CLEAN
@pytest.mark.parametrize("name", RAISES)
def test_a_traceback_is_the_same_as_without(agent, name):
    def lines():
        with pytest.raises((RuntimeError, IndexError)) as raised:
            RAISES[name]()
        return [(entry.filename, entry.lineno, entry.name) for entry in traceback.extract_tb(raised.tb)][1:]

    under = lines()
    agent.stop()
    assert under == lines()


@CLEAN
def test_a_traceback_out_of_a_backward_pass_has_no_frame_of_the_agent(agent, line_of):
    """Functions of torch that are written in Python are there twice, as under every mode."""
    with pytest.raises(RuntimeError) as raised:
        Fails.apply(X, True).sum().backward()
    entries = traceback.extract_tb(raised.tb)
    assert entries[-1].lineno == line_of("fails in backward")
    assert not [entry for entry in entries if entry.filename.startswith(AGENT)]


@CLEAN
def test_the_policys_error_ends_at_the_users_line(cpu_agent, line_of):
    for detail in ("ops", "syncs"):
        running = cpu_agent(detail=detail, policy="raise")
        with pytest.raises(HostSyncError) as raised:
            X.detach().sum().item()  # <- forbidden
        release(running)
        last = traceback.extract_tb(raised.tb)[-1]
        assert (last.filename, last.lineno) == (__file__, line_of("forbidden"))


def test_a_stand_in_is_on_one_line_of_its_callers_file_and_globals():
    frame = sys._getframe()
    seen = []

    def looks(*args, **kwargs):
        inner = sys._getframe(1)
        seen.append((inner.f_code.co_filename, inner.f_lineno, inner.f_code.co_name, inner.f_globals is globals()))
        return args, kwargs

    stand_ins = StandIns()
    for _ in range(2):
        line = frame.f_lineno + 1
        assert stand_ins.of(frame)(looks, (1,), {"a": 2}) == ((1,), {"a": 2})
        assert seen.pop() == (__file__, line, frame.f_code.co_name, True)
    assert {code for code, _ in stand_ins} == {id(frame.f_code)}


# --- tracebacks -----------------------------------------------------------------------------------------------------


def agents(text, **names):
    """Functions as if they were written in a file of the agent's."""
    exec(compile(text, AGENT + "nowhere.py", "exec"), names)
    return names


def entries_after(fails, **options):
    """Run ``fails`` inside the agent; the names of the functions in the traceback, and the error."""
    names = agents(
        "def passes_on(call):\n"
        "    return call()\n"
        "def leaves(call):\n"
        "    try:\n"
        "        return passes_on(call)\n"
        "    except BaseException as error:\n"
        "        leave_out_own_frames(error)\n"
        "        raise\n",
        leave_out_own_frames=lambda error: leave_out_own_frames(error, **options),
    )
    try:
        names["leaves"](fails)
    except Exception as error:
        return [entry.name for entry in traceback.extract_tb(error.__traceback__)][1:], error
    return pytest.fail("nothing was raised")


def users_function():
    return torch.ones(2) + torch.ones(3)


@CLEAN
def test_what_the_program_called_stays_and_the_agents_frames_go():
    assert entries_after(users_function)[0] == ["users_function"]


def test_in_every_python_at_most_the_agents_outermost_frame_is_left():
    names, _ = entries_after(agents("def raises():\n    raise RuntimeError\n")["raises"])
    assert names in ([], ["leaves"])


@CLEAN
def test_torchs_frames_go_where_only_the_agent_has_called_them():
    refused = lambda: torch.ops.aten.add.Tensor(torch.ones(2), torch.ones(3))  # noqa: E731
    own = agents("def calls():\n    return refused()\n", refused=torch.ops.aten.add.Tensor)["calls"]
    assert entries_after(own, and_torchs=True)[0] == []
    assert entries_after(own)[0] == ["__call__"]
    assert entries_after(refused, and_torchs=True)[0] == ["<lambda>", "__call__"]


def test_a_mistake_of_the_agents_own_keeps_all_of_its_traceback():
    names, error = entries_after(agents("def mistakes():\n    return {}['no']\n")["mistakes"])
    assert names == ["leaves", "passes_on", "mistakes"]
    assert is_own_fault(error)


@pytest.mark.parametrize("text", ["raise AttributeError", "return int('x')", "raise KeyError"])
def test_an_error_on_purpose_or_of_the_programs_values_is_none(text):
    names, error = entries_after(agents(f"def raises():\n    {text}\n")["raises"])
    assert names in ([], ["leaves"])
    assert not is_own_fault(error)
