"""Nested tensors: in eval mode with a padding mask ``nn.TransformerEncoder`` packs the batch, on CUDA too."""

from __future__ import annotations

from typing import Any

from syncagent.errors import SimulationError
from syncagent.simulate import devices, dispatch, standin, waits
from syncagent.simulate.dispatch import runs
from syncagent.simulate.facts import OpFacts
from syncagent.simulate.failures import for_program
from syncagent.simulate.memory import Box, Layout, Placement, stride_for
from syncagent.simulate.requirements import aten
from syncagent.simulate.tensor import SimulatedTensor, make, new_output

_SAME = {aten.detach.default, aten.alias.default}
_PADDED = aten.to_padded_tensor.default
_KEEPS_ROWS = {aten._transformer_encoder_layer_fwd.default}
"""Ops whose result has rows as long as those of the argument."""


class NestedTensor(SimulatedTensor):
    """Rows of different lengths on a simulated device.  Asked for its size, it answers as if it were padded."""

    is_nested = True

    @classmethod
    @for_program
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub lacks func
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        source = next(x for x in args if isinstance(x, NestedTensor))
        layout, index = source._sim.layout, source._sim.index
        if func in _SAME:
            return source
        if func in _KEEPS_ROWS:
            return _submit(func, args, kwargs, _like(layout, index))
        if func is not _PADDED:
            raise SimulationError(
                f"{func._schema.name}: nested tensors are not simulated on CUDA, but for what nn.TransformerEncoder "
                "does with a padding mask; enable_nested_tensor=False makes it do without them"
            )
        size = args[2] if len(args) > 2 else kwargs.get("output_size")
        if size is None or tuple(size) != layout.size:
            raise SimulationError(
                "to_padded_tensor to another size than that of the padded batch is not simulated on CUDA"
            )
        return _reported(dispatch.facts_of(func), args, kwargs, new_output(layout, index))


@runs(aten._nested_tensor_from_mask.default)
def _from_mask(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """Pack a batch."""
    layout, index = args[0]._sim.layout, args[0]._sim.index
    packed = layout._replace(stride=stride_for(layout.size), offset=0)
    return _reported(facts, args, kwargs, _like(packed, index))


def _like(layout: Layout, index: int) -> SimulatedTensor:
    return make(Placement(Box(layout), layout, index), NestedTensor)


def _reported(facts: OpFacts, args: Any, kwargs: Any, made: SimulatedTensor) -> SimulatedTensor:
    """Queue the op and wait for it: the lengths of the rows are copied between host and device."""
    kind = None if facts.rule is None else facts.rule.waits(args, kwargs)

    def wait() -> SimulatedTensor:
        _submit(facts.op, args, kwargs, made)
        devices.current_engine(made._sim.index).wait(call=None if kind is None else standin.read())
        return made

    return waits.reported(facts.shown, kind, args, wait)


def _submit(op: Any, args: Any, kwargs: Any, made: SimulatedTensor) -> SimulatedTensor:
    """Queue an op one of whose arguments, or whose result, is nested."""
    result = made._sim
    kept = [x._sim if isinstance(x, SimulatedTensor) else x for x in (*args, *kwargs.values())]

    def kernel() -> None:
        resolved = [x.resolve() if isinstance(x, Placement) else x for x in kept]
        arguments, keywords = resolved[: len(args)], dict(zip(kwargs, resolved[len(args) :], strict=True))
        try:
            values = op(*arguments, **keywords)
        except Warning:  # torch warns once about nested tensors; -W error would make it an error of the device
            values = op(*arguments, **keywords)
        result.box.values = values
        if values.is_nested:
            result.view = values  # it has no strides that could describe a view

    placements = [x for x in kept if isinstance(x, Placement)]
    name = op._schema.name
    devices.queue(devices.order(name, result.index, placements), name, kernel, [result])
    return made
