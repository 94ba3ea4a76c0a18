"""Copies between host and GPU that the host waits for."""

from __future__ import annotations

import ast
import re

from syncagent.advice.reading import Waiting, called, dotted, words
from syncagent.advice.usage import (
    HOST,
    METRICS,
    Use,
    assigned_before,
    comes_rarely,
    is_filled,
    is_of_element,
    is_saved,
    is_sometimes,
    loop_around,
    use_of,
)  # fmt: skip
from syncagent.advice.what import ALLOW, BEFORE_LOOP, Advice, Sync, What, itself, say

_MADE_ON_HOST = words(
    "tensor as_tensor zeros ones full empty rand randn randint arange eye linspace Tensor FloatTensor LongTensor "
    "IntTensor BoolTensor DoubleTensor HalfTensor bernoulli rand_like randn_like full_like tril triu zeros_like "
    "ones_like randperm one_hot array meshgrid new_tensor linspace logspace tril_indices triu_indices hann_window "
    "hamming_window blackman_window bartlett_window kaiser_window"
)
_NUMBER = (
    "the number is copied from the host: index_fill_ (of indices) or masked_fill_ (of a mask) takes it along, and "
    "x[i].fill_(number) where i is one number; an index that is a list belongs on the GPU"
)
_PINNED = "copy it from pinned memory: x.pin_memory().to(device, non_blocking=True)"
_COMPUTED = "compute it on the GPU, without this copy, and read the result every N steps"
_TAKES_VALUES = words(
    "tensor as_tensor Tensor FloatTensor LongTensor IntTensor BoolTensor DoubleTensor HalfTensor array new_tensor"
)
_ARRAYS = words("from_numpy asarray")
_CONSTANT = "make it once, outside of the loop; for a single number torch.full(size, number, device=...) copies nothing"
_FROM_HOST = (
    "its values come from the host: pin it and copy it with non_blocking=True, or torch.full(size, number, device=...) "
    "for a single number"
)
_TABLE = "the whole table is copied to look something up: keep it on the GPU"
_PIN_TOO = "pin the memory (DataLoader(pin_memory=True), or x.pin_memory()): without it non_blocking=True waits"
_PARAMETERS = words("weight bias running_mean running_var grad")
_HELD = "keep it on the GPU; or keep the host's copy in pinned memory, and copy it with non_blocking=True"
_KEPT = "keep it on the GPU: register_buffer(), or move it once in __init__"
_DATA = re.compile(
    r"data|image|img|input|batch|sample|real|obs|state|reward|action|memory|storage|target|label|frame|pixel"
    r"|token|(^|[._])ids|seq|text|audio|next|^self\.[xy]$"
)
_MODULES = re.compile(r"(^|[._])(model|net|network|module|backbone|encoder|decoder|criterion|generator|discriminator)$")
_FILLS = words("fill_ zero_ uniform_ normal_ random_ bernoulli_ exponential_")
"""Methods that write all numbers of a tensor anew."""
_HOLDERS = re.compile(r"Tensor|Variable|Batch|Data|List|Image|Encoding|Dict|Field")
"""Classes whose objects hold tensors, and are moved as such."""
_LENGTHS = re.compile(r"(^|[^a-z])(src_|tgt_|seq_|x_|input_)?(len|lens|lengths?)\b(?!\()")
_SHAPES = words(
    "float long half int bool double contiguous unsqueeze squeeze view reshape detach clone type expand repeat t "
    "permute transpose pin_memory"
)
_FILL = "the number is copied from the host: x[i].fill_(number) takes it along"
_NUMBERS = re.compile(
    r"(^|_)(inf|nan|pi|eps|epsilon|ignored?|(ignore|pad|padding)_(index|idx|id|value)|fill(_value)?)$"
)
"""Names of numbers that are written into tensors."""
_INPUTS = re.compile(r"(^|_)(ids|input_ids|tokens?|targets?|labels?|attention_mask|lens|lengths|grid_thw|batch)($|_)")


def to_device(_sync: Sync, waiting: Waiting) -> Advice | None:
    node = waiting.node
    if isinstance(node, ast.Subscript) or called(node) in {"__getitem__", "__setitem__"}:
        return _host_index(node, waiting)
    name = called(node)
    if name == "ctc_loss":
        return say(What.LEAVE, f"ctc_loss copies to the GPU where each target begins; {ALLOW}")
    if name in _MADE_ON_HOST:
        return _from_host(node)
    if name in {"to", "cuda"}:
        return _moved(node, waiting)
    if name == "copy_":
        return say(What.PIN)
    if name in {"load", "load_state_dict"}:
        return say(What.RARE)
    return say(What.CREATE_ON_DEVICE, sure=False) if name else None


