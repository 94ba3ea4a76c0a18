"""Values that Python reads from the GPU."""

from __future__ import annotations

import ast
import re

from syncagent.advice.reading import Waiting, called, dotted
from syncagent.advice.usage import METRICS, SIZES, Use, is_of_element, is_rare, use_of, uses_of
from syncagent.advice.what import ALLOW, Advice, Sync, What, say


def read(sync: Sync, waiting: Waiting) -> Advice | None:
    node, name, api = waiting.node, called(waiting.node), sync.api.rpartition(".")[2]
    use = use_of(waiting)
    if name in {"equal", "allclose"} and use is Use.BRANCH and _ends_loop(waiting):
        return say(What.BRANCH, _ENDS)
    if name in {"equal", "allclose"} and use in {Use.BRANCH, Use.UNKNOWN, Use.CHECKED}:
        return say(
            What.ASSERT_ASYNC, "keep (a == b).all() on the GPU, and check it with torch._assert_async or every N steps"
        )
    if name == "one_hot":
        return say(What.OPTION, "one_hot(..., num_classes=N)")
    if name in SIZES:
        return say(What.SIZE)
    if name in {"get_scale", "state_dict"}:
        return say(What.BRANCH, "train in bfloat16, or do not look at the scale", sure=False)
    if api == "backward":
        return None  # the line of the forward pass says nothing of what is read in the backward pass
    if api == "__index__" and isinstance(node, ast.Subscript):
        return say(What.READ_TOGETHER, "a Python list is indexed: read the indices in one copy first: values.tolist()")
    if isinstance(node, ast.Subscript):
        has_bounds = any(
            isinstance(inner, ast.Slice) and (inner.lower or inner.upper) for inner in ast.walk(node.slice)
        )
        is_size = has_bounds and not isinstance(node.ctx, ast.Store)
        if is_size and any(map(_is_window, ast.walk(node.slice))):
            return say(What.INDEX_1D, "index_select(0, start + torch.arange(n)): the host reads the bounds of a slice")
        return say(What.SIZE if is_size else What.INDEX_1D)
    if api in {"__repr__", "__str__"} or (api == "__format__" and not _is_metric(node)):
        if isinstance(node, ast.Call) and name == "str":
            return say(What.LOG_LATER, sure=False)
        return say(What.RARE) if is_rare(waiting) else say(What.DEBUG)
    if api == "__format__":
        return say(What.LOG_LATER)
    if name in {"min", "max"} and isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return say(
            What.BRANCH,
            "torch.minimum or torch.maximum in place of Python's min() and max(), which compare on the host",
        )
    if name == "sorted" or _is_sort_key(waiting):
        return say(
            What.READ_TOGETHER, "torch.sort or torch.argsort, or read the keys in one copy first: values.tolist()"
        )
    if use in {Use.SIZE, Use.BRANCH, Use.INDEX, Use.UNKNOWN} and _is_drawn(node):
        return say(What.SIZE if use is Use.SIZE else What.BRANCH, _DRAWN)
    if use is Use.BRANCH and _FLAGS.search(_held(node)):
        return say(What.BRANCH, "keep it on the host as well, as a Python bool; the tensor may stay for checkpoints")
    if _COUNTERS.search(_held(node)):
        return say(What.SIZE, _COUNTED, sure=False)
    if _is_counted_here(waiting):
        return say({Use.INDEX: What.INDEX_1D, Use.BRANCH: What.BRANCH}.get(use, What.SIZE), _COUNTED)
    if use is Use.SIZE:
        return say(What.SIZE)
    if use is Use.CHECKED:
        if Use.LOGGED in uses_of(waiting):
            return say(What.LOG_LATER, "read it, and check it, only every N steps")
        if (
            isinstance(waiting.statement, ast.Assert)
            and re.search(r"nan|inf", ast.unparse(node))
            and _is_in_layer(waiting)
        ):
            return say(What.DEBUG, sure=False)
        return say(What.ASSERT_ASYNC)
    if use is Use.INDEX:
        if isinstance(node, ast.Call) and (is_of_element(waiting) or waiting.is_in_comprehension):
            return say(What.READ_TOGETHER, _BEFORE_LOOP)
        return say(What.INDEX_1D, sure=not isinstance(node, ast.Call))
    if use is Use.BRANCH or (api == "__bool__" and use is not Use.LOGGED):
        if _is_debug(waiting):
            return say(What.DEBUG)
        if isinstance(node, ast.Call) and name in {"item", "int", "float"} and is_of_element(waiting):
            return say(What.READ_TOGETHER, _BEFORE_LOOP)
        return say(What.BRANCH, _ENDS) if _ends_loop(waiting) else say(What.BRANCH)
    if use is Use.HOST or (use in {Use.RETURNED, Use.UNKNOWN} and _is_action(node)):
        return _needed(waiting)
    if use is Use.TENSOR:
        return say(What.LOG_LATER, "leave it a tensor, which takes part in arithmetic as a number does")
    if _is_size(waiting):
        return say(What.SIZE, sure=False)
    if _is_flag(waiting):
        return say(What.BRANCH, sure=False)
    if use is Use.RETURNED and _reads_of(waiting.statement) > 1:
        return say(What.READ_TOGETHER, sure=False)
    if use in {Use.LOGGED, Use.WRITTEN, Use.RETURNED}:
        if (waiting.is_in_comprehension and not _is_accumulated(waiting)) or is_of_element(waiting):
            return say(What.READ_TOGETHER)
        return say(What.LOG_LATER, sure=use is not Use.RETURNED)
    if waiting.is_in_comprehension or _reads_one_by_one(waiting) or _reads_of(waiting.statement) > 1:
        return say(What.READ_TOGETHER, sure=False)
    return say(What.LOG_LATER, sure=False)


