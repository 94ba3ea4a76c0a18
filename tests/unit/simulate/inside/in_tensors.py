"""What programs do with single tensors."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


def both(function, *shapes):
    """The function's result on the device and on the CPU, of the same random tensors."""
    torch.manual_seed(0)
    host = [torch.rand(shape) for shape in shapes]
    ours = function(*[x.cuda() for x in host])
    return ours, function(*[x.clone() for x in host])


def test_it_says_what_a_cuda_tensor_says():
    x = torch.ones(2, 3, device="cuda")
    assert x.device == torch.device("cuda:0")
    assert x.device.type == "cuda"
    assert x.is_cuda
    assert not x.is_cpu
    assert x.get_device() == 0
    assert x.type() == "torch.cuda.FloatTensor"
    assert isinstance(x, torch.Tensor)
    assert x.untyped_storage().data_ptr() == x[1:].untyped_storage().data_ptr()
    assert x[1:].data_ptr() == x.data_ptr() + 12
    assert x.data_ptr() != torch.ones(2, 3, device="cuda").data_ptr()
    assert torch.cuda.get_device_name() == "simulated CUDA device (CPU arithmetic)"
    assert torch.cuda.is_available()
    assert torch.cuda.is_initialized()
    assert torch.cuda.device_count() == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda d: torch.zeros(2, 3, device=d), lambda d: torch.full((2,), 7, device=d),
        lambda d: torch.arange(5, device=d), lambda d: torch.arange(1.0, 2.0, 0.25, device=d),
        lambda d: torch.linspace(0, 1, 5, device=d), lambda d: torch.eye(3, device=d),
        lambda d: torch.tensor([[1, 2], [3, 4]], device=d), lambda d: torch.as_tensor([1.0], device=d),
        lambda d: torch.asarray([1, 2], device=d), lambda d: torch.tensor(3.5, dtype=torch.float64, device=d),
        lambda d: torch.tril_indices(3, 3, device=d), lambda d: torch.hann_window(8, device=d),
        lambda d: torch.kaiser_window(8, device=d), lambda d: torch.kaiser_window(7, False, beta=3.0, device=d),
        lambda d: torch.ones(2).to(d).new_zeros(3), lambda d: torch.ones(2).new_full((2,), 3, device=d),
        lambda d: torch.ones_like(torch.zeros(2, 2), device=d), lambda d: torch.ones(1).to(d).new_tensor([1, 2]),
        lambda d: torch.empty_strided((2, 2), (1, 2), device=d).fill_(1), lambda d: torch.fft.fftfreq(4, device=d),
        lambda d: torch.zeros(0, 3, device=d), lambda d: torch.scalar_tensor(2, device=d),
    ],
)  # fmt: skip
def test_factories(make):
    ours, theirs = make("cuda"), make("cpu")
    assert ours.device == torch.device("cuda:0")
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours.cpu(), theirs)


def test_no_factory_that_torch_has_a_kernel_for_on_the_cpu_is_without_one_here():
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    general = ("CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")
    missing = []
    for name in torch._C._dispatch_get_all_op_names():
        if not name.startswith("aten::") or not has_kernel(name, "CPU"):
            continue
        packet, _, overload = name.removeprefix("aten::").partition(".")
        arguments = torch._C._get_schema(f"aten::{packet}", overload).arguments
        is_factory = any(a.name == "device" for a in arguments) and not any("Tensor" in str(a.type) for a in arguments)
        if is_factory and not any(has_kernel(name, key) for key in ("Lazy", *general)):
            missing.append(name)
    assert missing == []


