"""What becomes of an op on simulated tensors: a view, a kernel in a queue, or a kernel that the host waits for."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from syncagent.errors import SimulationError
from syncagent.events import SyncKind
from syncagent.simulate import autocast, devices, modelled, randomness, standin, tensor, waits, work
from syncagent.simulate.devices import order, queue, run_here
from syncagent.simulate.engine import can_set_keys, without_modes
from syncagent.simulate.facts import OpFacts, UnknownShapeError, infer
from syncagent.simulate.failures import Failure
from syncagent.simulate.memory import Layout, Placement, flatten, on_each
from syncagent.simulate.requirements import find
from syncagent.simulate.tensor import SimulatedTensor, adopt, make_view, new_output
from syncagent.simulate.timing import Work

Handler = Callable[[OpFacts, Any, Any], Any]

SPECIAL: dict[Any, Handler] = {}
"""Ops that the general rule does not fit, and their handlers; special.py, copies.py and nested.py fill it."""

CUDA_FORM: dict[Any, Callable[[dict[str, Any], Any], list[Any]]] = {}
"""Ops some of whose results have another form on the CPU: makes CUDA's results from the arguments and the CPU's."""

_has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
_shares_memory = find("_C._is_alias_of") or (
    lambda one, other: one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
)
_runs_on_cpu = find("_C._dispatch_has_computed_kernel_for_dispatch_key") or (lambda _name, _key: True)
_AsCalled = find("_C._RestorePythonTLSSnapshot")
_in_inference_mode = torch.is_inference_mode_enabled

_UNSUPPORTED_NAMESPACES = {
    "c10d": "distributed communication",
    "_c10d_functional": "distributed communication",
    "_dtensor": "distributed communication",
    "symm_mem": "distributed communication",
    "inductor": "torch.compile",
    "quantized": "quantized arithmetic",
    "mkldnn": "oneDNN's own layout",
}


def runs(*ops: Any) -> Callable[[Any], Any]:
    """Register a handler for these ops, as a decorator."""

    def register(handler: Any) -> Any:
        SPECIAL.update(dict.fromkeys(ops, handler))
        return handler

    return register


def run(op: Any, args: Any, kwargs: Any) -> Any:
    """Run an op that has a simulated tensor among its arguments, or makes one."""
    facts = _facts.get(id(op)) or facts_of(op)
    return facts.handler(facts, args, kwargs)


tensor.dispatch = run

_facts: dict[int, OpFacts] = {}
"""What :func:`facts_of` has returned, by the op's id, since an op's own hash is slow.  Facts keep their op alive."""


@functools.cache
def facts_of(op: Any) -> OpFacts:
    """Return what is known of an op, with the handler that runs it."""
    facts = OpFacts(op)
    facts.in_cuda_form = CUDA_FORM.get(op)
    body = facts.python_body()
    if body is not None:
        facts.handler = lambda _facts, args, kwargs: body(*args, **kwargs)
    elif op in SPECIAL:
        facts.handler = SPECIAL[op]
    elif op.namespace in _UNSUPPORTED_NAMESPACES:
        facts.handler = refusing(f": {_UNSUPPORTED_NAMESPACES[op.namespace]} is not simulated on the CUDA stand-in")
    elif not _runs_on_cpu(op.name(), "CPU"):
        facts.handler = refusing(" has no kernel for the CPU, so it is not simulated on the CUDA stand-in")
    elif _has_kernel(op.name(), "CompositeImplicitAutograd"):
        reenters = _AsCalled is not None and not _has_kernel(op.name(), "ADInplaceOrView")
        facts.handler = _decompose_as_called if reenters else _decompose
    elif facts.view is not None:
        facts.handler = _view
    else:
        facts.handler = run_generic
    _facts[id(op)] = facts
    return facts


def refusing(reason: str) -> Handler:
    """The handler of an op that is not simulated."""

    def refuse(facts: OpFacts, _args: Any, _kwargs: Any) -> Any:
        raise SimulationError(facts.name + reason)

    return refuse


def _decompose(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """Run a composite op as the ops that it consists of.

    Above autograd torch has done so already.  Below it (``inference_mode``, and ops that call ops) it has not.
    """
    return facts.op.decompose(*args, **kwargs)


def _decompose_as_called(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """Run the parts as they would have been without Python in between: with autocast, and with views known."""
    with as_called():
        return facts.op.decompose(*args, **kwargs)


def as_called() -> contextlib.AbstractContextManager[Any]:
    """Inside a handler: what is called runs as it would have without Python in between."""
    if _AsCalled is None or not _in_inference_mode() or autocast.is_casting():
        return contextlib.nullcontext()
    return _as_called_below_modes() if can_set_keys() else _AsCalled()


@contextlib.contextmanager
def _as_called_below_modes() -> Iterator[None]:
    """The state in which torch was called has its modes in it; inside of the last one's handler there are none left."""
    with _AsCalled(), without_modes():
        yield