_COUNTED = "count on the host as well, in a Python number; the tensor may stay for checkpoints"
_BEFORE_LOOP = "read all of them in one copy before the loop: values.tolist()"
_COUNTERS = re.compile(r"(^|[._])(steps?|(num|n)_(updates|steps|calls)|iter|iteration|count|counter|epoch)(_t)?$")
_DRAWN = "draw it on the host (random.random(), or torch.rand without device=): then there is nothing to read"
_FLAGS = re.compile(r"init|ready|started|first|done|frozen|enabled|flag|fitted|calibrated")
_ENDS = "the host decides how long the loop runs: ask only every N rounds, or run a fixed number and mask the rest"


def _is_counted_here(waiting: Waiting) -> bool:
    """Return whether it is a counter that the object keeps: this function adds a number of the host's to it."""
    held = _held(waiting.node)
    read = {dotted(target) for target in getattr(waiting.statement, "targets", ())}
    if not held:
        return False
    for node in ast.walk(waiting.scope):
        if isinstance(node, ast.AugAssign) and _held(node.target) == held and _is_of_host(node.value):
            return True
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Subscript) and _held(target) == held for target in node.targets
        ):
            names = {name.id for name in ast.walk(node.value) if isinstance(name, ast.Name)}
            if names & read:
                return True
    return False


def _held(node: ast.expr) -> str:
    """Return the attribute of the object that is read: ``self.n`` for ``int(self.n[0])``; empty for others."""
    while not isinstance(node, ast.Attribute) or called(node):
        if isinstance(node, ast.Call):
            node = node.func.value if isinstance(node.func, ast.Attribute) else (node.args or [node.func])[0]
        elif isinstance(node, ast.Subscript):
            node = node.value
        else:
            return ""
    name = dotted(node)
    return name if name.startswith("self.") else ""


def _is_of_host(node: ast.expr) -> bool:
    """Return whether it is a number that the host knows: a constant, a size."""
    return isinstance(node, ast.Constant) or any(
        called(inner) in {"size", "len", "numel"} or (isinstance(inner, ast.Attribute) and inner.attr == "shape")
        for inner in ast.walk(node)
    )


def _is_drawn(node: ast.expr) -> bool:
    """Return whether it is a random number, and nothing that was computed from other tensors."""
    return any(
        isinstance(inner, ast.Call) and dotted(inner.func) in {"torch.rand", "torch.randn", "torch.randint"}
        for inner in ast.walk(node)
    )


