"""The private names of torch that the simulated device uses, all in one place, and what is lost without each of them.

A name that this torch lacks costs only what needs it, and the report says so.  ``aten`` here stands for
``torch.ops.aten``: an op that is not there becomes a placeholder, which can be looked at, listed and registered like
any other, and raises only when it is called.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from syncagent.errors import SimulationError

REQUIRED: dict[str, str] = {
    "Tensor._make_wrapper_subclass": "tensors without data",
    "_C.TensorBase": "the C++ methods under torch.Tensor's",
    "_C.DispatchKey": "dispatch keys by name",
    "_C.DispatchKeySet": "autocast's key on a tensor",
    "_C._AutoDispatchBelowAutograd": "kernels without autograd on the worker",
    "_C._disabled_torch_function_impl": "no detour for each API call",
    "_C._dispatch_get_registrations_for_dispatch_key": "finding the factories",
    "_C._dispatch_has_kernel_for_dispatch_key": "finding the factories",
    "_C._get_schema": "finding the factories",
    "library.Library": "kernels for the stand-in device",
    "ops.aten.detach.default._schema": "names and types of an op's arguments",
    "nn.Module._apply": "Module.to",
    "overrides.handle_torch_function": "letting modes see calls that are Python functions here",
    "utils.swap_tensors": "Module.to",
}
"""There is no device without one of these: dotted name under ``torch``, and what it is needed for."""

OPTIONAL: dict[str, str] = {
    "_C._AutoDispatchBelowADInplaceOrView": "copies to the host fail inside inference_mode",
    "_C._ExcludeDispatchKeyGuard": "autocast is left by another way inside its kernels, which is slower",
    "_C._ForceDispatchKeyGuard": "recurrent layers run as many small ops, which is slow",
    "_C._RestorePythonTLSSnapshot": "autocast inside inference_mode does not reach the parts of an op",
    "_C._dispatch_has_computed_kernel_for_dispatch_key": "an op that the CPU lacks is refused only when it runs",
    "_C._current_autograd_node": "the backward passes of prod and cumprod wait for nothing",
    "_C._current_graph_task_id": "nothing warns of races between streams",
    "_C._dispatch_tls_local_exclude_set": "recurrent layers run as many small ops, which is slow",
    "_C._dispatch_tls_local_include_set": "recurrent layers run as many small ops, which is slow",
    "_C._distributed_c10d": "torch.distributed is not simulated",
    "_C._get_accelerator": "init_process_group() without a backend finds none for the device",
    "_C._is_alias_of": "results and views are distinguished by the address of their storage",
    "_C._len_torch_dispatch_stack": "modes do not see the parts of an op inside inference_mode",
    "_C._is_torch_function_mode_enabled": "modes do not see the calls that are Python functions on this device",
    "library.Library._destroy": "autocast keeps the simulated device's kernels when the device is gone",
    "_library.custom_ops.OPDEFS": "custom ops written in Python are run as one kernel",
    "Tensor._dtensor__new__": "DTensors say that they are on another device than cuda",
    "Tensor._make_subclass": "sparse tensors are not simulated",
    "_ops.HigherOrderOperator": "flex_attention and other ops that take functions are not simulated",
    "_tensor_str._str": "tensors are printed without their device",
    "_utils._rebuild_sparse_tensor": "sparse tensors on this device are not pickled",
    "_utils._rebuild_parameter": "parameters on this device are not pickled",
    "_utils._rebuild_tensor_v2": "tensors on this device are not pickled",
    "_weights_only_unpickler._get_allowed_globals": "torch.load(weights_only=True) may refuse tensors of this device",
    "_use_cudnn_rnn_flatten_weight": "recurrent layers on builds with CUDA may ask cuDNN",
    "cpu._is_avx512_bf16_supported": "products in bfloat16 are computed in fp32 on every processor",
    "cuda._initialized": "code that keeps generator states may leave out this device's",
    "autograd.Variable._execution_engine": "DistributedDataParallel is not simulated",
    "distributed._compute_bucket_assignment_by_size": "DistributedDataParallel is not simulated",
    "distributed.ProcessGroup._allgather_base": "DistributedDataParallel is not simulated",
    "distributed.ProcessGroup._device_types": "torch.distributed is not simulated",
    "distributed.ProcessGroup._get_backend": "torch.distributed is not simulated",
    "distributed.distributed_c10d": "torch.distributed is not simulated",
    "jit.RecursiveScriptModule": "TorchScript modules fail where they are moved to this device or written from it",
    "jit._builtins._find_builtin": "torch.jit.script refuses code that calls a factory",
    "jit._builtins._register_builtin": "torch.jit.script refuses code that calls a factory",
    "optim.optimizer._foreach_supported_types": "optimizers take their plain form",
    "serialization._package_registry": "torch.load tries this device even when it is gone",
    "serialization.register_package": "torch.load does not restore tensors to this device",
    "storage.TypedStorage": "tensors on this device are not pickled",
    "_tensor._rebuild_from_type_v2": "tensors of a program's own class lose it where they are pickled",
    "utils._triton.has_triton": "libraries that ask torch take Triton's kernels, which are refused",
    "utils._device._device_constructors": "a default device that was used before stays as it was for factories",
    "utils._foreach_utils._foreach_supported_types": "clip_grad_norm_ takes its plain form",
    "utils._foreach_utils._group_tensors_by_device_and_dtype": "optimizers' foreach form may refuse the device",
}
"""Without one of these the device works, and something is lost: dotted name under ``torch``, and what."""


ON_INSTANCES: dict[str, str] = {
    "Tensor._use_count": "a process of several that ends right after a collective may be aborted by gloo",
    "_C.Node._sequence_nr": "of several products in one backward pass, one waits",
    "_C._distributed_c10d._resolve_process_group": "DTensor is not simulated for several ranks",
    "distributed.distributed_c10d._create_nccl_process_group": "torch.distributed looks for NCCL in the older way",
    "distributed.Backend._plugins": "torch.distributed looks for NCCL itself",
    "distributed.Backend._BackendPlugin": "torch.distributed looks for NCCL itself",
    "_dynamo.eval_frame.OptimizedModule": "torch.compile returns the module itself, without _orig_mod",
    "_dynamo.optimize": "programs that compile in the way of before torch 2.0 may fail",
    "_library.custom_ops.CustomOpDef._backend_fns": "custom ops written in Python are run as one kernel",
    "distributed.ProcessGroupNCCL.Options._timeout": "process groups have torch's default time limit",
    "fx.experimental.proxy_tensor.HANDLED_TYPES": "make_fx and torch.func.linearize record wrong programs",
    "nn.Module._buffers": "TorchScript modules fail where they are moved to this device or back",
    "storage.TypedStorage._untyped_storage": "typed storages are not moved to this device",
}
"""As :data:`OPTIONAL`, but looked for where it is used: only instances have the name, or it takes long to import."""

LOSSES: dict[str, str] = {}
"""For each name that this torch lacks, or that could not be used, one sentence that says what is lost."""


def check() -> None:
    """Raise a :class:`SimulationError` that names everything in :data:`REQUIRED` that this torch lacks."""
    missing = [f"torch.{path} ({purpose})" for path, purpose in REQUIRED.items() if look_up(path) is None]
    if missing:
        raise SimulationError(
            f"the simulated device does not work with torch {torch.__version__}: it lacks {', '.join(missing)}"
        )


def look_up(path: str) -> Any:
    """Return the object with this dotted name under ``torch``, or ``None``.

    Modules are imported on the way, since torch hides some behind functions.
    """
    *modules, name = path.split(".")
    found: Any = torch
    for depth, part in enumerate(modules, 1):
        try:
            found = importlib.import_module(".".join(("torch", *modules[:depth])))
        except ModuleNotFoundError:
            found = getattr(found, part, None)
    return getattr(found, name, None)


def find(path: str) -> Any:
    """Return the object that one of :data:`OPTIONAL` names, or ``None`` and note the loss."""
    found = look_up(path)
    if found is None:
        note_loss(f"torch.{path}", OPTIONAL[path])
    return found


def note_loss(name: str, what: str = "calls to it are not simulated") -> None:
    """Note what is lost because torch lacks a name."""
    LOSSES.setdefault(name, f"torch {torch.__version__} lacks {name}: {what}")


class MissingOp:
    """An op, or an overload of one, that this torch does not have."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name
        note_loss(name)

    def __getattr__(self, overload: str) -> MissingOp:
        if overload.startswith("__"):
            raise AttributeError(overload)
        return self

    def overloads(self) -> list[str]:
        return []

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise SimulationError(f"the simulated device needs {self.name}, which torch {torch.__version__} does not have")


class _Ops:
    """The namespace, or all overloads of one op; what was looked up becomes an attribute, and costs no more then."""

    def __init__(self, found: Any, prefix: str) -> None:
        self._found = found
        self._prefix = prefix

    def __getattr__(self, name: str) -> Any:
        try:
            found = getattr(self._found, name)
        except AttributeError:
            if name.startswith("__"):
                raise
            found = MissingOp(self._prefix + name)
        if self._prefix == _ATEN and not isinstance(found, MissingOp):
            found = _Ops(found, f"{self._prefix}{name}.")
        setattr(self, name, found)
        return found


_ATEN = "aten::"
aten: Any = _Ops(getattr(getattr(torch, "ops", None), "aten", None), _ATEN)
