"""``torch.cuda`` and ``torch.accelerator``: all that programs use of the device besides tensors."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch

from syncagent.errors import SimulationError
from syncagent.events import SyncKind
from syncagent.simulate import allocator, devices, engine, modelled, patches, randomness, standin
from syncagent.simulate.datasheets import GPUS
from syncagent.simulate.failures import all_for_program, for_program
from syncagent.simulate.requirements import find, look_up, note_loss
from syncagent.simulate.tensor import SimulatedTensor, replacement
from syncagent.simulate.timing import Work
from syncagent.simulate.waits import reported

NAME = "simulated CUDA device (CPU arithmetic)"
CYCLES_PER_SECOND = 1.5e9


def name_of_device(gpu: str | None) -> str:
    """Return what the device is called where times are modelled for that GPU, or are the CPU's."""
    return NAME if gpu is None else f"{GPUS[gpu].name} (simulated, times modelled)"


_started = False


# --- initialization ----------------------------------------------------------------------------------------


def _lazy_init() -> None:
    global _started
    engine.refuse_if_forked()
    _started = True


def _is_initialized() -> bool:
    return not engine.is_forked() and (_started or any(each.submitted for each in _engines()))


def _engines() -> list[engine.Engine]:
    return [each for each in engine.all_engines() if each.is_of_device]


# --- devices -----------------------------------------------------------------------------------------------


class _DeviceProperties(SimpleNamespace):
    """A key of tables, as libraries use it."""

    def __hash__(self) -> int:  # type: ignore[override]  # a namespace has none, since it can be changed
        return hash(repr(self))


_PROPERTIES: dict[str, Any] = {
    "major": 8, "minor": 0, "multi_processor_count": os.cpu_count() or 1, "warp_size": 32,
    "max_threads_per_multi_processor": 2048, "max_threads_per_block": 1024, "regs_per_multiprocessor": 65536,
    "shared_memory_per_block": 49152, "shared_memory_per_block_optin": 166912,
    "shared_memory_per_multiprocessor": 167936, "L2_cache_size": 41943040, "clock_rate": 1410000,
    "memory_clock_rate": 1215000, "memory_bus_width": 5120, "pci_bus_id": 0, "pci_device_id": 0, "pci_domain_id": 0,
    "is_integrated": 1, "is_multi_gpu_board": 0, "gcnArchName": "", "uuid": "simulated",
}  # fmt: skip
"""What ``get_device_properties`` returns, beside the memory, which is the host's, with its true size.

Sizes in bytes and rates in kHz are those of an A100, whose compute capability the device has, too.
"""


def _name() -> str:
    return name_of_device(None if modelled.clock is None else modelled.clock.key)


def _properties() -> _DeviceProperties:
    return _DeviceProperties(name=_name(), total_memory=_host_memory()[1], **_PROPERTIES)


@all_for_program
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


@all_for_program
class _StreamContext:
    """``torch.cuda.stream``: a context in which a stream is the current one; ``None`` changes nothing."""

    def __init__(self, stream: devices.Stream | None) -> None:
        self.stream = stream
        self._context: Any = stream or contextlib.nullcontext()

    def __enter__(self) -> None:
        self._context.__enter__()

    def __exit__(self, *_: object) -> None:
        self._context.__exit__()


def _synchronize(name: str, device: Any) -> None:
    _lazy_init()
    engines = devices.engines_of(devices.index_of(device))
    is_idle = all(each.finished >= each.submitted for each in engines)
    reported(name, SyncKind.EXPLICIT, (), lambda: _wait_for(engines, standin.DEVICE_SYNCHRONIZE), is_idle=is_idle)


def _wait_for(engines: Iterable[engine.Engine], call: standin.Call) -> None:
    engine.wait_for([(each, each.submitted) for each in engines], call)


def _sleep(cycles: int) -> None:
    seconds = cycles / CYCLES_PER_SECOND
    stream = devices.current_engine(devices.current())
    ticket = stream.submit(lambda: time.sleep(seconds))
    if modelled.clock is not None:
        modelled.clock.queued(stream, ticket, Work(fixed_ns=round(seconds * 1e9)))


# --- memory ------------------------------------------------------------------------------------------------


def _memory_stats(device: Any = None) -> dict[str, Any]:
    """As a nested dictionary; torch makes all its other figures of it."""
    return allocator.figures(devices.index_of(device)) if _is_initialized() else {}


def _reset_peak_memory_stats(device: Any = None) -> None:
    allocator.reset_figures(devices.index_of(device), peak=True)


def _reset_accumulated_memory_stats(device: Any = None) -> None:
    allocator.reset_figures(devices.index_of(device), peak=False)


_MEMORY_FIGURES: dict[str, Any] = {
    "memory_stats_as_nested_dict": _memory_stats, "reset_peak_memory_stats": _reset_peak_memory_stats,
    "reset_accumulated_memory_stats": _reset_accumulated_memory_stats,
}  # fmt: skip


