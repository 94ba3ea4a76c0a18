"""What a program does with a value that it has read from the GPU, and how often it comes by there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from enum import IntEnum

from syncagent.advice.reading import (
    COMPREHENSIONS,
    FUNCTIONS,
    LOOPS,
    Waiting,
    called,
    dotted,
    outwards,
    parents_in,
    words,
)
from syncagent.advice.what import Sync


class Use(IntEnum):
    """Uses of a value; of several the largest decides what can be done."""

    UNKNOWN = 0
    LOGGED = 1
    """Printed, logged, summed up, kept for later."""
    RETURNED = 2
    WRITTEN = 3
    """Stored or sent by the host."""
    TENSOR = 4
    """Goes back to the GPU, in arithmetic with tensors."""
    HOST = 5
    """Needed by code that runs on the host: an environment, a solver, a tokenizer."""
    INDEX = 6
    CHECKED = 7
    """Decides whether the program stops: an assertion, a ``raise``."""
    BRANCH = 8
    SIZE = 9


SIZES = words(
    "arange zeros ones empty full rand randn randint linspace eye range new_zeros new_ones new_empty new_full view "
    "reshape expand repeat pad split narrow topk one_hot chunk unfold Size tril_indices triu_indices randperm xrange "
    "tile split_with_sizes islice broadcast_to kthvalue logspace bincount adaptive_avg_pool2d interpolate "
    "sequence_mask sparse_coo_tensor sparse_csr_tensor multinomial"
)
_LOGS = words(
    "print log info debug warning error append extend add_scalar add_scalars add_histogram log_metrics log_dict "
    "log_scalar log_metric set_postfix set_postfix_str set_description set_description_str write update update_dict "
    "record put scalar report add_text logkv record_mean format join put_scalar put_scalars add_image writelines "
    "setdefault tqdm_write appendleft add secho echo"
)
_OF_DATA = words(
    "bincount pad split chunk narrow topk kthvalue one_hot reshape repeat tile broadcast_to interpolate unfold "
    "adaptive_avg_pool2d multinomial"
)
"""Functions whose first argument is no size."""
_MODULES = words("torch np numpy F nn functional")
_NUMBERS_OF = {"full": (1,), "new_full": (1,), "linspace": (0, 1), "logspace": (0, 1), "randint": (0, 1), "pad": (3,)}
"""Which arguments of these are numbers in the result, and no sizes; ``randint`` has its size last."""
_NUMBER_KEYWORDS = words("fill_value value low high start end")
TAKE_TENSORS = words("clamp clamp_ clip clip_ where masked_fill masked_fill_ mul mul_ div div_ lerp lerp_")
"""Functions of torch that take a tensor of one element as well as a number."""
_SIZE_KEYWORDS = re.compile(r"(^|_)(size|sizes|num_\w+|max_len|maxlen|max_length|total_length|minlength)$")
_CHANGES_NOTHING = words("int float bool round abs str min max sum len list tuple repr sorted item tolist numpy")
_WRITES = words("imwrite imshow imsave save dump dumps send put_nowait")
HOST = words(
    "step linear_sum_assignment decode batch_decode solve_ivp "
    "minimize fit predict from_numpy cumsum find_contours distance_transform_edt binary_erosion edge_distance label "
    "roc_auc_score"
)
_RARE_NAMES = re.compile(
    r"log_?(interval|freq|every|step|now)|print_?(freq|every|interval)|should_log|do_log|is_log|last_batch|is_last|is_best"
    r"|save_?(freq|every|interval)|eval_?(freq|every|interval)|checkpoint|display_?(freq|every)|report_?(freq|every)"
    r"|^verbose$|\bverbose\b|summary_?(freq|every)|vis_?(freq|every)|i_print|i_weights",
    re.IGNORECASE,
)
_ONCE = re.compile(
    r"^(__init__|__str__|__repr__|setup|set_up|build|_build|configure_\w+|init_weights|_init_weights|reset_parameters|on_fit_start)$"
)
_BATCHES = re.compile(
    r"loader|batches|dataset|train_iter|data_iter|epochs|max_iters|num_steps|n_steps|max_steps|total_steps"
)
_TRAINS = re.compile(r"^(train|fit|run)_?(one_)?(epoch|step|batch|model)?$|^train_|_train$|training_step|train_one")
METRICS = re.compile(r"loss|acc|metric|norm|psnr|error|score|epe|meter|lr|grad", re.IGNORECASE)
"""Names of values that are watched, not used."""
_SOMETIMES = re.compile(
    r"(^|_)(eval|evaluate|evaluation|validate|validation|val|test|save|checkpoint|epoch_end|on_epoch_end|compute|report"
    r"|summary|summarize|summarise|estimate_loss|synchronize_between_processes|training_report)($|_)",
    re.IGNORECASE,
)


def uses_of(waiting: Waiting) -> set[Use]:
    """Say what becomes of the value of the expression that waits."""
    return set(_uses(waiting.node, waiting.around, waiting.scope, 2))


def use_of(waiting: Waiting) -> Use:
    """Return the use that decides what can be done."""
    return max(uses_of(waiting), default=Use.UNKNOWN)


def _uses(node: ast.AST, around: tuple[ast.AST, ...], scope: ast.AST, depth: int) -> Iterator[Use]:
    child: ast.AST = node
    for parent in around:
        if isinstance(parent, ast.stmt):
            yield from _uses_of_statement(child, parent, scope, depth)
            return
        found = _use_in(child, parent)
        if found is not None:
            yield found
            return
        if isinstance(parent, ast.comprehension) and child is parent.iter and depth:
            yield from _uses_of_names(_names_in(parent.target), None, around[around.index(parent) + 1], depth - 1)
        child = parent


def _names_in(target: ast.AST) -> set[str]:
    return {name.id for name in ast.walk(target) if isinstance(name, ast.Name)}


def _use_in(child: ast.AST, parent: ast.AST) -> Use | None:
    """Return what an expression does with a part of it; ``None``: the value of the whole is to be followed."""
    if isinstance(parent, ast.IfExp):
        return Use.BRANCH if child is parent.test else None
    if isinstance(parent, ast.Slice):
        return Use.SIZE
    if isinstance(parent, ast.Subscript) and child is parent.slice:
        return Use.INDEX
    if isinstance(parent, ast.comprehension):
        return Use.BRANCH if child in parent.ifs else None
    if isinstance(parent, ast.keyword) and parent.arg and _SIZE_KEYWORDS.search(parent.arg):
        return Use.SIZE
    if isinstance(parent, ast.Call) and child is not parent.func:
        name = called(parent)
        if name in SIZES and not _is_data_of(child, parent):
            return Use.TENSOR if _is_number_of(child, parent) else Use.SIZE
        if name in TAKE_TENSORS and dotted(parent.func).partition(".")[0] not in {"np", "numpy"}:
            return Use.TENSOR
        if name in _LOGS:
            return Use.LOGGED
        if name in _WRITES:
            return Use.WRITTEN
        if name in HOST:
            return Use.HOST
        if name not in _CHANGES_NOTHING and not dotted(parent.func).startswith(("math.", "np.", "numpy.")):
            return Use.UNKNOWN
    if isinstance(parent, ast.Lambda):
        return Use.UNKNOWN
    return None


def _is_data_of(child: ast.AST, call: ast.Call) -> bool:
    """Return whether a function that takes sizes works on this argument: ``np.bincount(x, minlength=n)``."""
    is_method = isinstance(call.func, ast.Attribute) and dotted(call.func).partition(".")[0] not in _MODULES
    return called(call) in _OF_DATA and not is_method and bool(call.args) and call.args[0] is child


def _is_number_of(child: ast.AST, call: ast.Call) -> bool:
    """Return whether an argument of a function that takes sizes is a number that stands in its result."""
    if isinstance(child, ast.keyword):
        return child.arg in _NUMBER_KEYWORDS
    return child in _numbers_of(call)


def _numbers_of(call: ast.Call) -> list[ast.expr]:
    name = called(call)
    places = _NUMBERS_OF.get(name, ())
    if name == "randint" and not any(keyword.arg == "size" for keyword in call.keywords):
        places = places[: len(call.args) - 1]
    return [call.args[place] for place in places if place < len(call.args)]


def reads_number(call: ast.Call) -> bool:
    """Return whether what such a function reads can only be a number of its result: its sizes are written out."""
    numbers = _numbers_of(call)
    sizes = [argument for argument in call.args if argument not in numbers]
    return bool(numbers) and not any(isinstance(node, ast.Name) for size in sizes for node in ast.walk(size))


def _uses_of_statement(child: ast.AST, statement: ast.stmt, scope: ast.AST, depth: int) -> Iterator[Use]:
    if isinstance(statement, (ast.If, ast.While, ast.Match)):
        yield Use.CHECKED if isinstance(statement, ast.If) and _stops(statement.body) else Use.BRANCH
    elif isinstance(statement, ast.Assert):
        yield Use.CHECKED
    elif isinstance(statement, ast.Return):
        yield Use.RETURNED
    elif isinstance(statement, ast.AugAssign):
        yield Use.LOGGED
    elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        names = {
            name.id
            for target in targets
            for name in ast.walk(target)
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
        }
        if any(isinstance(target, (ast.Attribute, ast.Subscript)) for target in targets):
            yield Use.LOGGED
        if any(_is_tensor(name, scope) for name in names) and _is_mixed(child):
            yield Use.TENSOR
        elif depth:
            yield from _uses_of_names(names, statement, scope, depth - 1)
    elif isinstance(statement, (ast.For, ast.AsyncFor)) and depth and child is statement.iter:
        names = {name.id for name in ast.walk(statement.target) if isinstance(name, ast.Name)}
        yield from _uses_of_names(names, statement, statement, depth - 1)


def _uses_of_names(names: set[str], since: ast.stmt | None, scope: ast.AST, depth: int) -> Iterator[Use]:
    parents = parents_in(scope)
    for node in parents:
        if isinstance(node, ast.Name) and node.id in names and isinstance(node.ctx, ast.Load):
            around = outwards(node, parents)
            if since is None or (node.lineno >= since.lineno and since not in around):
                yield from _uses(node, around, scope, depth)


_TENSORS = words("backward detach item requires_grad_ cpu")


def _is_tensor(name: str, scope: ast.AST) -> bool:
    """Return whether the program calls a method on it that only tensors have."""
    return any(
        called(node) in _TENSORS and isinstance(node, ast.Call) and dotted(node.func) == f"{name}.{called(node)}"
        for node in ast.walk(scope)
    )


def _is_mixed(node: ast.AST) -> bool:
    """Return whether an expression computes with other values, so that the result is another value."""
    return isinstance(node, ast.BinOp) and len({name.id for name in ast.walk(node) if isinstance(name, ast.Name)}) > 1


def _stops(body: list[ast.stmt]) -> bool:
    """Return whether a block ends the program, or only warns."""
    for statement in body:
        if isinstance(statement, ast.Raise):
            return True
        if isinstance(statement, ast.Expr) and called(statement.value) in {"exit", "_exit", "abort", "warn", "fail"}:
            return True
    return False


def comes_rarely(sync: Sync, waiting: Waiting) -> bool:
    """Return whether a sync happens only now and then, as counted, or else as far as the program's text tells."""
    return is_rare(waiting) if sync.is_rare is None else sync.is_rare


