"""Every name of torch that the simulation uses and that torch does not promise, in one place."""

from __future__ import annotations

import importlib
from typing import Any

from syncagent.simulate.errors import SimulationError

__all__ = ["OPTIONAL", "REQUIRED", "check", "look_up"]

REQUIRED: dict[str, str] = {
    "Tensor._make_wrapper_subclass": "tensors without data",
    "_C.TensorBase": "the C++ methods under torch.Tensor's",
    "_C.DispatchKey": "dispatch keys by name",
    "_C.DispatchKeySet": "autocast's key on a tensor",
    "_C._AutoDispatchBelowAutograd": "kernels without autograd on the worker",
    "_C._disabled_torch_function_impl": "no detour for each API call",
    "_C._dispatch_get_all_op_names": "finding the factories",
    "_C._dispatch_has_kernel_for_dispatch_key": "finding the factories",
    "library.Library": "kernels for the stand-in device",
    "nn.Module._apply": "Module.to",
    "overrides.handle_torch_function": "letting modes see calls that are Python functions here",
    "utils.swap_tensors": "Module.to",
}
"""Without one of these there is no device.  Dotted name under ``torch``, and what it is needed for."""

OPTIONAL: dict[str, str] = {
    "_C._AutoDispatchBelowADInplaceOrView": "copies to the host fail inside inference_mode",
    "_C._ExcludeDispatchKeyGuard": "autocast is left by another way inside its kernels, which is slower",
    "_C._RestorePythonTLSSnapshot": "autocast inside inference_mode does not reach the parts of an op",
    "_C._dispatch_has_computed_kernel_for_dispatch_key": "an op that the CPU lacks is refused only when it runs",
    "_C._current_graph_task_id": "races between streams are not warned of",
    "_C._dispatch_get_registrations_for_dispatch_key": "ops that a new torch has on autocast's list go unnoticed",
    "_C._is_alias_of": "results and views are told apart by the address of their storage",
    "_C._is_torch_function_mode_enabled": "modes do not see the calls that are Python functions on this device",
    "_library.custom_ops.OPDEFS": "custom ops written in Python are run as one kernel",
    "_tensor_str._str": "tensors are printed without their device",
    "_utils._rebuild_parameter": "parameters on this device are not pickled",
    "_utils._rebuild_tensor_v2": "tensors on this device are not pickled",
    "_weights_only_unpickler._get_allowed_globals": "torch.load(weights_only=True) may refuse tensors of this device",
    "_use_cudnn_rnn_flatten_weight": "recurrent layers on builds with CUDA may ask cuDNN",
    "cuda._initialized": "code that keeps generator states may leave out this device's",
    "jit._builtins._find_builtin": "torch.jit.script refuses code that calls a factory",
    "jit._builtins._register_builtin": "torch.jit.script refuses code that calls a factory",
    "optim.optimizer._foreach_supported_types": "optimizers take their plain form",
    "serialization._package_registry": "torch.load tries this device even when it is gone",
    "serialization.register_package": "torch.load does not restore tensors to this device",
    "storage.TypedStorage": "tensors on this device are not pickled",
    "utils._device._device_constructors": "a default device that was used before stays as it was for factories",
    "utils._foreach_utils._foreach_supported_types": "clip_grad_norm_ takes its plain form",
    "utils._foreach_utils._group_tensors_by_device_and_dtype": "optimizers' foreach form may refuse the device",
}
"""Without one of these there is a device, and something is lost: dotted name under ``torch``, and what."""


def check(torch: Any) -> None:
    """Raise one error that names all that is missing."""
    missing = [f"torch.{path} ({purpose})" for path, purpose in REQUIRED.items() if look_up(path) is None]
    if missing:
        raise SimulationError(
            f"the simulated device does not work with torch {torch.__version__}: it lacks {', '.join(missing)}"
        )


def look_up(path: str) -> Any:
    """Return what a dotted name under ``torch`` stands for, or ``None``.

    Modules are imported on the way, since torch hides some behind functions.
    """
    *modules, name = path.split(".")
    found: Any = importlib.import_module("torch")
    for depth, part in enumerate(modules, 1):
        try:
            found = importlib.import_module(".".join(("torch", *modules[:depth])))
        except ModuleNotFoundError:
            found = getattr(found, part, None)
    return getattr(found, name, None)
