"""Tensors that hold others and run their ops themselves, on the simulated device."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from syncagent import simulate


class Holder(torch.Tensor):
    """Does with what it holds whatever is done with it, as the tensors of libraries for quantization do."""

    @staticmethod
    def __new__(cls, elem, **options):
        made = {"strides": elem.stride(), "dtype": elem.dtype, "layout": elem.layout, "device": elem.device} | options
        holder = torch.Tensor._make_wrapper_subclass(cls, elem.size(), **made)
        holder.elem = elem
        return holder

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = pytree.tree_map_only(Holder, lambda x: x.elem, (args, kwargs or {}))
        out = func(*args, **kwargs)
        if func.name().endswith("_"):  # in place
            return out
        return pytree.tree_map_only(torch.Tensor, cls, out)

    def __repr__(self):
        return f"Holder({self.elem})"


class Place(Holder):
    """It says itself where it is."""

    @property
    def device(self):
        return torch.device("cpu")


class Hold(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return Holder(x * 2)

    @staticmethod
    def backward(ctx, grad):
        return (grad.elem if isinstance(grad, Holder) else grad) * 2


class Release(torch.autograd.Function):
    @staticmethod
    def forward(ctx, holder):
        return holder.elem.clone()

    @staticmethod
    def backward(ctx, grad):
        return Holder(grad)


@pytest.fixture
def holder():
    return Holder(torch.arange(3.0, device="cuda"))


@pytest.mark.parametrize("device", ["cuda", "cuda:0", 0, torch.device("cuda"), torch.device("cuda", 0)])
def test_it_says_that_it_is_where_the_program_has_put_it(device):
    made = Holder(torch.ones(3, device="cuda"), device=device)
    assert (made.device, made.is_cuda, made.is_cpu, made.get_device()) == (torch.device("cuda", 0), True, False, 0)
    assert made.type() == "torch.cuda.FloatTensor"
    assert torch.ones(2, device=made.device).is_cuda
    made.record_stream(torch.cuda.Stream())


def test_the_same_class_on_the_host_says_that_it_is_there(holder):
    assert holder.is_cuda
    host = Holder(torch.ones(3))
    assert (host.device.type, host.is_cuda, host.type()) == ("cpu", False, "torch.FloatTensor")
    there, back = host.to("cuda"), holder.cpu()
    assert (type(there), there.device.type, there.elem.tolist()) == (Holder, "cuda", [1, 1, 1])
    assert (type(back), back.device.type, back.elem.device.type, back.elem.tolist()) == (
        Holder,
        "cpu",
        "cpu",
        [0, 1, 2],
    )


def test_what_a_class_says_itself_stays_its_own():
    made = Place(torch.ones(1, device="cuda"))
    assert (made.device.type, made.is_cuda, Place.device.fget(made)) == ("cpu", True, torch.device("cpu"))


def test_all_arguments_may_be_given_by_place():
    made = torch.Tensor._make_wrapper_subclass(
        Holder, (2, 3), (3, 1), 0, None, torch.float16, torch.strided, torch.device("cuda"), False, True
    )
    assert (made.shape, made.stride(), made.dtype, made.is_cuda) == ((2, 3), (3, 1), torch.float16, True)
    assert made.requires_grad


def test_a_class_that_is_to_be_asked_for_the_device_is_not_asked_by_autograd():
    class Asked(Holder):
        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            if func is torch.ops.prim.device.default:
                return args[0].elem.device
            return super().__torch_dispatch__(func, types, args, kwargs)

    made = Asked(torch.ones(3, device="cuda"), dispatch_device=True, requires_grad=True)
    (made * 2).sum().backward()
    assert (made.device.type, made.grad.elem.tolist()) == ("cuda", [2, 2, 2])


def test_its_class_gets_the_ops_whichever_argument_is_first(holder):
    x = torch.ones(3, device="cuda")
    for result in (holder + x, x + holder, torch.stack([x, holder])[1] + 1):
        assert type(result) is Holder
        assert (result.device.type, result.elem.tolist()) == ("cuda", [1, 2, 3])
    x += 1
    holder.mul_(x)
    assert holder.elem.tolist() == [0, 2, 4]
    assert (holder.sum().item(), holder[2].item(), holder[[0, 2]].elem.tolist()) == (6, 4, [0, 4])
    assert holder.new_zeros(2).elem.is_cuda
    assert torch.zeros_like(holder).elem.tolist() == [0, 0, 0]


def test_autograds_functions_return_and_take_it():
    x = torch.arange(3.0, device="cuda", requires_grad=True)
    held = Hold.apply(x)
    assert (type(held), held.device.type, held.requires_grad) == (Holder, "cuda", True)
    Release.apply(held * held).sum().backward()
    assert x.grad.tolist() == [0, 8, 16]  # of (2 x) ** 2


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimizer_trains_it_as_it_trains_what_it_holds(make):
    found = []
    for kind in (lambda x: x.clone(), Holder):
        leaf = kind(torch.arange(3.0, device="cuda")).requires_grad_()
        optimizer = make([leaf], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (leaf * leaf).sum().backward()
            optimizer.step()
        found.append(getattr(leaf.detach(), "elem", leaf).tolist())
    assert found[0] == found[1]
    assert found[0] != [0, 1, 2]


def test_a_module_has_it_as_a_parameter_and_is_copied(holder):
    layer = nn.Linear(3, 2, bias=False, device="cuda")
    plain = copy.deepcopy(layer)
    layer.weight = nn.Parameter(Holder(layer.weight.detach()))
    assert isinstance(layer.weight, nn.Parameter)
    again = copy.deepcopy(layer)
    for each in (layer, again, plain):
        each(torch.ones(4, 3, device="cuda")).sum().backward()
        assert each.weight.device == torch.device("cuda", 0)
    assert again.weight.elem is not layer.weight.elem
    assert again.weight.grad.elem.tolist() == layer.weight.grad.elem.tolist() == plain.weight.grad.tolist()
    twin = copy.deepcopy(holder)
    twin.add_(1)
    assert (holder.elem.tolist(), twin.elem.tolist(), twin.device.type) == ([0, 1, 2], [1, 2, 3], "cuda")


@pytest.mark.parametrize("place", ["cuda", "cpu"])
def test_a_state_dict_with_it_is_saved_and_loaded(holder, place):
    module = nn.Module()
    module.weight = nn.Parameter(holder)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    read = torch.load(file, weights_only=False, map_location=place)["weight"]
    assert (type(read), read.device.type, read.elem.device.type) == (Holder, place, place)
    assert read.elem.tolist() == [0, 1, 2]
    module.load_state_dict({"weight": Holder(torch.ones(3, device="cuda"))})
    assert module.weight.elem.tolist() == [1, 1, 1]


def test_autocast_applies_to_it():
    held = Holder(torch.ones(2, 2, device="cuda"))
    with torch.autocast("cuda", torch.bfloat16):
        result = held @ held
    assert (result.dtype, result.elem.dtype) == (torch.bfloat16, torch.bfloat16)


def test_it_is_refused_where_the_device_does_not_exist():
    with pytest.raises(torch.AcceleratorError, match="invalid device ordinal"):
        Holder(torch.ones(1, device="cuda"), device="cuda:7")


def test_what_autograd_would_ask_cuda_for_is_refused():
    x, leaf = torch.ones(3, device="cuda"), torch.ones(3, device="cuda", requires_grad=True)
    host = torch.ones(3, requires_grad=True)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
        assert (fake.device.type, (fake * 2).shape) == ("cuda", (3,))
        with pytest.raises(simulate.SimulationError, match=r"^a FakeTensor on cuda:0 that requires a gradient is not"):
            mode.from_tensor(leaf)
        with pytest.raises(simulate.SimulationError, match="requires a gradient"):
            fake.requires_grad_()
        host = mode.from_tensor(host)
        (host * 2).sum().backward()
        assert host.grad.device.type == "cpu"


def test_a_parameter_is_made_as_before():
    made = nn.Parameter(torch.ones(2))
    assert (type(made), made.requires_grad) == (nn.Parameter, True)
    assert type(torch.Tensor._make_subclass(nn.Parameter, torch.ones(2))) is nn.Parameter
