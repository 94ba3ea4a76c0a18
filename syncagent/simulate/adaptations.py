"""Parts of torch that look at a tensor's exact class: adapted to the simulated one, or refused with a clear error."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch

from syncagent.errors import SimulationError
from syncagent.simulate import devices, patches
from syncagent.simulate.requirements import find
from syncagent.simulate.tensor import ALL_ARGUMENTS, OWN, SimulatedTensor, Storage, attributes_of, replacement, set_data

# --- Module.to ---------------------------------------------------------------------------------------------


def _move_in_place(function: Any, tensor: Any) -> Any:
    """Apply a module's function to one of its tensors; a parameter that changes between host and device stays itself.

    torch would put a new parameter there, because the two are of different classes, and an optimizer made before the
    move would train the old one.
    """
    result = function(tensor)
    crosses = isinstance(result, SimulatedTensor) != isinstance(tensor, SimulatedTensor)
    if crosses and isinstance(tensor, torch.nn.Parameter) and not result.is_meta and not tensor.is_meta:
        set_data(tensor, result)
        return tensor
    return result


def _move_script(module: Any, function: Any) -> Any:
    """Move a TorchScript module, which keeps its tensors in C++ and takes new ones in their place by name."""
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, tensor in list(held.items()):
                with torch.no_grad():
                    moved = function(tensor)
                if isinstance(tensor, SimulatedTensor) or isinstance(moved, SimulatedTensor):
                    held[name] = moved.detach().requires_grad_(tensor.requires_grad)
                else:
                    tensor.data = moved  # as torch does it
    return module


def adapt_module_moves() -> None:
    """Wrap ``Module._apply``, through which every move of a module goes."""
    original: Any = torch.nn.Module._apply
    scripted: Any = find("jit.RecursiveScriptModule") or ()

    @functools.wraps(original)
    def apply(self: Any, fn: Any, recurse: bool = True) -> Any:
        if isinstance(self, scripted):
            return _move_script(self, fn)
        if getattr(fn, "func", None) is not _move_in_place:  # the call of a module's parent has wrapped it already
            fn = functools.partial(_move_in_place, fn)
        return original(self, fn, recurse)

    patches.put(torch.nn.Module, "_apply", apply)


def adapt_swaps() -> None:
    """Let two tensors on the device that exchange everything exchange what they hold, too."""
    original: Any = torch.utils.swap_tensors

    @functools.wraps(original)
    def swap_tensors(t1: torch.Tensor, t2: torch.Tensor) -> None:
        original(t1, t2)
        if isinstance(t1, SimulatedTensor) and isinstance(t2, SimulatedTensor):
            first, second = attributes_of(t1), attributes_of(t2)
            one, other = ({name: each.pop(name) for name in OWN & each.keys()} for each in (first, second))
            first.update(other)
            second.update(one)

    patches.put(torch.utils, "swap_tensors", swap_tensors)


# --- optimizers --------------------------------------------------------------------------------------------


def adapt_optimizers() -> None:
    """Let optimizers take their foreach and fused forms, which they choose by class, and group by device."""
    for path in ("optim.optimizer._foreach_supported_types", "utils._foreach_utils._foreach_supported_types"):
        types = find(path)
        if types is not None:
            patches.also(functools.partial(types.append, SimulatedTensor), functools.partial(_remove, types))
    name = "_group_tensors_by_device_and_dtype"
    original: Any = find(f"utils._foreach_utils.{name}")
    if original is None:
        return

    @functools.wraps(original)
    def group(*args: Any, **kwargs: Any) -> Any:
        groups = original(*args, **kwargs)
        return {(_as_program_sees(device), dtype): members for (device, dtype), members in groups.items()}

    # Modules have imported the function by name.
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("torch.") and vars(module).get(name) is original:
            patches.put(module, name, group)


def _remove(types: list[Any]) -> None:
    if SimulatedTensor in types:
        types.remove(SimulatedTensor)


def _as_program_sees(device: Any) -> Any:
    is_ours = device is not None and device.type == devices.STAND_IN
    return devices.shown[device.index or 0] if is_ours else device


# --- ctc_loss ----------------------------------------------------------------------------------------------


def adapt_ctc_loss() -> None:
    """For CUDA, torch takes the lengths to the host, but C++ does not read those of a tensor subclass."""
    original = torch.ctc_loss

    def ctc_loss(
        log_probs: Any, targets: Any, input_lengths: Any, target_lengths: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if isinstance(log_probs, SimulatedTensor):
            input_lengths, target_lengths = (
                lengths.tolist() if isinstance(lengths, torch.Tensor) else lengths
                for lengths in (input_lengths, target_lengths)
            )
        return original(log_probs, targets, input_lengths, target_lengths, *args, **kwargs)

    patches.put(torch, "ctc_loss", replacement(ctc_loss, original, asks=ALL_ARGUMENTS))


# --- what is refused by name, before it fails somewhere deep inside torch ----------------------------------


def refuse_unsupported() -> None:
    """Refuse models spread over devices, TorchScript's files, and handing memory to other libraries."""
    to_dlpack = torch.to_dlpack  # type: ignore[attr-defined]  # torch does not export it

    def refusing_to_dlpack(tensor: Any) -> Any:
        return tensor.__dlpack__() if isinstance(tensor, SimulatedTensor) else to_dlpack(tensor)

    patches.put(torch.utils.dlpack, "to_dlpack", refusing_to_dlpack)
    patches.put(torch, "to_dlpack", refusing_to_dlpack)
    _refuse_to_write_scripts()
    _refuse_devices_beyond(torch.nn.DataParallel, 1)


def _refuse_to_write_scripts() -> None:
    """TorchScript's files are written in C++, from memory that such tensors do not have."""
    scripted: Any = find("jit.RecursiveScriptModule")
    if scripted is None:
        return

    def refusing(original: Any) -> Any:
        @functools.wraps(original)
        def write(self: Any, *args: Any, **kwargs: Any) -> Any:
            if any(isinstance(each, SimulatedTensor) for each in (*self.parameters(), *self.buffers())):
                raise SimulationError(
                    "torch.jit.save: TorchScript with tensors on this device is not simulated; make what is written of "
                    "the model on the CPU, as by torch.jit.script(model.cpu())"
                )
            return original(self, *args, **kwargs)

        return write

    for name in ("save", "save_to_buffer"):
        patches.put(scripted, name, refusing(getattr(scripted, name)))


def _refuse_devices_beyond(cls: Any, limit: int) -> None:
    original = cls.__init__

    @functools.wraps(original)
    def __init__(self: Any, module: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - becomes cls.__init__
        on_device = any(isinstance(parameter, SimulatedTensor) for parameter in module.parameters())
        if on_device and torch.cuda.device_count() > limit:
            raise SimulationError(
                f"torch.nn.parallel.{cls.__name__}: training on several CUDA devices is not simulated"
            )
        original(self, module, *args, **kwargs)

    patches.put(cls, "__init__", __init__)


def adapt_storages() -> None:
    """Let a storage on the host copy from one on the device."""
    original: Any = torch.UntypedStorage.copy_

    def copy_(self: Any, source: Any, non_blocking: bool = False) -> Any:
        from_device = isinstance(source, Storage)
        return original(self, source.untyped().cpu() if from_device else source, non_blocking)

    patches.put(torch.UntypedStorage, "copy_", functools.update_wrapper(copy_, original))