# --- arguments ---------------------------------------------------------------------------------------------


_PLAIN = frozenset({int, float, bool, type(None), torch.dtype})
"""Types of arguments that a kernel takes as they are."""


def _prepare_all(values: Any, placements: list[Placement], hosts: list[torch.Tensor]) -> list[Any]:
    """What a kernel keeps of its arguments: the placements of simulated tensors, the CPU for a device."""
    kept = []
    for value in values:
        kind = type(value)
        if kind is SimulatedTensor:
            placement = value._sim
            placements.append(placement)
            kept.append(placement)
        else:
            kept.append(value if kind in _PLAIN else _prepare(value, placements, hosts))
    return kept


def _prepare(value: Any, placements: list[Placement], hosts: list[torch.Tensor]) -> Any:
    kind = type(value)
    if kind is list or kind is tuple:
        return _prepare_all(value, placements, hosts)
    if isinstance(value, SimulatedTensor):  # also one of a class of the program's: see subclasses.py
        placements.append(value._sim)
        return value._sim
    if isinstance(value, torch.Tensor):
        hosts.append(value)
        return value
    if kind is torch.device:
        return devices.CPU if devices.is_simulated(value) else value
    return value


def _resolve_all(values: list[Any]) -> list[Any]:
    resolved = []
    for value in values:
        kind = type(value)
        if kind is Placement:
            view = value.view
            resolved.append(value.resolve() if view is None or value.box.failure is not None else view)
        else:
            resolved.append(_resolve_all(value) if kind is list else value)
    return resolved


def resolve_kept(value: Any) -> Any:
    """For a backward op: what the forward kernel has saved for it, in the form that the CPU's kernels use."""
    if type(value) is Placement:
        own = value.box.own_form
        is_usable = isinstance(own, torch.Tensor) and value.layout == value.box.layout
        return own if is_usable else value.resolve()
    if type(value) is list:
        return [resolve_kept(x) for x in value]
    return value


def _snapshot(value: Any) -> Any:
    """Copy a CPU tensor, so that a queued kernel does not see what the host writes into them later."""
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def check_devices(facts: OpFacts, placements: list[Placement], hosts: list[torch.Tensor], args: Any) -> int:
    index = placements[0].index
    for placement in placements:
        if placement.index != index:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{devices.shown[index]} and {devices.shown[placement.index]}!"
            )
    if not hosts:
        return index
    if any(host.is_cuda for host in hosts):
        raise SimulationError("a tensor of a real GPU meets a simulated one; use one or the other")
    if facts.any_device:
        if isinstance(args[0], torch.Tensor) and not isinstance(args[0], SimulatedTensor) and "index" in facts.name:
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        return index
    written = [args[position] for position, _ in facts.writes if position < len(args)]
    for host in hosts:
        if host.dim() > 0 or any(host is target for target in written):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{devices.shown[index]} and {host.device}! (when running {facts.name})"
            )
    return index


# --- the general rule --------------------------------------------------------------------------------------


