"""What is known of an op before it runs: from its schema, its author's tags or a trial run, and its results' shapes.

Shapes are found on the meta device and remembered.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from syncagent.events import SyncKind
from syncagent.rules import table
from syncagent.rules.rule import Rule
from syncagent.simulate import precision
from syncagent.simulate.devices import META
from syncagent.simulate.failures import attempt
from syncagent.simulate.memory import Placement, flatten, layout_of, on_each
from syncagent.simulate.requirements import ON_INSTANCES, aten, find, note_loss

# Ops that take CPU tensors of any size beside CUDA ones, and check for themselves.
_ANY_DEVICE = frozenset({
    "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_ctc_loss",
    "aten::_ctc_loss_backward", "aten::tensor_split", "aten::_amp_update_scale_", "aten::embedding_renorm_",
    "aten::_pack_padded_sequence_backward",
})  # fmt: skip

_TAKES_NO_DROPOUT = frozenset({"aten::_scaled_dot_product_flash_attention_for_cpu"})
"""Tagged as one that draws random numbers, but refuses to."""

_KIND_BY_TAG = {
    torch.Tag.dynamic_output_shape: SyncKind.DYNAMIC_SHAPE,
    torch.Tag.data_dependent_output: SyncKind.SCALAR_READ,
}
"""How an op waits by what its author has declared with torch's own tags."""

_custom_ops = find("_library.custom_ops.OPDEFS")
_TRIALS_REMEMBERED = 1024
_same_on_zeros: set[Any] = set()
"""Calls, by op and layouts of the arguments, for which a trial has shown that values do not decide the sizes."""


