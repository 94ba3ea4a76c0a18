"""Types that the CPU's kernels refuse or are slow for: computed in a wider one, and rounded once."""

from __future__ import annotations

import functools
import itertools
import sys
import types
import unittest
import warnings

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map

HALVES = [torch.float16, torch.bfloat16]
aten = torch.ops.aten

# --- types that only CUDA's kernels take -------------------------------------------------------------------

NOT_SIMULATED = {
    "to_sparse", "sparse.sampled_addmm", "torch.ops.aten._flash_attention_forward",
    "torch.ops.aten._efficient_attention_forward",
}  # fmt: skip
"""These are refused for other reasons, or have sparse tensors as results."""
COUNTED = {"histc"}
"""Looked at below: the CPU's kernel for a wider type counts otherwise on the edges of bins."""


def taken_only_by_cuda():
    """Each op and type that torch's own tests run on CUDA and not on the CPU, forward or backward."""
    if "expecttest" not in sys.modules:  # torch's tests import it; it is of no use here
        sys.modules["expecttest"] = types.ModuleType("expecttest")
        sys.modules["expecttest"].TestCase = unittest.TestCase
        sys.modules["expecttest"].assert_expected_inline = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        common = pytest.importorskip("torch.testing._internal.common_methods_invocations")
    for op in common.op_db:
        on_cuda = set(op.dtypesIfCUDA or op.dtypes)
        forward = on_cuda - set(op.dtypes)
        backward = on_cuda & set(op.backward_dtypesIfCUDA or on_cuda) - set(op.backward_dtypes or op.dtypes)
        for dtype in sorted(forward | backward, key=str):
            is_transform = op.full_name.startswith("fft.") or op.full_name in {"stft", "istft"}
            if (is_transform and dtype is torch.bfloat16) or str(dtype).startswith("torch.float8"):
                continue  # new in 2.15, and refused
            if not dtype.is_complex and op.full_name not in NOT_SIMULATED:
                yield op, dtype


def widened(dtype, x):
    return x.to(torch.float32 if dtype.is_floating_point else torch.int64) if x.dtype == dtype else x


def tensors_in(value):
    return [x for x in tree_flatten(value)[0] if isinstance(x, torch.Tensor)]


def results_of(op, sample, change):
    def changed(x):
        return change(x.detach()).requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor) else x

    source, args, kwargs = tree_map(changed, (sample.input, sample.args, sample.kwargs))
    torch.manual_seed(0)
    torch.cuda.manual_seed(0)
    results = tensors_in(op(source, *args, **kwargs))
    differentiable = [x for x in results if x.requires_grad]
    leaves = [x for x in tensors_in((source, args, kwargs)) if x.requires_grad]
    gradients = ()
    if differentiable and leaves:
        total = sum(
            torch.view_as_real(x.to(torch.complex64).resolve_conj()).sum() if x.is_complex() else x.float().sum()
            for x in differentiable
        )
        gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    return [*results, *(x for x in gradients if x is not None)]


def as_wide(x):
    x = x.detach().cpu()
    return x.to(torch.complex64) if x.is_complex() else x.float() if x.is_floating_point() else x.long()


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental", "ignore:Sparse CSR tensor support is in beta")
def test_what_only_cuda_takes_is_computed_in_a_wider_type():
    pairs, failed = list(taken_only_by_cuda()), []
    assert len(pairs) > 30
    for op, dtype in pairs:
        may_differ = op.full_name in COUNTED or "rrelu" in op.full_name  # it draws from CUDA's generator
        differentiable = dtype.is_floating_point and op.supports_autograd
        for sample in itertools.islice(op.sample_inputs("cpu", dtype, requires_grad=differentiable), 3):
            try:
                found = results_of(op, sample, lambda x: x.cuda())
                torch.cuda.synchronize()
                if may_differ:
                    continue
                expected = results_of(op, sample, functools.partial(widened, dtype))
                for mine, theirs in zip(found, expected, strict=True):
                    assert mine.device.type == "cuda"
                    torch.testing.assert_close(as_wide(mine), as_wide(theirs.to(mine.dtype)), rtol=2e-2, atol=2e-2)
            except Exception as error:
                failed.append(f"{op.full_name} {dtype}: {type(error).__name__} {str(error)[:300]}")
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integers_are_counted_as_integers(dtype):
    values = torch.tensor([0, 1, 2, 3, 3, 7, 9, 10, 11], dtype=dtype)
    on_device = values.cuda()
    for bins in (5, 7, 10):
        edges = [i * 10 / bins for i in range(bins)]  # each bin holds what is at least its first edge
        expected = [0] * bins
        for value in values.tolist():
            if 0 <= value <= 10:
                expected[max(i for i, edge in enumerate(edges) if round(edge, 9) <= value)] += 1
        counted = torch.histc(on_device, bins, 0, 10)
        assert counted.dtype == dtype
        assert counted.tolist() == expected
    assert torch.histc(on_device, 11).tolist() == [1, 1, 1, 2, 0, 0, 0, 1, 0, 1, 2]
    assert torch.histc(torch.full((4,), 3, dtype=dtype).cuda(), 3).sum().item() == 4


