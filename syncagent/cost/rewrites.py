"""What to write instead of a call that waits: one row a pattern, with a before and an after that are run as tests.

``setup``, ``before`` and ``after`` are source.  Both leave the same ``result``, a tensor or number whose last bits may
differ; ``device`` is ``cuda``, or ``cpu`` where there is none, and ``torch`` and ``F`` are imported.  On a GPU
``before`` waits and ``after`` does not (``tests/gpu/cost_rewrites.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["REWRITES", "Rewrite"]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One way out."""

    name: str
    say: str
    """What to do, as a clause that can follow a number."""
    ops: tuple[str, ...] = ()
    """Ops it is for, without their namespace; empty: any."""
    kinds: tuple[str, ...] = ()
    """Kinds of sync it is for; empty: any."""
    source: str = ""
    """A regular expression that the user's line (or in the backward pass the forward line) or function has to match."""
    either: bool = False
    """Whether the op or the source is enough; by default both have to fit."""
    setup: str = ""
    before: str = ""
    after: str = ""
    late: str = ""
    """Reads ``result`` once the loop is over; this may wait."""
    changes_gpu_work: bool = False
    """The mend does other work on the GPU, less or more: the gain of not waiting is not all that changes."""


_MASK = (
    "logits = torch.randn(64, 5, device=device); target = torch.randint(0, 5, (64,), device=device)\nmask = target != 0"
)