def is_rare(waiting: Waiting) -> bool:
    """Return whether the program comes by only now and then, as far as its text tells."""
    inner: ast.AST = waiting.node
    loops: list[ast.AST] = []
    for node in waiting.around:
        if isinstance(node, ast.If) and inner in node.body and _is_interval(node.test):
            return True
        if isinstance(node, ast.IfExp) and inner is node.body and _is_interval(node.test):
            return True
        if isinstance(node, LOOPS) and inner in node.body:
            loops.append(node)
        if isinstance(node, FUNCTIONS):
            if _ONCE.search(node.name):
                return True
            break
        inner = node
    scope = waiting.scope
    if any(_returns_between_intervals(statement, waiting) for statement in getattr(scope, "body", ())):
        return True
    if not waiting.is_repeated:
        if any(isinstance(node, ast.Lambda) for node in waiting.around):
            return False  # it is called elsewhere
        return any(isinstance(node, LOOPS) and trains(node) for node in ast.walk(scope))
    return bool(loops) and _is_of_epochs(loops[0])


def _returns_between_intervals(statement: ast.stmt, waiting: Waiting) -> bool:
    """Return whether the function has gone back before, but for every N-th call."""
    return (
        isinstance(statement, ast.If)
        and statement.lineno < waiting.node.lineno
        and isinstance(statement.body[0], (ast.Return, ast.Continue))
        and _is_interval(statement.test)
    )