def test_truth_values():
    diagonal = torch.eye(3, dtype=torch.bool, device="cuda")
    assert diagonal.trace().item() == 3
    assert diagonal.trace().dtype == torch.int64
    assert torch.equal(diagonal.abs().cpu(), torch.eye(3, dtype=torch.bool))


# --- products of 16-bit numbers ----------------------------------------------------------------------------

PRODUCTS = {
    "mm": (lambda a, b: a @ b, [(20, 30), (30, 10)]),
    "addmm": (torch.addmm, [(10,), (20, 30), (30, 10)]),
    "bmm": (torch.bmm, [(3, 20, 30), (3, 30, 10)]),
    "baddbmm": (torch.baddbmm, [(3, 20, 10), (3, 20, 30), (3, 30, 10)]),
    "mv": (torch.mv, [(20, 30), (30,)]),
    "dot": (torch.dot, [(300,), (300,)]),
    "addr": (torch.addr, [(20, 30), (20,), (30,)]),
    "linear": (nn.functional.linear, [(4, 20), (10, 20), (10,)]),
    "conv1d": (nn.functional.conv1d, [(2, 4, 20), (6, 4, 3), (6,)]),
    "conv2d": (nn.functional.conv2d, [(2, 4, 12, 12), (6, 4, 3, 3), (6,)]),
    "conv3d": (nn.functional.conv3d, [(2, 4, 6, 6, 6), (6, 4, 3, 3, 3), (6,)]),
    "conv_transpose2d": (nn.functional.conv_transpose2d, [(2, 4, 12, 12), (4, 6, 3, 3), (6,)]),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_float16_is_the_result_in_32_bits_rounded_once(name):
    function, shapes = PRODUCTS[name]
    torch.manual_seed(0)
    inputs = [torch.randn(shape).half() for shape in shapes]
    ours = [x.cuda().requires_grad_() for x in inputs]
    theirs = [x.float().requires_grad_() for x in inputs]
    result, expected = function(*ours), function(*theirs)
    weights = torch.randn(expected.shape).half()
    assert result.dtype == torch.float16
    assert torch.equal(result.detach().cpu(), expected.detach().half())
    if name in {"addmm", "baddbmm", "linear", "addr", "dot", "mv"}:  # their gradients are of several ops
        return
    found = torch.autograd.grad(result, ours, weights.cuda())
    for mine, wanted in zip(found, torch.autograd.grad(expected, theirs, weights.float()), strict=True):
        assert torch.equal(mine.cpu(), wanted.half())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", PRODUCTS)
def test_16_bits_are_near_the_result_in_32(name, dtype):
    function, shapes = PRODUCTS[name]
    torch.manual_seed(0)
    inputs = [torch.randn(shape).to(dtype) for shape in shapes]
    found, expected = function(*(x.cuda() for x in inputs)), function(*(x.float() for x in inputs))
    torch.testing.assert_close(found.float().cpu(), expected, rtol=1e-2, atol=1e-2)


def test_written_arguments_are_written_in_their_own_type():
    one, other = torch.rand(4, 5).half(), torch.rand(5, 6).half()
    out = torch.empty(4, 6, dtype=torch.float16, device="cuda")
    result = torch.mm(one.cuda(), other.cuda(), out=out)
    assert result is out
    expected = one.float() @ other.float()
    assert torch.equal(out.cpu(), expected.half())
    view = torch.ones(8, 6, dtype=torch.float16, device="cuda")[2:6]
    view.addmm_(one.cuda(), other.cuda())
    assert torch.equal(view.cpu(), (expected + 1).half())


def test_memory_is_that_of_the_narrow_type():
    made = torch.rand(64, 64, device="cuda").half() @ torch.rand(64, 64, device="cuda").half()
    torch.cuda.synchronize()
    assert made.untyped_storage().nbytes() == 64 * 64 * 2
