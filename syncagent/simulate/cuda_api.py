"""``torch.cuda`` and ``torch.accelerator``: all that programs use of the device besides tensors."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from syncagent.events import SyncKind
from syncagent.simulate import allocator, devices, engine, patches, randomness
from syncagent.simulate.errors import SimulationError, SimulationWarning
from syncagent.simulate.requirements import find, look_up, note_loss
from syncagent.simulate.tensor import SimulatedTensor
from syncagent.simulate.waits import reported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["NAME", "install"]

NAME = "simulated CUDA device (CPU arithmetic)"
CYCLES_PER_SECOND = 1.5e9
_started = False


# --- initialization ----------------------------------------------------------------------------------------


def _lazy_init() -> None:
    global _started
    engine.refuse_if_forked()
    _started = True


def _is_initialized() -> bool:
    return not engine.is_forked() and (_started or any(e.submitted for e in _all_engines()))


def _all_engines() -> Iterable[engine.Engine]:
    for index in range(devices.count()):
        yield from devices.engines_of(index)


# --- devices -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Properties:
    """What ``get_device_properties`` returns.  The memory is the host's, with its true size."""

    total_memory: int
    name: str = NAME
    major: int = 8
    minor: int = 0
    multi_processor_count: int = os.cpu_count() or 1
    warp_size: int = 32
    max_threads_per_multi_processor: int = 2048
    max_threads_per_block: int = 1024
    regs_per_multiprocessor: int = 65536
    shared_memory_per_block: int = 49152
    is_integrated: int = 1
    is_multi_gpu_board: int = 0
    gcnArchName: str = ""  # noqa: N815 - torch's name
    uuid: str = "simulated"


class _Device:
    """``torch.cuda.device``: a context in which a device is the current one."""

    def __init__(self, device: Any) -> None:
        self._index = -1 if device is None else device if device == -1 else devices.index_of(device)
        self._before: list[int] = []

    def __enter__(self) -> None:
        self._before.append(devices.exchange(self._index))

    def __exit__(self, *_: object) -> None:
        devices.exchange(self._before.pop())


class _DeviceOf(_Device):
    """``torch.cuda.device_of``: the device of a tensor, if it is on one."""

    def __init__(self, obj: Any) -> None:
        super().__init__(obj.get_device() if isinstance(obj, SimulatedTensor) else -1)


def _set_device(device: Any) -> None:
    _lazy_init()
    devices.exchange(device if device == -1 else devices.index_of(device))


class _StreamContext:
    """``torch.cuda.stream``: a context in which a stream is the current one; ``None`` changes nothing."""

    def __init__(self, stream: devices.Stream | None) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        if self.stream is not None:
            self.stream.__enter__()

    def __exit__(self, *_: object) -> None:
        if self.stream is not None:
            self.stream.__exit__()


def _synchronizer(name: str) -> Callable[..., None]:
    def synchronize(device: Any = None) -> None:
        _lazy_init()
        engines = devices.engines_of(devices.index_of(device))

        def wait() -> None:
            for each in engines:
                each.wait()

        is_idle = all(each.finished >= each.submitted for each in engines)
        reported(name, SyncKind.EXPLICIT, (), wait, is_idle=is_idle)

    return synchronize


def _sleep(cycles: int) -> None:
    seconds = cycles / CYCLES_PER_SECOND
    devices.current_engine(devices.current()).submit(lambda: time.sleep(seconds))


# --- memory ------------------------------------------------------------------------------------------------

_warned = False


def _no_figures(value: Any) -> Callable[..., Any]:
    """A figure that is not simulated: loops that print it go on, and one warning says so."""

    def figure(*_: Any, **__: Any) -> Any:
        global _warned
        if not _warned:
            _warned = True
            warnings.warn(
                "CUDA memory figures are not simulated: memory_allocated() and similar functions return 0",
                SimulationWarning,
                stacklevel=2,
            )
        return value() if callable(value) else value

    return figure


def _host_memory() -> tuple[int, int]:
    """Free and total bytes: the simulated device's memory is the host's, so these figures are true."""
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page


def _emptier(name: str) -> Callable[[], None]:
    """``empty_cache``: the driver waits for all work on the device before it takes memory back."""

    def empty_cache() -> None:
        if allocator.release_unused():
            reported(name, SyncKind.OTHER, (), engine.wait_for_all)

    return empty_cache


