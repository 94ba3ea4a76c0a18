"""Values that Python reads from the GPU."""

from __future__ import annotations

import ast
import re
from typing import NamedTuple

from syncagent.advice.reading import COMPREHENSIONS, Waiting, called, dotted, words
from syncagent.advice.usage import METRICS, SIZES, TAKE_TENSORS, Use, is_of_element, reads_number, use_of, uses_of
from syncagent.advice.what import ALLOW, BEFORE_LOOP, Advice, Sync, What, itself, say


class _Read(NamedTuple):
    """What is known of one read."""

    waiting: Waiting
    node: ast.expr
    name: str
    """Of the function or method that is called, if one is."""
    api: str
    """The last part of the sync's own name, such as ``item`` or ``__bool__``."""
    use: Use


def read(sync: Sync, waiting: Waiting) -> Advice | None:
    """Say what to do about a value that Python reads: the first rule that knows it has the word."""
    node = waiting.node
    one = _Read(waiting, node, called(node), sync.api.rpartition(".")[2], use_of(waiting))
    found = _by_function(one)
    if found is not None or one.api == "backward":
        return found  # the line of the forward pass says nothing of what is read in the backward pass
    if one.name and one.name == one.api and one.name not in _READERS:
        return itself(one.name) if one.name in _LOOK else say(What.LOG_LATER, _AS_NUMBER, sure=False)
    rules = (_by_index, _by_text, _by_builtin, _by_origin, _by_use, _by_target)
    return next(filter(None, (rule(one) for rule in rules)), None) or _otherwise(one)


_READERS = words("item tolist numpy is_nonzero print")
"""Functions whose result is what was read; others of torch's read something else."""
_LOOK = words("gaussian_nll_loss istft cov")
"""Those that look at their data; others take a number, and were given a tensor."""
_AS_NUMBER = (
    "an argument that it takes as a number is a tensor on the GPU: keep that number on the host, or compute with the "
    "tensor (x + alpha * y for add(..., alpha=alpha))"
)


def _by_function(one: _Read) -> Advice | None:
    if one.name in {"equal", "allclose"}:
        if one.use is Use.BRANCH and _ends_loop(one.waiting):
            return say(What.BRANCH, _ENDS)
        if one.use in {Use.BRANCH, Use.UNKNOWN, Use.CHECKED}:
            what = "keep (a == b).all() on the GPU, and check it with torch._assert_async or every N steps"
            return say(What.ASSERT_ASYNC, what)
    if one.name in {"tensor", "as_tensor", "new_tensor"}:
        return say(What.READ_TOGETHER, "torch.stack(values) makes one tensor of them on the GPU, and nothing is read")
    if one.name in {"list", "tuple", "set", "sum"} and any(called(node) == "map" for node in ast.walk(one.node)):
        return say(What.READ_TOGETHER)
    if isinstance(one.node, ast.Call) and one.name in _BY_VALUE and reads_number(one.node):
        return say(What.LOG_LATER, _BY_VALUE[one.name])
    if one.name == "select":
        return say(What.INDEX_1D)
    if one.name == "one_hot" and isinstance(one.node, ast.Call) and len(one.node.args) + len(one.node.keywords) == 1:
        return say(What.OPTION, "one_hot(..., num_classes=N)")
    if one.name in SIZES:
        return say(What.SIZE)
    if one.name in {"get_scale", "state_dict"}:
        return say(What.BRANCH, "train in bfloat16, or do not look at the scale", sure=False)
    return None


def _by_index(one: _Read) -> Advice | None:
    node = one.node
    if not isinstance(node, ast.Subscript):
        return None
    if one.api == "__index__":
        return say(What.READ_TOGETHER, "a Python list is indexed: read the indices in one copy first: values.tolist()")
    has_bounds = any(isinstance(inner, ast.Slice) and (inner.lower or inner.upper) for inner in ast.walk(node.slice))
    is_size = has_bounds and not isinstance(node.ctx, ast.Store)
    if is_size and any(map(_is_window, ast.walk(node.slice))):
        return say(What.INDEX_1D, "index_select(0, start + torch.arange(n)): the host reads the bounds of a slice")
    return say(What.SIZE if is_size else What.INDEX_1D)


def _by_text(one: _Read) -> Advice | None:
    if one.api in {"__repr__", "__str__"} or (one.api == "__format__" and not _is_metric(one.node)):
        if isinstance(one.node, ast.Call) and one.name == "str":
            return say(What.LOG_LATER, sure=False)
        return say(What.DEBUG)
    return say(What.LOG_LATER) if one.api == "__format__" else None


def _by_builtin(one: _Read) -> Advice | None:
    """Python's own functions that compare."""
    if one.name in {"min", "max"} and isinstance(one.node, ast.Call) and isinstance(one.node.func, ast.Name):
        what = "torch.minimum or torch.maximum in place of Python's min() and max(), which compare on the host"
        return say(What.BRANCH, what)
    if isinstance(one.node, COMPREHENSIONS) and any(part.ifs for part in one.node.generators):
        return say(What.READ_TOGETHER, BEFORE_LOOP)
    if one.name == "sorted" or _is_sort_key(one.waiting):
        what = "torch.sort or torch.argsort, or read the keys in one copy first: values.tolist()"
        return say(What.READ_TOGETHER, what)
    return None