def _torchs_figure(name: str) -> Callable[..., Any]:
    """The function of that name in ``torch.cuda``, for ``torch.accelerator``."""
    return lambda device=None, /: getattr(torch.cuda, name)(device)


def _host_memory(_device: Any = None) -> tuple[int, int]:
    """Free and total bytes: the simulated device's memory is the host's, so these figures are true."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), allocator.capacity()


_memory_fractions: dict[int, float] = {}
"""By device what the program has asked for; it changes nothing, since nobody else's memory is in the way."""


def _set_memory_fraction(fraction: float, device: Any = None) -> None:
    if not 0 <= fraction <= 1:
        raise ValueError(f"Invalid fraction value: {fraction}. Allowed range: 0~1")
    _memory_fractions[devices.index_of(device)] = float(fraction)


def _get_memory_fraction(device: Any = None) -> float:
    return _memory_fractions.get(devices.index_of(device), 1.0)


def _empty_cache(name: str) -> None:
    """The driver waits for all work on the device before it takes memory back."""
    if allocator.release_unused():
        reported(name, SyncKind.OTHER, (), lambda: _wait_for(engine.all_engines(), standin.FREE))


# --- what has no simulation --------------------------------------------------------------------------------


_REFUSED = {
    "CUDA graphs are": "graph CUDAGraph make_graphed_callables graph_pool_handle",
    "memory pools are": "MemPool", "memory snapshots are": "memory_snapshot", "GPU utilization is": "utilization",
    "GPU memory usage is": "memory_usage device_memory_used", "a GPU's temperature is": "temperature",
    "a GPU's power draw is": "power_draw", "a GPU's clock rate is": "clock_rate",
    "a list of a GPU's processes is": "list_gpu_processes", "the handle of cuBLAS is": "current_blas_handle",
}  # fmt: skip
_REFUSED_OF_MEMORY = {
    "memory snapshots are": "_snapshot _dump_snapshot _record_memory_history _save_memory_usage _save_segment_usage",
    "CUDA's allocators are": "CUDAPluggableAllocator change_current_allocator caching_allocator_alloc",
}


def _refused(path: str, name: str, what: str) -> type:
    """A class that cannot be made: it takes the place of a class, or of a function."""

    def __init__(*_: Any, **__: Any) -> None:  # noqa: N807 - of the class below
        raise SimulationError(f"torch.{path}.{name}: {what} not simulated; leave it out on the simulated device")

    return type(name, (), {"__init__": for_program(__init__)})


def _refused_names(path: str, table: dict[str, str]) -> dict[str, Any]:
    return {name: _refused(path, name, what) for what, names in table.items() for name in names.split()}


# --- the CUDA runtime's own interface ----------------------------------------------------------------------


class _Runtime:
    """``torch.cuda.cudart()``: what programs mark the part with that a profiler of NVIDIA's is to record."""

    @staticmethod
    def cudaProfilerStart() -> int:  # noqa: N802 - as in torch
        return 0

    cudaProfilerStop = cudaProfilerStart  # noqa: N815 - as in torch

    @staticmethod
    def cudaMemGetInfo(device: int) -> tuple[int, int]:  # noqa: N802 - as in torch
        return _host_memory(device)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise SimulationError(f"torch.cuda.cudart().{name}: this function of the CUDA runtime's is not simulated")


def _check_error(res: int) -> None:
    if int(res):
        raise RuntimeError(f"CUDA error {int(res)}")


# --- random numbers ----------------------------------------------------------------------------------------


def _seed(seed: int, indices: Iterable[int]) -> None:
    for index in indices:
        randomness.default_generator(index).manual_seed(int(seed))


def _random_seed() -> None:
    _seed(int.from_bytes(os.urandom(7), "little"), range(devices.count()))


def _get_rng_state(device: Any = "cuda") -> torch.Tensor:
    _lazy_init()
    return randomness.default_generator(devices.index_of(device)).get_state()


def _set_rng_state(new_state: torch.Tensor, device: Any = "cuda") -> None:
    randomness.default_generator(devices.index_of(device)).set_state(new_state)


