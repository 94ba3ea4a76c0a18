"""The native library, by ctypes: how long threads wait inside the CUDA runtime, and GPUs for collectives.

`src/syncagent_native.h` says what each function does. Nothing is loaded before `load` is called. The library may be
missing, and `why_not` says why.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import platform
import struct
import sys
import sysconfig
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

ABI = 2
PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "libsyncagent_native.so")

MACHINES = ("x86_64", "aarch64")

QUEUE_FULL = 1
"""A wait's flag: an asynchronous copy that only waited for room in the launch queue. That is not a sync."""

DIRECT = 1
"""A join's flag: NCCL was called on the compute stream itself."""
CAUGHT_UP = 2
"""A join's flag: the stream had passed the join before when the host queued this one."""
HOST_WAITED = 4
"""A join's flag: a thread has waited for the GPU since the join before."""

JOINS_OFF, JOINS_ON, JOINS_WITHOUT_DRIVER, JOINS_FAILED = range(4)
"""Whether joins are measured: without the driver they will be, once the program uses the GPU; a failure is for good."""

FAILED_AT = (
    "", "libcuda", "the CUDA context", "cudaGetDevice", "cudaStreamIsCapturing", "cudaThreadExchangeStreamCaptureMode",
    "cudaEventCreateWithFlags", "cudaEventRecord", "cudaEventQuery", "cudaEventElapsedTime", "cudaDeviceReset",
)  # fmt: skip
"""What of the agent's own calls has failed, by `Status.failed_at`; the last one is the program's."""

# Indexes into the view of a slot.
(
    START_NS, NUMBER, NAMED_NS, NAMED_WAITS, NAMED, IDENT, TID, FUNCTION, UNNAMED_NS, UNNAMED_WAITS, ENDED_NS, FIRST,
) = range(12)  # fmt: skip
WORDS = 16
"""How many 64-bit numbers a slot has."""

_WAIT = struct.Struct("=QQQQIIIiII")
_JOIN = struct.Struct("=QQII")
_TAKEN_AT_ONCE = 4096
_JOINS_AT_ONCE = 2048
_LOOKS_AT_ONCE = 64

_told: list[Callable[[int, FrameType], object]] = []
"""Who is called by `_tell`; nobody once the library is stopped."""


@functools.cache  # Python may still have it in its queue when the library is stopped: kept for good
def _tell() -> Any:
    def tell(number: int | None) -> int:
        interrupted = sys._getframe().f_back
        if interrupted is not None:
            for told in tuple(_told):
                told(number or 0, interrupted)
        return 0

    return ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(tell)


class Wait(NamedTuple):
    """An outermost wait that has ended, that no sensor named, of at least the threshold."""

    number: int
    start_ns: int
    end_ns: int
    bytes: int
    slot: int
    function: int
    tid: int
    direction: int
    """`cudaMemcpyKind`, 0 to 4; -1 where there is none."""
    flags: int


class Join(NamedTuple):
    """A wait of the GPU's compute stream for a collective that is over."""

    moment_ns: int
    """When the program asked for it, by `time.perf_counter_ns`."""
    waited_ns: int
    """How long the stream stood still, by the GPU's clock."""
    device: int
    flags: int


class Status(NamedTuple):
    """What of the process is patched, and what was lost."""

    live: int
    runtimes: int
    objects: int
    entries: int
    foreign: int
    read_only: int
    unresolved: int
    threads_without_slot: int
    dropped: int
    looks_told: int
    hooks: int
    """Entries for functions of streams, events and collectives that are ours; `entries` are the others."""
    hooks_missed: int
    joins: int
    """`JOINS_OFF` and its like."""
    joins_measured: int
    joins_dropped: int
    failed_at: int
    """An index into `FAILED_AT`."""
    failed_with: int
    """What that function returned."""


_STATUS = len(Status.__annotations__)


class Sum(NamedTuple):
    """All unnamed calls of one function."""

    calls: int
    ns: int


