"""Puts the simulated device into torch, all of it or nothing, for the life of the process or for a while."""

from __future__ import annotations

import contextlib
import threading
import warnings
from typing import TYPE_CHECKING

from syncagent.attribution import ranks
from syncagent.errors import SimulationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncagent.simulate.patches import Changes

_installed = 0
_borrowers = 0
_lock = threading.RLock()
_changes: tuple[int, Changes] | None = None
"""What was changed in torch, for that number of devices."""
_model_of: list[str] = []
"""The GPU whose times are modelled, once for each borrower that has asked for it."""
_LINGER_S = 1.0
"""How long an idle worker thread that computes with what is left stays once the device is gone."""


def installed() -> bool:
    """Whether the simulated device stands in for CUDA."""
    return bool(_installed)


def missing() -> list[str]:
    """Return a sentence for each name that this torch lacks and that the simulated device would have used."""
    if _changes is None:  # it has never been installed
        return []
    from syncagent.simulate.requirements import LOSSES

    return list(LOSSES.values())


def without_runtime() -> str:
    """Return why the host does not wait in a stand-in for CUDA's runtime; an empty string where it does."""
    if _changes is None:  # the device has never been installed
        return ""
    from syncagent.simulate import standin

    return standin.missing()


def install(devices: int | None = None, *, gpu: str | None = None) -> None:
    """Let simulated devices stand in for CUDA for the life of this process.

    By default there are as many as the launcher has started ranks on this machine, and one without a launcher.  Call it
    before the first ``backward()``: autograd counts devices then.  A second call changes nothing.  Raises
    :class:`SimulationError` where that is impossible, for example once real CUDA is in use.

    With ``gpu``, one of :data:`syncagent.simulate.datasheets.GPUS`, times are modelled for it.
    """
    borrow(devices, gpu=gpu)  # and never give back


def borrow(devices: int | None = None, *, gpu: str | None = None) -> Callable[[], None]:
    """Let simulated devices stand in for CUDA until every borrower has called the function that this returns.

    Tensors made on them stay usable after that.  After :func:`install` the devices stay.  Raises as it does.
    """
    global _borrowers
    with _lock:
        _put_in(devices)
        _borrowers += 1
        once = contextlib.ExitStack()
        once.callback(_give_back)
        if gpu is not None:
            try:
                _model(gpu)
            except BaseException:
                once.close()
                raise
            once.callback(_end_model)
    return once.close


def modelled_gpu() -> str | None:
    """Return the name of the GPU whose times are modelled; ``None`` where times are the CPU's."""
    return _model_of[0] if _model_of else None


def _model(gpu: str) -> None:
    """Begin to model times, unless that has begun already."""
    from syncagent.simulate import dispatch, modelled, tensor
    from syncagent.simulate.datasheets import GPUS
    from syncagent.simulate.requirements import find

    if gpu not in GPUS:
        raise SimulationError(f"gpu={gpu!r}: times can be modelled for {', '.join(GPUS)}")
    if _model_of and _model_of[0] != gpu:
        raise SimulationError(f"times are modelled for {_model_of[0]} already; {gpu} was asked for now")
    if not _model_of:
        graph_task = find("_C._current_graph_task_id") or (lambda: -1)
        clock = modelled.Clock(GPUS[gpu], gpu, is_in_backward=lambda: graph_task() != -1)
        tensor.dispatch = clock.around(dispatch.run)
        modelled.put(clock)
    _model_of.append(gpu)


def _end_model() -> None:
    from syncagent.simulate import dispatch, modelled, tensor

    with _lock:
        _model_of.pop()
        if not _model_of:
            modelled.put(None)
            tensor.dispatch = dispatch.run


def _give_back() -> None:
    global _borrowers
    with _lock:
        _borrowers -= 1
        if not _borrowers:
            _take_out()


def _put_in(devices: int | None) -> None:
    global _installed, _changes
    if _installed:
        if devices not in {None, _installed}:
            raise SimulationError(f"{_installed} simulated devices are installed already; {devices} asked for now")
        return
    if devices is None:
        devices = ranks.on_this_machine()
    if devices < 1:
        raise SimulationError(f"devices={devices}: at least one simulated device is needed")
    try:
        import torch
    except ImportError as error:
        raise SimulationError("the simulated device needs torch, which is not installed") from error
    from syncagent.simulate import requirements

    requirements.check()
    is_in_use = False
    with contextlib.suppress(Exception):  # a torch that cannot tell has not initialized it
        is_in_use = torch.cuda.is_initialized()
    if is_in_use:
        raise SimulationError("real CUDA is in use in this process already; simulate before the first use of it")
    try:
        _install(devices)
    except BaseException:
        with contextlib.suppress(Exception):
            _take_out()
        _changes = None  # half of them are no changes to apply again
        raise
    _installed = devices


