"""Putting the simulated device into torch: all of it or nothing, once, for the life of the process."""

from __future__ import annotations

import threading
import warnings
from typing import Any

from syncagent.simulate import requirements
from syncagent.simulate.errors import SimulationError

__all__ = ["install", "install_or_end", "installed", "missing"]

_installed = 0
_lock = threading.Lock()
_libraries: list[Any] = []
"""torch takes kernels away when the library that brought them is collected."""

OVERRIDES = r"(?s).*(Overriding a previously registered kernel|other operators may also be overridden)"
"""What torch warns of where a kernel takes another's place: here that is the purpose (autocast's lists)."""


def installed() -> bool:
    """Whether the simulated device stands in for CUDA."""
    return bool(_installed)


def missing() -> list[str]:
    """One sentence for each name that this torch lacks and that the simulated device would have used."""
    if not _installed:
        return []
    from syncagent.simulate.lookups import LOSSES

    return list(LOSSES.values())


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
        if _real_cuda_is_used(torch):
            raise SimulationError("real CUDA is in use in this process already; simulate before the first use of it")
        _install(devices)
        _installed = devices


def _real_cuda_is_used(torch: Any) -> bool:
    try:
        return bool(torch.cuda.is_initialized())
    except Exception:  # a torch that cannot say so has not come that far
        return False


def install_or_end() -> None:
    """Install in a process that was asked for the device from outside; where that fails the process ends here.

    On the CPU, or on a real GPU, the program would compute something else than it was started for.
    """
    try:
        install()
    except Exception as error:
        from syncagent.refusal import refuse_to_start

        refuse_to_start(f"simulate=1 cannot be honoured: {_in_words(error)}")


def _in_words(error: Exception) -> str:
    said = " ".join(str(error).split()).rstrip(".")
    return f"{said if isinstance(error, SimulationError) else f'{type(error).__name__}: {said}'}."


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
        nested,
        optimizers,
        serialization,
        unsupported,
    )
    from syncagent.simulate.lookups import LOSSES

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
    modules.install()
    cuda_api.install()
    for part, lost in (
        (composites, "ctc_loss may read its lengths otherwise than on a GPU"),
        (nested, "nn.TransformerEncoder does not take a padding mask in eval mode"),
        (optimizers, "optimizers may take their plain form"),
        (serialization, "checkpoints of tensors on this device may fail"),
        (unsupported, "what is not simulated may fail without a clear word"),
    ):
        try:
            part.install()
        except Exception as error:
            LOSSES[part.__name__] = f"{lost}: {type(error).__name__}: {error}"


def _begin_worker() -> None:
    """The worker computes on plain CPU tensors; everything above that has happened in the thread that queued the op."""
    import torch

    from syncagent.simulate.lookups import find

    torch.set_grad_enabled(False)
    # Above the keys of in-place ops, too, an op may not write to a host tensor that the program has made in
    # inference_mode; versions have been counted in the thread that queued it.
    below = find("_C._AutoDispatchBelowADInplaceOrView") or torch._C._AutoDispatchBelowAutograd
    # Lasts as long as it is referred to: as long as the thread.
    _guards.guard = below()
    _guards.guard.__enter__()


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