class Native:
    """The library's functions. They run without the GIL, except for those that only read a few numbers."""

    def __init__(self, path: str) -> None:
        """Raise `OSError` or `AttributeError` where the file is not a library of this ABI."""
        library = ctypes.CDLL(path)
        abi = library.syncagent_abi()
        if abi != ABI:
            raise _WrongAbiError(abi)
        quick = ctypes.PyDLL(path)  # a call that releases the GIL waits to have it back
        self.path = path
        self._library = library
        self._start = library.syncagent_start
        self._start.argtypes = [ctypes.c_uint64]
        self._status = quick.syncagent_status
        self._status.restype = None
        self._own_slot = quick.syncagent_own_slot
        self._own_slot.restype = ctypes.c_void_p
        library.syncagent_slots.restype = ctypes.c_void_p
        library.syncagent_stop.restype = None
        self._sums = quick.syncagent_sums
        self._sums.restype = None
        self._set_looks = library.syncagent_set_looks
        self._set_looks.argtypes = [ctypes.c_int, ctypes.c_uint64]
        self._set_looks.restype = None
        self._pending = library.syncagent_pending
        self._pending.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64]
        self._pending.restype = None
        self._measure_joins = library.syncagent_measure_joins
        self._compute_stream = quick.syncagent_compute_stream
        self._compute_stream.argtypes = [ctypes.c_uint64]
        self._compute_stream.restype = None
        self._take_joins = library.syncagent_take_joins
        library.syncagent_function.restype = ctypes.c_char_p
        self.functions: tuple[str, ...] = tuple(
            library.syncagent_function(number).decode() for number in range(library.syncagent_function_count())
        )
        """The names of the functions, by their numbers."""
        self.slot_count: int = library.syncagent_slot_count()
        self._taken = ctypes.create_string_buffer(_WAIT.size * _TAKEN_AT_ONCE)
        self._joins = ctypes.create_string_buffer(_JOIN.size * _JOINS_AT_ONCE)
        self._look_slots = (ctypes.c_uint32 * _LOOKS_AT_ONCE)()
        self._look_numbers = (ctypes.c_uint64 * _LOOKS_AT_ONCE)()

    def start(self, threshold_ns: int = 100_000) -> int:
        """Patch the process; waits of at least that long are kept. Returns how many entries are ours now."""
        return int(self._start(threshold_ns))

    def walk(self, *, force: bool = False) -> int:
        """Patch what has been loaded or bound since, and return how many entries that were; -1 while stopped."""
        return int(self._library.syncagent_walk(int(force)))

    def stop(self) -> None:
        """Restore the entries that are still ours; whoever has copied a wrapper's address calls through it."""
        self._library.syncagent_stop()
        _told.clear()

    def status(self) -> Status:
        into = (ctypes.c_uint64 * _STATUS)()
        self._status(into)
        return Status(*into)

    def slot_view(self) -> memoryview | None:
        """Return this thread's slot as 64-bit numbers, its `NAMED` to be written by this thread; None: all are taken.

        The view may be kept as long as the thread lives, across a fork too.
        """
        address = self._own_slot()
        return None if address is None else _view(address, WORDS)

    def slots_view(self) -> memoryview:
        """Return all slots as 64-bit numbers, `WORDS` for each; to be read."""
        return _view(self._library.syncagent_slots(), WORDS * self.slot_count)

    def take(self) -> list[Wait]:
        """Return ended waits, each once, at most 4,096; from one thread at a time."""
        count = self._library.syncagent_take(self._taken, _TAKEN_AT_ONCE)
        return [Wait(*fields[:9]) for fields in _WAIT.iter_unpack(memoryview(self._taken)[: count * _WAIT.size])]

    def measure_joins(self, wanted: bool) -> int:
        """Measure how long the compute stream waits for collectives, or no longer.

        Returns how many entries are ours for that; -1 while stopped. It is off after a start.
        """
        return int(self._measure_joins(int(wanted)))

    def compute_stream(self, handle: int) -> None:
        """Say whose waits are measured: `torch.cuda.Stream.cuda_stream`; 0 is the default stream."""
        self._compute_stream(handle)

    def take_joins(self) -> list[Join]:
        """Return joins that are over, each once, in their order, at most 2,048; from one thread at a time."""
        count = self._take_joins(self._joins, _JOINS_AT_ONCE)
        return [Join(*fields) for fields in _JOIN.iter_unpack(memoryview(self._joins)[: count * _JOIN.size])]

    def sums(self) -> list[Sum]:
        """Return the sums by the functions' numbers."""
        into = (ctypes.c_uint64 * (2 * len(self.functions)))()
        self._sums(into)
        return [Sum(*into[at : at + 2]) for at in range(0, len(into), 2)]

    def set_looks(self, wanted: bool, look_after_ns: int = 100_000) -> None:
        """Say whether `next_looks` is to return open waits, and from which age on."""
        self._set_looks(int(wanted), look_after_ns)

    def next_looks(self, timeout_ms: int) -> list[tuple[int, int]] | None:
        """Wait for open waits that no sensor names, and return slot and number of each once; None once stopped.

        From one thread at a time.
        """
        count = self._library.syncagent_next_looks(self._look_slots, self._look_numbers, _LOOKS_AT_ONCE, timeout_ms)
        if count < 0:
            return None
        return list(zip(self._look_slots[:count], self._look_numbers[:count], strict=True))

    def on_pending(self, callback: Callable[[int, FrameType], object], main_ident: int) -> None:
        """Have Python call that on the main thread, with a wait's number, where the looker could not look in time.

        It gets the frame that was interrupted as well, and must not keep that.
        It runs as soon as the main thread evaluates Python code again, which may be long after that wait: it must make
        sure that it was the main thread's last one, and raise nothing.
        """
        _told[:] = [callback]
        add = ctypes.cast(ctypes.pythonapi.Py_AddPendingCall, ctypes.c_void_p)
        self._pending(add, ctypes.cast(_tell(), ctypes.c_void_p), main_ident)

    def forget_pending(self) -> None:
        """Have nothing called any more."""
        self._pending(None, None, 0)


