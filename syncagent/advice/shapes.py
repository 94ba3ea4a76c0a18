"""Results whose shape depends on values on the GPU."""

from __future__ import annotations

import ast
import re

from syncagent.advice.reading import Waiting, called, dotted, words
from syncagent.advice.usage import Use, is_of_element, use_of
from syncagent.advice.what import ALLOW, Advice, Sync, What, say

_IDS = re.compile(r"(^|_)(ids|input_ids|tokens?)$")
_COUNTS = ("unique", "_unique", "bincount", "histc")
_FINDS = words("nonzero argwhere where masked_select nonzero_static index")
_LOSSES = re.compile(r"(^|_)(cross_entropy|nll_loss|nll|criterion|ce_loss|ce)$")


def dynamic(sync: Sync, waiting: Waiting) -> Advice | None:
    node, name = waiting.node, called(waiting.node)
    if "repeat_interleave" in {sync.name, name}:
        return say(What.OUTPUT_SIZE)
    if name.startswith(_COUNTS) or sync.name.startswith(_COUNTS):
        return _counted(name, waiting)
    if name == "combinations":
        return say(What.INDEX_ON_DEVICE, "x[torch.combinations(torch.arange(n, device=...))], with the pairs made once")
    if name == "coalesce":
        how = "torch.sparse_coo_tensor(..., is_coalesced=True), where the indices are sorted and none is there twice"
        return say(What.OPTION, how)
    if name.startswith("to_sparse"):
        return say(What.LEAVE, f"it counts what is not zero: make it once, outside of the loop; {ALLOW}")
    if "nms" in name or "nms" in sync.op:
        return say(What.LEAVE, f"how many boxes stay depends on them; {ALLOW}")
    if sync.api.endswith(("__repr__", "__str__", "__format__")):
        return say(What.DEBUG)
    if isinstance(node, ast.Subscript):
        if _is_assigned(node, waiting):
            return say(What.MASK_ASSIGN)
        return say(What.MASK_ASSIGN, _IN_BOTH) if _goes_where_it_was(node, waiting) else _selected(waiting)
    if sync.name in {"index_put_", "_index_put_impl_"}:
        return say(What.MASK_ASSIGN)
    if name in _FINDS or sync.name in _FINDS:
        return _found(name, waiting)
    return None


def _counted(name: str, waiting: Waiting) -> Advice:
    use = use_of(waiting)
    if name == "histc":
        return say(What.UNIQUE, "torch.histc(..., min=a, max=b): otherwise it reads the smallest and the largest value")
    if name == "unique_consecutive" and use is Use.CHECKED:
        return say(What.ASSERT_ASYNC, sure=False)
    if name.startswith("unique") and {"numel", "shape", "size"} & _attributes_around(waiting):
        return say(What.UNIQUE, "sort and count where neighbours differ: the number stays on the GPU")
    if isinstance(waiting.statement, ast.For) and waiting.around[0] is waiting.statement:
        return say(What.UNIQUE, "go over all classes that there may be, or sum by class with index_add_ or scatter_add")
    return say(What.UNIQUE)


def _found(name: str, waiting: Waiting) -> Advice:
    if name == "nonzero" and "numel" in _attributes_around(waiting):
        return say(What.LOG_LATER, "count with (condition).sum(), and read it every N steps")
    if name in {"nonzero", "argwhere"} and _looks_at_inputs(waiting.node):
        return say(What.LOADER, sure=False)
    if name in {"nonzero", "argwhere"} and _takes_the_first(waiting):
        return say(What.MASK, "(condition).int().argmax() finds the first without a wait; or count along on the host")
    if _is_index_of_assignment(waiting):
        return say(
            What.MASK_ASSIGN, "torch.where(condition, value, x), or x.masked_fill_(condition, number), in place of both"
        )
    if is_of_element(waiting) and _is_of_group(waiting):
        return say(What.MASK, "sort by group once and read all counts in one copy, in place of a search for each group")
    return _selected(waiting)


def _selected(waiting: Waiting) -> Advice:
    """Advice for values that are selected by a mask; a loss can leave them out itself."""
    for node in waiting.around:
        if isinstance(node, ast.Call) and _LOSSES.search(called(node)):
            return say(What.MASK, "leave positions out inside of the loss: cross_entropy(..., ignore_index=...)")
    return say(What.MASK)


def _takes_the_first(waiting: Waiting) -> bool:
    """Return whether the first position is wanted; of a tuple of indices it would be those of the first dimension."""
    around, keywords = waiting.around[0], getattr(waiting.node, "keywords", ())
    return (
        isinstance(around, ast.Subscript)
        and isinstance(around.slice, ast.Constant)
        and around.slice.value == 0
        and not any(keyword.arg == "as_tuple" for keyword in keywords)
    )


def _is_assigned(node: ast.Subscript, waiting: Waiting) -> bool:
    statement = waiting.statement
    return isinstance(node.ctx, ast.Store) or (isinstance(statement, ast.AugAssign) and statement.target is node)


_IN_BOTH = "torch.where(mask, new, old): on both sides of the assignment, nothing is then selected"


def _goes_where_it_was(node: ast.Subscript, waiting: Waiting) -> bool:
    """Return whether what a mask selects is assigned to what the same mask selects: ``x[mask] = y[mask]``."""
    statement = waiting.statement
    targets = [statement.target] if isinstance(statement, ast.AugAssign) else getattr(statement, "targets", ())
    return any(
        isinstance(target, ast.Subscript) and ast.dump(target.slice) == ast.dump(node.slice) for target in targets
    )


def _is_index_of_assignment(waiting: Waiting) -> bool:
    """Return whether what was found is the index of an assignment, and of nothing else."""
    targets = getattr(waiting.statement, "targets", ())
    names = {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    uses = [
        node
        for node in ast.walk(waiting.scope)
        if isinstance(node, ast.Subscript)
        and any(isinstance(name, ast.Name) and name.id in names for name in ast.walk(node.slice))
    ]
    return bool(uses) and all(isinstance(node.ctx, ast.Store) for node in uses)


def _is_of_group(waiting: Waiting) -> bool:
    """Return whether it looks for what is equal to the loop's variable."""
    loop = next(node for node in waiting.around if isinstance(node, (ast.For, ast.AsyncFor)))
    names = {name.id for name in ast.walk(loop.target) if isinstance(name, ast.Name)}
    return any(
        isinstance(node, ast.Compare)
        and isinstance(node.ops[0], ast.Eq)
        and any(isinstance(part, ast.Name) and part.id in names for part in (node.left, *node.comparators))
        for node in ast.walk(waiting.node)
    )


def _attributes_around(waiting: Waiting) -> set[str]:
    return {node.attr for node in waiting.around if isinstance(node, ast.Attribute)}


def _looks_at_inputs(node: ast.AST) -> bool:
    """Return whether a condition compares input ids with a number, which the collate function can do as well."""
    return any(
        isinstance(inner, ast.Compare) and isinstance(inner.ops[0], ast.Eq) and _IDS.search(dotted(inner.left))
        for inner in ast.walk(node)
    )
