"""What to write instead of a call that waits: one row a pattern, tried on a GPU by ``tests/gpu/cost_rewrites.py``."""

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
    changes_gpu_work: bool = False
    """The rewrite does other work on the GPU, less or more: not waiting is not all that changes."""


REWRITES: tuple[Rewrite, ...] = (
    Rewrite(
        "ignore_index",
        "leave the positions out inside the loss: cross_entropy(..., ignore_index=...)",
        ops=("index", "nonzero", "masked_select", "index_put_"),
        kinds=("dynamic_shape",),
        source=r"cross_entropy|nll_loss|criterion",
        changes_gpu_work=True,
    ),
    Rewrite(
        "nonzero_then_assign",
        "torch.where(condition, value, x) in place of nonzero and assignment",
        ops=("nonzero", "index_put_"),
        kinds=("dynamic_shape",),
        source=r"nonzero|where\(|argwhere",
        changes_gpu_work=True,
    ),
    Rewrite(
        "nonzero_static",
        "torch.nonzero_static(mask, size=N) where a bound of the count is known; what is over is filled",
        ops=("nonzero",),
        kinds=("dynamic_shape",),
    ),
    Rewrite(
        "assign_through_a_mask",
        "torch.where(mask, y, x) in place of x[mask] = y[mask], masked_fill for one number",
        ops=("index_put_", "index", "nonzero"),
        kinds=("dynamic_shape",),
        source=r"\[[^\]]+\]\s*[-+*/]?=[^=]",
        changes_gpu_work=True,
    ),
    Rewrite(
        "masked_fill",
        "keep the shape: masked_fill(~mask, -inf) in front of max, softmax and their like",
        ops=("index", "masked_select", "nonzero"),
        kinds=("dynamic_shape",),
        source=r"\b(amax|amin|max|min|argmax|argmin|softmax|logsumexp|topk|sort)\(",
        changes_gpu_work=True,
    ),
    Rewrite(
        "reduce_through_a_mask",
        "keep the shape: multiply by the mask (or masked_fill) and divide by mask.sum()",
        ops=("index", "masked_select", "nonzero"),
        kinds=("dynamic_shape",),
        changes_gpu_work=True,
    ),
    Rewrite(
        "count_of_unique",
        "sort and count where neighbours differ; the number stays on the GPU",
        ops=("_unique2", "unique_dim", "unique_consecutive", "_unique"),
        kinds=("dynamic_shape",),
        changes_gpu_work=True,
    ),
    Rewrite(
        "repeat_interleave_output_size",
        "repeat_interleave(..., output_size=N), since the sum of the repeats is known on the host",
        ops=("repeat_interleave",),
    ),
    Rewrite(
        "one_hot_num_classes",
        "one_hot(..., num_classes=N)",
        ops=("one_hot",),
        source=r"one_hot\(",
        either=True,
    ),
    Rewrite(
        "bincount_scatter",
        "add ones into a tensor of fixed size: torch.zeros(N).scatter_add_(0, x, ones)",
        ops=("bincount", "histc"),
        changes_gpu_work=True,
    ),
    Rewrite(
        "assert_async",
        "check later: torch._assert_async on the GPU, or keep the flag and look at it every N steps",
        kinds=("scalar_read",),
        source=r"is_?(nan|inf|finite)\b|^assert\b",
    ),
    Rewrite(
        "where_for_if",
        "torch.where in place of a Python if on the value",
        kinds=("scalar_read",),
        source=r"^(el)?if\b|^while\b|\bif\b.*\belse\b",
    ),
    Rewrite(
        "clip_grad_norm",
        "clip_grad_norm_(..., error_if_nonfinite=False)",
        source=r"^(?!.*\.item\(\)).*(error_if_nonfinite|clip_grad)",
    ),
    Rewrite(
        "grad_scaler",
        "a fused optimizer (fused=True) takes the scaler's flag on the GPU, or bfloat16, which needs no scaler",
        source=r"scaler\.(step|unscale_|update)",
        changes_gpu_work=True,
    ),
    Rewrite(
        "distribution_arguments",
        "validate_args=False for distributions that are made in the loop",
        kinds=("check", "scalar_read"),
        source=r"^(?!.*\.item\(\)).*(Normal\(|Categorical\(|Bernoulli\(|distributions|Beta\(|Gamma\(|Dirichlet\(|log_prob\()",
    ),
    Rewrite(
        "linalg_cholesky_ex",
        "torch.linalg.cholesky_ex, whose info stays on the GPU",
        ops=("linalg_cholesky", "linalg_cholesky_ex", "cholesky"),
    ),
    Rewrite(
        "linalg_inv_ex",
        "torch.linalg.inv_ex, whose info stays on the GPU",
        ops=("linalg_inv", "linalg_inv_ex", "inverse"),
    ),
    Rewrite(
        "linalg_solve_ex",
        "torch.linalg.solve_ex, whose info stays on the GPU",
        ops=("linalg_solve", "_linalg_solve_ex", "linalg_solve_ex"),
    ),
    Rewrite(
        "equal_on_the_gpu",
        "(a == b).all() and keep it on the GPU",
        ops=("equal", "allclose"),
        source=r"equal\(|allclose\(",
        either=True,
    ),
    Rewrite(
        "checkpoint",
        "copy the state to pinned memory with non_blocking=True and write it from another thread, every N steps; "
        'where it has to wait, say so: syncagent.allow("checkpoint")',
        kinds=("copy_d2h",),
        source=r"torch\.save|state_dict|checkpoint",
    ),
    Rewrite(
        "metric_on_the_gpu",
        "keep the metric's sums on the GPU and read them once at the end of the epoch",
        kinds=("copy_d2h", "scalar_read"),
        source=r"metric|accuracy|correct|argmax|confusion|\bpred",
    ),
    Rewrite(
        "copy_read_later",
        "copy to pinned memory with non_blocking=True, record an event and read one step later",
        kinds=("copy_d2h",),
    ),
    Rewrite(
        "tensor_made_of_numbers",
        "make the tensor once outside of the loop, or on the GPU: torch.full, torch.arange",
        kinds=("copy_h2d",),
        source=r"\btensor\(|as_tensor\(",
    ),
    Rewrite(
        "one_element",
        "x[i].fill_(number) in place of x[i] = number, which copies it from the host",
        kinds=("copy_h2d",),
        source=r"\[[^\]]+\]\s*=[^=]",
    ),
    Rewrite(
        "copy_from_pinned",
        "pin the memory (DataLoader(pin_memory=True) or tensor.pin_memory()) and copy with non_blocking=True",
        kinds=("copy_h2d",),
    ),
    Rewrite(
        "log_one_step_later",
        "keep the value on the GPU and log it every N steps, or copy it to pinned memory with non_blocking=True and "
        "log it one step later",
        kinds=("scalar_read",),
        source=r"\blog(ger|ging|s)?\b|print\(|writer|add_scalar|wandb|tensorboard|set_postfix",
    ),
    Rewrite(
        "log_later",
        "keep the value on the GPU (x.detach()) and read it every N steps, or copy it to pinned memory with "
        "non_blocking=True and read it one step later",
        kinds=("scalar_read",),
    ),
    Rewrite(
        "wait_between_streams",
        "have the stream wait, not the host: stream.wait_stream(other); time with torch.cuda.Event(enable_timing=True)",
        kinds=("explicit",),
    ),
)