_loaded: dict[str, Native] = {}


def load(path: str = PATH) -> Native | None:
    """Return the library, loaded once, or None: then `why_not` says why."""
    if path not in _loaded:
        try:
            library = _loaded[path] = Native(path)
            atexit.register(library.forget_pending)  # the runtime waits even when Python has ended, whose queue is gone
        except (OSError, AttributeError, _WrongAbiError):
            return None
    return _loaded[path]


def why_not(path: str = PATH) -> str:
    """Return the reason why `load` returns None, as a sentence; empty where it does not."""
    if reason := why_never():
        return reason
    if not os.path.exists(path):
        return f"The native library was not built: there is no {path}."
    try:
        Native(path)
    except (OSError, AttributeError) as error:
        return f"The native library cannot be loaded: {error}."
    except _WrongAbiError as error:
        return (
            f"The native library is of another version of syncagent (its interface is {error.abi}, expected {ABI}): "
            "install syncagent anew."
        )
    return ""


def why_never() -> str:
    """Return the reason why there can be no library for this system, as a sentence; empty where there can."""
    if sys.platform != "linux":
        return f"The native library needs Linux, and this is {sys.platform}."
    if "musl" in str(sysconfig.get_config_var("HOST_GNU_TYPE")):
        return "The native library needs glibc, and this Python uses musl."
    if platform.machine() not in MACHINES or struct.calcsize("P") != 8:
        this = f"{8 * struct.calcsize('P')}-bit {platform.machine()}"
        return f"The native library exists for 64-bit {' and '.join(MACHINES)}, and this is {this}."
    return ""


class _WrongAbiError(Exception):
    def __init__(self, abi: int) -> None:
        super().__init__(abi)
        self.abi = abi


def _view(address: int, words: int) -> memoryview:
    return memoryview((ctypes.c_uint64 * words).from_address(address)).cast("B").cast("Q")
