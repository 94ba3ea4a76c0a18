"""The gallery of docs/fixing.md: what to write instead of each call that waits; see tables.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from syncagent.cost.advice import REWRITES
from tests.gpu.rewrite_examples import EXAMPLES, Example

GROUPS = {
    "Sizes that depend on data": (
        "ignore_index", "nonzero_then_assign", "nonzero_static", "assign_through_a_mask", "masked_fill",
        "reduce_through_a_mask", "count_of_unique", "repeat_interleave_output_size", "one_hot_num_classes",
        "bincount_scatter",
    ),
    "Numbers that the host reads": ("log_later", "log_one_step_later", "metric_on_the_gpu", "equal_on_the_gpu"),
    "Conditions and checks": (
        "assert_async", "where_for_if", "clip_grad_norm", "distribution_arguments", "linalg_cholesky_ex",
        "linalg_inv_ex", "linalg_solve_ex",
    ),
}  # fmt: skip
"""The rest is about copies, optimizers and streams."""
_REST = "Copies, optimizers and streams"

NOT_BEHIND = ("wait_between_streams",)
"""Its other stream was not queued behind the sleeping kernel when it was run; its row has been changed since."""


def gallery() -> str:
    measured = json.loads((Path(__file__).with_name("results") / "cost_rewrites.json").read_text(encoding="utf-8"))
    said = {rewrite.name: rewrite.say for rewrite in REWRITES}
    placed = {name for names in GROUPS.values() for name in names}
    groups = {**GROUPS, _REST: tuple(name for name in EXAMPLES if name not in placed)}
    parts = []
    for title, names in groups.items():
        parts.append(f"### {title}")
        parts += [_recipe(said[name], EXAMPLES[name], _times(name, measured)) for name in names]
    where = f"{measured['gpu']}, torch {measured['torch']}, {measured['date'][:10]}"
    return "\n\n".join(parts) + f"\n\nTimes: {where}, `python tests/gpu/cost_rewrites.py --out FILE`."


def _recipe(said: str, example: Example, times: str) -> str:
    after = example.after + (f"\n...\n{example.late}  # once, later" if example.late else "")
    is_code = "." in said.split(maxsplit=1)[0]  # torch.where(...)
    return (
        f"**{said if is_code else said[:1].upper() + said[1:]}.**\n\n"
        f"```python\n# instead of\n{example.before}\n\n# write\n{after}\n```\n\n{times}"
    )


def _times(name: str, measured: dict[str, Any]) -> str:
    """How long the host was in each form, behind a kernel that keeps the GPU busy for 10 ms."""
    seen = measured["rewrites"].get(name)
    if seen is None or name in NOT_BEHIND:
        return "Tried on the simulated device: the first form waits, the second does not."
    return (
        f"Behind {measured['sleep_ms']} ms of work for the GPU the host needs {seen['before_ms']:.1f} ms for the first "
        f"form, and {seen['after_ms']:.2f} ms for the second."
    )
