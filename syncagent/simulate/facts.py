"""What is known of an op before it runs: from its schema, from its author's tags, or from a trial run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from syncagent.events import SyncKind
from syncagent.rules import table
from syncagent.rules.rule import Rule
from syncagent.simulate.memory import Placement
from syncagent.simulate.requirements import ON_INSTANCES, find, note_loss
from syncagent.simulate.shapes import zeros

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["OpFacts"]

# Ops that take CPU tensors of any size beside CUDA ones, and check for themselves.
_ANY_DEVICE = frozenset({
    "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_ctc_loss",
    "aten::_ctc_loss_backward", "aten::tensor_split", "aten::_amp_update_scale_", "aten::embedding_renorm_",
    "aten::_pack_padded_sequence_backward",
})  # fmt: skip

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
        self.reenters = False
        """Whether the ops that a composite op consists of may be run as if the program had called them."""
        self.name: str = schema.name
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
        self.returns = [
            by_alias.get(frozenset(r.alias_info.before_set)) if r.alias_info and r.alias_info.is_write else None
            for r in schema.returns
        ]
        """For each return value, the written argument that it is, or ``None`` for a new one."""
        self.pure_write = all(r is not None for r in self.returns)
        aliases = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
        self.view = "in place" if torch.Tag.inplace_view in op.tags else "new" if aliases else None
        self.generator = self.arguments.index("generator") if "generator" in self.arguments else None
        self.seeded = torch.Tag.nondeterministic_seeded in op.tags
        overload = schema.overload_name
        self.rule = table.find(f"{self.name}.{overload}" if overload else self.name)
        if self.third_party:
            self.rule = self._rule_by_tags()
        self.shown = self.name if self.rule is None else self.rule.reported_op
        """The op's name in a report."""

    def python_body(self) -> Callable[..., Any] | None:
        """The Python function that runs a custom op on CUDA tensors: the ops in it are then simulated one by one."""
        definition = _custom_ops.get(self.name) if self.third_party and _custom_ops is not None else None
        if definition is None:
            return None
        bodies = getattr(definition, "_backend_fns", None)
        if bodies is None:
            path = "_library.custom_ops.CustomOpDef._backend_fns"
            note_loss(f"torch.{path}", ON_INSTANCES[path])
            return None
        return bodies.get("cuda", bodies.get(None))  # type: ignore[no-any-return]  # private in torch

    def _rule_by_tags(self) -> Rule | None:
        """What the op's author has declared with torch's own tags."""
        if torch.Tag.dynamic_output_shape in self.op.tags:
            return self._waits_as(SyncKind.DYNAMIC_SHAPE)
        if torch.Tag.data_dependent_output in self.op.tags:
            return self._waits_as(SyncKind.SCALAR_READ)
        return None

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
        sizes = [_what_host_sees(value) for value in _as_list(result)]
        if not any(size is not None for size in sizes) or not _has_elements(kept):
            return None
        key = (self.op, tuple(repr(_what_host_sees(x)) for x in (*kept, *named.values())))
        if key in _same_on_zeros:
            return None
        if not _says_that_values_decide(error):
            try:
                trial = self.op(*[zeros(x) for x in kept], **{name: zeros(x) for name, x in named.items()})
            except Exception:
                return None  # it does not take zeros: nothing is known, and nothing is made up
            if [_what_host_sees(value) for value in _as_list(trial)] == sizes:
                if len(_same_on_zeros) < _TRIALS_REMEMBERED:
                    _same_on_zeros.add(key)
                return None
        number = not isinstance(sizes[0], tuple)
        self.rule = self._waits_as(SyncKind.SCALAR_READ if number else SyncKind.DYNAMIC_SHAPE)
        return self.rule.waits(kept, named)


def _as_list(result: Any) -> Any:
    return result if isinstance(result, (list, tuple)) else [result]


def _has_elements(values: Any) -> bool:
    """Whether any of these tensors has an element.  If none has, such an op returns at once."""
    for value in values:
        if isinstance(value, (list, tuple)):
            if _has_elements(value):
                return True
        elif isinstance(value, Placement):
            if 0 not in value.layout.size:
                return True
        elif isinstance(value, torch.Tensor) and value.numel():
            return True
    return False


def _says_that_values_decide(error: BaseException | None) -> bool:
    """A kernel that asks for the context of symbolic shapes has a result of unknown size (torch.library)."""
    while error is not None:
        if "get_ctx()" in str(error) or type(error).__name__ in {
            "DynamicOutputShapeException",
            "DataDependentOutputException",
        }:
            return True
        error = error.__cause__
    return False


def _what_host_sees(value: Any) -> Any:
    """The part of an argument or result that the host has to know: a tensor's shape, a number itself."""
    if isinstance(value, Placement):
        return value.layout
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, (list, tuple)):
        return [_what_host_sees(x) for x in value]
    return value
