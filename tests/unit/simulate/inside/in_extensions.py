"""Ops that torch did not bring: one whose values decide what its results look like waits, and no other."""

from __future__ import annotations

import pytest
import torch

from syncagent import simulate

LIBRARY = torch.library.Library("ours", "DEF")
X = torch.arange(-7.0, 13.0)
OPS = torch.ops.ours


def _define(schema, kernel, *, fake=None, tags=()):
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=tags)
    LIBRARY.impl(name, kernel, "CPU")
    if fake is not None:
        torch.library.register_fake(f"ours::{name}", fake, lib=LIBRARY)


def _some(x):
    return x[x > 0].clone()


def _of_unknown_size(x):
    return x.new_empty(torch.library.get_ctx().new_dynamic_size())


_define("chosen(Tensor x) -> Tensor", _some)
_define("chosen_of_each(Tensor[] xs) -> Tensor[]", lambda xs: [_some(x) for x in xs])
_define("chosen_with_fake(Tensor x) -> Tensor", _some, fake=_of_unknown_size)
_define("chosen_and_tagged(Tensor x) -> Tensor", _some, tags=(torch.Tag.dynamic_output_shape,))
_define("how_many(Tensor x) -> int", lambda x: int((x > 0).sum()))
_define("how_many_with_fake(Tensor x) -> int", lambda x: int((x > 0).sum()), fake=lambda x: x.numel())
_define("twice(Tensor x) -> Tensor", lambda x: x * 2)
_define("twice_with_fake(Tensor x) -> Tensor", lambda x: x * 2, fake=torch.empty_like)
_define("shortened(Tensor x, int n) -> Tensor", lambda x, n: x[: len(x) // 2 - n].clone())
_define("room_for(Tensor x) -> int", lambda x: 3 * x.numel())
_define("inverse(Tensor x) -> Tensor", lambda x: 1 / x if x.all() else _refused(), fake=None)
_define("fill_(Tensor(a!) x) -> Tensor(a!)", lambda x: x.fill_(2))


def _refused():
    raise ValueError("a zero")


@torch.library.custom_op("ours::written_in_python", mutates_args=())
def _written_in_python(x: torch.Tensor) -> torch.Tensor:
    return x * x.sum().item()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("chosen", "dynamic_shape"),
        ("chosen_with_fake", "dynamic_shape"),
        ("chosen_and_tagged", "dynamic_shape"),
        ("how_many", "scalar_read"),
        ("how_many_with_fake", "scalar_read"),
    ],
)
def test_an_op_whose_values_decide_what_its_results_look_like_waits(name, kind, observed):
    op = getattr(OPS, name)
    x = X.cuda()
    observed.clear()
    for _ in range(2):
        result = op(x)
    assert observed.waits == [(f"ours::{name}", kind)] * 2
    assert len(observed.spans) == 2
    expected = op(X)
    assert result == expected if isinstance(expected, int) else torch.equal(result.cpu(), expected)


def test_so_does_one_that_takes_and_gives_lists(observed):
    xs = [X.cuda(), -X.cuda()]
    observed.clear()
    results = OPS.chosen_of_each(xs)
    assert observed.waits == [("ours::chosen_of_each", "dynamic_shape")]
    assert [len(r) for r in results] == [12, 7]


def test_one_that_only_has_no_shape_function_does_not(observed):
    x = X.cuda()
    observed.clear()
    results = OPS.twice(x), OPS.twice_with_fake(x), OPS.shortened(x, 3), OPS.fill_(x.clone())
    room = OPS.room_for(x)
    inverse = OPS.inverse(x + 0.5)
    assert observed.waits == []
    assert room == 60
    expected = X * 2, X * 2, OPS.shortened(X, 3), torch.full_like(X, 2)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(results, expected, strict=True))
    assert torch.equal(inverse.cpu(), 1 / (X + 0.5))


def test_an_empty_tensor_has_no_values(observed):
    x = torch.empty(0, device="cuda")
    assert OPS.chosen(x).shape == (0,)
    assert OPS.chosen_with_fake(x).shape == (0,)
    assert observed.waits == []


def test_an_op_written_in_python_is_its_parts(observed):
    x = X.cuda()
    observed.clear()
    assert torch.equal(OPS.written_in_python(x).cpu(), X * X.sum().item())
    assert observed.waits[0] == ("aten::_local_scalar_dense", "scalar_read")


def test_the_policy_is_asked_before_the_wait_once_an_op_is_known():
    class Refusing:
        def before(self, op, kind, args):
            raise PermissionError(op)

    x = X.cuda()
    OPS.chosen(x)
    simulate.observe_waits(Refusing())
    try:
        with pytest.raises(PermissionError, match="ours::chosen"):
            OPS.chosen(x)
    finally:
        simulate.observe_waits(None)


def test_detectors_ops(observed):
    ops = pytest.importorskip("torchvision").ops
    boxes = torch.rand(20, 4).cumsum(1)
    scores, image = torch.rand(20), torch.rand(1, 3, 8, 8)
    rois = torch.tensor([[0, 0.0, 0.0, 4.0, 4.0]])
    there = boxes.cuda(), scores.cuda(), image.cuda(), rois.cuda()
    observed.clear()
    keep = ops.nms(there[0], there[1], 0.5)
    assert observed.waits == [("torchvision::nms", "dynamic_shape")]
    observed.clear()
    aligned, pooled = ops.roi_align(there[2], there[3], 2), ops.roi_pool(there[2], there[3], 2)
    assert observed.waits == []
    assert torch.equal(keep.cpu(), ops.nms(boxes, scores, 0.5))
    assert torch.equal(aligned.cpu(), ops.roi_align(image, rois, 2))
    assert torch.equal(pooled.cpu(), ops.roi_pool(image, rois, 2))
