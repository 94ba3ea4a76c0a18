"""A before and an after for each row of ``syncagent/cost/advice.py``, which tests run and docs/stall_and_idle.md shows.

``setup``, ``before`` and ``after`` are source.  Both leave the same ``result``, a tensor or number whose last bits may
differ; ``device`` is ``cuda``, or ``cpu`` where there is none, and ``torch`` and ``F`` are imported.  On a GPU
``before`` waits and ``after`` does not.
"""

from __future__ import annotations

from typing import NamedTuple


class Example(NamedTuple):
    setup: str
    before: str
    after: str
    late: str = ""
    """Reads ``result`` once the loop is over; this may wait."""


_MASK = (
    "logits = torch.randn(64, 5, device=device); target = torch.randint(0, 5, (64,), device=device)\nmask = target != 0"
)

EXAMPLES = {
    "ignore_index": Example(
        setup=_MASK,
        before="result = F.cross_entropy(logits[mask], target[mask])",
        after="result = F.cross_entropy(logits, target, ignore_index=0)",
    ),
    "nonzero_then_assign": Example(
        setup="x = torch.arange(12, device=device)",
        before="result = x.clone()\nresult[torch.nonzero(x > 5, as_tuple=True)] = -1",
        after="result = torch.where(x > 5, -1, x)",
    ),
    "nonzero_static": Example(
        setup="mask = torch.arange(64, device=device) % 4 == 0; values = torch.rand(64, device=device)",
        before="result = values[torch.nonzero(mask)[:, 0]].sum()",
        after="found = torch.nonzero_static(mask, size=32, fill_value=-1)[:, 0]\n"
        "result = torch.where(found >= 0, values[found], 0.0).sum()",
    ),
    "assign_through_a_mask": Example(
        setup="x = torch.rand(64, device=device); y = torch.rand(64, device=device); mask = x > 0.5",
        before="result = x.clone()\nresult[mask] = y[mask]",
        after="result = torch.where(mask, y, x)",
    ),
    "masked_fill": Example(
        setup="scores = torch.rand(64, device=device); mask = scores < 0.5",
        before="result = scores[mask].max()",
        after="result = scores.masked_fill(~mask, -torch.inf).max()",
    ),
    "reduce_through_a_mask": Example(
        setup="losses = torch.rand(64, device=device); mask = losses > 0.5",
        before="result = losses[mask].mean()",
        after="result = (losses * mask).sum() / mask.sum()",
    ),
    "count_of_unique": Example(
        setup="x = torch.randint(0, 9, (64,), device=device)",
        before="result = torch.tensor(torch.unique(x).numel())",
        after="in_order = torch.sort(x.flatten())[0]\nresult = torch.count_nonzero(torch.diff(in_order)) + 1",
    ),
    "repeat_interleave_output_size": Example(
        setup="x = torch.rand(4, device=device); repeats = torch.tensor([1, 2, 3, 4]).to(device)",
        before="result = torch.repeat_interleave(x, repeats)",
        after="result = torch.repeat_interleave(x, repeats, output_size=10)",
    ),
    "one_hot_num_classes": Example(
        setup="x = (torch.arange(12) % 4).to(device)",
        before="result = F.one_hot(x)",
        after="result = F.one_hot(x, num_classes=4)",
    ),
    "bincount_scatter": Example(
        setup="x = torch.randint(0, 7, (64,), device=device)",
        before="result = torch.bincount(x, minlength=7)",
        after="result = torch.zeros(7, dtype=torch.int64, device=device).scatter_add_(0, x, torch.ones_like(x))",
    ),
    "assert_async": Example(
        setup="loss = torch.rand((), device=device)",
        before='if loss.isnan():\n    raise ValueError("loss is NaN")\nresult = loss',
        after="torch._assert_async(~loss.isnan())\nresult = loss",
    ),
    "where_for_if": Example(
        setup="x = torch.rand((), device=device)",
        before="result = 2 * x if x > 0.5 else x",
        after="result = torch.where(x > 0.5, 2 * x, x)",
    ),
    "clip_grad_norm": Example(
        setup="p = torch.ones(4, device=device, requires_grad=True)\n(p * 3.0).sum().backward()",
        before="result = torch.nn.utils.clip_grad_norm_([p], 1.0, error_if_nonfinite=True)",
        after="result = torch.nn.utils.clip_grad_norm_([p], 1.0)",
    ),
    "grad_scaler": Example(
        setup="def train(fused):\n"
        "    p = torch.ones(4, device=device, requires_grad=True)\n"
        "    optimizer = torch.optim.SGD([p], lr=0.1, fused=fused)\n"
        "    scaler = torch.amp.GradScaler(device, init_scale=4.0, growth_interval=10_000)\n"
        "    scaler.scale((p * p).sum()).backward()\n"
        "    scaler.step(optimizer)\n"
        "    return p.detach()",
        before="result = train(fused=False)",
        after="result = train(fused=True)",
    ),
    "distribution_arguments": Example(
        setup="mean = torch.zeros(4, device=device); scale = torch.ones(4, device=device)",
        before="result = torch.distributions.Normal(mean, scale).log_prob(mean)",
        after="result = torch.distributions.Normal(mean, scale, validate_args=False).log_prob(mean)",
    ),
    "linalg_cholesky_ex": Example(
        setup="a = 2.0 * torch.eye(3, device=device)",
        before="result = torch.linalg.cholesky(a)",
        after="result, info = torch.linalg.cholesky_ex(a)",
    ),
    "linalg_inv_ex": Example(
        setup="a = 2.0 * torch.eye(3, device=device)",
        before="result = torch.linalg.inv(a)",
        after="result, info = torch.linalg.inv_ex(a)",
    ),
    "linalg_solve_ex": Example(
        setup="a = 2.0 * torch.eye(3, device=device); b = torch.ones(3, device=device)",
        before="result = torch.linalg.solve(a, b)",
        after="result, info = torch.linalg.solve_ex(a, b)",
    ),
    "equal_on_the_gpu": Example(
        setup="a = torch.ones(8, device=device); b = torch.ones(8, device=device)",
        before="result = torch.tensor(torch.equal(a, b))",
        after="result = (a == b).all()",
    ),
    "checkpoint": Example(
        setup="weight = torch.arange(4.0, device=device)\nhost = torch.empty(4, pin_memory=device == 'cuda')",
        before="result = weight.cpu()",
        after="host.copy_(weight, non_blocking=True)",
        late="result = host",
    ),
    "metric_on_the_gpu": Example(
        setup="logits = torch.randn(16, 4, device=device); labels = torch.randint(0, 4, (16,), device=device)\n"
        "correct = torch.zeros((), dtype=torch.int64, device=device)",
        before="result = (logits.argmax(1).cpu() == labels.cpu()).sum()",
        after="result = correct.add_((logits.argmax(1) == labels).sum())",
    ),
    "copy_read_later": Example(
        setup="x = torch.arange(4.0, device=device)\nhost = torch.empty(4, pin_memory=device == 'cuda')",
        before="result = x.cpu()",
        after="host.copy_(x, non_blocking=True)",
        late="result = host",
    ),
    "tensor_made_of_numbers": Example(
        setup="",
        before="result = torch.tensor([1.0, 1.0, 1.0], device=device)",
        after="result = torch.full((3,), 1.0, device=device)",
    ),
    "one_element": Example(
        setup="x = torch.zeros(4, device=device)",
        before="x[2] = 1.0\nresult = x",
        after="x[2].fill_(1.0)\nresult = x",
    ),
    "copy_from_pinned": Example(
        setup="batch = torch.arange(4.0); pinned = batch.pin_memory() if device == 'cuda' else batch",
        before="result = batch.to(device)",
        after="result = pinned.to(device, non_blocking=True)",
    ),
    "log_one_step_later": Example(
        setup="losses = torch.arange(4.0, device=device)\nhost = torch.empty(4, pin_memory=device == 'cuda')",
        before="result = [loss.item() for loss in losses.unbind()]",
        after="for slot, loss in zip(host.unbind(), losses.unbind()):\n    slot.copy_(loss, non_blocking=True)",
        late="result = host.tolist()",
    ),
    "log_later": Example(
        setup="losses = torch.arange(4.0, device=device)",
        before="result = 0.0\nfor loss in losses.unbind():\n    result += loss.item()",
        after="total = torch.zeros((), device=device)\nfor loss in losses.unbind():\n    total += loss.detach()",
        late="result = total.item()",
    ),
    "wait_between_streams": Example(
        setup="x = torch.arange(4.0, device=device)\ncuda = device == 'cuda'\n"
        "side = torch.cuda.Stream() if cuda else None",
        before="side.wait_stream(torch.cuda.current_stream()) if cuda else None\n"
        "with torch.cuda.stream(side):\n    y = x * 2\nside.synchronize() if cuda else None\nresult = y + 1",
        after="side.wait_stream(torch.cuda.current_stream()) if cuda else None\n"
        "with torch.cuda.stream(side):\n    y = x * 2\n"
        "torch.cuda.current_stream().wait_stream(side) if cuda else None\nresult = y + 1",
    ),
}