class OpFacts:
    """Facts about one overload."""

    def __init__(self, op: Any) -> None:
        schema = op._schema
        self.op = op
        self.handler: Any = None
        """The function that runs this op; dispatch.py chooses it."""
        self.name: str = schema.name
        self.compute = precision.compute_of(op)
        """Computes it on CPU tensors."""
        self.arguments = [argument.name for argument in schema.arguments]
        self.third_party = op.namespace not in {"aten", "prims", "prim"}
        """Whether the op does not come with torch."""
        self.any_device = self.name in _ANY_DEVICE or (self.third_party and op.namespace != "torchvision")
        self.returns_numbers = self.third_party and any("Tensor" not in str(r.type) for r in schema.returns)
        """Whether it returns something other than tensors."""
        self.backward = "backward" in self.name
        """Whether it takes what a forward op has saved for it."""
        written = [
            (position, argument)
            for position, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        self.writes = [(position, argument.name) for position, argument in written]
        """Position and name of each argument that the op writes to."""
        self.outs = [(position, argument.name) for position, argument in written if argument.is_out]
        by_alias = {frozenset(a.alias_info.before_set): (p, a.name) for p, a in written}
        self.returns: list[tuple[int, str] | None] = [
            by_alias.get(frozenset(r.alias_info.before_set)) if r.alias_info and r.alias_info.is_write else None
            for r in schema.returns
        ]
        """For each return value, the written argument that it is, or ``None`` for a new one."""
        self.pure_write = all(r is not None for r in self.returns)
        self.has_own_shapes = self.pure_write and self.name.startswith(("aten::_foreach", "aten::_fused"))
        """Whether what it writes to has the right shapes already, so that nothing has to be found out."""
        aliases = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
        self.view = "in place" if torch.Tag.inplace_view in op.tags else "new" if aliases else None
        self.generator = self.arguments.index("generator") if "generator" in self.arguments else None
        self.seeded = torch.Tag.nondeterministic_seeded in op.tags and self.name not in _TAKES_NO_DROPOUT
        is_repeatable = self.generator is None and not self.seeded and not self.third_party
        self.checks_types = is_repeatable and not self.backward
        """Whether it can be tried out on zeros, of the types that it is given."""
        declared = [kind for tag, kind in _KIND_BY_TAG.items() if self.third_party and tag in op.tags]
        self.rule = self._waits_as(declared[0]) if declared else None if self.third_party else table.find(op.name())
        self.shown = self.name if self.rule is None else self.rule.reported_op
        """The op's name in a report."""
        self.in_cuda_form: Callable[[dict[str, Any], Any], list[Any]] | None = None
        """Makes CUDA's results from the arguments and the CPU's, where some have another form; dispatch.py sets it."""

    def python_body(self) -> Callable[..., Any] | None:
        """The Python function that runs a custom op on CUDA tensors: the ops in it are then simulated one by one."""
        definition = _custom_ops.get(self.name) if self.third_party and _custom_ops is not None else None
        bodies = getattr(definition, "_backend_fns", None)
        if definition is not None and bodies is None:
            path = "_library.custom_ops.CustomOpDef._backend_fns"
            note_loss(f"torch.{path}", ON_INSTANCES[path])
        return None if bodies is None else bodies.get("cuda", bodies.get(None))

    def _waits_as(self, kind: SyncKind) -> Rule:
        def waits(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
            return kind if _has_elements([*args, *kwargs.values()]) else None

        return Rule(self.op.name(), waits, waits, "values decide what its results look like", keys=())

    def learn_wait(
        self, error: BaseException | None, kept: Sequence[Any], named: Mapping[str, Any], result: Any
    ) -> SyncKind | None:
        """Find out, from a call that has run, whether it had to wait: did values decide what its results look like?

        The shapes cannot be known beforehand: there is no meta kernel, or it refused with ``error``.  Some of those
        errors say that the shapes depend on values; any other op is tried out on zeros of the same layouts.
        """
        sizes = on_each(_seen_by_host, _as_list(result))
        if not any(size is not None for size in sizes) or not _has_elements(kept):
            return None
        key = (self.op, repr(on_each(_seen_by_host, [*kept, *named.values()])))
        if key in _same_on_zeros:
            return None
        if not _says_that_values_decide(error):
            trial, refused = attempt(lambda: _called_with(_zeros, self.op, kept, named))
            if refused is not None:
                return None  # it does not take zeros: nothing is known, and nothing is made up
            if on_each(_seen_by_host, _as_list(trial)) == sizes:
                if len(_same_on_zeros) < _TRIALS_REMEMBERED:
                    _same_on_zeros.add(key)
                return None
        self.rule = self._waits_as(SyncKind.DYNAMIC_SHAPE if isinstance(sizes[0], tuple) else SyncKind.SCALAR_READ)
        return self.rule.waits(kept, named)


def _as_list(result: Any) -> Any:
    return result if isinstance(result, (list, tuple)) else [result]


def _has_elements(value: Any) -> bool:
    """Whether there is a tensor that has an element.  If none has, such an op returns at once."""
    if isinstance(value, (list, tuple)):
        return any(map(_has_elements, value))
    if isinstance(value, Placement):
        return 0 not in value.layout.size
    return isinstance(value, torch.Tensor) and value.numel() > 0


def _says_that_values_decide(error: BaseException | None) -> bool:
    """A kernel that asks for the context of symbolic shapes has a result of unknown size (torch.library)."""
    return error is not None and (
        "get_ctx()" in str(error)
        or type(error).__name__ in {"DynamicOutputShapeException", "DataDependentOutputException"}
        or _says_that_values_decide(error.__cause__)
    )


def _seen_by_host(value: Any) -> Any:
    """The part of an argument or result that the host has to know: a tensor's shape, a number itself."""
    if isinstance(value, Placement):
        return value.layout
    return tuple(value.shape) if isinstance(value, torch.Tensor) else value


# --- shapes ------------------------------------------------------------------------------------------------

_SHAPES_REMEMBERED = 8192
_shapes: dict[Any, Any] = {}


class UnknownShapeError(Exception):
    """The shapes are not known before the op has run: its meta kernel has refused (the cause), or there is none."""


def infer(op: Any, args: Any, kwargs: Any, *, check_types: bool = False) -> Any:
    """Return the layout of what the op returns, a list of them, or the value itself if it is not a tensor.

    Arguments are placements, CPU tensors and plain values.  With ``check_types`` raise what the CPU's kernel says of
    their types, which CUDA says at once, too.
    """
    key: Any
    try:
        key = _key_of_call(op, args, kwargs)
        found = _shapes.get(key, _shapes)
    except TypeError:  # an argument that cannot be hashed
        if attempt(lambda: hash(_key_of_call(op, args, kwargs)))[1] is None:
            raise
        key, found = None, _shapes
    if found is _shapes:  # the one value that it cannot hold
        if check_types:
            _refuse_types(op, args, kwargs)
        found, error = attempt(lambda: _tried_on_meta(op, args, kwargs))
        if isinstance(error, NotImplementedError):
            found = UnknownShapeError
        elif error is not None:
            # Not remembered: most likely the program's own mistake, for which the CPU's kernel has a message.
            raise UnknownShapeError from error
        if key is not None:
            if len(_shapes) >= _SHAPES_REMEMBERED:
                _shapes.clear()
            _shapes[key] = found
    if found is UnknownShapeError:
        raise UnknownShapeError
    return found


def _key_of_call(op: Any, args: Any, kwargs: Any) -> Any:
    """What decides the shapes.  An op's own hash is slow, and its id does as well: the facts of an op keep it alive."""
    # A number beside tensors scales values, never sizes, and may differ in every step: its type is enough.
    scales = any(type(x) is Placement or (type(x) is list and x and type(x[0]) is Placement) for x in args)
    key: list[Any] = [id(op)]
    for x in args:
        kind = type(x)
        key.append(x.layout if kind is Placement else float if scales and kind is float else _key(x))
    for name, x in kwargs.items():
        key.append(name)
        key.append(float if scales and type(x) is float else _key(x))
    return tuple(key)


def _tried_on_meta(op: Any, args: Any, kwargs: Any) -> Any:
    result = _called_with(_zeros if op in _DIFFERENT_ON_META else on_meta, op, args, kwargs)
    if op is aten.convolution.default:
        result = _in_its_format(result, args)
    return on_each(lambda x: layout_of(x) if isinstance(x, torch.Tensor) else x, result)


_MOST_TRIED = {False: 1 << 20, True: 1 << 14}
"""Elements of the arguments of an op that is tried out for their types: fewer where all are of one floating type, which
few ops refuse.  Larger ones would take too long."""
_SAYS_TYPE = re.compile(r"dtype|data ?type|[Ss]calar type|not implemented for|inputs? not supported")
_accepted: set[Any] = set()
"""Ops with types of tensors that their kernels have taken."""


def _refuse_types(op: Any, args: Any, kwargs: Any) -> None:
    """Try out an op once for the types of its arguments, which most meta kernels let pass."""
    tensors = [x for x in flatten([*args, *kwargs.values()]) if isinstance(x, (Placement, torch.Tensor))]
    layouts = [x.layout if isinstance(x, Placement) else layout_of(x) for x in tensors if _is_dense(x)]
    types = tuple(layout.dtype for layout in layouts)
    key = (op, types)
    if not types or key in _accepted or len(layouts) < len(tensors):
        return
    is_usual = len(set(types)) == 1 and types[0].is_floating_point
    if sum(math.prod(x.size) for x in layouts) > _MOST_TRIED[is_usual]:
        return
    _, error = attempt(lambda: _called_with(_zeros, precision.compute_of(op), args, kwargs))
    if error is not None and _SAYS_TYPE.search(str(error)):
        raise error
    _accepted.add(key)


def _is_dense(x: Any) -> bool:
    """Whether a tensor can be described by a layout."""
    return isinstance(x, Placement) or x.layout is torch.strided


_DIFFERENT_ON_META = frozenset(
    # The meta kernel gives the shapes of CUDA's auxiliary results; the CPU's kernels, forward and backward, use others.
    (aten._embedding_bag.default, aten._embedding_bag_forward_only.default)
)


def _in_its_format(result: torch.Tensor, args: Any) -> torch.Tensor:
    """What a convolution returns: the CPU's kernels and cuDNN's keep channels last, the meta kernel does not.

    In another order the numbers would be the same, but kernels that read them would add up in another order, too.
    """
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(result.dim())
    for each in args[:2]:
        given = on_meta(each)
        if channels_last and given.is_contiguous(memory_format=channels_last) and not given.is_contiguous():
            return result.contiguous(memory_format=channels_last)
    return result


def _called_with(stand_in: Callable[[Any], Any], op: Any, args: Any, kwargs: Any) -> Any:
    """What the op returns for something else in place of each argument."""
    return op(*on_each(stand_in, args), **{name: on_each(stand_in, value) for name, value in kwargs.items()})


def on_meta(value: Any) -> Any:
    """The same without numbers."""
    if isinstance(value, Placement):
        layout = value.layout
        return torch.empty_strided(layout.size, layout.stride, dtype=layout.dtype, device=META)
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=META)
    return META if isinstance(value, torch.device) else None if isinstance(value, torch.Generator) else value


def _zeros(value: Any) -> Any:
    """Zeros in place of a tensor, and copies of those on the host, to try an op out on the CPU."""
    if isinstance(value, Placement):
        return torch.zeros(value.layout.size, dtype=value.layout.dtype)
    return value.clone() if isinstance(value, torch.Tensor) else value


def _key(value: Any) -> Any:
    kind = type(value)
    if kind is Placement:
        return value.layout
    if kind is int or kind is float or kind is bool or value is None:
        return (kind, value)
    if isinstance(value, (list, tuple)):
        return tuple([x.layout if type(x) is Placement else _key(x) for x in value])
    if isinstance(value, torch.Tensor):
        return (value.dtype, tuple(value.shape), value.stride())
    if isinstance(value, torch.Generator):
        return None
    return (type(value), value)