def trains(loop: ast.AST) -> bool:
    """Return whether a loop is one over steps: over batches, or what it copies to the GPU, or with a backward pass."""
    if isinstance(loop, (ast.For, ast.AsyncFor)) and (_BATCHES.search(ast.unparse(loop.iter)) or _moves(loop)):
        return True
    calls = {called(node) for statement in getattr(loop, "body", ()) for node in ast.walk(statement)}
    return "backward" in calls or any(_TRAINS.search(name) for name in calls)


def _moves(loop: ast.For | ast.AsyncFor) -> bool:
    """Return whether a loop copies to the GPU what it goes over, as one over batches does."""
    names = _names_in(loop.target)
    return any(
        called(node) in {"to", "cuda"} and bool(_names_in(node.func) & names)
        for statement in loop.body
        for node in ast.walk(statement)
        if isinstance(node, ast.Call)
    )


def is_sometimes(waiting: Waiting) -> bool:
    """Return whether its function is one that runs between the steps: evaluation, checkpoints, reports."""
    return bool(_SOMETIMES.search(waiting.function))


def _is_interval(test: ast.AST) -> bool:
    for node in ast.walk(test):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            return True
        if isinstance(node, (ast.Name, ast.Attribute)) and _RARE_NAMES.search(dotted(node).rpartition(".")[2]):
            return True
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.Eq)) and _is_step(node.left):
            return True
    return False