def run_generic(facts: OpFacts, args: Any, kwargs: Any, spec: Any = None) -> Any:
    """Wait if CUDA would, and queue the op otherwise.  ``spec`` is the layout of the results, where it is known."""
    placements: list[Placement] = []
    hosts: list[torch.Tensor] = []
    kept = _prepare_all(args, placements, hosts)
    named = {name: _prepare(x, placements, hosts) for name, x in kwargs.items()} if kwargs else {}
    index = check_devices(facts, placements, hosts, args) if placements else devices.index_of(kwargs.get("device"))
    kernel = _Kernel(facts, index, kept, named, placements)
    kind = None if facts.rule is None else facts.rule.waits(args, kwargs)
    if named and named.pop("pin_memory", False):
        raise RuntimeError("Only dense CPU tensors can be pinned")
    if kind is not None:
        return waits.reported(facts.shown, kind, args, lambda: kernel.run_now(args, kwargs, _call_for(kind, hosts)))
    if spec is None and not facts.has_own_shapes:
        try:
            spec = infer(facts.op, kept, named, check_types=facts.checks_types)
        except UnknownShapeError as error:
            if error.__cause__ is not None or not facts.pure_write or facts.outs:
                return kernel.run_unforeseen(args, kwargs, error.__cause__)
        if facts.returns_numbers:  # a meta kernel cannot know them
            return kernel.run_unforeseen(args, kwargs)
    if facts.outs:
        kernel.resize_outs(spec, args, kwargs)
    kernel.seed()
    engine = order(facts.name, index, placements)
    if hosts:
        kernel.args = on_each(_snapshot, kernel.args)
        kernel.kwargs = {name: on_each(_snapshot, x) for name, x in named.items()}
    made = [] if facts.pure_write else [_allocate(x, index, kernel.outputs) for x in fresh(facts, spec)]
    kernel.find_written()
    queue(engine, facts.name, kernel, [p for p in kernel.outputs if p is not None] + kernel.written)
    return returned(facts, args, kwargs, made)


def _call_for(kind: SyncKind, hosts: list[torch.Tensor]) -> standin.Call:
    """Where CUDA has the host wait in an op that is not a copy: it reads a number back, or has copied an argument."""
    if kind is not SyncKind.COPY_H2D or not hosts:
        return standin.read()
    nbytes = max(host.nbytes for host in hosts)
    return standin.copy(standin.HOST_TO_DEVICE, nbytes, direct=False, blocking=True)


def _given(args: Any, kwargs: Any, position: int, name: str) -> Any:
    return args[position] if position < len(args) else kwargs.get(name)


