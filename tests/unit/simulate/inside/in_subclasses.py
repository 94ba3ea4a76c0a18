"""Classes that programs derive from torch.Tensor, on the simulated device."""

from __future__ import annotations

import copy
import io
import sys

import pytest
import torch
from torch import nn


class Labelled(torch.Tensor):
    """Results have the label of the first argument, as in MONAI; kept in the __dict__, which is replaced."""

    calls: list[str] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.calls.append(func.__name__)
        result = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(result, Labelled) and args and isinstance(args[0], Labelled):
            result.__dict__ = dict(args[0].__dict__)
        return result


class Plain(torch.Tensor):
    pass


class Collection:
    """No tensor, but some of torch's functions are defined for it, as for TensorDicts."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return func, types, len(args), sorted(kwargs or {})


class KeptByTo(torch.Tensor):
    """Only one method's results are of the class, as in torchvision."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs or {})
        return result.as_subclass(cls) if func == torch.Tensor.to else result


@pytest.fixture
def labelled():
    made = torch.arange(6.0).reshape(2, 3).as_subclass(Labelled)
    made.label = "first"
    return made


def test_a_tensor_of_the_programs_class_stays_one_on_the_device(labelled):
    there = labelled.to("cuda")
    assert isinstance(there, Labelled)
    assert (there.device.type, there.is_cuda, there.label) == ("cuda", True, "first")
    assert (type(there).__name__, type(there).__module__) == ("Labelled", __name__)
    twice = there * 2 + torch.ones(3, device="cuda")
    assert isinstance(twice, Labelled)
    assert (twice.label, twice.tolist()) == ("first", [[1, 3, 5], [7, 9, 11]])
    assert isinstance(there[0], Labelled)
    assert there[there > 2].tolist() == [3, 4, 5]
    there[0] = 7
    assert there.sum().item() == 33
    assert {"mul", "add", "sum"} <= set(Labelled.calls)


def test_it_comes_back_as_the_programs_own_class(labelled):
    back = labelled.cuda().mul(3).cpu()
    assert type(back) is Labelled
    assert (back.label, back.tolist()) == ("first", [[0, 3, 6], [9, 12, 15]])
    assert type(labelled.cuda().as_subclass(torch.Tensor)) is type(torch.ones(1, device="cuda"))


def test_a_tensor_on_the_device_becomes_one_and_shares_its_memory():
    x = torch.ones(3, device="cuda")
    same = x.as_subclass(Plain)
    same.add_(1)
    assert isinstance(same, Plain)
    assert x.tolist() == [2, 2, 2]
    assert isinstance(same.as_subclass(Labelled), Labelled)
    assert isinstance(type(same)(same), Plain)


def test_gradients_flow_through_it():
    x = torch.arange(3.0, device="cuda", requires_grad=True)
    (x.as_subclass(Plain) ** 2).sum().backward()
    assert x.grad.tolist() == [0, 2, 4]
    layer = nn.Linear(3, 1).cuda()
    expected = copy.deepcopy(layer).cpu()(torch.ones(2, 3))
    out = layer(torch.ones(2, 3).as_subclass(Plain).cuda())
    assert isinstance(out, Plain)
    assert torch.equal(out.detach().cpu().as_subclass(torch.Tensor), expected)
    out.sum().backward()
    assert layer.bias.grad.tolist() == [2]


def test_it_is_copied_and_saved_with_what_the_program_keeps_in_it(labelled):
    there = labelled.cuda()
    for again in (copy.copy(there), copy.deepcopy(there)):
        assert isinstance(again, Labelled)
        assert (again.label, again.tolist()) == ("first", labelled.tolist())
    file = io.BytesIO()
    torch.save(there, file)
    file.seek(0)
    read = torch.load(file, weights_only=False)
    assert isinstance(read, Labelled)
    assert (read.device.type, read.label, read.tolist()) == ("cuda", "first", labelled.tolist())


def test_attributes_of_another_tensor_leave_a_tensor_what_it_holds(labelled):
    """As fastai's ``set_meta``, which gives each result all attributes of the first argument."""
    x = torch.ones(2, 3, device="cuda")
    x.label = "first"
    for total in (x.sum(), labelled.cuda().sum().as_subclass(torch.Tensor)):
        expected = total.item()
        total.__dict__ = dict(x.__dict__)
        assert (total.label, total.item(), total.clone().shape) == ("first", expected, ())
    there = labelled.cuda()
    there.__dict__ = x.__dict__
    plain = there.as_subclass(torch.Tensor)
    plain.__dict__ = there.__dict__
    assert (plain.label, plain.tolist()) == ("first", [[0, 1, 2], [3, 4, 5]])
    assert x.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_attributes_are_those_that_the_program_gave_a_tensor_and_no_other_keeps_its_memory():
    x = torch.ones(1 << 16, device="cuda")
    x.label = "first"
    assert x.__dict__ == copy.copy(x.__dict__) == copy.deepcopy(x.__dict__) == {"label": "first"}
    x.__dict__.update(other=1)
    x.__dict__["more"] = x.__dict__.pop("other") + 1
    assert (x.label, x.more, vars(x)) == ("first", 2, {"label": "first", "more": 2})
    before, host = torch.cuda.memory_allocated(), x.cpu()
    host.__dict__ = x.__dict__
    assert (type(host), host.label, host[0].item()) == (torch.Tensor, "first", 1)
    del x
    assert torch.cuda.memory_allocated() == before - (1 << 18)