def _is_step(node: ast.AST) -> bool:
    return bool(re.search(r"(^|_)(step|iter|iteration|it|epoch|i|batch_idx)$", dotted(node)))


def _is_of_epochs(loop: ast.AST) -> bool:
    """Return whether a loop is one over epochs, with the loop over batches inside of it."""
    names = (
        " ".join(node.id for node in ast.walk(getattr(loop, "target", loop)) if isinstance(node, ast.Name))
        if isinstance(loop, ast.For)
        else ""
    )
    body = [node for statement in getattr(loop, "body", ()) for node in ast.walk(statement)]
    inside = any((isinstance(node, LOOPS) and trains(node)) or _TRAINS.search(called(node)) for node in body)
    return inside and ("epoch" in names or bool(re.fullmatch(r"e|ep|_", names)))


def is_of_element(waiting: Waiting) -> bool:
    """Return whether it is read for each element of something, in a loop within the step."""
    for node in waiting.around:
        if isinstance(node, (ast.For, ast.AsyncFor)):
            names = {name.id for name in ast.walk(node.target) if isinstance(name, ast.Name)}
            used = {name.id for name in ast.walk(waiting.node) if isinstance(name, ast.Name)}
            return bool(names & used) and not trains(node)
    return False


def is_saved(waiting: Waiting) -> bool:
    """Return whether it is part of a checkpoint."""
    calls = [dotted(node.func) for node in waiting.around if isinstance(node, ast.Call)]
    parts = {called(inner) for node in waiting.around if isinstance(node, COMPREHENSIONS) for inner in ast.walk(node)}
    return "torch.save" in calls or waiting.function.startswith("save") or "state_dict" in parts


def assigned_before(name: str, waiting: Waiting) -> ast.Assign | None:
    """Return the assignment that gave a name its value, if that is one value and stands above in the same function.

    ``None`` where it is bound by a loop, in a branch that need not have been taken, or in another function.
    """
    parents = parents_in(waiting.scope)
    function = next((node for node in waiting.around if isinstance(node, (*FUNCTIONS, ast.Lambda))), None)
    nearest: ast.Name | None = None
    for node in ast.walk(waiting.scope):
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store):
            inside = next((around for around in outwards(node, parents) if isinstance(around, FUNCTIONS)), None)
            if inside in {function, None} and node.lineno < waiting.statement.lineno:
                nearest = node if nearest is None or node.lineno > nearest.lineno else nearest
    if nearest is None:
        return None
    statement = parents[nearest]
    if not isinstance(statement, ast.Assign):
        return None
    branches = [node for node in outwards(statement, parents) if isinstance(node, (ast.If, ast.Try))]
    return statement if all(node in waiting.around for node in branches) else None


def is_filled(value: ast.expr, waiting: Waiting) -> bool:
    """Return whether parts of a tensor are assigned after it has been made."""
    return any(
        isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and dotted(node.value) == dotted(value)
        for node in ast.walk(waiting.scope)
    )


def loop_around(node: ast.AST, waiting: Waiting) -> ast.AST | None:
    """Return the innermost loop that a node of the same function is in."""
    return next((loop for loop in outwards(node, parents_in(waiting.scope)) if isinstance(loop, LOOPS)), None)
