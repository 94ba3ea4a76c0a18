"""``torch.cuda`` and ``torch.accelerator``: what programs ask of the device besides tensors."""

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
from syncagent.simulate import allocator, devices, engine, patches, randomness, streams
from syncagent.simulate.errors import SimulationError, SimulationWarning
from syncagent.simulate.lookups import find, lost
from syncagent.simulate.requirements import look_up
from syncagent.simulate.tensor import SimulatedTensor
from syncagent.simulate.waits import reported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["NAME", "install"]

NAME = "simulated CUDA device (CPU arithmetic)"
CYCLES_PER_SECOND = 1.5e9
_started = False


# --- life --------------------------------------------------------------------------------------------------


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
    """What ``get_device_properties`` tells.  The memory is the host's, and its size the host's true one."""

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
    gcnArchName: str = ""  # noqa: N815
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
    index = device if device == -1 else devices.index_of(device)
    devices.exchange(index)


class _StreamContext:
    """``torch.cuda.stream``: a context in which a stream is the current one; ``None`` changes nothing."""

    def __init__(self, stream: streams.Stream | None) -> None:
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
        index = devices.index_of(device)

        engines = list(devices.engines_of(index))

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
    """A figure that is not simulated: loops that print it go on, and a person is told once."""

    def figure(*_: Any, **__: Any) -> Any:
        global _warned
        if not _warned:
            _warned = True
            warnings.warn(
                "CUDA memory figures are not simulated: memory_allocated() and its like say 0",
                SimulationWarning,
                stacklevel=2,
            )
        return value() if callable(value) else value

    return figure


def _host_memory() -> tuple[int, int]:
    """Free and total bytes.  The simulated device's memory is the host's: these figures are true ones."""
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page


def _emptier(name: str) -> Callable[[], None]:
    """``empty_cache``: the driver waits for all work on the device before it takes memory back."""

    def empty_cache() -> None:
        if allocator.release_unused():
            reported(name, SyncKind.OTHER, (), _wait_for_all)

    return empty_cache


def _wait_for_all() -> None:
    for each in _all_engines():
        each.wait()


# --- what has no simulation --------------------------------------------------------------------------------