def test_a_tensor_on_the_host_becomes_no_tensor_of_the_device():
    """As fastcore's ``retain_type``, which gives a result the class of what it was made of."""
    x = torch.ones(2, device="cuda")
    host = x.cpu().as_subclass(type(x))
    assert (type(host), host.device.type, host.tolist()) == (torch.Tensor, "cpu", [1, 1])


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_tensors_that_are_swapped_exchange_what_they_hold(device):
    one, other = torch.ones(2, device="cuda"), torch.zeros(3, device=device)
    one.label = "one"
    torch.utils.swap_tensors(one, other)
    assert (one.device.type, one.tolist(), (one + 1).tolist()) == (device, [0, 0, 0], [1, 1, 1])
    assert (other.device.type, other.label, (other + 1).tolist()) == ("cuda", "one", [2, 2])


def test_in_inference_mode_and_under_no_grad(labelled):
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            there = labelled.cuda()
            assert isinstance(there + 1, Labelled)
            assert (there + 1).sum().item() == 21
            assert isinstance(torch.ones(2, device="cuda").as_subclass(Plain), Plain)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        *((f"{kind}_like", (), ()) for kind in ("empty", "zeros", "ones", "rand", "randn")),
        ("full_like", (), (1.0,)), ("randint_like", (), (5,)), ("normal", (), (1.0,)), ("normal", (0.0,), ()),
        ("full", ((2,),), ()), ("arange", (0,), ()), ("zeros", (), ()), ("scalar_tensor", (), ()),
        ("hann_window", (), ()), ("sparse_coo_tensor", ([[0]],), ()),
        ("ctc_loss", (torch.zeros(3, 1, 2), torch.ones(1, 1), [3]), ()),
    ],
)  # fmt: skip
def test_a_function_asks_an_argument_with_a_torch_function_under_the_name_that_torch_has(name, before, after):
    function = getattr(torch, name)
    there = {"device": "cuda"} if name != "ctc_loss" else {}
    args = (*before, Collection(), *after)
    assert function(*args, **there) == (function, (Collection,), len(args), [*there])


def test_an_argument_given_by_name_is_asked_too():
    assert torch.empty_like(input=Collection()) == (torch.empty_like, (Collection,), 0, ["input"])


@pytest.mark.parametrize("function", [torch.tensor, torch.as_tensor])
def test_what_reads_any_object_does_not_ask_it(function):
    with pytest.raises((TypeError, RuntimeError), match=r"Collection|infer"):
        function(Collection(), device="cuda")


def test_modes_come_first_and_then_the_argument():
    class Mode(torch.overrides.TorchFunctionMode):
        seen = []

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.seen.append((func, types))
            return func(*args, **kwargs or {})

    with Mode():
        found = torch.ones_like(Collection(), device="cuda")
    assert Mode.seen == [(torch.ones_like, (Collection,))]
    assert found == (torch.ones_like, (Collection,), 1, ["device"])


def test_a_class_sees_torchs_own_methods():
    there = torch.ones(2).as_subclass(KeptByTo).to("cuda")
    assert isinstance(there, KeptByTo)
    assert isinstance(there.to(torch.float64), KeptByTo)
    assert not isinstance(torch.ones(2).as_subclass(KeptByTo).cuda(), KeptByTo)
    assert not isinstance(there.new_zeros(2), KeptByTo)
    assert isinstance(torch.ones(2).to(there), KeptByTo)


def test_data_for_new_tensor_is_not_asked_and_a_class_among_the_arguments_is_none(labelled):
    with pytest.warns(UserWarning, match="copy construct"):
        assert not isinstance(torch.ones(1, device="cuda").new_tensor(labelled), Labelled)
    assert isinstance(labelled.cuda().new_tensor([1.0]), Labelled)
    assert labelled.as_subclass(torch.Tensor).type(torch.DoubleTensor).type() == "torch.DoubleTensor"


def test_a_class_that_runs_its_ops_itself_is_left_to_torch():
    class Own(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            raise NotImplementedError

    with pytest.raises(RuntimeError, match="already associated to a python object"):
        torch.ones(1, device="cuda").as_subclass(Own)


def test_torchvisions_are_of_this_kind():
    tv_tensors = pytest.importorskip("torchvision.tv_tensors")
    image = tv_tensors.Image(torch.zeros(3, 4, 4)).to("cuda")
    boxes = tv_tensors.BoundingBoxes(torch.tensor([[0, 0, 2, 2]]), format="XYXY", canvas_size=(4, 4)).to("cuda")
    assert isinstance(image, tv_tensors.Image)
    assert (boxes.canvas_size, boxes.tolist()) == ((4, 4), [[0, 0, 2, 2]])
    assert not isinstance(image + 1, tv_tensors.Image)
    assert "torchvision" in sys.modules
