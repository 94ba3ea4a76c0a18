"""Programs of many small ops: with destructors, modes and threads of their own."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.fixture
def x():
    values = torch.arange(6.0, device="cuda")
    torch.cuda.synchronize()
    return values


def test_a_destructor_may_use_the_device_in_the_midst_of_one(x):
    class Keeps:
        def __init__(self):
            self.itself = self
            self.values = x.clone()

        def __del__(self):
            seen.append((self.values + 1).sum().item())

    seen = []
    for _ in range(30):
        Keeps()
        for _ in range(5):
            y = x * 2
            gc.collect(0)
    gc.collect()
    assert seen == [21.0] * 30
    assert y.tolist() == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]


def test_shapes_are_found_once_for_all_numbers_that_an_op_is_given_by_name(x, monkeypatch):
    from syncagent.simulate import facts

    tried, on_meta = [], facts.on_meta
    monkeypatch.setattr(facts, "on_meta", lambda value: tried.append(value) or on_meta(value))
    divisor, steps = x + 1, []
    for value in (0.5, 0.25, 0.125):
        tried.clear()
        x.addcdiv_(x, divisor, value=value)
        steps.append(len(tried))
    assert steps[1:] == [0, 0]
    expected, divisor = torch.arange(6.0), torch.arange(6.0) + 1
    for value in (0.5, 0.25, 0.125):
        expected.addcdiv_(expected, divisor, value=value)
    assert torch.equal(x.cpu(), expected)


def test_modes_see_the_op_of_the_program_and_not_the_kernels(x):
    class Functions(TorchFunctionMode):
        def __torch_function__(self, function, _types, args=(), kwargs=None):
            functions.append(function.__name__)
            return function(*args, **(kwargs or {}))

    class Ops(TorchDispatchMode):
        def __torch_dispatch__(self, op, _types, args=(), kwargs=None):
            ops.append(str(op))
            return op(*args, **(kwargs or {}))

    functions, ops = [], []
    with Functions(), Ops():
        y = x.add(1)
    assert functions == ["add"]
    assert ops == ["aten.add.Tensor"]
    assert y.sum().item() == 21.0


def test_results_are_the_same_inside_of_inference_mode_and_autocast(x):
    with torch.inference_mode():
        inside = x + 1
    w = torch.ones(6, device="cuda", requires_grad=True)
    (w * x + inside.clone()).sum().backward()
    assert w.grad.tolist() == x.tolist()
    with torch.no_grad():
        w += 1
    assert w.requires_grad
    assert w.sum().item() == 12.0
    with torch.autocast("cuda", dtype=torch.float16):
        product = torch.ones(2, 2, device="cuda") @ torch.ones(2, 2, device="cuda")
        wide = product.float() + 1
    assert (product.dtype, wide.dtype) == (torch.float16, torch.float32)


def test_threads_that_share_a_stream_wait_for_each_other(x):
    total, turns, errors = torch.zeros(6, device="cuda"), 300, []

    def work():
        try:
            for _ in range(turns):
                total.add_(x)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert total.tolist() == [4.0 * turns * n for n in range(6)]


def test_an_error_is_the_hosts_where_it_next_waits_and_not_before(x):
    y = x.index_select(0, torch.tensor([9], device="cuda"))
    z = y + 1
    with pytest.raises(torch.AcceleratorError, match=r"out of (bounds|range)"):
        z.cpu()
    alive = weakref.ref(y)
    del y, z
    assert alive() is None
