"""The nested tensors of ``nn.TransformerEncoder``: in eval mode with a padding mask it packs the batch, on CUDA too.

Only what the encoder itself does with them is simulated; any other use raises an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from syncagent.simulate import devices, dispatch, queues, waits
from syncagent.simulate.errors import SimulationError
from syncagent.simulate.memory import Box, Layout, Placement, contiguous_stride
from syncagent.simulate.requirements import aten
from syncagent.simulate.tensor import SimulatedTensor, make_as, new_output

if TYPE_CHECKING:
    from syncagent.simulate.facts import OpFacts

__all__ = ["NestedTensor", "install"]

_SAME = {aten.detach.default, aten.alias.default}
_PADDED = aten.to_padded_tensor.default
_KEEPS_ROWS = {aten._transformer_encoder_layer_fwd.default}
"""Ops whose result has rows as long as those of the argument."""


class NestedTensor(SimulatedTensor):
    """Rows of different lengths on a simulated device.  Asked for its size, it answers as if it were padded."""

    is_nested = True

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub lacks func
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        return _run(func, args, kwargs or {})


def _run(op: Any, args: Any, kwargs: Any) -> Any:
    source = next(x for x in args if isinstance(x, NestedTensor))
    if op in _SAME:
        return source
    if op in _KEEPS_ROWS:
        return _submit(op, args, kwargs, _like(source._sim.layout, source._sim.index))
    if op is _PADDED:
        return _padded(dispatch.facts_of(op), source, args, kwargs)
    raise SimulationError(
        f"{op._schema.name}: nested tensors are not simulated on CUDA, but for what nn.TransformerEncoder does with a "
        "padding mask; enable_nested_tensor=False makes it do without them"
    )


def _padded(facts: OpFacts, source: NestedTensor, args: Any, kwargs: Any) -> Any:
    size = args[2] if len(args) > 2 else kwargs.get("output_size")
    layout = source._sim.layout
    if size is None or tuple(size) != layout.size:
        raise SimulationError("to_padded_tensor to another size than that of the padded batch is not simulated on CUDA")
    made = new_output(layout, source._sim.index)
    return _reported(facts, args, kwargs, made)


def _from_mask(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    source = args[0]
    layout = source._sim.layout
    return _reported(
        facts, args, kwargs, _like(layout._replace(stride=contiguous_stride(layout.size), offset=0), source._sim.index)
    )


def _like(layout: Layout, index: int) -> NestedTensor:
    return make_as(NestedTensor, Placement(Box(layout), layout, index))


def _reported(facts: OpFacts, args: Any, kwargs: Any, made: SimulatedTensor) -> SimulatedTensor:
    """Queue the op and wait for it: the lengths of the rows are copied between host and device."""
    kind = None if facts.rule is None else facts.rule.waits(args, kwargs)

    def wait() -> SimulatedTensor:
        _submit(facts.op, args, kwargs, made)
        devices.current_engine(made._sim.index).wait()
        return made

    return wait() if kind is None else waits.reported(facts.shown, kind, args, wait)


def _submit(op: Any, args: Any, kwargs: Any, made: SimulatedTensor) -> SimulatedTensor:
    """Queue an op one of whose arguments, or whose result, is nested."""
    result = made._sim
    kept, named = [_placed(x) for x in args], {name: _placed(x) for name, x in kwargs.items()}

    def kernel() -> None:
        arguments, keywords = [_resolve(x) for x in kept], {name: _resolve(x) for name, x in named.items()}
        try:
            values = op(*arguments, **keywords)
        except Warning:  # torch warns once about nested tensors; -W error would make it an error of the device
            values = op(*arguments, **keywords)
        result.box.values = values
        if values.is_nested:
            result.view = values  # it has no strides that could describe a view

    placements = [x for x in (*kept, *named.values()) if isinstance(x, Placement)]
    queues.queue(queues.order(op._schema.name, result.index, placements), kernel, [result])
    return made


def _placed(value: Any) -> Any:
    return value._sim if isinstance(value, SimulatedTensor) else value


def _resolve(value: Any) -> Any:
    return value.resolve() if isinstance(value, Placement) else value


def install() -> None:
    """Let the encoder pack a batch."""
    dispatch.SPECIAL[aten._nested_tensor_from_mask.default] = _from_mask