def _set_rng_state_all(new_states: Iterable[torch.Tensor]) -> None:
    for index, state in enumerate(new_states):
        _set_rng_state(state, index)


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _names() -> dict[str, Any]:
    """What takes the place of each name in ``torch.cuda``."""
    count, current = devices.count, devices.current
    return {
        # initialization
        "_lazy_init": _lazy_init, "init": _lazy_init,
        "is_initialized": _is_initialized,
        "is_available": lambda: bool(count()),
        "_is_in_bad_fork": engine.is_forked,
        # devices
        "device_count": count, "current_device": current, "set_device": _set_device, "device": _Device,
        "device_of": _DeviceOf, "_DeviceGuard": _Device, "_exchange_device": devices.exchange,
        "_maybe_exchange_device": devices.exchange, "get_device_name": lambda _device=None: _name(),
        "get_device_capability": lambda _device=None: (8, 0),
        "get_device_properties": lambda _device=None: _properties(),
        "get_arch_list": list, "get_gencode_flags": str, "can_device_access_peer": lambda *_: True,
        "is_bf16_supported": lambda *_, **__: True, "is_tf32_supported": lambda: False,
        # streams
        "Stream": devices.Stream, "Event": devices.Event, "ExternalStream": devices.Stream,
        "current_stream": devices.current_stream, "default_stream": devices.default_stream,
        "set_stream": devices.set_stream, "stream": _StreamContext, "StreamContext": _StreamContext,
        "synchronize": lambda device=None: _synchronize("torch.cuda.synchronize", device), "_sleep": _sleep,
        "set_sync_debug_mode": _nothing, "get_sync_debug_mode": lambda: 0,
        # memory
        "empty_cache": lambda: _empty_cache("torch.cuda.empty_cache"), "ipc_collect": _nothing, **_MEMORY_FIGURES,
        "set_per_process_memory_fraction": _set_memory_fraction,
        "get_per_process_memory_fraction": _get_memory_fraction, "mem_get_info": _host_memory,
        # random numbers
        "manual_seed": lambda seed: _seed(seed, [current()]),
        "manual_seed_all": lambda seed: _seed(seed, range(count())), "seed": _random_seed, "seed_all": _random_seed,
        "initial_seed": lambda: randomness.default_generator(current()).initial_seed(),
        "get_rng_state": _get_rng_state, "set_rng_state": _set_rng_state,
        "get_rng_state_all": lambda: [_get_rng_state(index) for index in range(count())],
        "set_rng_state_all": _set_rng_state_all,
        "default_generators": tuple(map(randomness.default_generator, range(count()))),
        # the CUDA runtime
        "cudart": _Runtime, "check_error": _check_error,
        # CUDA graphs
        "is_current_stream_capturing": lambda: False,
        # what has no simulation
        **_refused_names("cuda", _REFUSED),
    }  # fmt: skip


_ACCELERATOR_NAMES: dict[str, Any] = {
    "is_available": lambda: bool(devices.count()), "device_count": devices.count,
    "current_accelerator": lambda *_, **__: torch.device("cuda"),
    "current_device_index": devices.current, "current_device_idx": devices.current,
    "set_device_index": _set_device, "set_device_idx": _set_device, "device_index": _Device,
    "current_stream": devices.current_stream, "set_stream": devices.set_stream,
    "synchronize": lambda device=None: _synchronize("torch.accelerator.synchronize", device),
    "empty_cache": lambda: _empty_cache("torch.accelerator.empty_cache"),
    "get_memory_info": _host_memory,
    **{
        name: _torchs_figure(name)
        for name in (
            "memory_stats", "memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved",
            "reset_peak_memory_stats", "reset_accumulated_memory_stats",
        )
    },
}  # fmt: skip
"""What takes the place of each name in ``torch.accelerator``."""


def _replace(path: str, names: dict[str, Any]) -> None:
    holder = look_up(path)
    for name, value in names.items():
        if hasattr(holder, name):
            patches.put(holder, name, value)


def _forwarded(name: str) -> None:
    """Pass a setting that torch keeps for each thread on to the workers, in stream order."""
    original = getattr(torch, name)

    def setting(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        for each in () if engine.is_forked() else _engines():
            if each.submitted:  # a worker that has not started yet will take the process's setting
                each.submit(lambda: original(*args, **kwargs))
        return result

    patches.put(torch, name, replacement(setting, original))


def install() -> None:
    """Replace the names of torch.cuda and torch.accelerator."""
    names = _names()
    for name in names:
        if not hasattr(torch.cuda, name):
            note_loss(f"torch.cuda.{name}")
    for path in ("cuda", "cuda.random", "cuda.memory", "cuda.streams", "cuda.graphs", "cuda.profiler"):
        _replace(path, names)
    _replace("cuda.memory", _refused_names("cuda.memory", _REFUSED_OF_MEMORY))
    _replace("accelerator", _ACCELERATOR_NAMES | _refused_names("accelerator", {"CUDA graphs are": "Graph"}))
    _replace("accelerator.memory", _ACCELERATOR_NAMES)
    _replace("cuda.nvtx", dict.fromkeys(("range_push", "range_pop", "range_start", "range_end", "mark"), _nothing))
    # Code that keeps generator states asks for this flag, not for is_initialized().
    if find("cuda._initialized") is not None:
        patches.put(torch.cuda, "_initialized", True)
    if find("_C._get_accelerator") is not None:
        patches.put(torch._C, "_get_accelerator", lambda *_: torch.device("cuda"))
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
    _memory_fractions.clear()
    _seed(randomness.DEFAULT_SEED, range(len(devices.shown)))