# --- what has no simulation --------------------------------------------------------------------------------


def _refuse(what: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise SimulationError(f"{what} not simulated")

    return refuse


def _refusing_class(name: str, what: str) -> type:
    return type(name, (), {"__init__": _refuse(what)})


# --- random numbers ----------------------------------------------------------------------------------------


def _seed_one(seed: int) -> None:
    randomness.default_state(devices.current()).set_seed(int(seed))


def _seed_all(seed: int) -> None:
    for index in range(devices.count()):
        randomness.default_state(index).set_seed(int(seed))


def _random_seed() -> None:
    _seed_all(int.from_bytes(os.urandom(7), "little"))


def _get_rng_state(device: Any = "cuda") -> torch.Tensor:
    _lazy_init()
    return randomness.default_state(devices.index_of(device)).pack()


def _set_rng_state(new_state: torch.Tensor, device: Any = "cuda") -> None:
    randomness.default_state(devices.index_of(device)).unpack(new_state)


def _set_rng_state_all(new_states: Iterable[torch.Tensor]) -> None:
    for index, state in enumerate(new_states):
        _set_rng_state(state, index)


def _nothing(*_: Any, **__: Any) -> None:
    pass


_MEMORY_FIGURES: dict[str, Any] = {
    "memory_stats": _no_figures(OrderedDict), "memory_allocated": _no_figures(0),
    "max_memory_allocated": _no_figures(0), "memory_reserved": _no_figures(0), "max_memory_reserved": _no_figures(0),
    "reset_accumulated_memory_stats": _nothing, "reset_peak_memory_stats": _nothing,
}  # fmt: skip


def _names() -> dict[str, Any]:
    """What takes the place of each name in ``torch.cuda``."""
    count, current = devices.count, devices.current
    return {
        # initialization
        "_lazy_init": _lazy_init, "init": _lazy_init, "is_initialized": _is_initialized,
        "is_available": lambda: bool(count()),
        "_is_in_bad_fork": engine.is_forked,
        # devices
        "device_count": count, "current_device": current, "set_device": _set_device, "device": _Device,
        "device_of": _DeviceOf, "_DeviceGuard": _Device, "_exchange_device": devices.exchange,
        "_maybe_exchange_device": devices.exchange, "get_device_name": lambda _device=None: NAME,
        "get_device_capability": lambda _device=None: (8, 0),
        "get_device_properties": lambda _device=None: _Properties(_host_memory()[1]),
        "get_arch_list": list, "get_gencode_flags": str, "can_device_access_peer": lambda *_: True,
        "is_bf16_supported": lambda *_, **__: True, "is_tf32_supported": lambda: False,
        # streams
        "Stream": devices.Stream, "Event": devices.Event, "ExternalStream": devices.Stream,
        "current_stream": devices.current_stream, "default_stream": devices.default_stream,
        "set_stream": devices.set_stream, "stream": _StreamContext, "StreamContext": _StreamContext,
        "synchronize": _synchronizer("torch.cuda.synchronize"), "_sleep": _sleep,
        "set_sync_debug_mode": _nothing, "get_sync_debug_mode": lambda: 0,
        # memory
        "empty_cache": _emptier("torch.cuda.empty_cache"), "ipc_collect": _nothing, **_MEMORY_FIGURES,
        "reset_max_memory_allocated": _nothing, "reset_max_memory_cached": _nothing,
        "set_per_process_memory_fraction": _nothing, "memory_cached": _no_figures(0),
        "max_memory_cached": _no_figures(0), "memory_summary": _no_figures("CUDA memory is not simulated"),
        "mem_get_info": lambda _device=None: _host_memory(), "utilization": _refuse("GPU utilization is"),
        "memory_usage": _refuse("GPU memory usage is"), "memory_snapshot": _refuse("memory snapshots are"),
        # random numbers
        "manual_seed": _seed_one, "manual_seed_all": _seed_all, "seed": _random_seed, "seed_all": _random_seed,
        "initial_seed": lambda: randomness.default_state(current()).seed,
        "get_rng_state": _get_rng_state, "set_rng_state": _set_rng_state,
        "get_rng_state_all": lambda: [_get_rng_state(index) for index in range(count())],
        "set_rng_state_all": _set_rng_state_all,
        "default_generators": tuple(
            randomness.make_generator(index, randomness.default_state(index)) for index in range(count())
        ),
        # CUDA graphs
        "is_current_stream_capturing": lambda: False, "graph": _refusing_class("graph", "CUDA graphs are"),
        "CUDAGraph": _refusing_class("CUDAGraph", "CUDA graphs are"),
        "make_graphed_callables": _refuse("CUDA graphs are"), "graph_pool_handle": _refuse("CUDA graphs are"),
        "MemPool": _refusing_class("MemPool", "memory pools are"),
        "cudart": _refuse("the CUDA runtime's own interface is"),
    }  # fmt: skip


def _accelerator_names() -> dict[str, Any]:
    """What takes the place of each name in ``torch.accelerator``."""
    return {
        "is_available": lambda: bool(devices.count()), "device_count": devices.count,
        "current_accelerator": lambda *_, **__: torch.device("cuda"),
        "current_device_index": devices.current, "current_device_idx": devices.current,
        "set_device_index": _set_device, "set_device_idx": _set_device, "device_index": _Device,
        "current_stream": devices.current_stream, "set_stream": devices.set_stream,
        "synchronize": _synchronizer("torch.accelerator.synchronize"),
        "empty_cache": _emptier("torch.accelerator.empty_cache"), **_MEMORY_FIGURES,
    }  # fmt: skip


def _forwarded(name: str) -> None:
    """Pass a setting that torch keeps for each thread on to the workers, in stream order."""
    original = getattr(torch, name, None)
    if original is None:
        note_loss(f"torch.{name}")
        return

    def setting(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if not engine.is_forked():
            for each in _all_engines():
                if each.submitted:  # a worker that has not started yet will take the process's setting
                    each.submit(lambda: original(*args, **kwargs))
        return result

    setting.__name__ = name
    patches.put(torch, name, setting)


def install() -> None:
    """Replace the names of torch.cuda and torch.accelerator."""
    cuda = [torch.cuda, *map(look_up, ("cuda.random", "cuda.memory", "cuda.streams", "cuda.graphs"))]
    for name, value in _names().items():
        if not hasattr(torch.cuda, name):
            note_loss(f"torch.cuda.{name}")
            continue
        for holder in cuda:
            if holder is torch.cuda or (holder is not None and name in vars(holder)):
                patches.put(holder, name, value)
    nothing = dict.fromkeys(("range_push", "range_pop", "range_start", "range_end", "mark"), _nothing)
    for path, names in (("accelerator", _accelerator_names()), ("cuda.nvtx", nothing)):
        holder = look_up(path)
        for name, value in names.items():
            if hasattr(holder, name):
                patches.put(holder, name, value)
    # Code that keeps generator states asks for this flag, not for is_initialized().
    if find("cuda._initialized") is not None:
        patches.put(torch.cuda, "_initialized", True)
    patches.put(torch, "Generator", randomness.Generator)
    # Builds with CUDA ask cuDNN about each tensor on the device.
    patches.put(torch.backends.cudnn, "is_acceptable", lambda _tensor: False)
    if find("_use_cudnn_rnn_flatten_weight") is not None:
        patches.put(torch, "_use_cudnn_rnn_flatten_weight", lambda: False)
    for name in ("set_num_threads", "set_flush_denormal"):
        _forwarded(name)
    before = sys.getswitchinterval()
    patches.also(lambda: sys.setswitchinterval(_SWITCH_S), lambda: _restore_switch_interval(before))
    patches.also(_forget, _forget)


_SWITCH_S = 2e-4
"""A worker that has finished a kernel needs the interpreter for the next one.

At Python's usual 5 ms between switches a host that is busy in Python would starve the device.
"""


def _restore_switch_interval(before: float) -> None:
    if round(sys.getswitchinterval(), 6) == _SWITCH_S:
        sys.setswitchinterval(before)


def _forget() -> None:
    """Start over like a process that has not used the device."""
    global _started
    _started = False
    for index in range(devices.most()):
        randomness.default_state(index).set_seed(randomness.DEFAULT_SEED)