def _host_index(node: ast.expr, waiting: Waiting) -> Advice:
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
        assigned = waiting.statement
        value = getattr(assigned, "value", None)
        if not _has_list(node.slice) and _is_slice(node.slice) and value is not None:
            if isinstance(value, (ast.Constant, ast.BinOp, ast.UnaryOp)) and not _names_called(value) & _MADE_ON_HOST:
                return say(What.CREATE_ON_DEVICE, _FILL, sure=isinstance(value, ast.Constant))
            return say(What.CREATE_ON_DEVICE)
        of_locals = not any(isinstance(inner, ast.Attribute) for inner in ast.walk(node.slice))
        is_number = isinstance(value, ast.Constant) or (value is not None and of_locals and _is_number(value))
        if is_number and _is_of_names(node.slice):
            return say(What.CREATE_ON_DEVICE, _NUMBER, sure=False)
    if isinstance(node, ast.Subscript) and _as_slice(node.slice):
        return say(What.INDEX_ON_DEVICE, "a slice does it without an index (x[:, -1:] for x[:, [-1]])")
    return say(What.INDEX_ON_DEVICE)


def _as_slice(node: ast.expr) -> bool:
    """Return whether a dimension is indexed by a list of constants in a row, as a slice could do without an index."""
    lists = [part for part in (node.elts if isinstance(node, ast.Tuple) else [node]) if isinstance(part, ast.List)]
    if len(lists) != 1:
        return False
    try:
        values = ast.literal_eval(lists[0])
    except ValueError:
        return False
    return (
        bool(values)
        and all(type(value) is int for value in values)
        and values == list(range(values[0], values[0] + len(values)))
    )


def _is_number(value: ast.expr) -> bool:
    """Return whether a value is a number of the host's: written out, or named as constants are."""
    if isinstance(value, (ast.Name, ast.Attribute)):
        name = value.id if isinstance(value, ast.Name) else value.attr
        return name.isupper() or bool(_NUMBERS.search(name))
    if isinstance(value, ast.Call):
        return called(value) in {"float", "int", "bool"}
    if isinstance(value, ast.UnaryOp):
        return _is_number(value.operand)
    if isinstance(value, ast.BinOp):
        return _is_number(value.left) and _is_number(value.right)
    return isinstance(value, ast.Constant)


def _is_of_names(node: ast.AST) -> bool:
    """Return whether an index consists of names, which are tensors or numbers as a rule, and of no list."""
    inside = [type(inner) for inner in ast.walk(node)]
    return ast.Name in inside and not {ast.List, ast.ListComp, ast.Call} & set(inside)


def _has_list(node: ast.AST) -> bool:
    return any(isinstance(inner, (ast.List, ast.Name, ast.Attribute, ast.Call)) for inner in ast.walk(node))


def _is_slice(node: ast.AST) -> bool:
    return any(isinstance(inner, ast.Slice) for inner in ast.walk(node)) or isinstance(node, ast.Constant)


def _receiver(node: ast.expr) -> ast.expr:
    """Return what the method is called on, calls that only change dtype or shape left out."""
    value = node.func.value if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else node
    while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in _SHAPES:
        value = value.func.value
    return value