@dataclass(slots=True, eq=False)
class _Kernel:
    """An op with its arguments in the form in which it can be queued."""

    facts: OpFacts
    index: int
    args: list[Any]
    kwargs: dict[str, Any]
    placements: list[Placement]
    outputs: list[Placement | None] = field(default_factory=list)
    written: list[Placement] = field(default_factory=list)

    # --- on the thread that calls the op ---

    def seed(self) -> None:
        """Give the op a generator of its own, seeded from the device's or the given one's state."""
        position = self.facts.generator
        if position is None:
            if self.facts.seeded:
                raise SimulationError(f"{self.facts.name} draws random numbers in a way that is not simulated")
        else:
            given = _given(self.args, self.kwargs, position, "generator")
            self.give(randomness.draw(self.index, given), position, "generator")

    def give(self, value: Any, position: int, name: str) -> None:
        """Give the op another argument than the one that it has in this place."""
        if position < len(self.args):
            self.args[position] = value
        else:
            self.kwargs[name] = value

    def work(self) -> Work:
        """Describe the op for modelled times."""
        return work.of_op(self.facts.op, self.facts.name, self.args, self.kwargs, self.outputs, self.written)

    def find_written(self) -> None:
        if not self.facts.writes:
            return
        self.written = []
        for position, name in self.facts.writes:
            value = _given(self.args, self.kwargs, position, name)
            if type(value) is Placement:
                self.written.append(value)
            elif type(value) is list:
                self.written += [x for x in value if type(x) is Placement]

    def resize_outs(self, spec: Any, args: Any, kwargs: Any) -> None:
        """``out=`` takes the shape of the result, as in torch before the kernel runs."""
        specs = spec if isinstance(spec, list) else [spec]
        if not self.facts.returns:  # lists of tensors, which are of the right sizes
            return
        for place, layout in zip(self.facts.returns, specs, strict=True):
            if place is None or not isinstance(layout, Layout):
                continue
            target = _given(args, kwargs, *place)
            if isinstance(target, SimulatedTensor) and layout.size != target.shape:
                tensor.resize(target, layout._replace(offset=target._sim.layout.offset))
                self.give(target._sim, *place)

    def run_now(self, args: Any, kwargs: Any, call: standin.Call | None = None) -> Any:
        """Wait for this op: its results are there when it returns, and may be of any shape.

        ``call`` is where a GPU would have the host wait.
        """
        facts = self.facts
        self.seed()
        engine = order(facts.name, self.index, self.placements)

        def kernel() -> Any:
            resolved, keywords = self._resolved()
            result = facts.compute(*resolved, **keywords)
            hosts = flatten(resolved)
            return on_each(lambda x: x.clone() if _is_view_of(x, hosts) else x, fresh(facts, result))

        made = on_each(
            lambda x: adopt(x, self.index) if isinstance(x, torch.Tensor) else x, run_here(engine, kernel, call, self)
        )
        for position, name in facts.outs:
            target = _given(args, kwargs, position, name)
            if isinstance(target, SimulatedTensor):
                values = target._sim.resolve()  # the very tensor that the CPU's kernel was given, and has resized
                if values.shape != target.shape:
                    tensor.take_resized(target, values)
        self.find_written()
        for placement in self.written:
            placement.box.writer = None  # done: nothing has to wait for it
        return returned(facts, args, kwargs, made)

    def run_unforeseen(self, args: Any, kwargs: Any, error: BaseException | None = None) -> Any:
        """Run an op at once whose results cannot be known in advance; for torch's own ops there are rules."""
        facts = self.facts
        started = time.perf_counter_ns()
        result = self.run_now(args, kwargs)
        ended = time.perf_counter_ns()
        kind = facts.learn_wait(error, self.args, self.kwargs, result) if facts.third_party else None
        if kind is None:
            what = "no meta kernel" if error is None else "the meta kernel refused the arguments"
            waits.internal(f"{facts.name}: {what}")
        elif modelled.clock is not None:
            engine = devices.current_engine(self.index)
            waits.reported(facts.shown, kind, args, lambda: engine.wait(call=standin.read()))
        else:
            waits.reported_late(facts.shown, kind, args, started, ended)
        return result

    # --- on the worker ---

    def _resolved(self) -> tuple[list[Any], dict[str, Any]]:
        resolve = _resolve_all if not self.facts.backward else resolve_kept
        keywords = self.kwargs
        return resolve(self.args), dict(zip(keywords, resolve([*keywords.values()]), strict=True)) if keywords else {}

    def __call__(self) -> None:
        facts, outputs = self.facts, self.outputs
        args, kwargs = self._resolved()
        result = facts.compute(*args, **kwargs)
        for target in self.written:
            target.box.own_form = None
        if not outputs:
            return
        flat = [result] if type(result) is torch.Tensor else flatten(fresh(facts, result))
        if facts.in_cuda_form is not None:
            for placement, values in zip(outputs, flat, strict=True):
                if placement is not None and values is not None and tuple(values.shape) != placement.layout.size:
                    placement.box.own_form = values
            flat = facts.in_cuda_form(dict(zip(facts.arguments, args, strict=False)), flat)
        for placement, values in zip(outputs, flat, strict=True):
            if placement is not None:
                deliver(facts, placement, values, args)


