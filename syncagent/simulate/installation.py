"""Putting the simulated device into torch, all of it or nothing: for the life of the process, or for a while."""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any

from syncagent.simulate import requirements
from syncagent.simulate.errors import SimulationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncagent.simulate.patches import Patches

__all__ = ["borrow", "install", "install_or_end", "installed", "missing"]

_installed = 0
_for_good = False
_borrowers = 0
_lock = threading.RLock()
_library: Any = None
"""The kernels that make tensors; they stay, since what was made on the device may still make others."""
_autocast: Any = None
_patches: tuple[int, Patches] | None = None
"""What was changed in torch, for that number of devices."""
_modules: set[str] = set()
"""What was imported when the device was put in; modules that are imported later may take its names."""
_LINGER_S = 1.0
"""How long a worker thread stays that computes with what is left after the device is gone."""

OVERRIDES = r"(?s).*(Overriding a previously registered kernel|other operators may also be overridden)"
"""What torch warns of where a kernel takes another's place: here that is the purpose (autocast's lists)."""


def installed() -> bool:
    """Whether the simulated device stands in for CUDA."""
    return bool(_installed)


def missing() -> list[str]:
    """One sentence for each name that this torch lacks and that the simulated device would have used."""
    if _patches is None:  # it has never been here
        return []
    from syncagent.simulate.lookups import LOSSES

    return list(LOSSES.values())


def install(devices: int = 1) -> None:
    """Let simulated devices stand in for CUDA, in this process and for good.

    Call it before the first ``backward()``: autograd counts devices then.  A second call changes nothing.
    """
    global _for_good
    with _lock:
        _put_in(devices)
        _for_good = True


def borrow(devices: int = 1) -> Callable[[], None]:
    """Let simulated devices stand in for CUDA until what is returned has been called by the last who borrowed them.

    Tensors that were made on them stay usable after that.  Where :func:`install` was called they stay.
    """
    global _borrowers
    with _lock:
        _put_in(devices)
        _borrowers += 1
    given_back: list[bool] = []

    def give_back() -> None:
        global _borrowers
        with _lock:
            if given_back:
                return
            given_back.append(True)
            _borrowers -= 1
            if not _borrowers and not _for_good:
                _take_out()

    return give_back


def _put_in(devices: int) -> None:
    global _installed
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
    try:
        _install(devices)
    except BaseException:
        with contextlib.suppress(Exception):
            _take_out()
        raise
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
        from syncagent.support.refusal import refuse_to_start

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
        patches,
        serialization,
        unsupported,
    )
    from syncagent.simulate.lookups import LOSSES

    global _patches
    engine.Engine.idle_limit_s = None
    engine.Engine.begin_thread = _begin_worker
    engine.Engine.as_device_error = staticmethod(_as_device_error)
    engine.guard_process()
    devices.set_count(count)
    _register_kernels(torch)
    _modules.clear()
    _modules.update(sys.modules)
    if _patches is not None and _patches[0] == count and _patches[1].fits:
        _patches[1].make_again()
        return
    _patches = (count, patches.begin())
    autocast.install()
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


def _register_kernels(torch: Any) -> None:
    from syncagent.simulate import autocast, factories

    global _library, _autocast
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=OVERRIDES)
        if _library is None:
            _library = torch.library.Library("aten", "IMPL")
            factories.install_kernels(_library)
        if _autocast is None:
            _autocast = torch.library.Library("aten", "IMPL")
            autocast.install_kernels(_autocast)


def _take_out() -> None:
    """Put everything in torch back, and end the worker threads when they have done what is queued."""
    global _installed, _autocast
    from syncagent.simulate import devices, engine

    _installed = 0
    if _patches is not None:
        since = [(name, module) for name, module in list(sys.modules.items()) if name not in _modules]
        with contextlib.suppress(Exception):  # whatever stands in somebody's module
            _patches[1].take_in((name, module) for name, module in since if type(module) is ModuleType)
        _patches[1].take_back()
    if _autocast is not None:
        _autocast._destroy()
        _autocast = None
    devices.set_count(0)
    devices.leave_thread()
    engine.Engine.idle_limit_s = _LINGER_S
    engine.retire_all()


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