def _comes_from_the_host(value: ast.expr, waiting: Waiting) -> bool:
    """Return whether code on the host makes it anew in each round, as an environment does and no loader."""
    made: set[str] = set()
    assigned = [node for node in ast.walk(waiting.scope) if isinstance(node, ast.Assign)]
    for _ in range(2):  # the second time, names of what has a name
        for node in assigned:
            if called(node.value) in HOST or (isinstance(node.value, ast.Name) and node.value.id in made):
                made |= {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return isinstance(value, ast.Name) and value.id in made


def _moved(node: ast.expr, waiting: Waiting) -> Advice:
    """Advice for ``value.to(device)``: what it is worth depends on where the value is from."""
    if "pin_memory" in _names_called(node):
        return say(What.PIN, "copy with non_blocking=True: the memory is pinned already")
    value = _receiver(node)
    if _is_module(value):
        return say(What.RARE, "a module is moved: that is to be done once, before the loop", sure=not called(value))
    if called(value) in _FILLS and called(_root(value)) in _MADE_ON_HOST:
        return say(What.CREATE_ON_DEVICE)
    made, where = _origin(value, waiting)
    name = called(made)
    if name in _ARRAYS:
        is_index = re.search(r"(^|_)(rand|perm|idx|inds?|index|indices)", ast.unparse(made))
        if is_index:
            return say(What.CREATE_ON_DEVICE, sure=False)
        value = made.args[0] if isinstance(made, ast.Call) and made.args else value
    if name in _MADE_ON_HOST and where is None:
        return _from_host(made, sure=not _is_data(made))
    if name in _MADE_ON_HOST and where is not None and not is_filled(value, waiting):
        if loop_around(waiting.node, waiting) is not loop_around(where, waiting):
            return say(What.CREATE_ON_DEVICE, "move it to the GPU once, before the loop")
        return _from_host(made, sure=False)
    if where is not None and _has_been_on_gpu(made):
        return say(
            What.CREATE_ON_DEVICE,
            "it is computed from what has just been copied from the GPU: compute it there",
            sure=False,
        )
    if _is_looked_up(waiting):
        return say(What.CREATE_ON_DEVICE, _TABLE, sure=False)
    is_asynchronous = any(
        word.arg == "non_blocking" and getattr(word.value, "value", False) for word in getattr(node, "keywords", ())
    )
    if is_asynchronous:
        return say(What.PIN, _PIN_TOO)
    if isinstance(value, ast.Attribute) and value.attr in _PARAMETERS:
        return say(What.CREATE_ON_DEVICE, _HELD)
    if _is_kept(value):
        return say(What.CREATE_ON_DEVICE, _KEPT, sure=False)
    return say(What.PIN, _PINNED) if _comes_from_the_host(value, waiting) else say(What.PIN)


def _from_host(made: ast.expr, *, sure: bool = True) -> Advice:
    """Advice for a tensor that is made on the host: of constants, or of values that change."""
    if called(made) not in _TAKES_VALUES:
        return say(What.CREATE_ON_DEVICE, sure=sure)
    values = made.args[0] if isinstance(made, ast.Call) and made.args else made
    is_constant = not any(isinstance(node, (ast.Name, ast.Call, ast.Attribute)) for node in ast.walk(values))
    return say(What.CREATE_ON_DEVICE, _CONSTANT if is_constant else _FROM_HOST, sure=sure)


def _is_looked_up(waiting: Waiting) -> bool:
    """Return whether the copy is indexed at once, by something that is not a constant."""
    around = waiting.around[0]
    return (
        isinstance(around, ast.Subscript)
        and around.value is waiting.node
        and any(isinstance(node, ast.Name) for node in ast.walk(around.slice))
    )


def _origin(value: ast.expr, waiting: Waiting) -> tuple[ast.expr, ast.stmt | None]:
    """Return the call that made a value, and the statement of that, unless it stands in the same expression."""
    if not isinstance(value, ast.Name):
        return _root(value), None
    statement = assigned_before(value.id, waiting)
    if statement is None:
        return value, None
    root = _root(statement.value)
    return (root if called(root) in _MADE_ON_HOST | _ARRAYS else statement.value), statement


def _root(value: ast.expr) -> ast.expr:
    """Return the call that an expression begins with: ``torch.rand(3)`` of ``(torch.rand(3) < 0.5).float()``."""
    found = value
    while called(found) not in _MADE_ON_HOST | _ARRAYS:
        if isinstance(found, ast.Call) and isinstance(found.func, ast.Attribute) and called(found) in _SHAPES | _FILLS:
            found = found.func.value
        elif isinstance(found, ast.Call) and dotted(found.func).startswith("torch.") and found.args:
            found = found.args[0]
        elif isinstance(found, ast.Compare):
            found = found.left
        elif isinstance(found, ast.BinOp):
            found = found.right if isinstance(found.left, ast.Constant) else found.left
        elif isinstance(found, ast.UnaryOp):
            found = found.operand
        else:
            return value
    return found


def _has_been_on_gpu(made: ast.expr) -> bool:
    names = _names_called(made)
    return bool(names & {"cpu", "tolist"}) and not names & HOST


def _is_module(value: ast.expr) -> bool:
    """Return whether it is made by a class, or has the name of a network."""
    name = called(value)
    if name:
        return name[0].isupper() and not _HOLDERS.search(name)
    return bool(_MODULES.search(dotted(value)))


def _is_kept(value: ast.expr) -> bool:
    """Return whether it is an attribute of the object, or a part of one, that is not called like a batch."""
    while isinstance(value, ast.Subscript):
        value = value.value
    return dotted(value).startswith("self.") and not _DATA.search(dotted(value))


def _names_called(node: ast.AST) -> set[str]:
    return {called(inner) for inner in ast.walk(node)}


def _is_data(value: ast.expr) -> bool:
    """Return whether a tensor is made of data that comes from outside, which a loader could bring."""
    arguments = value.args if isinstance(value, ast.Call) else []
    return called(value) in {"tensor", "as_tensor", "Tensor"} and bool(arguments) and isinstance(arguments[0], ast.Name)


_COPIES = words("cpu to numpy type copy_")


def to_host(sync: Sync, waiting: Waiting) -> Advice | None:
    name = called(waiting.node)
    use = use_of(waiting)
    if is_saved(waiting) or comes_rarely(sync, waiting):
        return say(What.RARE)
    if _names_called(waiting.node) & {"unique", "unique_consecutive"} and use is not Use.LOGGED:
        return say(What.UNIQUE)
    if (
        name.startswith("pack_padded")
        or called(waiting.around[0]).startswith("pack_padded")
        or (_LENGTHS.search(ast.unparse(waiting.node).lower()) and name in {"cpu", "to"})
        or name == "ctc_loss"
    ):
        return say(What.LOADER, "keep the lengths on the host: the collate function has them before the copy")
    if use in {Use.HOST, Use.WRITTEN} and name != "tolist":
        return say(What.LEAVE, f"code on the host needs it at once; {ALLOW}")
    if use is Use.SIZE:
        return say(What.SIZE)
    if _is_index(waiting):
        return say(What.INDEX_ON_DEVICE, "keep what is looked up on the GPU, and index it there")
    if name == "tolist":
        return _list_read(waiting, use)
    chained = {called(node) for node in waiting.around[:5] if isinstance(node, ast.Call)}
    if "item" in chained or (use is Use.LOGGED and METRICS.search(ast.unparse(waiting.node)) and "numpy" in chained):
        return say(What.LOG_LATER)
    if is_sometimes(waiting) and not waiting.is_repeated:
        return say(What.RARE, sure=False)
    if name == "cpu" and _is_added(waiting):
        return say(What.LOG_LATER)
    if name == "cpu" and _is_summed_up(waiting):
        return say(What.LOG_LATER, _COMPUTED, sure=False)
    if name and name == sync.api.rpartition(".")[2] and name not in _COPIES:
        return itself(name)
    return say(What.D2H_ASYNC, sure=use is not Use.UNKNOWN)


def _is_added(waiting: Waiting) -> bool:
    """Return whether the copy itself, or the number that it is made into, is added to a sum."""
    *inside, statement = waiting.around[: waiting.around.index(waiting.statement) + 1]
    return isinstance(statement, ast.AugAssign) and all(
        isinstance(node, ast.Attribute) or called(node) in {"numpy", "float", "int"} for node in inside
    )


def _is_summed_up(waiting: Waiting) -> bool:
    """Return whether a function of the program's is called with the copy, and its results are added up."""
    call, *others = waiting.around
    return (
        isinstance(call, ast.Call)
        and waiting.node in call.args
        and bool(others)
        and isinstance(others[0], ast.AugAssign)
        and isinstance(others[0].op, ast.Add)
    )


def _is_index(waiting: Waiting) -> bool:
    """Return whether the copy is an index into something on the host."""
    around = waiting.around[0]
    if isinstance(around, ast.Call):
        return (
            called(around) in {"gather", "index_select", "take", "take_along_dim"} and around.func is not waiting.node
        )
    return isinstance(around, ast.Subscript) and around.slice is waiting.node


def _list_read(waiting: Waiting, use: Use) -> Advice:
    text = ast.unparse(waiting.node)
    if use in {Use.HOST, Use.WRITTEN} or "decode" in _names_around(waiting):
        return say(What.LOADER, sure=False) if waiting.is_in_comprehension else say(What.LEAVE)
    if "stack(" in text:
        return say(What.LOG_LATER)
    if use is Use.LOGGED and (METRICS.search(text) or "stack" in text):
        return say(What.LOG_LATER)
    if _INPUTS.search(text.rpartition(".tolist")[0].rpartition(".")[2]) and not waiting_in_subscript(waiting):
        return say(What.LOADER, sure=False)
    if use in {Use.LOGGED, Use.UNKNOWN} and not (waiting.is_in_comprehension or is_of_element(waiting)):
        return say(What.LOG_LATER if use is Use.LOGGED else What.D2H_ASYNC, sure=False)
    one_by_one = waiting.is_in_comprehension or is_of_element(waiting)
    return say(What.READ_TOGETHER, BEFORE_LOOP if one_by_one else "", sure=False)


def _names_around(waiting: Waiting) -> str:
    return " ".join(called(node) for node in waiting.around if isinstance(node, ast.Call))


def waiting_in_subscript(waiting: Waiting) -> bool:
    return any(isinstance(node, ast.Subscript) for node in ast.walk(waiting.node))
