"""Advice for one line that waits: the option of a library, else what its own syntax says.

What is not certain says "probably".  Where nothing fits there is no advice: a wrong one would be worse than none.
"""

from __future__ import annotations

import ast

from syncagent.advice import copies, options, reads, shapes
from syncagent.advice.reading import LOOPS, Waiting, called, words
from syncagent.advice.usage import Use, comes_rarely, is_saved, use_of
from syncagent.advice.what import ALLOW, Advice, Sync, What, itself, say

_OFTEN = 0.5
"""From this on, what a library calls rare is not."""
_NOT_IF_RARE = frozenset({
    What.LOG_LATER, What.READ_TOGETHER, What.CREATE_ON_DEVICE, What.INDEX_ON_DEVICE, What.PIN, What.D2H_ASYNC,
    What.DEBUG, What.BRANCH,
})  # fmt: skip
"""What is not worth the work where it happens now and then."""
_EX = {
    "inverse": "torch.linalg.inv_ex(x).inverse", "inv": "torch.linalg.inv_ex(x).inverse",
    "cholesky": "torch.linalg.cholesky_ex(x).L", "solve": "torch.linalg.solve_ex(a, b).result",
    "lu_factor": "torch.linalg.lu_factor_ex", "ldl_factor": "torch.linalg.ldl_factor_ex",
}  # fmt: skip
_PRINTS = words("print pprint debug info warning error")
"""What makes text of the tensors that it is given."""
_EIGEN = words("svd eigh eig eigvals eigvalsh svdvals lstsq symeig pinv matrix_rank")


def advise(sync: Sync, waiting: Waiting | None) -> Advice | None:
    """Return what to do about a sync; ``waiting`` is its expression in the user's code, where that can be read."""
    if sync.library is not None:
        return _in_library(sync, waiting)
    if waiting is None:
        return _by_op(sync)
    found = _in_source(sync, waiting)
    if found is None:
        return _by_op(sync)
    if found.what not in {What.EXPLICIT, What.OPTION, What.LEAVE, What.LOADER} and (
        sync.is_rare or (found.what in _NOT_IF_RARE and comes_rarely(sync, waiting))
    ):
        return say(What.RARE)
    return found if waiting.is_certain else Advice(found.what, found.say, is_sure=False)


# --- lines inside of libraries


def _in_library(sync: Sync, waiting: Waiting | None) -> Advice | None:
    assert sync.library is not None
    line = options.find(*sync.library, sync.library_version)
    package, _, function, statement = sync.library
    if sync.is_rare:
        return say(What.RARE)
    if waiting is not None and is_saved(waiting):
        return say(What.RARE)
    if line is not None:
        if line.often and sync.per_step is not None and sync.per_step >= _OFTEN:
            return Advice(What.OPTION, line.often, asked_by=line.asked_by)
        if line.advice is What.BRANCH and waiting is not None and use_of(waiting) is Use.LOGGED:
            return say(What.LOG_LATER)
        rare = waiting is not None and comes_rarely(sync, waiting)
        if rare and line.advice == What.LOG_LATER:
            return say(What.RARE)
        if line.function == "ReduceLROnPlateau" and waiting is not None and not rare:
            return say(
                What.BRANCH, "call the scheduler once an epoch, or every N steps with a mean that was summed on the GPU"
            )
        if line.library == "torch" and waiting is not None and called(waiting.node) == "update_bn":
            return say(What.RARE)
        return Advice(line.advice, line.text, is_sure=line.is_sure(sync.library_version), asked_by=line.asked_by)
    if calls_backward(statement) or (waiting is not None and called(waiting.node) == "backward"):
        return in_backward(sync.kind)
    name = function.rpartition(".")[2] or "its code"
    return say(What.LEAVE, f"{package} waits in {name}, and no option is known to avoid it; {ALLOW}", sure=False)


def calls_backward(statement: str) -> bool:
    """Return whether a library's line calls the backward pass."""
    return "backward(" in statement


