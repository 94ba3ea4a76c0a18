"""What traces a program through the dispatcher records the same under watch: results, graphs and the lines in them."""

from __future__ import annotations

import copy
import importlib.util
import io
import re
import warnings

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from syncagent.torchbridge.numbers import as_tensor

X = torch.tensor([1.0, 0.0, 2.0])
MODEL = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


def scaled(x):
    return x * 2 + 1


def read(x):
    return x * x.sum().item()


def shaped(x):
    return x[x > 0] * 2


def converted(x):
    return (x.half() * 2.5).to(torch.float32) // 2


class Wrapped(torch.Tensor):
    """A tensor around another one, that takes ops apart itself."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def bare(value):
            return value.inner if isinstance(value, cls) else value

        result = func(*[bare(value) for value in args], **(kwargs or {}))
        result = cls(result) if isinstance(result, torch.Tensor) else result
        return return_and_correct_aliasing(func, args, kwargs or {}, result)


class Ops(TorchDispatchMode):
    """Writes down which ops pass."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def traced(function, *args, **options):
    made = torch.jit.trace(function, *(args or (X,)), **options)
    return str(made.graph), made(X)


def traced_module():
    made = torch.jit.trace_module(MODEL, {"forward": X})
    return str(made.graph), str(torch.jit.freeze(made).graph), made(X)


def scripted():
    @torch.jit.script
    def item(x):
        return x * float(x.sum().item()) + 1.0

    return str(item.graph), item(X), item(X)


def saved_and_loaded():
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(scaled, X), file)
    file.seek(0)
    return str(torch.jit.load(file).graph)


def made_fx(function, mode):
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(function, tracing_mode=mode)(X).code


def faked():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        made = scaled(mode.from_tensor(X)) @ torch.ones(3)
    return made.shape, made.dtype, type(made)


def functional():
    from torch.func import functional_call, grad, jvp, vmap

    weights = dict(MODEL.named_parameters())
    return (
        functional_call(MODEL, weights, X),
        vmap(scaled)(torch.stack([X, X])),
        grad(lambda x: scaled(x).sum())(X),
        jvp(scaled, (X,), (X,)),
    )


def flops():
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        MODEL(torch.stack([X, X]))
    return counter.get_total_flops()


def nested():
    made = torch.nested.nested_tensor([X, X[:2]]) * 2
    return made.to_padded_tensor(0.0), [len(row) for row in made.unbind()]


def without_data():
    meta = X.to("meta")
    with pytest.raises((NotImplementedError, RuntimeError)) as refused:
        meta.sum().item()
    return scaled(meta).shape, type(refused.value), str(refused.value)


def of_a_subclass():
    made = scaled(Wrapped(X))
    return made.inner, made.sum().item(), bool((made > 0).any())


def under_a_mode():
    with Ops() as ops:
        scaled(X).sum().item()
        shaped(X)
    return ops.seen


def exported(strict):
    return torch.export.export(copy.deepcopy(MODEL), (X,), strict=strict).graph_module.code


def copied_over():
    target = torch.zeros(3)
    target[1] = 2.5
    target[X > 1] = 4
    return target, torch.equal(target, X), target.masked_fill(X > 0, 2), torch.where(X > 0, 1.0, 2)


TRACERS = {
    "torch.jit.trace": lambda: traced(scaled),
    "torch.jit.trace of a second example": lambda: traced(scaled, X, check_inputs=[(X + 1,), (X - 1,)]),
    "torch.jit.trace without a check": lambda: traced(scaled, check_trace=False),
    "torch.jit.trace of a module": lambda: traced(MODEL),
    "torch.jit.trace of a read": lambda: traced(read, check_trace=False),
    "torch.jit.trace of a dynamic shape": lambda: traced(shaped),
    "torch.jit.trace of conversions": lambda: traced(converted),
    "torch.jit.trace_module": traced_module,
    "torch.jit.script": scripted,
    "torch.jit.save": saved_and_loaded,
    "make_fx": lambda: made_fx(scaled, "real"),
    "make_fx with fake tensors": lambda: made_fx(converted, "fake"),
    "make_fx with symbols": lambda: made_fx(scaled, "symbolic"),
    "torch.fx.symbolic_trace": lambda: torch.fx.symbolic_trace(MODEL).code,
    "FakeTensorMode": faked,
    "torch.func": functional,
    "FlopCounterMode": flops,
    "nested tensors": nested,
    "tensors without data": without_data,
    "a subclass": of_a_subclass,
    "a dispatch mode": under_a_mode,
    "torch.export": lambda: exported(strict=False),
    "numbers in place of tensors": copied_over,
}  # fmt: skip


def shown(value):
    """As text, without what differs from run to run."""
    return re.sub(r"0x[0-9a-f]+|(?<=___torch_mangle_)\d+", "", repr(value))


@pytest.mark.parametrize("name", TRACERS)
@pytest.mark.parametrize("detail", ["syncs", "ops"])
@pytest.mark.filterwarnings("ignore")
def test_it_records_the_same_under_watch(cpu_agent, detail, name):
    program = TRACERS[name]
    program()  # what torch sets up once is done
    before = shown(program())
    agent = cpu_agent(detail=detail, copies="all")
    assert shown(program()) == before
    assert agent.report().notes == ()


@pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="needs tensorboard")
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_draws_the_graph_under_watch(agent):
    from torch.utils.tensorboard._pytorch_graph import graph

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made, _ = graph(MODEL, X)
    assert len(made.node) > 5


@pytest.mark.parametrize("number", [True, 3, 2.5, 1 + 2j])
def test_a_number_becomes_the_tensor_that_torch_made_it_of(number):
    made = as_tensor(number)
    assert (made.item(), made.dtype, made.dim()) == (number, torch.tensor(number, dtype=made.dtype).dtype, 0)
    assert type(made.item()) is type(number)