def test_a_default_device_holds_for_factories():
    with torch.device("cuda"):
        assert torch.zeros(2).is_cuda
        assert torch.tensor([1]).is_cuda
        assert torch.nn.Linear(2, 2).weight.is_cuda
        assert not torch.zeros(2, device="cpu").is_cuda
    assert not torch.zeros(2).is_cuda
    torch.set_default_device("cuda")
    try:
        assert torch.get_default_device() == torch.device("cuda:0")
        assert torch.arange(3).is_cuda
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a + b, lambda a, b: a @ b.T, lambda a, b: (a - b).abs().max(dim=1), lambda a, b: torch.cat([a, b]),
        lambda a, b: a.softmax(-1).log(), lambda a, b: a.t().contiguous(), lambda a, b: a.permute(1, 0)[::1] * 2,
        lambda a, b: a.view(-1)[3:9].reshape(2, 3), lambda a, b: a.split(2, dim=1), lambda a, b: a.unbind(0),
        lambda a, b: a[:, None] * b, lambda a, b: a[1], lambda a, b: a[..., -1], lambda a, b: a[[0, 2]],
        lambda a, b: a[:, [1, 1]], lambda a, b: a[a > 0.5], lambda a, b: a[torch.tensor([0, 1])],
        lambda a, b: a[np.array([2, 0])], lambda a, b: a[torch.tensor(1)], lambda a, b: a[np.int64(1)],
        lambda a, b: a[[]], lambda a, b: a[range(2)], lambda a, b: a[[True, False, True]],
        lambda a, b: a.unfold(0, 2, 1), lambda a, b: a.diagonal(), lambda a, b: a.expand(2, 3, 4),
        lambda a, b: torch.einsum("ij,kj->ik", a, b), lambda a, b: torch.fft.rfft(a).abs(),
        lambda a, b: torch.view_as_real(torch.complex(a, b)), lambda a, b: torch.complex(a, b).conj() * 1j,
        lambda a, b: torch.complex(a, b).mH.imag, lambda a, b: a.to(torch.float16).float(),
        lambda a, b: a.view(torch.int32),
        lambda a, b: torch.where(a > b), lambda a, b: a.sort(), lambda a, b: a.topk(2), lambda a, b: a.unique(),
        lambda a, b: torch.linalg.svd(a)[1],
        lambda a, b: torch.cdist(a, b), lambda a, b: a.cumsum(0), lambda a, b: torch.histc(a), lambda a, b: a.std(),
        lambda a, b: torch.nn.functional.interpolate(a[None, None], scale_factor=2, mode="bilinear"),
        lambda a, b: torch.nn.functional.pad(a, (1, 1)), lambda a, b: a.repeat(2, 2), lambda a, b: a.roll(1, 0),
        lambda a, b: torch.nn.functional.embedding_bag(torch.tensor([[0, 1]], device=a.device), a),
        lambda a, b: torch.tensordot(a, b, dims=2), lambda a, b: a.half() @ b.half().T, lambda a, b: a.clone().t_(),
        lambda a, b: a.clone().unsqueeze_(0).squeeze_(0), lambda a, b: torch.ones_like(a).cumprod(1).type(torch.long),
    ],
)  # fmt: skip
def test_ops_and_views_give_the_cpus_numbers(function):
    ours, theirs = both(function, (3, 4), (3, 4))
    if isinstance(theirs, torch.Tensor):
        ours, theirs = [ours], [theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.is_cuda
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
        assert torch.equal(a.cpu(), b)


def test_a_solution_by_cudas_own_way_is_close_to_the_cpus():
    ours, theirs = both(lambda a, b: torch.linalg.lstsq(a, b).solution, (4, 3), (4, 2))
    torch.testing.assert_close(ours.cpu(), theirs)


def assigned(assign):
    def function(a, b):
        assign(a, b)
        return a

    return function


@pytest.mark.parametrize(
    "assign",
    [
        lambda a, b: a.__setitem__(0, 1.0), lambda a, b: a.__setitem__((slice(None), 1), b[:, 0]),
        lambda a, b: a.__setitem__(a > 0.5, 0.0), lambda a, b: a.__setitem__(a > 0.5, b[a > 0.5]),
        lambda a, b: a.__setitem__([0, 2], 3), lambda a, b: a.__setitem__(torch.tensor([0, 1], device=a.device), 2.0),
        lambda a, b: a.__setitem__((1, 2), b[0, 0]), lambda a, b: a.add_(b).mul_(2), lambda a, b: a[1].zero_(),
        lambda a, b: a.t().copy_(b.t()), lambda a, b: a.view(-1)[::2].fill_(5), lambda a, b: a.clamp_(0.2, 0.4),
        lambda a, b: a.masked_fill_(a > b, -1),
        lambda a, b: a.index_add_(0, torch.tensor([0, 0], device=a.device), b[:2]),
        lambda a, b: a.resize_(2, 2), lambda a, b: (a.resize_(4, 4)[:3].copy_(b), a[3:].zero_()),
        lambda a, b: torch.add(a, b, out=a), lambda a, b: a.set_(b), lambda a, b: a.data.mul_(2),
        lambda a, b: a.copy_(b[0]),
        lambda a, b: setattr(a, "data", b), lambda a, b: a.detach().add_(1),
        lambda a, b: a.scatter_(1, (b > 2).long(), 0.0),
        lambda a, b: a.squeeze_().transpose_(0, 1), lambda a, b: a.as_strided_((2, 2), (1, 1), 3),
    ],
)  # fmt: skip
def test_writes_in_place_give_the_cpus_numbers(assign):
    ours, theirs = both(assigned(assign), (3, 4), (3, 4))
    assert (ours.shape, ours.stride(), ours.storage_offset()) == (
        theirs.shape,
        theirs.stride(),
        theirs.storage_offset(),
    )
    assert torch.equal(ours.cpu(), theirs)


@pytest.mark.parametrize("size", [0, 4, 12])
@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
def test_out_takes_the_results_shape(size):
    a, out = torch.rand(3, 4, device="cuda"), torch.empty(size, device="cuda")
    assert torch.mul(a, 2, out=out) is out
    assert out.shape == (3, 4)
    assert torch.equal(out, a * 2)
    values, indices = torch.empty(0, device="cuda"), torch.empty(0, dtype=torch.long, device="cuda")
    torch.sort(a, out=(values, indices))
    assert torch.equal(values.cpu(), a.cpu().sort()[0])
    torch.nonzero(a > 0.5, out=indices)
    assert torch.equal(indices.cpu(), torch.nonzero(a.cpu() > 0.5))


@pytest.mark.filterwarnings("ignore:torch.cholesky is deprecated")
def test_checked_linear_algebra_waits_for_its_flags_and_raises_at_the_call(observed):
    good, bad = torch.eye(3, device="cuda"), -torch.eye(3, device="cuda")
    checks = [torch.linalg.cholesky, lambda x: torch.linalg.cholesky_ex(x, check_errors=True)]
    if hasattr(torch.ops.aten, "cholesky"):  # gone since torch 2.14
        checks.append(torch.cholesky)
    for check in checks:
        observed.clear()
        check(good)
        assert observed.waits == [("aten::_linalg_check_errors", "check")]
        with pytest.raises(torch.linalg.LinAlgError):
            check(bad)
    observed.clear()
    torch.linalg.cholesky_ex(bad)
    assert observed.waits == []


def test_foreach_copies_cross_the_devices(observed):
    host, device = [torch.ones(2), torch.ones(3)], [torch.zeros(2, device="cuda"), torch.zeros(3, device="cuda")]
    observed.clear()
    torch._foreach_copy_(device, host)
    assert observed.waits == [("aten::copy_", "copy_h2d")] * 2
    assert [x.tolist() for x in device] == [[1, 1], [1, 1, 1]]


def test_values_for_python():
    z = torch.tensor(2.0, device="cuda")
    assert torch.tensor([z, 1.0]).tolist() == [2.0, 1.0]
    assert torch.tensor([z, z], device="cuda").is_cuda
    x = torch.tensor(2.5, device="cuda")
    assert (float(x), int(x), bool(x), x.item(), math.floor(x)) == (2.5, 2, True, 2.5, 2)
    assert f"{x:.3f}" == "2.500"
    assert [1, 2, 3][torch.tensor(1, device="cuda")] == 2
    assert torch.arange(3, device="cuda").tolist() == [0, 1, 2]
    assert 2 in torch.arange(3, device="cuda")
    assert [int(i) for i in torch.arange(2, device="cuda")] == [0, 1]
    assert torch.ones(2, device="cuda").cpu().numpy().sum() == 2
    assert bool(torch.ones(3, device="cuda").all())


def test_printing_looks_as_on_cuda():
    assert repr(torch.tensor([1, 2], device="cuda")) == "tensor([1, 2], device='cuda:0')"
    assert (
        repr(torch.tensor(1.0, device="cuda", requires_grad=True)) == "tensor(1., device='cuda:0', requires_grad=True)"
    )
    two_lines = "tensor([[1., 1.],\n        [1., 1.]], device='cuda:0')"
    assert str(torch.ones(2, 2, device="cuda")) == two_lines
    assert str(torch.nn.Parameter(torch.ones(2, 2, device="cuda"))) == (
        "Parameter containing:\n" + two_lines[:-1] + ", requires_grad=True)"
    )
    assert "grad_fn=<MulBackward0>" in str(torch.ones(1, device="cuda", requires_grad=True) * 2)


def test_moves_between_devices():
    x = torch.ones(2)
    y = x.to("cuda")
    for same in (y.to("cuda"), y.cuda(), y.to(y), y.to(torch.float32), y.to(torch.device("cuda", 0)), y.cuda(0)):
        assert same is y
    assert x.to(y).is_cuda
    assert x.to("cuda", torch.float64).dtype == torch.float64
    assert x.type("torch.cuda.HalfTensor").dtype == torch.float16
    assert not y.to(x).is_cuda
    assert type(y.cpu()) is torch.Tensor
    assert y.to("meta").is_meta
    with pytest.raises(torch.AcceleratorError, match="invalid device ordinal"):
        x.to("cuda:5")


def test_copies_of_the_object():
    x = torch.rand(3, device="cuda", requires_grad=True)
    x.sum().backward()
    deep, shallow = copy.deepcopy(x), copy.copy(x)
    with torch.no_grad():
        x.add_(1)
    assert torch.equal(shallow, x)
    assert torch.equal(deep + 1, x)
    assert deep.grad is not None
    assert deep.requires_grad
    with pytest.raises(RuntimeError, match="graph leaves"):
        copy.deepcopy(x * 2)


def test_autograd_through_views_and_in_place_writes():
    def gradients(a, b):
        a.requires_grad_()
        c = a * 2
        c[0] += b[0]
        c.view(-1)[1:3].mul_(3)
        torch.autograd.grad(c.sum(), a, retain_graph=True)
        (g,) = torch.autograd.grad((c * c).sum(), a, create_graph=True)
        return torch.autograd.grad(g.sum(), a)[0]

    ours, theirs = both(gradients, (2, 3), (2, 3))
    assert torch.equal(ours.cpu(), theirs)


def test_hooks_and_custom_functions():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            assert ctx.saved_tensors[0].is_cuda
            return grad * 2

    seen = []
    x = torch.ones(2, device="cuda", requires_grad=True)
    x.register_hook(seen.append)
    Double.apply(x).sum().backward()
    assert seen[0].is_cuda
    assert x.grad.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_reads_wait_without_autograd_too(guard, observed):
    with guard():
        x = torch.rand(3, 3, device="cuda")
        y = torch.nn.functional.linear(x, x).reshape(-1)
        observed.clear()
        assert y.sum().item() > 0
        y[y > 0].norm()
    assert observed.ops == ["aten::_local_scalar_dense", "aten::index"]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x: x[[1, 2]], ("aten::copy_", "copy_h2d")),
        (lambda x: x.__setitem__(1, 1.0), ("aten::copy_", "copy_h2d")),
        (lambda x: torch.tensor([1.0], device="cuda"), ("aten::copy_", "copy_h2d")),
        (lambda x: x.__setitem__(torch.tensor([1, 2]).cuda(non_blocking=True), 0.0), ("aten::index_put_", "copy_h2d")),
        (lambda x: x.cpu(), ("aten::copy_", "copy_d2h")),
        (lambda x: x.tolist(), ("aten::copy_", "copy_d2h")),
        (lambda x: x.sum().item(), ("aten::_local_scalar_dense", "scalar_read")),
        (lambda x: bool(x.sum() > 1), ("aten::_local_scalar_dense", "scalar_read")),
        (lambda x: x[x > 0], ("aten::index", "dynamic_shape")),
        (lambda x: torch.nonzero(x), ("aten::nonzero", "dynamic_shape")),
        (lambda x: torch.equal(x, x + 1), ("aten::equal", "scalar_read")),
        (lambda x: torch.cuda.synchronize(), ("torch.cuda.synchronize", "explicit")),
        (lambda x: torch.cuda.current_stream().synchronize(), ("torch.cuda.Stream.synchronize", "explicit")),
        (lambda x: torch.cuda.Event().synchronize(), ("torch.cuda.Event.synchronize", "explicit")),
    ],
)
def test_each_wait_is_reported_once_by_the_dispatchers_name(call, expected, observed):
    x = torch.rand(4, device="cuda")
    observed.clear()
    call(x)
    assert observed.waits == [expected]
    assert len(observed.spans) == 1