def _refuse(what: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise SimulationError(f"{what} not simulated")

    return refuse


def _refusing_class(name: str, what: str) -> type:
    def __init__(_self: Any, *_: Any, **__: Any) -> None:  # noqa: N807
        raise SimulationError(f"{what} not simulated")

    return type(name, (), {"__init__": __init__})


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


def _names() -> dict[str, Any]:
    """Names of ``torch.cuda``, and what stands behind them."""
    count, current = devices.count, devices.current
    return {
        # life
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
        "Stream": streams.Stream, "Event": streams.Event, "ExternalStream": streams.Stream,
        "current_stream": streams.current_stream, "default_stream": streams.default_stream,
        "set_stream": streams.set_stream, "stream": _StreamContext, "StreamContext": _StreamContext,
        "synchronize": _synchronizer("torch.cuda.synchronize"), "_sleep": _sleep,
        "set_sync_debug_mode": _nothing, "get_sync_debug_mode": lambda: 0,
        # memory
        "empty_cache": _emptier("torch.cuda.empty_cache"), "ipc_collect": _nothing, "reset_peak_memory_stats": _nothing,
        "reset_max_memory_allocated": _nothing, "reset_max_memory_cached": _nothing,
        "reset_accumulated_memory_stats": _nothing, "set_per_process_memory_fraction": _nothing,
        "memory_allocated": _no_figures(0), "max_memory_allocated": _no_figures(0), "memory_reserved": _no_figures(0),
        "max_memory_reserved": _no_figures(0), "memory_cached": _no_figures(0), "max_memory_cached": _no_figures(0),
        "memory_stats": _no_figures(OrderedDict), "memory_summary": _no_figures("CUDA memory is not simulated"),
        "mem_get_info": lambda _device=None: _host_memory(), "utilization": _refuse("GPU utilization is"),
        "memory_usage": _refuse("GPU memory usage is"), "memory_snapshot": _refuse("memory snapshots are"),
        # random numbers
        "manual_seed": _seed_one, "manual_seed_all": _seed_all, "seed": _random_seed, "seed_all": _random_seed,
        "initial_seed": lambda: randomness.default_state(current()).seed,
        "get_rng_state": _get_rng_state, "set_rng_state": _set_rng_state,
        "get_rng_state_all": lambda: [_get_rng_state(index) for index in range(count())],
        "set_rng_state_all": _set_rng_state_all,
        "default_generators": tuple(randomness.default_generator(index) for index in range(count())),
        # CUDA graphs
        "is_current_stream_capturing": lambda: False, "graph": _refusing_class("graph", "CUDA graphs are"),
        "CUDAGraph": _refusing_class("CUDAGraph", "CUDA graphs are"),
        "make_graphed_callables": _refuse("CUDA graphs are"), "graph_pool_handle": _refuse("CUDA graphs are"),
        "MemPool": _refusing_class("MemPool", "memory pools are"),
        "cudart": _refuse("the CUDA runtime's own interface is"),
    }  # fmt: skip


def _accelerator_names() -> dict[str, Any]:
    names = _names()
    device = devices.shown(0)
    return {
        "is_available": lambda: bool(devices.count()), "device_count": names["device_count"],
        "current_accelerator": lambda *_, **__: torch.device(device.type),
        "current_device_index": devices.current, "current_device_idx": devices.current,
        "set_device_index": _set_device, "set_device_idx": _set_device, "device_index": _Device,
        "current_stream": streams.current_stream, "set_stream": streams.set_stream,
        "synchronize": _synchronizer("torch.accelerator.synchronize"),
        "empty_cache": _emptier("torch.accelerator.empty_cache"),
        "memory_stats": names["memory_stats"], "memory_allocated": names["memory_allocated"],
        "max_memory_allocated": names["max_memory_allocated"], "memory_reserved": names["memory_reserved"],
        "max_memory_reserved": names["max_memory_reserved"], "reset_accumulated_memory_stats": _nothing,
        "reset_peak_memory_stats": _nothing,
    }  # fmt: skip


def _forwarded(name: str) -> None:
    """A setting that torch keeps for each thread: hand it to the workers too, in stream order."""
    original = getattr(torch, name, None)
    if original is None:
        lost(f"torch.{name}", "a call of it is not simulated")
        return

    def setting(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if not engine.is_forked():
            for each in _all_engines():
                if each.submitted:  # a worker that has not begun takes the process's setting when it does
                    each.submit(lambda: original(*args, **kwargs))
        return result

    setting.__name__ = name
    patches.put(torch, name, setting)


def install() -> None:
    """Put the simulation behind the names of torch.cuda and torch.accelerator."""
    parts = [part for name in ("random", "memory", "streams", "graphs") if (part := look_up(f"cuda.{name}"))]
    for name, stand_in in _names().items():
        if not hasattr(torch.cuda, name):
            lost(f"torch.cuda.{name}", "a call of it is not simulated")
            continue
        patches.put(torch.cuda, name, stand_in)
        for part in parts:
            if name in vars(part):
                patches.put(part, name, stand_in)
    accelerator = look_up("accelerator")
    for name, stand_in in _accelerator_names().items():
        if hasattr(accelerator, name):
            patches.put(accelerator, name, stand_in)
    # Code that keeps generator states asks for this flag, not for is_initialized().
    if find("cuda._initialized") is not None:
        patches.put(torch.cuda, "_initialized", True)
    nvtx = look_up("cuda.nvtx")
    for name in ("range_push", "range_pop", "range_start", "range_end", "mark"):
        if hasattr(nvtx, name):
            patches.put(nvtx, name, _nothing)
    patches.put(torch, "Generator", randomness.Generator)
    # Builds with CUDA ask cuDNN about each tensor on the device.
    patches.put(torch.backends.cudnn, "is_acceptable", lambda _tensor: False)
    if find("_use_cudnn_rnn_flatten_weight") is not None:
        patches.put(torch, "_use_cudnn_rnn_flatten_weight", lambda: False)
    for name in ("set_num_threads", "set_flush_denormal"):
        _forwarded(name)
    # A worker that has finished a kernel needs the interpreter for the next one.  At Python's usual 5 ms between
    # switches a host that is busy in Python would starve the device.
    before = sys.getswitchinterval()
    patches.also(lambda: sys.setswitchinterval(_SWITCH_S), lambda: _restore_switch_interval(before))
    patches.also(_forget, _forget)


_SWITCH_S = 2e-4


def _restore_switch_interval(before: float) -> None:
    if round(sys.getswitchinterval(), 6) == _SWITCH_S:
        sys.setswitchinterval(before)


def _forget() -> None:
    """Begin as a process does that has not used the device."""
    global _started
    _started = False
    for index in range(devices.most()):
        randomness.default_state(index).set_seed(randomness.DEFAULT_SEED)
