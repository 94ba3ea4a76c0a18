"""Advice: the row of the table that fits best, with the gain that was measured, or that there is none."""

from __future__ import annotations

import pytest

from syncagent.cost import advice
from syncagent.cost.advice import REWRITES
from syncagent.cost.sites import WaitSite


def place(op, kind, source="", function=""):
    return WaitSite(op, kind, "train.py", 1, function, source)


CASES = [
    ("aten::index", "dynamic_shape", "loss = cross_entropy(logits[mask], target[mask])", "ignore_index"),
    ("aten::index_put_", "dynamic_shape", "x[torch.nonzero(x > 5, as_tuple=True)] = -1", "nonzero_then_assign"),
    ("aten::index", "dynamic_shape", "kept = values[mask]", "reduce_through_a_mask"),
    ("aten::index", "dynamic_shape", "best = scores[mask].max()", "masked_fill"),
    ("aten::index_put_", "dynamic_shape", "x[mask] = y[mask]", "assign_through_a_mask"),
    ("aten::nonzero", "dynamic_shape", "found = mask.argmax_of()", "nonzero_static"),
    ("aten::_unique2", "dynamic_shape", "return torch.unique(t).numel() >= 2", "count_of_unique"),
    ("aten::repeat_interleave.Tensor", "scalar_read", "x.repeat_interleave(n)", "repeat_interleave_output_size"),
    ("aten::_local_scalar_dense", "scalar_read", "F.one_hot(labels)", "one_hot_num_classes"),
    ("aten::bincount", "dynamic_shape", "torch.bincount(x)", "bincount_scatter"),
    ("aten::is_nonzero", "scalar_read", "if loss.isnan():", "assert_async"),
    ("aten::_local_scalar_dense", "scalar_read", "if x > 0.5:", "where_for_if"),
    ("aten::_local_scalar_dense", "scalar_read", "losses.append(loss.item())", "log_later"),
    ("aten::_local_scalar_dense", "scalar_read", "writer.add_scalar('loss', loss.item())", "log_one_step_later"),
    ("aten::_local_scalar_dense", "scalar_read", "tenant = self.finance(x).item()", "log_later"),
    ("aten::_local_scalar_dense", "scalar_read", "scaler.step(optimizer)", "grad_scaler"),
    ("aten::_local_scalar_dense", "scalar_read", "clip_grad_norm_(p, 1.0, error_if_nonfinite=True)", "clip_grad_norm"),
    ("aten::_local_scalar_dense", "scalar_read", "norm = clip_grad_norm_(p, 1.0).item()", "log_later"),
    ("aten::_local_scalar_dense", "scalar_read", "kl = policy.log_prob(action).mean().item()", "log_later"),
    ("aten::copy_", "copy_h2d", "x = torch.from_numpy(batch).to(device)", "copy_from_pinned"),
    ("aten::is_nonzero", "check", "d = Normal(mean, scale)", "distribution_arguments"),
    ("aten::linalg_cholesky_ex", "check", "torch.linalg.cholesky(a)", "linalg_cholesky_ex"),
    ("aten::linalg_inv_ex", "check", "torch.linalg.inv(a)", "linalg_inv_ex"),
    ("aten::_linalg_solve_ex", "check", "torch.linalg.solve(a, b)", "linalg_solve_ex"),
    ("aten::copy_", "copy_d2h", "hits += (logits.argmax(1).cpu() == y).sum()", "metric_on_the_gpu"),
    ("aten::copy_", "copy_d2h", "torch.save(model.state_dict(), path)", "checkpoint"),
    ("aten::copy_", "copy_d2h", "out = x.cpu()", "copy_read_later"),
    ("aten::copy_", "copy_h2d", "x = batch.to(device)", "copy_from_pinned"),
    ("aten::copy_", "copy_h2d", 'w = torch.tensor([1.0], device="cuda")', "tensor_made_of_numbers"),
    ("aten::fill_", "copy_h2d", "x[2] = 1.0", "one_element"),
    ("aten::equal", "scalar_read", "same = torch.equal(a, b)", "equal_on_the_gpu"),
    ("torch.cuda.synchronize", "explicit", "torch.cuda.synchronize()", "wait_between_streams"),
]


@pytest.mark.parametrize(("op", "kind", "source", "name"), CASES, ids=[case[2] for case in CASES])
def test_the_row_that_fits_is_found(op, kind, source, name):
    assert advice.find(place(op, kind, source)).name == name


def test_every_row_can_be_found():
    found = {advice.find(place(*case[:3])).name for case in CASES}
    assert {rewrite.name for rewrite in REWRITES} == found


@pytest.mark.parametrize(
    ("op", "phase", "name"),
    [
        ("aten::nonzero_numpy", "forward", "nonzero_static"),
        ("aten::index_put_", "forward", "assign_through_a_mask"),
        ("aten::_index_put_impl_", "backward", "reduce_through_a_mask"),
        ("aten::index", "forward", "reduce_through_a_mask"),
    ],
)
def test_where_a_trace_knows_no_line_the_op_decides(op, phase, name):
    assert advice.find(WaitSite(op, "dynamic_shape", phase=phase)).name == name


def test_the_backward_of_a_mask_gets_the_advice_of_its_forward_line():
    backward = WaitSite("aten::index_put_", "dynamic_shape", "a.py", 1, source="losses[mask].mean()", phase="backward")
    assert advice.find(backward).name == "reduce_through_a_mask"


def test_the_gain_is_quoted():
    said = advice.advise(place("aten::item", "scalar_read", "log(loss.item())"), 1.3, 26.0)
    assert said.startswith("not waiting here gains 1.3 ms per step (5.0 %); instead: keep the value on the GPU")


def test_where_there_is_none_it_says_so_and_that_only_the_gpus_work_can_change_the_step():
    """The article's warning: its mask saved GPU work, not waiting."""
    said = advice.advise(place("aten::index", "dynamic_shape", "cross_entropy(logits[mask], target[mask])"), 0.0, 233.0)
    assert said.startswith("not waiting here gains nothing")
    assert "ignore_index" in said
    assert "only that can make the step faster (or slower)" in said


def test_what_fits_no_row_still_has_its_gain():
    assert advice.advise(place("thrust", "other"), 0.5, 10.0) == "not waiting here gains 500 µs per step (5.0 %)"