def in_backward(kind: str) -> Advice | None:
    """Say what an option does about a wait in the backward pass, of which the forward line is not known."""
    if kind == "copy_d2h":
        how = "DistributedDataParallel(..., find_unused_parameters=False)"
        return Advice(What.OPTION, how, asked_by=r"find_unused_parameters\s*=\s*True")
    if kind == "scalar_read":
        how = "set_detect_anomaly(False): the gradients of each node are not tested for NaN"
        return Advice(What.OPTION, how, is_sure=False, asked_by=r"detect_anomaly(\(True|\s*=\s*True|\(\))")
    if kind == "dynamic_shape":
        return say(What.MASK, "keep the shape in the forward pass, by torch.where or times the mask", sure=False)
    if kind == "copy_h2d":
        return say(What.INDEX_ON_DEVICE, "build the indices of the forward pass on the GPU, once", sure=False)
    return None


# --- the user's own line


def _in_source(sync: Sync, waiting: Waiting) -> Advice | None:
    if called(waiting.node) == "backward":
        return in_backward(sync.kind)
    if called(waiting.node) in _PRINTS and waiting.is_certain and sync.kind in {"scalar_read", "dynamic_shape"}:
        return say(What.DEBUG)
    if "nms" in waiting.function and "soft" not in waiting.function and _has_loop(waiting):
        return say(What.OPTION, "torchvision.ops.nms, or batched_nms, waits once: this loop waits for each box")
    by_kind = {
        "explicit": _explicit, "check": _check, "copy_h2d": copies.to_device, "copy_d2h": copies.to_host,
        "scalar_read": reads.read, "dynamic_shape": shapes.dynamic,
    }.get(sync.kind, _other)  # fmt: skip
    return by_kind(sync, waiting)


def _has_loop(waiting: Waiting) -> bool:
    return any(isinstance(node, LOOPS) for node in ast.walk(waiting.scope))


def _explicit(_sync: Sync, waiting: Waiting) -> Advice | None:
    name = called(waiting.node)
    if name in {"barrier", "monitored_barrier"}:
        return say(
            What.EXPLICIT,
            "collectives keep the ranks together by themselves: leave the barrier out, or once a checkpoint",
        )
    if name == "synchronize" and "elapsed_time" in {called(node) for node in ast.walk(waiting.scope)}:
        return say(What.EXPLICIT, "read elapsed_time() some steps later, when the event's query() is true")
    return say(What.EXPLICIT)


def _other(sync: Sync, waiting: Waiting) -> Advice | None:
    name = called(waiting.node)
    if name == "empty_cache" or "Free" in sync.op:
        return (
            say(What.RARE)
            if comes_rarely(sync, waiting)
            else say(What.EXPLICIT, "leave empty_cache() out: the allocator gives memory back by itself")
        )
    if name in {"barrier", "synchronize"}:
        return _explicit(sync, waiting)
    if name.startswith(("all_gather_object", "broadcast_object", "gather_object", "scatter_object")):
        return say(What.LEAVE, "objects travel by way of the host: send tensors, or do it rarely", sure=False)
    return None


def _check(sync: Sync, waiting: Waiting) -> Advice | None:
    name = called(waiting.node)
    if name == "normal":
        return say(What.EX_FORM, "mean + std * torch.randn_like(std): torch.normal looks for a negative std")
    if name in _EIGEN:
        return itself(name)
    for word, form in _EX.items():
        if word in name or f"_{word}" in sync.op:
            return say(What.EX_FORM, f"{form} with check_errors=False: its info stays on the GPU")
    if name in {"equal", "allclose"}:
        return reads.read(sync, waiting)
    return itself(name) if "linalg" in sync.op else None


def _by_op(sync: Sync) -> Advice | None:
    """Say what the op alone tells, where the source does not."""
    name = {
        "repeat_interleave": What.OUTPUT_SIZE, "nonzero": What.MASK, "masked_select": What.MASK,
        "_unique2": What.UNIQUE, "unique_dim": What.UNIQUE, "unique_consecutive": What.UNIQUE,
        "bincount": What.UNIQUE, "histc": What.UNIQUE, "index": What.MASK, "index_put_": What.MASK_ASSIGN,
    }.get(sync.name)  # fmt: skip
    return say(name, sure=False) if name is not None else None