def _by_origin(one: _Read) -> Advice | None:
    """Where the value comes from: what the host could know without reading it."""
    if one.use in {Use.SIZE, Use.BRANCH, Use.INDEX, Use.UNKNOWN} and _is_drawn(one.node):
        return say(What.SIZE if one.use is Use.SIZE else What.BRANCH, _DRAWN)
    if one.use is Use.BRANCH and _FLAGS.search(_held(one.node)):
        return say(What.BRANCH, "keep it on the host as well, as a Python bool; the tensor may stay for checkpoints")
    if _COUNTERS.search(_held(one.node)):
        return say(What.SIZE, _COUNTED, sure=False)
    if _is_counted_here(one.waiting):
        return say({Use.INDEX: What.INDEX_1D, Use.BRANCH: What.BRANCH}.get(one.use, What.SIZE), _COUNTED)
    return None


def _by_use(one: _Read) -> Advice | None:
    if one.use is Use.SIZE:
        return say(What.SIZE)
    if one.use is Use.CHECKED:
        return _checked(one)
    if one.use is Use.INDEX:
        if isinstance(one.node, ast.Call) and (is_of_element(one.waiting) or one.waiting.is_in_comprehension):
            return say(What.READ_TOGETHER, BEFORE_LOOP)
        return say(What.INDEX_1D, sure=not isinstance(one.node, ast.Call))
    if one.use is Use.BRANCH or (one.api == "__bool__" and one.use is not Use.LOGGED):
        return _branched(one)
    if one.use is Use.HOST or (one.use in {Use.RETURNED, Use.UNKNOWN} and _is_action(one.node)):
        return _needed(one.waiting)
    if one.use is Use.TENSOR:
        return say(What.LOG_LATER, _as_tensor(one.waiting))
    return None


def _as_tensor(waiting: Waiting) -> str:
    """Return how to write what goes back to the GPU without a number in between."""
    calls = [node for node in (waiting.node, *waiting.around) if isinstance(node, ast.Call)]
    for call in calls:
        name = called(call)
        if dotted(call.func) == f"math.{name}":
            return f"torch.{name} in place of math.{name}: leave it a tensor, which takes part in arithmetic as well"
        if name in _BY_VALUE or name in TAKE_TENSORS:
            return _BY_VALUE.get(name, f"leave it a tensor: {name} takes one as well as a number")
    return f"{_STAYS}; {_CLAMPS}" if _is_bounded(waiting) else _STAYS


def _is_bounded(waiting: Waiting) -> bool:
    """Return whether Python's own ``max`` or ``min`` gets the value as well, under the name that it is given."""
    targets = {dotted(target) for target in getattr(waiting.statement, "targets", ())}
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"max", "min"}
        and (node in waiting.around or targets & {dotted(argument) for argument in node.args})
        for node in ast.walk(waiting.scope)
    )


_STAYS = "leave it a tensor, which takes part in arithmetic as a number does"
_CLAMPS = "write clamp(min=...) or clamp(max=...) in place of Python's max() or min()"
_FILLED = "keep it on the GPU: value.expand(size), or x.copy_(value)"
_BY_VALUE = {
    "full": _FILLED,
    "new_full": _FILLED,
    "pad": "keep it on the GPU: pad with zeros, and masked_fill_, which takes a tensor as well as a number",
    "linspace": "keep it on the GPU: low + (high - low) * torch.linspace(0, 1, n, device=...)",
    "logspace": "keep it on the GPU: base ** (low + (high - low) * torch.linspace(0, 1, n, device=...))",
    "randint": "keep it on the GPU: (low + (high - low) * torch.rand(size, device=...)).long()",
}
"""How to do without a number on the host what these do with one."""


def _checked(one: _Read) -> Advice:
    if Use.LOGGED in uses_of(one.waiting):
        return say(What.LOG_LATER, "read it, and check it, only every N steps")
    is_assert = isinstance(one.waiting.statement, ast.Assert)
    if is_assert and re.search(r"nan|inf", ast.unparse(one.node)) and _is_in_layer(one.waiting):
        return say(What.DEBUG, sure=False)
    return say(What.ASSERT_ASYNC)


def _branched(one: _Read) -> Advice:
    if _is_debug(one.waiting):
        return say(What.DEBUG)
    if isinstance(one.node, ast.Call) and one.name in {"item", "int", "float"} and is_of_element(one.waiting):
        return say(What.READ_TOGETHER, BEFORE_LOOP)
    return say(What.BRANCH, _ENDS) if _ends_loop(one.waiting) else say(What.BRANCH)


def _by_target(one: _Read) -> Advice | None:
    """What the value is called once it is read."""
    if _is_size(one.waiting):
        return say(What.SIZE, sure=False)
    return say(What.BRANCH, sure=False) if _is_flag(one.waiting) else None


def _otherwise(one: _Read) -> Advice:
    """A number for people: it can be read later, or with others."""
    waiting, use = one.waiting, one.use
    reads_several = _reads_of(waiting.statement) > 1
    if use is Use.RETURNED and reads_several:
        return say(What.READ_TOGETHER, sure=False)
    if use in {Use.LOGGED, Use.WRITTEN, Use.RETURNED}:
        if (waiting.is_in_comprehension and not _is_accumulated(waiting)) or is_of_element(waiting):
            return say(What.READ_TOGETHER)
        return say(What.LOG_LATER, sure=use is not Use.RETURNED)
    if waiting.is_in_comprehension or _reads_one_by_one(waiting) or reads_several:
        return say(What.READ_TOGETHER, sure=False)
    return say(What.LOG_LATER, sure=False)


_COUNTED = "count on the host as well, in a Python number; the tensor may stay for checkpoints"
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
    """Return whether it is one of several values that a tensor holds: ``x[i].item()``, ``float(x[0])``."""
    node = waiting.node
    parts = node.args if called(node) in {"float", "int", "bool", "round"} and isinstance(node, ast.Call) else []
    return any(isinstance(part, ast.Subscript) for part in (_owner(node), *parts))
