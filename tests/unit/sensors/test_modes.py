"""Both modes around every op: what Python called, every op counted, and nothing of the program's own disturbed."""

from __future__ import annotations

import contextlib
import operator
import threading
import warnings

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from syncagent import Phase
from syncagent.runtime.process import release

X = torch.tensor([[1.0, 0.0, 3.0], [0.0, 5.0, 0.0]])
ONE = torch.ones(1)


class PassApi(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class PassOps(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.fixture
def ops(cpu_agent):
    """A running agent with ``detail="ops"``."""
    return cpu_agent(detail="ops")


def stacks():
    """Depths of this thread's stacks of modes."""
    return torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()


def counts(agent):
    """Calls by op, over all lines."""
    found = {}
    for row in agent.report().ops:
        found[row.op] = found.get(row.op, 0) + row.count
    return found


# --- the name of the call ---------------------------------------------------------------------------------------------

CALLS = {
    "torch.Tensor.item": lambda: ONE.item(),
    "torch.Tensor.__getitem__": lambda: X[X > 0],
    "torch.Tensor.__bool__": lambda: bool(ONE),
    "torch.Tensor.__float__": lambda: float(ONE),
    "torch.Tensor.__int__": lambda: int(ONE),
    "torch.Tensor.__index__": lambda: operator.index(torch.tensor(3)),
    "torch.Tensor.__complex__": lambda: complex(ONE),
    "torch.Tensor.__format__": lambda: f"{torch.tensor(2.0):.2f}",
    "torch.Tensor.__contains__": lambda: 3.0 in X,
    "torch.Tensor.nonzero": lambda: X.nonzero(),
    "torch.Tensor.unique": lambda: X.unique(),
    "torch.nonzero": lambda: torch.nonzero(X),
    "torch.unique": lambda: torch.unique(X),
    "torch.unique_consecutive": lambda: torch.unique_consecutive(X),
    "torch.where": lambda: torch.where(X > 0),
    "torch.bincount": lambda: torch.bincount(torch.tensor([1, 2])),
    "torch.linalg.cholesky": lambda: torch.linalg.cholesky(torch.eye(2)),
    "torch.linalg.solve": lambda: torch.linalg.solve(torch.eye(2), torch.ones(2)),
    "torch.nn.functional.one_hot": lambda: torch.nn.functional.one_hot(torch.tensor([0, 2])),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_call_is_named_as_a_user_would_write_it(ops, name):
    """Public names, whatever C function or wrapper implements them."""
    CALLS[name]()
    assert {event.api for event in ops.events()} == {name}


def test_an_assignment_by_a_mask_is_named_setitem(ops):
    """``x[mask] = y``."""
    x = X.clone()
    x[x > 0] = torch.zeros(3)
    [event] = ops.events()
    assert (event.op, event.api) == ("aten::index_put_", "torch.Tensor.__setitem__")


def test_without_the_modes_the_call_is_not_known(cpu_agent):
    """``detail="syncs"`` knows the op and the line, and guesses no name."""
    agent = cpu_agent(detail="syncs")
    ONE.item()
    assert [event.api for event in agent.events()] == [None]


def test_the_outermost_call_gives_the_name(ops):
    """``Tensor.unique`` is Python that calls ``torch.unique``, which calls another; the user wrote the first."""
    X.unique(return_counts=True)
    assert [event.api for event in ops.events()] == ["torch.Tensor.unique"]


def test_an_error_leaves_no_name_behind(ops):
    """After a call that failed, the next has its own name."""
    with pytest.raises(RuntimeError):
        X.item()
    ONE.item()
    X.nonzero()
    assert [event.api for event in ops.events()][-1] == "torch.Tensor.nonzero"


# --- every op is counted ----------------------------------------------------------------------------------------------


def test_every_op_is_counted_at_its_line(ops, line_of):
    """Also those that never wait."""
    for _ in range(3):
        X.mul(2)  # <- multiplies
    X.neg()  # <- negates
    rows = {(row.op, row.file, row.line): row for row in ops.report().ops}
    assert rows["aten::mul", __file__, line_of("multiplies")].count == 3
    assert rows["aten::neg", __file__, line_of("negates")].count == 1
    assert all(row.host_ms > 0 for row in rows.values())


def test_the_report_shows_where_host_time_goes_between_syncs(ops):
    """``report().ops`` holds host time by op and line; stalls are listed separately."""
    X.mul(2)
    X.nonzero()
    rows = {row.op: row for row in ops.report().ops}
    assert {"aten::mul", "aten::nonzero"} <= set(rows)
    assert rows["aten::nonzero"].host_ms >= rows["aten::nonzero"].stall_ms >= 0
    assert rows["aten::mul"].stall_ms == 0


def test_ops_of_the_backward_pass_are_counted_apart(ops):
    """By the phase that they ran in."""
    x = torch.ones(3, requires_grad=True)
    x.exp().sum().backward()
    phases = {row.op: row.phase for row in ops.report().ops}
    assert phases["aten::exp"] != Phase.BACKWARD.value
    assert phases["aten::expand"] == Phase.BACKWARD.value


def test_under_syncs_no_op_is_counted(cpu_agent):
    """Nothing is around ops that cannot wait."""
    agent = cpu_agent(detail="syncs")
    X.mul(2)
    assert (stacks(), agent.report().ops) == ((0, 0), ())


def test_ops_of_generators_and_under_grad_modes_are_counted(ops):
    """``no_grad``, ``inference_mode`` and a generator that runs between them."""

    def batches():
        for row in X:
            yield row.neg()

    with torch.no_grad():
        stream = batches()
        next(stream)
    with torch.inference_mode():
        next(stream)
        X.neg()
    assert counts(ops)["aten::neg"] == 3


# --- on and off -------------------------------------------------------------------------------------------------------


def test_both_stacks_are_empty_again_after_stop(ops):
    """What a watch turns on, its end turns off."""
    assert stacks() == (1, 1)
    release(ops)
    before = counts(ops)
    X.mul(2)
    assert (stacks(), counts(ops)) == ((0, 0), before)


def test_stop_on_another_thread_ends_the_watch_of_this_one(ops):
    """A program may be watched by one thread and stopped by another; modes belong to the first."""
    thread = threading.Thread(target=release, args=(ops,))
    thread.start()
    thread.join()
    X.nonzero()
    before = counts(ops)
    X.mul(2)
    X.nonzero()
    assert counts(ops) == before
    assert ops.events() == ()


ORDERS = {
    "user inside": ("agent on", "user on", "user off", "agent off"),
    "user outside": ("user on", "agent on", "agent off", "user off"),
    "agent ends inside": ("agent on", "user on", "agent off", "user off"),
    "agent outlives": ("user on", "agent on", "user off", "agent off"),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "users",
    [PassApi, PassOps, lambda: torch.device("cpu")],
    ids=["function mode", "dispatch mode", "device"],
)
def test_the_users_own_modes_may_open_and_close_at_any_time(cpu_agent, users, order):
    """In whatever order modes of the program's and the agent's begin and end, neither takes the other away."""
    user = users()
    agent = None
    for change in ORDERS[order]:
        if change == "agent on":
            agent = cpu_agent(detail="ops")
        elif change == "agent off":
            release(agent)
        elif change == "user on":
            user.__enter__()
        else:
            user.__exit__(None, None, None)
        X.neg()
        torch.zeros(2)
    assert stacks() == (0, 0)
    report = agent.report()
    assert report.notes == ()
    # On from "agent on" until "agent off": as many changes as lie in between.
    inside = ORDERS[order].index("agent off") - ORDERS[order].index("agent on")
    if order != "agent outlives":
        assert counts(agent)["aten::neg"] == inside


def test_a_users_mode_that_ends_last_still_works(cpu_agent):
    """The agent takes out its own mode and leaves the others in their order."""
    names = []

    class Named(TorchFunctionMode):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def __torch_function__(self, func, types, args=(), kwargs=None):
            names.append(self.name)
            return func(*args, **(kwargs or {}))

    agent = cpu_agent(detail="ops")
    with Named("outer"), Named("inner"):
        release(agent)
        X.neg()
        assert names == ["inner", "outer"]
        assert stacks()[0] == 2


def test_a_default_device_may_be_set_meanwhile(ops):
    """``torch.set_default_device`` pushes a mode of its own to the bottom of the stack."""
    try:
        torch.set_default_device("cpu")
        assert torch.zeros(2).device.type == "cpu"
        X.neg()
    finally:
        torch.set_default_device(None)
    release(ops)
    assert (stacks(), counts(ops)["aten::neg"]) == ((0, 0), 1)


def test_other_threads_have_no_modes(ops):
    """Modes belong to the thread that starts the agent; the kernels below see the others' syncs all the same."""
    found = []

    def work():
        found.append(stacks())
        X.neg()
        X.nonzero()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(0, 0)]
    assert "aten::neg" not in counts(ops)
    assert [(event.op, event.api) for event in ops.events()] == [("aten::nonzero", None)]


def test_a_generator_that_ends_inside_a_users_mode_leaves_the_agents_alone(ops):
    """A generator may hold a mode open over the caller's lines."""

    def held():
        with PassOps():
            yield

    stream = held()
    next(stream)
    X.neg()
    with contextlib.suppress(StopIteration):
        next(stream)
    X.neg()
    assert counts(ops)["aten::neg"] == 2
    assert stacks() == (1, 1)


# --- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.fixture
def compiling():
    """``torch.compile`` from scratch, and a counter of the graphs it makes."""
    with warnings.catch_warnings():  # torch calls what it has deprecated itself
        warnings.simplefilter("ignore", DeprecationWarning)
        torch._dynamo.reset()
    from torch._dynamo.testing import CompileCounter

    yield CompileCounter()
    torch._dynamo.reset()


def test_compiled_code_stays_compiled(ops, compiling):
    """No graph break, no second compilation from call to call, the same values."""

    def step(x):
        return torch.nn.functional.relu(x * 2 + 1).sum()

    compiled = torch.compile(step, backend=compiling, fullgraph=True)
    results = [compiled(X) for _ in range(4)]
    assert (compiling.frame_count, {r.item() for r in results}) == (1, {step(X).item()})
    release(ops)
    compiled(X)
    assert compiling.frame_count <= 2  # one more at most when the modes are left
    assert dict(torch._dynamo.utils.counters["graph_break"]) == {}


def test_code_compiled_before_the_watch_goes_on_under_it(cpu_agent, compiling):
    """Entering the modes costs one compilation at most, and none at each later step."""
    compiled = torch.compile(lambda x: (x * 2).sum(), backend=compiling, fullgraph=True)
    compiled(X)
    agent = cpu_agent(detail="ops")
    for _ in range(3):
        compiled(X)
    assert compiling.frame_count <= 2
    release(agent)


def test_syncs_inside_compiled_code_are_seen(cpu_agent, compiling):
    """Kernels are below the compiler."""
    agent = cpu_agent(detail="syncs")
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(lambda x: torch.nonzero(x) * 2, backend=compiling, fullgraph=True)
        compiled(X)
        before = len(agent.events())
        compiled(X)
    assert [event.op for event in agent.events()[before:]] == ["aten::nonzero"]
    assert compiling.frame_count == 1