def _is_sort_key(waiting: Waiting) -> bool:
    """Return whether it is what a Python sort, or ``max`` and ``min``, compare by."""
    inside = any(isinstance(node, ast.Lambda) for node in waiting.around)
    return inside and any(called(node) in {"sorted", "sort", "min", "max"} for node in waiting.around)


def _ends_loop(waiting: Waiting) -> bool:
    """Return whether the branch leaves the loop that it stands in."""
    branch = next((node for node in waiting.around if isinstance(node, (ast.If, ast.While))), None)
    if isinstance(branch, ast.While):
        return True
    return (
        branch is not None
        and waiting.statement is branch
        and waiting.is_repeated
        and any(isinstance(node, (ast.Break, ast.Return)) for node in branch.body)
    )


def _is_window(node: ast.AST) -> bool:
    """Return whether it is a slice whose length the host knows: ``[start : start + n]``."""
    return (
        isinstance(node, ast.Slice)
        and isinstance(node.upper, ast.BinOp)
        and isinstance(node.upper.op, ast.Add)
        and node.lower is not None
        and ast.dump(node.upper.left) == ast.dump(node.lower)
    )


def _is_action(node: ast.expr) -> bool:
    """Return whether it is called like what an environment is to do next."""
    return bool(re.search(r"(^|[._])(action|actions|act)$", dotted(_owner(node))))


def _owner(node: ast.expr) -> ast.expr:
    return node.func.value if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else node


def _needed(waiting: Waiting) -> Advice:
    """Advice for a value that code on the host needs at once."""
    if any("sched" in dotted(node.func).lower() for node in waiting.around if isinstance(node, ast.Call)):
        return say(
            What.BRANCH, "call the scheduler once an epoch, or every N steps with a mean that was summed on the GPU"
        )
    if _is_metric(waiting.node):
        return say(What.LOG_LATER, "hand it over once an epoch, or every N steps as a mean that was summed on the GPU")
    if _reads_of(waiting.statement) > 1:
        return say(What.READ_TOGETHER)
    return say(What.LEAVE, f"code on the host needs it at once; {ALLOW}")


_SIZE_NAMES = re.compile(
    r"(^|_)(max|num|n|total)_?(len|length|lens|seq|seqlen|faces|nodes|tokens|points|boxes|size|objs|objects)|_(size|len|length)$"
)


def _is_size(waiting: Waiting) -> bool:
    """Return whether the value gets the name of a size, or is the largest id and one is added to it."""
    if any(_is_one_more(node) for node in waiting.around) and "max(" in ast.unparse(waiting.node):
        return True
    targets = getattr(waiting.statement, "targets", ())
    return any(_SIZE_NAMES.search(dotted(target)) for target in targets) and not _is_metric(waiting.node)


def _is_one_more(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Add)
        and any(isinstance(part, ast.Constant) and part.value == 1 for part in (node.left, node.right))
    )


_FLAG_NAMES = re.compile(r"^(is|has|have|should|use|any|all|needs|can|must|found|done|finished|converged)(_|$)")


def _is_flag(waiting: Waiting) -> bool:
    """Return whether the value gets the name of a flag."""
    targets = getattr(waiting.statement, "targets", ())
    return any(_FLAG_NAMES.search(dotted(target).rpartition(".")[2]) for target in targets)


def _is_metric(node: ast.AST) -> bool:
    return bool(METRICS.search(ast.unparse(node)))


def _is_in_layer(waiting: Waiting) -> bool:
    return waiting.function == "forward"


def _is_debug(waiting: Waiting) -> bool:
    text = " ".join(ast.unparse(node.test) for node in waiting.around if isinstance(node, (ast.If, ast.IfExp)))
    return bool(re.search(r"\bdebug\b", text, re.IGNORECASE))


def _is_accumulated(waiting: Waiting) -> bool:
    return isinstance(waiting.statement, ast.AugAssign)


def _reads_of(statement: ast.stmt) -> int:
    """Count the values that a statement reads."""
    return len({ast.dump(node) for node in ast.walk(statement) if called(node) == "item"})


def _reads_one_by_one(waiting: Waiting) -> bool:
    return any(isinstance(inner, ast.Subscript) for inner in ast.walk(waiting.node))
