"""Putting the simulated device into torch: all of it or nothing, once, for the life of the process."""

from __future__ import annotations

import threading
import warnings
from typing import Any

from syncagent.simulate import requirements
from syncagent.simulate.errors import SimulationError

__all__ = ["install", "installed"]

_installed = 0
_lock = threading.Lock()
_libraries: list[Any] = []
"""torch takes kernels away when the library that brought them is collected."""

OVERRIDES = r"(?s).*(Overriding a previously registered kernel|other operators may also be overridden)"
"""What torch warns of where a kernel takes another's place: here that is the purpose (autocast's lists)."""


def installed() -> bool:
    """Whether the simulated device stands in for CUDA."""
    return bool(_installed)


def install(devices: int = 1) -> None:
    """Let simulated devices stand in for CUDA, in this process and for good.

    Call it before the first ``backward()``: autograd counts devices then.  A second call changes nothing.
    """
    global _installed
    with _lock:
        if _installed:
            if devices != _installed:
                raise SimulationError(f"{_installed} simulated devices are installed already; {devices} asked for now")
            return
        if devices < 1:
            raise SimulationError(f"devices={devices}: at least one simulated device is needed")
        try:
            import torch
        except ImportError as error:
            raise SimulationError("the simulated device needs torch, which is not installed") from error
        requirements.check(torch)
        if torch.cuda.is_initialized():
            raise SimulationError("real CUDA is in use in this process already; simulate before the first use of it")
        _install(devices)
        _installed = devices


def _install(count: int) -> None:
    import torch

    from syncagent.simulate import (
        autocast,
        composites,
        cuda_api,
        devices,
        engine,
        factories,
        modules,
        optimizers,
        serialization,
        unsupported,
    )

    engine.Engine.begin_thread = _begin_worker
    engine.Engine.as_device_error = staticmethod(_as_device_error)
    engine.guard_process()
    devices.set_count(count)
    library = torch.library.Library("aten", "IMPL")
    _libraries.append(library)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=OVERRIDES)
        factories.install_kernels(library)
        autocast.install(library)
    factories.wrap_functions()
    factories.wrap_methods()
    composites.install()
    modules.install()
    optimizers.install()
    serialization.install()
    unsupported.install()
    cuda_api.install()


def _begin_worker() -> None:
    """The worker computes on plain CPU tensors; everything above that has happened in the thread that queued the op."""
    import torch

    torch.set_grad_enabled(False)
    # They last as long as they are referred to: as long as the thread.  Without the second one an op could not write to
    # a host tensor that the program has made in inference_mode; the version of what is written is counted above, too.
    in_place = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)
    _guards.guards = (torch._C._AutoDispatchBelowAutograd(), torch._C._ExcludeDispatchKeyGuard(in_place))
    for guard in _guards.guards:
        guard.__enter__()


_guards = threading.local()


def _as_device_error(error: BaseException) -> BaseException:
    """What a queued kernel raised, as the thread that waits for it gets it."""
    import torch

    if isinstance(error, (SimulationError, KeyboardInterrupt)):
        return error
    return torch.AcceleratorError(
        f"CUDA error: {type(error).__name__} in an asynchronous kernel: {error}\n"
        "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
        "incorrect."
    )