def deliver(facts: OpFacts, placement: Placement, values: Any, args: list[Any]) -> None:
    """Put a kernel's result where its placement says it is."""
    layout = placement.layout
    if values is None:
        # A gradient that was not asked for; meta kernels announce one all the same, and nothing reads it.
        placement.box.failure = Failure(SimulationError(f"{facts.name} did not compute this result"))
        return
    if values.shape != layout.size:
        # A result for the backward pass alone, which each backend computes in a form of its own (batch normalization in
        # eval mode, for one): the CPU's backward kernel gets the CPU's, and any other reader gets this error.
        placement.box.own_form = values
        why = (
            f"{facts.name}: this result has the shape {layout.size} on CUDA, but the CPU's kernel computes another one "
            f"of shape {tuple(values.shape)} for its backward pass; it is not simulated"
        )
        placement.box.failure = Failure(SimulationError(why))
        return
    if values.dtype != layout.dtype:  # statistics of 16-bit numbers, which CUDA keeps in 32 bits
        placement.box.own_form = values
        values = values.to(layout.dtype)
    has_strides = values.stride() == layout.stride
    if (not has_strides and values.numel() > 1) or values.storage_offset() or aliases(values, args):
        values, has_strides = torch.empty_strided(layout.size, layout.stride, dtype=layout.dtype).copy_(values), True
    placement.box.values = values
    if has_strides:
        placement.view = values


def aliases(values: torch.Tensor, args: Any) -> bool:
    if not values.numel():
        return False
    for x in args:
        if isinstance(x, torch.Tensor):
            if x.layout is torch.strided and _shares_memory(values, x):
                return True
        elif type(x) is list and x and isinstance(x[0], torch.Tensor) and aliases(values, x):
            return True
    return False


def _is_view_of(value: Any, hosts: list[Any]) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and aliases(value, hosts)


def fresh(facts: OpFacts, result: Any) -> list[Any]:
    """The return values that are new, not written arguments."""
    if len(facts.returns) == 1:
        return [result] if facts.returns[0] is None else []
    return [x for x, alias in zip(result or (), facts.returns, strict=True) if alias is None]


def _allocate(spec: Any, index: int, outputs: list[Placement | None]) -> Any:
    if type(spec) is Layout:
        # A result gets memory of its own: where a meta kernel says it starts is of no interest.
        made = new_output(spec._replace(offset=0) if spec.offset else spec, index)
        outputs.append(made._sim)
        return made
    if isinstance(spec, list):
        return [_allocate(x, index, outputs) for x in spec]
    outputs.append(None)
    return spec


def returned(facts: OpFacts, args: Any, kwargs: Any, made: list[Any]) -> Any:
    if len(facts.returns) == len(made) == 1:
        return made[0]
    new = iter(made)
    values = [
        next(new) if alias is None else args[alias[0]] if alias[0] < len(args) else kwargs.get(alias[1])
        for alias in facts.returns
    ]
    return None if not values else values[0] if len(values) == 1 else tuple(values)


# --- views -------------------------------------------------------------------------------------------------


def _view(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    placements: list[Placement] = []
    kept = _prepare_all(args, placements, [])
    named = {name: _prepare(x, placements, []) for name, x in kwargs.items()} if kwargs else {}
    if not isinstance(args[0], SimulatedTensor):
        raise SimulationError(f"{facts.name}: a view of a CPU tensor with arguments on CUDA")
    base = placements[0]
    try:
        spec = infer(facts.op, kept, named)
    except UnknownShapeError as error:
        if error.__cause__ is not None:
            raise error.__cause__ from None  # the program's own mistake, in torch's words
        raise SimulationError(f"{facts.name}: this view is not simulated (no meta kernel)") from error
    if facts.view == "in place":
        tensor.replace(args[0], base.shifted(spec))
        return args[0]
    if type(spec) is Layout:
        return make_view(args[0], base.shifted(spec))
    return [make_view(args[0], base.shifted(layout)) for layout in spec]