def test_an_observer_that_raises_leaves_everything_as_it_was():
    from syncagent import simulate

    class Refuses:
        def before(self, op, kind, args):
            raise ValueError(op)

        def after(self, token, start_ns, end_ns):
            raise AssertionError

    x, m = torch.arange(4.0, device="cuda"), torch.tensor([True, False, True, False], device="cuda")
    state = torch.cuda.get_rng_state()
    simulate.observe_waits(Refuses())
    try:
        for call in (lambda: x.__setitem__(m, x[:2]), lambda: x.cpu(), lambda: torch.normal(x, x), lambda: x.item()):
            with pytest.raises((ValueError, RuntimeError)):
                call()
    finally:
        simulate.observe_waits(None)
    assert x.tolist() == [0, 1, 2, 3]
    assert torch.equal(torch.cuda.get_rng_state(), state)


class Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(torch.overrides.resolve_name(func) or f"{func.__module__}.{func.__qualname__}")
        return func(*args, **(kwargs or {}))


class Ops(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        self.seen.append((str(func), [(x.is_cuda, str(x.device)) for x in tensors]))
        return func(*args, **(kwargs or {}))


def test_a_function_mode_sees_the_calls_by_torchs_names():
    x = torch.rand(4, device="cuda")
    with Functions() as mode:
        y = x.add(1)
        y[[0, 1]]
        y[0] = 1.0
        y.tolist()
        y.to("cpu")
        y.cuda()
        torch.zeros(2, device="cuda")
        torch.tensor([1.0], device="cuda")
        y.sum().item()
    assert [name for name in mode.seen if "item" in name or "TensorBase" not in name] == [
        "torch.Tensor.add", "torch.Tensor.__getitem__", "torch.Tensor.__setitem__", "torch.Tensor.tolist",
        "torch.Tensor.to", "torch.Tensor.cuda", "torch.zeros", "torch.tensor", "torch.Tensor.sum", "torch.Tensor.item",
    ]  # fmt: skip


def test_a_dispatch_mode_sees_the_ops_on_cuda_tensors():
    x = torch.rand(4, device="cuda", requires_grad=True)
    cuda = (True, "cuda:0")
    with Ops() as mode:
        y = (x * 2)[x > 0.5].sum()
        y.backward()
        y.item()
    assert ("aten.mul.Tensor", [cuda]) in mode.seen
    assert ("aten.index.Tensor", [cuda]) in mode.seen
    assert ("aten._local_scalar_dense.default", [cuda]) in mode.seen
    assert any(name.startswith("aten.index_put") and found[0] == cuda for name, found in mode.seen)
    assert all(place == cuda for _, found in mode.seen for place in found)


def test_old_names_of_types_make_tensors_and_tell_what_one_is(observed):
    kinds = torch.cuda
    assert kinds.FloatTensor().shape == (0,)
    assert kinds.HalfTensor(2, 3).shape == kinds.LongTensor(torch.Size([2, 3])).shape == (2, 3)
    assert observed.waits == []
    made = kinds.LongTensor([[1, 2], [3, 4]])
    assert [op for op in observed.ops if op != "torch.cuda.synchronize"], "numbers of the host have to be copied"
    assert (made.device, made.dtype, made.tolist()) == (torch.device("cuda", 0), torch.int64, [[1, 2], [3, 4]])
    assert kinds.LongTensor(made).data_ptr() == made.data_ptr()
    assert isinstance(made, kinds.LongTensor)
    assert isinstance(made, (kinds.FloatTensor, kinds.LongTensor))
    assert not isinstance(made, (kinds.FloatTensor, torch.LongTensor))
    assert not isinstance(torch.ones(1, dtype=torch.int64), kinds.LongTensor)
    with pytest.raises(TypeError, match=r"expected torch.cuda.FloatTensor \(got torch.cuda.LongTensor\)"):
        kinds.FloatTensor(made)
    for name in ("FloatTensor", "ByteTensor", "BFloat16Tensor"):
        for value in (torch.ones(2), torch.ones(2, device="cuda")):
            assert value.type(getattr(kinds, name)).type() == f"torch.cuda.{name}"
            assert value.type(getattr(torch, name)).type() == f"torch.{name}"
    assert (kinds.DoubleTensor.dtype, kinds.DoubleTensor.is_cuda) == (torch.float64, True)
    assert str(kinds.FloatTensor) == "<class 'torch.cuda.FloatTensor'>"


@pytest.mark.parametrize("kind", ["torch.cuda.DoubleTensor", torch.cuda.DoubleTensor])
def test_a_type_of_this_device_can_be_the_default(kind):
    before = torch.get_default_dtype()
    try:
        torch.set_default_tensor_type(kind)
        made = torch.rand(2)
        assert (made.is_cuda, made.dtype) == (True, torch.float64)
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, that there are newer names
            torch.set_default_tensor_type("torch.FloatTensor")
    assert not torch.rand(2).is_cuda
    assert torch.get_default_dtype() == before


def test_cusolvers_methods_are_accepted_and_others_are_not():
    x = torch.randn(4, 3)
    for driver in ("gesvd", "gesvdj", "gesvda"):
        assert torch.equal(torch.linalg.svd(x.cuda(), driver=driver).S.cpu(), torch.linalg.svd(x).S)
        torch.testing.assert_close(torch.linalg.svdvals(x.cuda(), driver=driver).cpu(), torch.linalg.svdvals(x))
    with pytest.raises(RuntimeError, match="unknown svd driver jacobi"):
        torch.linalg.svd(x.cuda(), driver="jacobi")