def install_or_end(gpu: str | None = None) -> None:
    """Install the device in a process whose environment asks for it, or end the process with exit code 2.

    On the CPU, or on a real GPU, the program would not compute what it was started for.  What it meets later that is
    not simulated, and does not catch, ends it with that code as well.
    """
    from syncagent.support.refusal import end_with_one_sentence, refuse_to_start

    try:
        install(gpu=gpu)
        end_with_one_sentence(SimulationError)
    except Exception as error:
        said = " ".join(str(error).split()).rstrip(".")
        kind = "" if isinstance(error, SimulationError) else f"{type(error).__name__}: "
        refuse_to_start(f"simulate=1 cannot be honoured: {kind}{said}.")


def _install(count: int) -> None:
    from syncagent.simulate import (
        adaptations,
        autocast,
        compilation,
        cuda_api,
        devices,
        engine,
        factories,
        formulas,  # noqa: F401 - registers its handler
        generic_streams,
        legacy_types,
        nested,  # noqa: F401 - registers its handlers
        patches,
        serialization,
        standin,
        subclasses,
        sync_batch_norm,  # noqa: F401 - registers its handlers
        tracing,
        wrappers,
    )
    from syncagent.simulate.requirements import LOSSES

    global _changes
    standin.load()
    engine.Engine.idle_limit_s = None
    devices.set_count(count)
    with warnings.catch_warnings():
        # torch's warning that a kernel replaces another one: here that is the purpose (autocast's lists)
        overrides = r"(?s).*(Overriding a previously registered kernel|other operators may also be overridden)"
        warnings.filterwarnings("ignore", message=overrides)
        factories.install_kernels()
        if _changes is not None and _changes[0] == count and _changes[1].can_be_applied_again:
            _changes[1].apply_again()
            return
        _changes = (count, patches.begin())
        autocast.install()
    factories.wrap_functions()
    factories.wrap_methods()
    adaptations.adapt_module_moves()
    adaptations.adapt_swaps()
    cuda_api.install()
    for part, lost in (
        (adaptations.adapt_ctc_loss, "ctc_loss may read its lengths in another way than on a GPU"),
        (adaptations.adapt_optimizers, "optimizers may take their plain form"),
        (adaptations.adapt_storages, "storages on the host may not copy from the device's"),
        (subclasses.install, "classes of tensors that programs define may fail"),
        (wrappers.install, "tensors that hold others may end the process in a backward pass"),
        (legacy_types.install, "torch.cuda.FloatTensor and its kind may fail"),
        (generic_streams.install, "torch.Stream and torch.Event may fail"),
        (compilation.install, "torch.compile may fail without a clear error, and so may Triton"),
        (tracing.install, "make_fx and torch.func.linearize may fail, and so may flex_attention"),
        (_adapt_distributed, "torch.distributed is not simulated"),
        (serialization.install, "checkpoints of tensors on this device may fail"),
        (adaptations.refuse_unsupported, "what is not simulated may fail without a clear error"),
    ):
        try:
            part()
        except Exception as error:
            LOSSES[lost] = f"{lost}: {type(error).__name__}: {error}"


_OF_GROUPS = (
    "_C._distributed_c10d", "distributed.distributed_c10d", "distributed.ProcessGroup._get_backend",
    "distributed.ProcessGroup._device_types",
)  # fmt: skip
_OF_DATA_PARALLEL = (
    "autograd.Variable._execution_engine", "distributed._compute_bucket_assignment_by_size",
    "distributed.ProcessGroup._allgather_base",
)  # fmt: skip


def _adapt_distributed() -> None:
    import torch

    from syncagent.simulate.requirements import find

    if not torch.distributed.is_available():
        return
    lacks_groups, lacks_data_parallel = (
        None in [find(name) for name in names] for names in (_OF_GROUPS, _OF_DATA_PARALLEL)
    )
    if lacks_groups:
        return
    from syncagent.simulate import collectives, functional, groups  # noqa: F401 - functional registers its handlers

    groups.install()
    collectives.install()
    if not lacks_data_parallel:
        from syncagent.simulate import reducer

        reducer.install()


def _take_out() -> None:
    """Restore everything in torch, and end the worker threads once their queues are empty."""
    global _installed
    from syncagent.simulate import devices, engine

    _installed = 0
    if _changes is not None:
        _changes[1].restore()
    devices.set_count(0)
    devices.leave_thread()
    engine.Engine.idle_limit_s = _LINGER_S
    for each in engine.all_engines():
        each.retire()
