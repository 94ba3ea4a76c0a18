"""What to write instead of a call that waits, as one sentence that quotes the gain.

The table has a row for each pattern; ``tests/gpu/rewrite_examples.py`` has an example of each, tried on a GPU.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from syncagent.cost.sites import WaitSite
from syncagent.report import wording


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One way to avoid a wait."""

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


REWRITES = (
    Rewrite("ignore_index", ops=("index", "nonzero", "masked_select", "index_put_"), kinds=("dynamic_shape",),
        source=r"cross_entropy|nll_loss|criterion", changes_gpu_work=True,
        say="leave the positions out inside the loss: cross_entropy(..., ignore_index=...)",
    ),
    Rewrite("nonzero_then_assign", ops=("nonzero", "index_put_"), kinds=("dynamic_shape",),
        source=r"nonzero|where\(|argwhere", changes_gpu_work=True,
        say="torch.where(condition, value, x) instead of nonzero and assignment",
    ),
    Rewrite("nonzero_static", ops=("nonzero",), kinds=("dynamic_shape",),
        say="torch.nonzero_static(mask, size=N) where an upper bound of the count is known; the rest is filled",
    ),
    Rewrite("assign_through_a_mask", ops=("index_put_", "index", "nonzero"), kinds=("dynamic_shape",),
        source=r"\[[^\]]+\]\s*[-+*/]?=[^=]", changes_gpu_work=True,
        say="torch.where(mask, y, x) instead of x[mask] = y[mask], masked_fill for one number",
    ),
    Rewrite("masked_fill", ops=("index", "masked_select", "nonzero"), kinds=("dynamic_shape",),
        source=r"\b(amax|amin|max|min|argmax|argmin|softmax|logsumexp|topk|sort)\(", changes_gpu_work=True,
        say="keep the shape: masked_fill(~mask, -inf) before max, softmax and similar ops",
    ),
    Rewrite("reduce_through_a_mask", ops=("index", "masked_select", "nonzero"), kinds=("dynamic_shape",),
        changes_gpu_work=True,
        say="keep the shape: multiply by the mask (or masked_fill) and divide by mask.sum()",
    ),
    Rewrite("count_of_unique", ops=("_unique2", "unique_dim", "unique_consecutive", "_unique"),
        kinds=("dynamic_shape",), changes_gpu_work=True,
        say="sort and count where neighbours differ; the number stays on the GPU",
    ),
    Rewrite("repeat_interleave_output_size", ops=("repeat_interleave",),
        say="repeat_interleave(..., output_size=N), since the sum of the repeats is known on the host",
    ),
    Rewrite("one_hot_num_classes", ops=("one_hot",), source=r"one_hot\(", either=True,
        say="one_hot(..., num_classes=N)",
    ),
    Rewrite("bincount_scatter", ops=("bincount", "histc"), changes_gpu_work=True,
        say="add ones into a tensor of fixed size: torch.zeros(N).scatter_add_(0, x, ones)",
    ),
    Rewrite("assert_async", kinds=("scalar_read",), source=r"is_?(nan|inf|finite)\b|^assert\b",
        say="check later: torch._assert_async on the GPU, or keep the flag and look at it every N steps",
    ),
    Rewrite("where_for_if", kinds=("scalar_read",), source=r"^(el)?if\b|^while\b|\bif\b.*\belse\b",
        say="torch.where instead of a Python if on the value",
    ),
    Rewrite("clip_grad_norm", source=r"^(?!.*\.item\(\)).*(error_if_nonfinite|clip_grad)",
        say="clip_grad_norm_(..., error_if_nonfinite=False)",
    ),
    Rewrite("grad_scaler", source=r"scaler\.(step|unscale_|update)", changes_gpu_work=True,
        say="a fused optimizer (fused=True) takes the scaler's flag on the GPU, or bfloat16, which needs no "
        "scaler",
    ),
    Rewrite("distribution_arguments", kinds=("check", "scalar_read"),
        source=r"^(?!.*\.item\(\)).*(Normal\(|Categorical\(|Bernoulli\(|distributions|Beta\(|Gamma\(|Dirichlet\(|log_prob\()",
        say="validate_args=False for distributions that are made in the loop",
    ),
    Rewrite("linalg_cholesky_ex", ops=("linalg_cholesky", "linalg_cholesky_ex", "cholesky"),
        say="torch.linalg.cholesky_ex, whose info stays on the GPU",
    ),
    Rewrite("linalg_inv_ex", ops=("linalg_inv", "linalg_inv_ex", "inverse"),
        say="torch.linalg.inv_ex, whose info stays on the GPU",
    ),
    Rewrite("linalg_solve_ex", ops=("linalg_solve", "_linalg_solve_ex", "linalg_solve_ex"),
        say="torch.linalg.solve_ex, whose info stays on the GPU",
    ),
    Rewrite("equal_on_the_gpu", ops=("equal", "allclose"), source=r"equal\(|allclose\(", either=True,
        say="(a == b).all() and keep it on the GPU",
    ),
    Rewrite("checkpoint", kinds=("copy_d2h",), source=r"torch\.save|state_dict|checkpoint",
        say="copy the state to pinned memory with non_blocking=True and write it from another thread, every N "
        'steps; where it has to wait, say so: syncagent.allow("checkpoint")',
    ),
    Rewrite("metric_on_the_gpu", kinds=("copy_d2h", "scalar_read"),
        source=r"metric|accuracy|correct|argmax|confusion|\bpred",
        say="keep the metric's sums on the GPU and read them once at the end of the epoch",
    ),
    Rewrite("copy_read_later", kinds=("copy_d2h",),
        say="copy to pinned memory with non_blocking=True, record an event and read one step later",
    ),
    Rewrite("tensor_made_of_numbers", kinds=("copy_h2d",), source=r"\btensor\(|as_tensor\(",
        say="make the tensor once outside of the loop, or on the GPU: torch.full, torch.arange",
    ),
    Rewrite("one_element", kinds=("copy_h2d",), source=r"\[[^\]]+\]\s*=[^=]",
        say="x[i].fill_(number) instead of x[i] = number, which copies it from the host",
    ),
    Rewrite("copy_from_pinned", kinds=("copy_h2d",),
        say="pin the memory (DataLoader(pin_memory=True) or tensor.pin_memory()) and copy with non_blocking=True",
    ),
    Rewrite("log_one_step_later", kinds=("scalar_read",),
        source=r"\blog(ger|ging|s)?\b|print\(|writer|add_scalar|wandb|tensorboard|set_postfix",
        say="keep the value on the GPU and log it every N steps, or copy it to pinned memory with "
        "non_blocking=True and log it one step later",
    ),
    Rewrite("log_later", kinds=("scalar_read",),
        say="keep the value on the GPU (x.detach()) and read it every N steps, or copy it to pinned memory with "
        "non_blocking=True and read it one step later",
    ),
    Rewrite("wait_between_streams", kinds=("explicit",),
        say="have the stream wait, not the host: stream.wait_stream(other); time with "
        "torch.cuda.Event(enable_timing=True)",
    ),
)  # fmt: skip

