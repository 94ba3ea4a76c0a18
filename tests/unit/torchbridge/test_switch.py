"""Kernels that a thread turns on for itself: at work there and nowhere else, and never seen by the compiler."""

from __future__ import annotations

import pytest
import torch

from syncagent.rules.table import RULES
from syncagent.torchbridge.switch import Switch, compile_in_use
from tests.unit.tools import Kernels, on_thread

X = torch.ones(3)


@pytest.fixture
def watching(cpu_device, host):
    """A sensor of copies alone, which is not armed yet."""
    sensor = Kernels([host.rule(rule) for rule in RULES if rule.hot])
    sensor.start()
    yield sensor
    sensor.disarm_hot()
    sensor.stop()


def copies(sensor, host, times=1):
    """Copy from the host that often; return how many copies were seen in all threads so far."""
    for _ in range(times):
        X.clone().copy_(host(torch.zeros(3)))
    return len(sensor.seen())


def test_copies_are_seen_while_it_is_on(watching, host):
    """And not before or after."""
    assert copies(watching, host) == 0
    watching.arm_hot()
    assert copies(watching, host) == 1
    watching.disarm_hot()
    assert copies(watching, host) == 1


def test_other_threads_are_left_alone(watching, host):
    """The key is this thread's."""
    watching.arm_hot()
    assert on_thread(lambda: copies(watching, host)) == 0
    assert on_thread(lambda: watching.hot_armed) is False


def test_results_and_gradients_are_the_same(watching):
    """Under autograd, in place, out of place, and under a mode of another's."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Passing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    def work():
        x = torch.arange(4.0, requires_grad=True)
        y = (x.to(torch.float64) * 2).sum()
        y.backward()
        with Passing():
            z = x.detach().clone().copy_(torch.ones(4)).to(torch.float16)
        return [x.grad.tolist(), z.tolist(), torch.func.vmap(lambda row: row * 2)(torch.ones(2, 2)).tolist()]

    bare = work()
    watching.arm_hot()
    assert work() == bare


def test_a_fake_tensors_copy_is_no_copy(watching):
    """torch.compile and export run programs on tensors without data."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    watching.arm_hot()
    with FakeTensorMode():
        assert torch.ones(3).copy_(torch.zeros(3)).shape == (3,)
    assert watching.seen() == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Guards may run slower:RuntimeWarning")
def test_compiled_code_is_compiled_once_though_copies_are_sampled(watching, host):
    """From the call of torch.compile on, the key is never on again: a guard would see it."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    watching.arm_hot()
    compiled = torch.compile(lambda x: (x * 2).sum(), backend=counter, fullgraph=True)
    for _ in range(3):
        compiled(X)
        watching.disarm_hot()
        compiled(X)
        watching.arm_hot()
    assert counter.frame_count == 1
    assert (watching.hot_armed, watching.gave_way) == (False, True)
    assert copies(watching, host) == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Guards may run slower:RuntimeWarning")
def test_where_compiled_code_is_there_before_the_key_is_never_on(cpu_device):
    """Its guards are set."""
    torch._dynamo.reset()
    torch.compile(lambda x: x + 1, backend="eager")(X)
    switch = Switch()
    switch.prepare()
    switch.turn(on=True)
    assert compile_in_use()
    assert (switch.is_on, switch.compiles) == (False, True)
    switch.release()


def test_an_optimizer_is_no_sign_of_compiled_code(cpu_device):
    """Though torch.optim touches the compiler's parts."""
    torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1).step()
    assert not compile_in_use()


def test_torch_is_as_before_afterwards(cpu_device):
    """torch.compile is its own function again, and the key is off."""
    before = torch.compile
    switch = Switch()
    switch.prepare()
    switch.turn(on=True)
    switch.release()
    assert torch.compile is before
    assert not switch.is_on
