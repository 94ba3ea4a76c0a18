"""What an op's schema tells about it, read once."""

from __future__ import annotations

from typing import Any

import torch

from syncagent.rules import table
from syncagent.simulate import extensions

__all__ = ["OpFacts"]

# Ops that take CPU tensors of any size beside CUDA ones, and check for themselves.
_ANY_DEVICE = frozenset({
    "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_ctc_loss",
    "aten::_ctc_loss_backward", "aten::tensor_split", "aten::_amp_update_scale_", "aten::embedding_renorm_",
    "aten::_pack_padded_sequence_backward",
})  # fmt: skip


class OpFacts:
    """Facts of one overload."""

    __slots__ = (
        "any_device",
        "arguments",
        "backward",
        "extension",
        "generator",
        "gives_numbers",
        "handler",
        "name",
        "op",
        "outs",
        "pure_write",
        "reenters",
        "returns",
        "rule",
        "seeded",
        "shown",
        "view",
        "writes",
    )

    def __init__(self, op: Any) -> None:
        schema = op._schema
        self.op = op
        self.handler: Any = None
        """What runs this op; dispatch.py decides."""
        self.reenters = False
        """Whether its parts, where torch makes it of others, may be run as if the program had called them."""
        self.name: str = schema.name
        self.arguments = [argument.name for argument in schema.arguments]
        self.extension = extensions.is_one(op)
        """Whether somebody else than torch brings it."""
        self.any_device = self.name in _ANY_DEVICE or (self.extension and op.namespace != "torchvision")
        self.gives_numbers = self.extension and any("Tensor" not in str(r.type) for r in schema.returns)
        """Whether it returns something that is no tensor."""
        self.backward = "backward" in self.name
        """Whether it takes what a forward op has kept for it."""
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
        """Of each return value: the written argument that it is, or ``None`` for a new one."""
        self.pure_write = all(r is not None for r in self.returns)
        aliases = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
        self.view = "in place" if torch.Tag.inplace_view in op.tags else "new" if aliases else None
        self.generator = self.arguments.index("generator") if "generator" in self.arguments else None
        self.seeded = torch.Tag.nondeterministic_seeded in op.tags
        overload = schema.overload_name
        self.rule = table.find(f"{self.name}.{overload}" if overload else self.name)
        if self.extension:
            self.rule = extensions.wait_known(op)
        self.shown = self.name if self.rule is None else self.rule.reported_op
        """The op's name in a report."""