REWRITES: tuple[Rewrite, ...] = (
    Rewrite(
        "ignore_index",
        "leave the positions out inside the loss: cross_entropy(..., ignore_index=...)",
        ops=("index", "nonzero", "masked_select", "index_put_"),
        kinds=("dynamic_shape",),
        source=r"cross_entropy|nll_loss|criterion",
        setup=_MASK,
        before="result = F.cross_entropy(logits[mask], target[mask])",
        after="result = F.cross_entropy(logits, target, ignore_index=0)",
        changes_gpu_work=True,
    ),
    Rewrite(
        "nonzero_then_assign",
        "torch.where(condition, value, x) in place of nonzero and assignment",
        ops=("nonzero", "index_put_"),
        kinds=("dynamic_shape",),
        source=r"nonzero|where\(|argwhere",
        setup="x = torch.arange(12, device=device)",
        before="result = x.clone()\nresult[torch.nonzero(x > 5, as_tuple=True)] = -1",
        after="result = torch.where(x > 5, -1, x)",
        changes_gpu_work=True,
    ),
    Rewrite(
        "nonzero_static",
        "torch.nonzero_static(mask, size=N) where a bound of the count is known; what is over is filled",
        ops=("nonzero",),
        kinds=("dynamic_shape",),
        setup="mask = torch.arange(64, device=device) % 4 == 0; values = torch.rand(64, device=device)",
        before="result = values[torch.nonzero(mask)[:, 0]].sum()",
        after=(
            "found = torch.nonzero_static(mask, size=32, fill_value=-1)[:, 0]\n"
            "result = torch.where(found >= 0, values[found], 0.0).sum()"
        ),
    ),
    Rewrite(
        "assign_through_a_mask",
        "torch.where(mask, y, x) in place of x[mask] = y[mask], masked_fill for one number",
        ops=("index_put_", "index", "nonzero"),
        kinds=("dynamic_shape",),
        source=r"\[[^\]]+\]\s*[-+*/]?=[^=]",
        setup="x = torch.rand(64, device=device); y = torch.rand(64, device=device); mask = x > 0.5",
        before="result = x.clone()\nresult[mask] = y[mask]",
        after="result = torch.where(mask, y, x)",
        changes_gpu_work=True,
    ),
    Rewrite(
        "masked_fill",
        "keep the shape: masked_fill(~mask, -inf) in front of max, softmax and their like",
        ops=("index", "masked_select", "nonzero"),
        kinds=("dynamic_shape",),
        source=r"\b(amax|amin|max|min|argmax|argmin|softmax|logsumexp|topk|sort)\(",
        setup="scores = torch.rand(64, device=device); mask = scores < 0.5",
        before="result = scores[mask].max()",
        after="result = scores.masked_fill(~mask, -torch.inf).max()",
        changes_gpu_work=True,
    ),
    Rewrite(
        "reduce_through_a_mask",
        "keep the shape: multiply by the mask (or masked_fill) and divide by mask.sum()",
        ops=("index", "masked_select", "nonzero"),
        kinds=("dynamic_shape",),
        setup="losses = torch.rand(64, device=device); mask = losses > 0.5",
        before="result = losses[mask].mean()",
        after="result = (losses * mask).sum() / mask.sum()",
        changes_gpu_work=True,
    ),
    Rewrite(
        "count_of_unique",
        "sort and count where neighbours differ; the number stays on the GPU",
        ops=("_unique2", "unique_dim", "unique_consecutive", "_unique"),
        kinds=("dynamic_shape",),
        setup="x = torch.randint(0, 9, (64,), device=device)",
        before="result = torch.tensor(torch.unique(x).numel())",
        after="in_order = torch.sort(x.flatten())[0]\nresult = torch.count_nonzero(torch.diff(in_order)) + 1",
        changes_gpu_work=True,
    ),
    Rewrite(
        "repeat_interleave_output_size",
        "repeat_interleave(..., output_size=N), since the sum of the repeats is known on the host",
        ops=("repeat_interleave",),
        setup="x = torch.rand(4, device=device); repeats = torch.tensor([1, 2, 3, 4]).to(device)",
        before="result = torch.repeat_interleave(x, repeats)",
        after="result = torch.repeat_interleave(x, repeats, output_size=10)",
    ),
    Rewrite(
        "one_hot_num_classes",
        "one_hot(..., num_classes=N)",
        ops=("one_hot",),
        source=r"one_hot\(",
        either=True,
        setup="x = (torch.arange(12) % 4).to(device)",
        before="result = F.one_hot(x)",
        after="result = F.one_hot(x, num_classes=4)",
    ),
    Rewrite(
        "bincount_scatter",
        "add ones into a tensor of fixed size: torch.zeros(N).scatter_add_(0, x, ones)",
        ops=("bincount", "histc"),
        setup="x = torch.randint(0, 7, (64,), device=device)",
        before="result = torch.bincount(x, minlength=7)",
        after="result = torch.zeros(7, dtype=torch.int64, device=device).scatter_add_(0, x, torch.ones_like(x))",
        changes_gpu_work=True,
    ),
    Rewrite(
        "assert_async",
        "check later: torch._assert_async on the GPU, or keep the flag and look at it every N steps",
        kinds=("scalar_read",),
        source=r"is_?(nan|inf|finite)\b|^assert\b",
        setup="loss = torch.rand((), device=device)",
        before="if loss.isnan():\n    raise ValueError('loss is NaN')\nresult = loss",
        after="torch._assert_async(~loss.isnan())\nresult = loss",
    ),
    Rewrite(
        "where_for_if",
        "torch.where in place of a Python if on the value",
        kinds=("scalar_read",),
        source=r"^(el)?if\b|^while\b|\bif\b.*\belse\b",
        setup="x = torch.rand((), device=device)",
        before="result = 2 * x if x > 0.5 else x",
        after="result = torch.where(x > 0.5, 2 * x, x)",
    ),
    Rewrite(
        "clip_grad_norm",
        "clip_grad_norm_(..., error_if_nonfinite=False)",
        source=r"^(?!.*\.item\(\)).*(error_if_nonfinite|clip_grad)",
        setup="p = torch.ones(4, device=device, requires_grad=True)\n(p * 3.0).sum().backward()",
        before="result = torch.nn.utils.clip_grad_norm_([p], 1.0, error_if_nonfinite=True)",
        after="result = torch.nn.utils.clip_grad_norm_([p], 1.0)",
    ),
    Rewrite(
        "grad_scaler",
        "a fused optimizer (fused=True) takes the scaler's flag on the GPU, or bfloat16, which needs no scaler",
        source=r"scaler\.(step|unscale_|update)",
        setup=(
            "def train(fused):\n"
            "    p = torch.ones(4, device=device, requires_grad=True)\n"
            "    optimizer = torch.optim.SGD([p], lr=0.1, fused=fused)\n"
            "    scaler = torch.amp.GradScaler(device, init_scale=4.0, growth_interval=10_000)\n"
            "    scaler.scale((p * p).sum()).backward()\n"
            "    scaler.step(optimizer)\n"
            "    return p.detach()"
        ),
        before="result = train(fused=False)",
        after="result = train(fused=True)",
        changes_gpu_work=True,
    ),
    Rewrite(
        "distribution_arguments",
        "validate_args=False for distributions that are made in the loop",
        kinds=("check", "scalar_read"),
        source=r"^(?!.*\.item\(\)).*(Normal\(|Categorical\(|Bernoulli\(|distributions|Beta\(|Gamma\(|Dirichlet\(|log_prob\()",
        setup="mean = torch.zeros(4, device=device); scale = torch.ones(4, device=device)",
        before="result = torch.distributions.Normal(mean, scale).log_prob(mean)",
        after="result = torch.distributions.Normal(mean, scale, validate_args=False).log_prob(mean)",
    ),
    Rewrite(
        "linalg_cholesky_ex",
        "torch.linalg.cholesky_ex, whose info stays on the GPU",
        ops=("linalg_cholesky", "linalg_cholesky_ex", "cholesky"),
        setup="a = 2.0 * torch.eye(3, device=device)",
        before="result = torch.linalg.cholesky(a)",
        after="result, info = torch.linalg.cholesky_ex(a)",
    ),
    Rewrite(
        "linalg_inv_ex",
        "torch.linalg.inv_ex, whose info stays on the GPU",
        ops=("linalg_inv", "linalg_inv_ex", "inverse"),
        setup="a = 2.0 * torch.eye(3, device=device)",
        before="result = torch.linalg.inv(a)",
        after="result, info = torch.linalg.inv_ex(a)",
    ),
    Rewrite(
        "linalg_solve_ex",
        "torch.linalg.solve_ex, whose info stays on the GPU",
        ops=("linalg_solve", "_linalg_solve_ex", "linalg_solve_ex"),
        setup="a = 2.0 * torch.eye(3, device=device); b = torch.ones(3, device=device)",
        before="result = torch.linalg.solve(a, b)",
        after="result, info = torch.linalg.solve_ex(a, b)",
    ),
    Rewrite(
        "equal_on_the_gpu",
        "(a == b).all() and keep it on the GPU",
        ops=("equal", "allclose"),
        source=r"equal\(|allclose\(",
        either=True,
        setup="a = torch.ones(8, device=device); b = torch.ones(8, device=device)",
        before="result = torch.tensor(torch.equal(a, b))",
        after="result = (a == b).all()",
    ),
    Rewrite(
        "checkpoint",
        "copy the state to pinned memory with non_blocking=True and write it from another thread, every N steps; "
        'where it has to wait, say so: syncagent.allow("checkpoint")',
        kinds=("copy_d2h",),
        source=r"torch\.save|state_dict|checkpoint",
        setup=("weight = torch.arange(4.0, device=device)\nhost = torch.empty(4, pin_memory=device == 'cuda')"),
        before="result = weight.cpu()",
        after="host.copy_(weight, non_blocking=True)",
        late="result = host",
    ),
    Rewrite(
        "metric_on_the_gpu",
        "keep the metric's sums on the GPU and read them once at the end of the epoch",
        kinds=("copy_d2h", "scalar_read"),
        source=r"metric|accuracy|correct|argmax|confusion|\bpred",
        setup=(
            "logits = torch.randn(16, 4, device=device); labels = torch.randint(0, 4, (16,), device=device)\n"
            "correct = torch.zeros((), dtype=torch.int64, device=device)"
        ),
        before="result = (logits.argmax(1).cpu() == labels.cpu()).sum()",
        after="result = correct.add_((logits.argmax(1) == labels).sum())",
    ),
    Rewrite(
        "copy_read_later",
        "copy to pinned memory with non_blocking=True, record an event and read one step later",
        kinds=("copy_d2h",),
        setup=("x = torch.arange(4.0, device=device)\nhost = torch.empty(4, pin_memory=device == 'cuda')"),
        before="result = x.cpu()",
        after="host.copy_(x, non_blocking=True)",
        late="result = host",
    ),
    Rewrite(
        "tensor_made_of_numbers",
        "make the tensor once outside of the loop, or on the GPU: torch.full, torch.arange",
        kinds=("copy_h2d",),
        source=r"\btensor\(|as_tensor\(",
        setup="",
        before="result = torch.tensor([1.0, 1.0, 1.0], device=device)",
        after="result = torch.full((3,), 1.0, device=device)",
    ),
    Rewrite(
        "one_element",
        "x[i].fill_(number) in place of x[i] = number, which copies it from the host",
        kinds=("copy_h2d",),
        source=r"\[[^\]]+\]\s*=[^=]",
        setup="x = torch.zeros(4, device=device)",
        before="x[2] = 1.0\nresult = x",
        after="x[2].fill_(1.0)\nresult = x",
    ),
    Rewrite(
        "copy_from_pinned",
        "pin the memory (DataLoader(pin_memory=True) or tensor.pin_memory()) and copy with non_blocking=True",
        kinds=("copy_h2d",),
        setup="batch = torch.arange(4.0); pinned = batch.pin_memory() if device == 'cuda' else batch",
        before="result = batch.to(device)",
        after="result = pinned.to(device, non_blocking=True)",
    ),
    Rewrite(
        "log_one_step_later",
        "keep the value on the GPU and log it every N steps, or copy it to pinned memory with non_blocking=True and "
        "log it one step later",
        kinds=("scalar_read",),
        source=r"\blog(ger|ging|s)?\b|print\(|writer|add_scalar|wandb|tensorboard|set_postfix",
        setup=("losses = torch.arange(4.0, device=device)\nhost = torch.empty(4, pin_memory=device == 'cuda')"),
        before="result = [loss.item() for loss in losses.unbind()]",
        after="for slot, loss in zip(host.unbind(), losses.unbind()):\n    slot.copy_(loss, non_blocking=True)",
        late="result = host.tolist()",
    ),
    Rewrite(
        "log_later",
        "keep the value on the GPU (x.detach()) and read it every N steps, or copy it to pinned memory with "
        "non_blocking=True and read it one step later",
        kinds=("scalar_read",),
        setup="losses = torch.arange(4.0, device=device)",
        before="result = 0.0\nfor loss in losses.unbind():\n    result += loss.item()",
        after="total = torch.zeros((), device=device)\nfor loss in losses.unbind():\n    total += loss.detach()",
        late="result = total.item()",
    ),
    Rewrite(
        "wait_between_streams",
        "have the stream wait, not the host: stream.wait_stream(other); time with torch.cuda.Event(enable_timing=True)",
        kinds=("explicit",),
        setup="x = torch.arange(4.0, device=device)\ncuda = device == 'cuda'\n"
        "side = torch.cuda.Stream() if cuda else None",
        before=(
            "side.wait_stream(torch.cuda.current_stream()) if cuda else None\n"
            "with torch.cuda.stream(side):\n    y = x * 2\nside.synchronize() if cuda else None\nresult = y + 1"
        ),
        after=(
            "side.wait_stream(torch.cuda.current_stream()) if cuda else None\n"
            "with torch.cuda.stream(side):\n    y = x * 2\n"
            "torch.cuda.current_stream().wait_stream(side) if cuda else None\nresult = y + 1"
        ),
    ),
)