_ALIKE = {"nonzero_numpy": "nonzero", "_index_put_impl_": "index_put_"}
"""Other names that traces use for ops of the table."""


def find(site: WaitSite) -> Rewrite | None:
    """The row of the table whose op, kind and source pattern fit best; of equals the first, which is more specific.

    Where the line is not known (a trace without stacks), the op alone decides.
    """
    op = site.op.rpartition("::")[2].partition(".")[0]
    op = _ALIKE.get(op, op)
    if site.phase == "backward" and op == "index_put_":
        op = "index"  # whose backward it is
    text = f"{site.source}\n{site.function}"
    best: tuple[int, Rewrite] | None = None
    for rewrite in REWRITES:
        by_op, by_source = op in rewrite.ops, bool(rewrite.source and re.search(rewrite.source, text))
        guessed = bool(rewrite.source) and not site.source and rewrite.ops[:1] == (op,)
        if rewrite.source and not by_source and not guessed and not (rewrite.either and by_op):
            continue
        if rewrite.ops and not by_op and not (rewrite.either and by_source):
            continue
        if rewrite.kinds and site.kind not in rewrite.kinds:
            continue
        weight = 2 * by_source + (by_op and not guessed)
        if best is None or weight > best[0]:
            best = (weight, rewrite)
    return best[1] if best else None


def advise(site: WaitSite, gain_ms: float, step_ms: float) -> str:
    """What to write instead, and what a step gains without the wait: by the replay, 0 where it gains nothing."""
    rewrite = find(site)
    if gain_ms > 0.0:
        other_work = "; that also changes the GPU's work, which this gain leaves out"
    else:
        other_work = "; the GPU's work changes with it, and only that can make the step faster (or slower)"
    said = rewrite.say + (other_work if rewrite.changes_gpu_work else "") if rewrite is not None else ""
    return joined(worth(gain_ms, step_ms), said, gain_ms)


def worth(gain_ms: float, step_ms: float) -> str:
    """What a step gains without the wait, as a clause."""
    if gain_ms > 0.0:
        return f"not waiting here gains {wording.duration(gain_ms)} per step ({wording.share(gain_ms / step_ms)})"
    return "not waiting here gains nothing: the GPU has work, or is not what the step waits for"


def joined(worth: str, say: str, gain_ms: float) -> str:
    """The gain, and what to do for it."""
    if not say:
        return worth
    return f"{worth}{'; instead: ' if gain_ms > 0.0 else '. To avoid the wait anyway: '}{say}"
