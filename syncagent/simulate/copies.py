"""Copies: between host and device, within a device, between devices, with or without a change of type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from syncagent.errors import SimulationError
from syncagent.rules import table
from syncagent.simulate import devices, dispatch, standin, waits, work
from syncagent.simulate.dispatch import runs
from syncagent.simulate.facts import OpFacts, infer
from syncagent.simulate.memory import Placement, is_pinned, mark_pinned
from syncagent.simulate.requirements import aten
from syncagent.simulate.tensor import SimulatedTensor, new_output
from syncagent.simulate.timing import Work

_run_copy = aten.copy_.default
_RULE: Any = table.find("aten::copy_")


@dataclass(frozen=True, slots=True)
class _Copying:
    """A copy to be queued; target and source are each a placement or a CPU tensor."""

    target: Any
    source: Any

    def __call__(self) -> None:
        target, source = self.target, self.source
        into = target
        if isinstance(target, Placement):
            if target.box.values is None:
                layout = target.layout
                target.box.values = torch.empty_strided(layout.size, layout.stride, dtype=layout.dtype)
            target.box.own_form = None
            into = target.resolve()
        _run_copy(into, source.resolve() if isinstance(source, Placement) else source)

    def work(self) -> Work:
        """Describe the copy for modelled times: one that the host does not wait for is from or to pinned memory."""
        return work.of_copy(self.target, self.source, is_pinned=True)


def _call_for(target: torch.Tensor, source: torch.Tensor, non_blocking: bool) -> standin.Call:
    """Where CUDA has the host wait for a copy between host and device."""
    to_device = isinstance(target, SimulatedTensor)
    host = source if to_device else target
    # Another type is made on the host, but for copies that have the device make it and do not wait for that.
    moved = target if to_device or non_blocking else source
    return standin.copy(
        standin.HOST_TO_DEVICE if to_device else standin.DEVICE_TO_HOST,
        target.numel() * moved.dtype.itemsize,
        direct=is_pinned(host) and host.is_contiguous() and target.dtype == source.dtype,
        blocking=not non_blocking,
    )


@runs(aten.copy_.default)
def copy_(_facts: OpFacts | None, args: Any, kwargs: Any) -> Any:
    target, source = args[0], args[1]
    non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
    if not isinstance(source, torch.Tensor):
        source = torch.scalar_tensor(source, dtype=target.dtype)
    if not source.numel() or not target.numel():
        return target  # torch returns before it uses the device: not even a blocking copy waits
    if target.is_cuda != isinstance(target, SimulatedTensor) or source.is_cuda != isinstance(source, SimulatedTensor):
        raise SimulationError("a tensor of a real GPU meets a simulated one; use one or the other")
    if target.shape != source.shape:
        shape = torch.broadcast_shapes(target.shape, source.shape)  # raises at once, as torch does
        if shape != target.shape:
            raise RuntimeError(
                f"output with shape {list(target.shape)} doesn't match the broadcast shape {list(shape)}"
            )
    to, of = (x._sim if isinstance(x, SimulatedTensor) else x for x in (target, source))
    placements = [x for x in (to, of) if isinstance(x, Placement)]
    written = [to] if isinstance(to, Placement) else []
    if not placements:
        return _run_copy(target, source)
    kind = _RULE.waits((target, source, non_blocking), {})
    if kind is not None:
        copy = devices.keeping_failure("aten::copy_", _Copying(to, of), written)
        call = _call_for(target, source, non_blocking)
        waits.reported(
            "aten::copy_", kind, (target, source, non_blocking),
            lambda: devices.run_here(devices.order("aten::copy_", placements[0].index, placements), copy, call),
        )  # fmt: skip
        return target
    if isinstance(of, torch.Tensor) and not is_pinned(of):
        of = of.detach().clone()  # the driver has staged it by the time that it returns
    if isinstance(to, Placement) and isinstance(of, Placement) and to.index != of.index:
        _copy_between_devices(to, of)
        return target
    engine = devices.order("aten::copy_", placements[0].index, placements)
    devices.queue(engine, "aten::copy_", _Copying(to, of), written)
    return target


def _copy_between_devices(target: Placement, source: Placement) -> None:
    """Copy on the source's stream, ordered as in torch between the work before and after it on the target's."""
    ours, theirs = devices.current_engine(source.index), devices.current_engine(target.index)
    ours.depend_on(theirs, theirs.submitted)
    engine = devices.order("aten::copy_", source.index, [source, target])
    devices.queue(engine, "aten::copy_", _Copying(target, source), [target])
    theirs.depend_on(engine, engine.submitted)


@runs(aten._to_copy.default)
def _to_copy(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """``_to_copy``: as in torch, an empty tensor of the right kind and a ``copy_`` into it."""
    source: SimulatedTensor = args[0]
    device: torch.device | None = kwargs.get("device")
    if kwargs.get("layout") not in {None, torch.strided}:
        raise SimulationError(f"tensors of layout {kwargs['layout']} are not simulated on CUDA")
    form = {"dtype": kwargs.get("dtype") or source.dtype, "memory_format": kwargs.get("memory_format")}
    if device is not None and not devices.is_simulated(device):
        return _to_host(facts, source, device, form, kwargs)
    index = source._sim.index if device is None else devices.index_of(device)
    if index == source._sim.index:
        return dispatch.run_generic(facts, args, form)
    target = new_output(infer(facts.op, [source._sim], form), index)
    return copy_(None, (target, source, kwargs.get("non_blocking", False)), {})


def _to_host(facts: OpFacts, source: SimulatedTensor, device: torch.device, form: Any, kwargs: Any) -> Any:
    shape = infer(facts.op, [source._sim], form)
    target = torch.empty_strided(shape.size, shape.stride, dtype=shape.dtype, device=device)
    if device.type == "meta":
        return target
    if device.type != "cpu":
        raise SimulationError(f"copies from simulated CUDA to {device} are not simulated")
    non_blocking = kwargs.get("non_blocking", False)
    if non_blocking or kwargs.get("pin_memory"):
        mark_pinned(target)
    return copy_(None, (target, source, non_blocking), {})


def wait_for_transfer(target: torch.Tensor, source: torch.Tensor, wait: Callable[[standin.Call | None], Any]) -> Any:
    """Report a copy that ``wait`` makes in another way (checkpoints), if CUDA would wait for it."""
    copied = (target, source, False)
    kind = _RULE.waits(copied, {})
    call = None if kind is None else _call_for(*copied)
    return waits.reported("aten::copy_", kind, copied, lambda: wait(call))


@runs(aten._foreach_copy_.default)
def _foreach_copy(facts: OpFacts, args: Any, kwargs: Any) -> Any:
    """Copies one by one, where some go between host and device."""
    targets, sources = args[0], args[1]
    if all(isinstance(x, SimulatedTensor) for x in (*targets, *sources)):
        return dispatch.run_generic(facts, args, kwargs)
    for target, source in zip(targets, sources, strict=True):
        copy_(None, (target, source, *args[2:]), kwargs)
    return None
