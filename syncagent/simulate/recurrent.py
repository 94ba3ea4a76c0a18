"""Recurrent layers and cells (``nn.LSTM``, ``nn.GRU``, ``nn.RNN`` and theirs): each call is one kernel.

On CUDA a layer is one kernel of cuDNN, and a cell a few fused ones.  For any other device torch composes them of some
twenty ops for each step of the sequence.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from syncagent.simulate import autocast, composite, randomness, whole
from syncagent.simulate.engine import can_set_keys
from syncagent.simulate.facts import OpFacts
from syncagent.simulate.memory import Layout, stride_for
from syncagent.simulate.requirements import MissingOp, aten
from syncagent.simulate.tensor import SimulatedTensor
from syncagent.simulate.whole import Call, as_list
from syncagent.support.threads import AgentThread

_COMPUTED = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_CUDNN_TYPES = frozenset({torch.float16, torch.float32, torch.float64})
_NAMES = {
    torch.float16: "Half", torch.bfloat16: "BFloat16", torch.float32: "Float", torch.float64: "Double",
}  # fmt: skip
"""What torch's C++ calls the types."""
_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""For each kind, how many hidden states wide the weights are."""
_NO_BACKWARD = "cudnn RNN backward can only be called in training mode"
_NO_SECOND_BACKWARD = (
    "derivative for aten::_cudnn_rnn_backward is not implemented: Double backwards is not supported for CuDNN RNNs due "
    "to limitations in the CuDNN API. To run double backwards, please disable the CuDNN backend temporarily while "
    "running the forward pass of your RNN. For example: \nwith torch.backends.cudnn.flags(enabled=False):\n"
    "    output = model(inputs)"
)


class _Setting(NamedTuple):
    """What a layer is called with besides tensors.  torch takes the numbers in this order after the parameters."""

    has_biases: bool
    num_layers: int
    dropout: float
    train: bool
    bidirectional: bool
    batch_first: bool

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1


# --- layers ------------------------------------------------------------------------------------------------


def _layers(kind: str, is_packed: bool, facts: OpFacts, args: Sequence[Any]) -> Call | None:
    """Describe the call of a layer; ``None`` if its tensors do not fit together, or there is nothing to compute."""
    source, *rest = args
    batch_sizes = rest.pop(0) if is_packed else None
    states, parameters, *numbers = rest
    setting = _Setting(*numbers, *([False] if is_packed else []))
    states = as_list(states)
    tensors = [source, *states, *parameters]
    _refuse_other_devices(source, states, parameters)
    is_cudnn = torch.backends.cudnn.enabled and source.dtype in _CUDNN_TYPES and source.numel() > 0
    if is_cudnn and isinstance(batch_sizes, SimulatedTensor):
        raise RuntimeError(f"batch_sizes tensor should be on CPU, but got {batch_sizes.device}")
    is_dropped = is_cudnn and setting.dropout > 0 and setting.train and type(source) is SimulatedTensor
    if is_dropped and randomness.default_generator(source._sim.index).seeds_cudnn():
        torch.empty((), dtype=torch.int64, device=source.device).random_().item()
    if is_cudnn:
        _refuse_as_cudnn(source, states)
    if (
        not _are_alike(tensors)
        or not source.numel()
        or not _fits(kind, setting, source, batch_sizes, states, parameters)
    ):
        return None
    if kind == "lstm" and states[0].shape[2] != states[1].shape[2]:
        _take_warning_of_projections()
    split = 1 + len(states)
    sizes = [] if batch_sizes is None else [batch_sizes.clone()]  # the program may write to its own
    seed = None
    if setting.dropout and setting.train and setting.num_layers > 1:
        seed = randomness.draw(source._sim.index, None).initial_seed()

    def run_layers(op: Any, setting: _Setting, source: Any, states: Sequence[Any], parameters: Sequence[Any]) -> Any:
        hidden = list(states) if kind == "lstm" else states[0]
        return op(source, *sizes, hidden, list(parameters), *(setting[:-1] if is_packed else setting))

    def compute(op: Any, values: Sequence[Any]) -> Any:
        parts = values[0], values[1:split], values[split:]
        if seed is None:
            return run_layers(op, setting, *parts)
        return _with_dropout(functools.partial(run_layers, op), setting, seed, *parts)

    return Call(
        facts,
        compute,
        _layer_results(setting, source, states, is_packed),
        saved=1,
        no_backward=_NO_BACKWARD if is_cudnn and not setting.train else "",
        no_second_backward=_NO_SECOND_BACKWARD if is_cudnn else "",
    )


def _refuse_other_devices(source: Any, states: Sequence[Any], parameters: Sequence[Any]) -> None:
    for name, tensors in (("hidden", states), ("parameter", parameters)):
        for x in tensors:
            if x.device != source.device:
                raise RuntimeError(
                    f"Input and {name} tensors are not at the same device, found input tensor at {source.device} and "
                    f"{name} tensor at {x.device}"
                )


def _refuse_as_cudnn(source: Any, states: Sequence[Any]) -> None:
    """Raise what torch says of the states before it hands them to cuDNN; its other kernels take them."""
    for x in states:
        if x.dtype != source.dtype:
            raise RuntimeError(
                "Input and hidden tensors are not the same dtype, found input tensor with "
                f"{_NAMES.get(source.dtype)} and hidden tensor with {_NAMES.get(x.dtype, x.dtype)}"
            )
    for name, x in zip(("hx", "cx"), states, strict=False):
        if not x.is_contiguous():
            raise RuntimeError(f"rnn: {name} is not contiguous")


@functools.cache
def _take_warning_of_projections() -> None:
    """Have the CPU's kernel give its warning of them, which it gives once in a process: a GPU gives none."""
    x, hidden, cell, bias = torch.zeros(1, 1, 2), torch.zeros(1, 1, 1), torch.zeros(1, 1, 2), torch.zeros(8)
    weights = [torch.zeros(8, 2), torch.zeros(8, 1), bias, bias, torch.zeros(1, 2)]

    def call() -> None:
        with torch.no_grad():
            torch.lstm(x, [hidden, cell], weights, True, 1, 0.0, False, False, False)

    # On a thread of its own: here torch would give it only when the program's call returns.
    thread = AgentThread(target=call, name="syncagent-simulate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        thread.start()
        thread.join()


def _with_dropout(
    run_layers: Callable[..., Any],
    setting: _Setting,
    seed: int,
    output: Any,
    states: Sequence[Any],
    parameters: Sequence[Any],
) -> list[Any]:
    """Layer by layer, with dropout in between that draws from the device's generator instead of the CPU's."""
    generator = randomness.RealGenerator().manual_seed(seed)
    one = setting._replace(num_layers=1, dropout=0.0)
    each, keep = len(parameters) // setting.num_layers, 1 - setting.dropout
    finals = []
    for layer in range(setting.num_layers):
        if layer:
            noise = torch.empty(output.shape).bernoulli_(keep, generator=generator).to(output.dtype)
            output = output * (noise.div_(keep) if keep else noise).to(output.device)
        first = layer * setting.directions
        own = [x[first : first + setting.directions] for x in states]
        output, *final = run_layers(one, output, own, parameters[layer * each : (layer + 1) * each])
        finals.append(final)
    return [output, *(torch.cat(parts) for parts in zip(*finals, strict=True))]


def _are_alike(tensors: Sequence[Any]) -> bool:
    """Whether all are plain simulated tensors of one type, on one device."""
    first = tensors[0]
    return (
        type(first) is SimulatedTensor
        and first.dtype in _COMPUTED
        and all(
            type(x) is SimulatedTensor and x.dtype == first.dtype and x._sim.index == first._sim.index for x in tensors
        )
    )


def _fits(
    kind: str, setting: _Setting, source: Any, batch_sizes: Any, states: Sequence[Any], parameters: Sequence[Any]
) -> bool:
    """Whether the shapes fit together; torch has the words for what does not."""
    if len(states) != (2 if kind == "lstm" else 1) or any(x.dim() != 3 for x in states):
        return False
    directions, hidden = setting.directions, states[-1].shape[2]
    shown = states[0].shape[2]
    if batch_sizes is None:
        batch = source.shape[0 if setting.batch_first else 1] if source.dim() == 3 else -1
    elif source.dim() != 2 or type(batch_sizes) is not torch.Tensor or not batch_sizes.is_cpu or not len(batch_sizes):
        return False
    else:
        batch = int(batch_sizes[0])
    count = setting.num_layers * directions
    if any(tuple(x.shape[:2]) != (count, batch) for x in states):
        return False
    wide = _GATES[kind] * hidden
    expected: list[tuple[int, ...]] = []
    for layer, _ in itertools.product(range(setting.num_layers), range(directions)):
        expected += [(wide, shown * directions if layer else source.shape[-1]), (wide, shown)]
        expected += [(wide,), (wide,)] if setting.has_biases else []
        expected += [(shown, hidden)] if shown != hidden else []
    return expected == [tuple(x.shape) for x in parameters]


def _layer_results(setting: _Setting, source: Any, states: Sequence[Any], is_packed: bool) -> list[Layout]:
    size = (*source.shape[:-1], states[0].shape[2] * setting.directions)
    stride = stride_for(size)
    if setting.batch_first and not is_packed:  # computed with the sequence first, and turned
        first = stride_for((size[1], size[0], size[2]))
        stride = (first[1], first[0], first[2])
    finals = [Layout(tuple(x.shape), stride_for(tuple(x.shape)), 0, source.dtype) for x in states]
    return [Layout(size, stride, 0, source.dtype), *finals]


# --- cells -------------------------------------------------------------------------------------------------


def _cell(kind: str, facts: OpFacts, args: Sequence[Any]) -> Call | None:
    """Describe the call of a cell, as :func:`_layers` does."""
    source, states, *parameters = args
    states = as_list(states)
    given = [x is not None for x in parameters]
    tensors = [source, *states, *(x for x in parameters if x is not None)]
    if not _are_alike(tensors) or not source.numel() or not _fits_cell(kind, source, states, parameters):
        return None
    split = 1 + len(states)

    def compute(op: Any, values: Sequence[Any]) -> Any:
        hidden = list(values[1:split]) if kind == "lstm" else values[1]
        rest = iter(values[split:])
        return op(values[0], hidden, *(next(rest) if is_given else None for is_given in given))

    results = [Layout(tuple(x.shape), stride_for(tuple(x.shape)), 0, source.dtype) for x in states]
    return Call(facts, compute, results)


def _fits_cell(kind: str, source: Any, states: Sequence[Any], parameters: Sequence[Any]) -> bool:
    if len(states) != (2 if kind == "lstm" else 1) or source.dim() != 2 or any(x.dim() != 2 for x in states):
        return False
    batch, hidden = states[0].shape
    wide = _GATES[kind] * hidden
    expected = [(wide, source.shape[1]), (wide, hidden), (wide,), (wide,)]
    return (
        batch == source.shape[0]
        and all(tuple(x.shape) == (batch, hidden) for x in states)
        and all(x is None or tuple(x.shape) == shape for x, shape in itertools.zip_longest(parameters, expected))
    )


# --- registration ------------------------------------------------------------------------------------------


def _handler(op: Any, describe: Callable[..., Call | None]) -> Callable[..., Any]:
    """The function that runs the op on simulated tensors."""
    if isinstance(op, MissingOp):
        return op

    @functools.cache
    def facts() -> OpFacts:  # found out at the first call: most programs have no such layer
        return OpFacts(op)

    def run(*args: Any, **kwargs: Any) -> Any:
        args = (*args, *(kwargs.get(name) for name in facts().arguments[len(args) :]))
        lowered = autocast.lowered(args)
        call = describe(facts(), lowered)
        if call is None:
            return op.decompose(*args)
        tensors = [x for part in lowered for x in (part if isinstance(part, list) else [part]) if _is_data(x)]
        made = whole.run(call, tensors)
        return made[0] if len(made) == 1 else tuple(made)

    return run


def _is_data(value: Any) -> bool:
    return isinstance(value, SimulatedTensor)


def install_kernels(library: Any) -> None:
    """Give the stand-in device kernels for the recurrent layers and cells."""
    if not can_set_keys():
        return
    for kind in _GATES:
        for overload in ("input", "data"):
            is_packed = overload == "data"
            op = getattr(getattr(aten, kind), overload)
            composite.register(library, op, _handler(op, functools.partial(_layers, kind, is_packed)))
        op = getattr(aten, f"{kind}_cell").default
        composite.register(library, op, _handler(op, functools.partial(_cell, kind)))
