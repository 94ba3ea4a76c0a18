"""Every name of torch that the simulation needs and that torch does not promise, in one place."""

from __future__ import annotations

import importlib
from typing import Any

from syncagent.simulate.errors import SimulationError

__all__ = ["REQUIRED", "check"]

REQUIRED: dict[str, str] = {
    "Tensor._make_wrapper_subclass": "tensors without data",
    "_C.TensorBase": "the C++ methods under torch.Tensor's",
    "_C.DispatchKey": "dispatch keys by name",
    "_C.DispatchKeySet": "autocast's key on a tensor",
    "_C._AutoDispatchBelowAutograd": "kernels without autograd on the worker",
    "_C._ExcludeDispatchKeyGuard": "leaving autocast inside its own kernels",
    "_C._InferenceMode": "views inside inference_mode",
    "_C._current_graph_task_id": "telling the backward pass from the forward pass",
    "_C._disabled_torch_function_impl": "no detour for each API call",
    "_C._dispatch_get_all_op_names": "finding the factories",
    "_C._dispatch_get_registrations_for_dispatch_key": "checking the list of autocast ops",
    "_C._dispatch_has_kernel_for_dispatch_key": "finding the factories",
    "_C._is_alias_of": "telling results from views",
    "_C._is_torch_function_mode_enabled": "letting modes see calls that are Python functions here",
    "_tensor_str._str": "printing",
    "_utils._rebuild_parameter": "pickling",
    "_utils._rebuild_tensor_v2": "pickling",
    "_weights_only_unpickler._get_allowed_globals": "torch.load(weights_only=True)",
    "_use_cudnn_rnn_flatten_weight": "recurrent layers on builds with CUDA",
    "cuda._initialized": "code that keeps generator states",
    "cuda._lazy_init": "torch.cuda",
    "cuda._sleep": "keeping a stream busy",
    "nn.Module._apply": "Module.to",
    "jit._builtins._find_builtin": "torch.jit.script of code that calls a wrapped function",
    "jit._builtins._register_builtin": "torch.jit.script of code that calls a wrapped function",
    "optim.optimizer._foreach_supported_types": "optimizers' foreach and fused forms",
    "overrides.handle_torch_function": "letting modes see calls that are Python functions here",
    "serialization.register_package": "checkpoints",
    "storage.TypedStorage": "pickling",
    "utils._device._device_constructors": "factories under a default device",
    "utils._foreach_utils._foreach_supported_types": "clip_grad_norm_'s foreach form",
    "utils._foreach_utils._group_tensors_by_device_and_dtype": "optimizers' foreach form",
    "utils.swap_tensors": "Module.to",
}
"""Dotted name under ``torch``, and what it is needed for."""


def check(torch: Any) -> None:
    """Raise one error that names all that is missing."""
    missing = [f"torch.{path} ({purpose})" for path, purpose in REQUIRED.items() if not _exists(path)]
    if missing:
        raise SimulationError(
            f"the simulated device does not work with torch {torch.__version__}: it lacks {', '.join(missing)}"
        )


def _exists(path: str) -> bool:
    """Look a dotted name up; modules are imported on the way, since torch hides some behind functions."""
    *modules, name = path.split(".")
    found: Any = importlib.import_module("torch")
    for depth, part in enumerate(modules, 1):
        try:
            found = importlib.import_module(".".join(("torch", *modules[:depth])))
        except ModuleNotFoundError:
            found = getattr(found, part, None)
    return hasattr(found, name)
