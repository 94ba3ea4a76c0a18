"""What the CUDA runtime itself says about its waits: CUPTI's callbacks, taken in C, where it costs nothing."""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from syncagent.errors import SyncAgentError
from tests.gpu import cupti

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Call", "DriverOracle", "thread_name", "union_ns"]

_IDS = {
    "cudaStreamSynchronize": (131, 239), "cudaDeviceSynchronize": (165,), "cudaEventSynchronize": (137,),
    "cudaFree": (22,), "cudaFreeHost": (26,),
    "cudaMemcpy": (31, 215), "cudaMemcpyAsync": (41, 225), "cudaMemcpy2D": (32, 216), "cudaMemcpy2DAsync": (44, 228),
    "cudaMemcpy3D": (144, 245), "cudaMemcpy3DAsync": (145, 246),
    "cudaMemcpyPeer": (160,), "cudaMemcpyPeerAsync": (161,),
    "cudaMemcpyToSymbol": (39, 223), "cudaMemcpyFromSymbol": (40, 224),
    "cudaMemcpyToSymbolAsync": (47, 231), "cudaMemcpyFromSymbolAsync": (48, 232),
}  # fmt: skip
"""Callback ids of all runtime calls that may wait; they never change once given out."""
_NAMES = {number: name for name, numbers in _IDS.items() for number in numbers}
_TAKEN = 65_536


class Call(NamedTuple):
    """One call of the CUDA runtime; times are ``perf_counter_ns`` (CLOCK_MONOTONIC, which the shim reads too)."""

    name: str
    start_ns: int
    end_ns: int
    thread: int
    """The system's number of the thread; 0 where it is not known."""

    @property
    def ns(self) -> int:
        return self.end_ns - self.start_ns


class _Record(ctypes.Structure):
    _fields_ = (
        ("begin_ns", ctypes.c_uint64), ("end_ns", ctypes.c_uint64), ("cbid", ctypes.c_uint32),
        ("thread", ctypes.c_uint32),
    )  # fmt: skip


class DriverOracle:
    """Times runtime calls in every thread; ``how`` says by which means ("C" or "Python", which inflates them).

    ``everything`` watches all calls of the runtime, not only those known to wait; "driver", all of the driver's.
    Names then have their version (``cudaMemcpyAsync_ptsz_v7000``).
    """

    def __init__(self, everything: Literal["", "runtime", "driver"] = "") -> None:
        self.how = "off"
        self._everything = everything
        self._names = {} if everything else dict(_NAMES)
        self._shim: Any = None
        self._python: cupti.CuptiOracle | None = None
        self._buffer = (_Record * _TAKEN)()

    def start(self, library: str | None = None) -> None:
        """Begin; raises ``SyncAgentError`` where there is no CUPTI, or another tool has it."""
        self._shim = None if os.environ.get("DRIVER_ORACLE") == "python" else build()
        if self._shim is None:
            if self._everything:
                raise SyncAgentError("every call of a domain can only be watched in C, and there is no C compiler here")
            self._python = cupti.CuptiOracle()
            self._python.start()
            self.how = "Python"
            return
        numbers = () if self._everything else tuple(_NAMES)
        ids = (ctypes.c_uint32 * len(numbers))(*numbers)
        domain = cupti._DRIVER if self._everything == "driver" else cupti._RUNTIME
        tried = []
        for path in [library] if library else cupti._candidates():
            result = self._shim.shim_start(path.encode(), domain, ids, len(numbers))
            if result == 0:
                self.how = "C"
                atexit.register(self.stop)
                return
            self._shim.shim_stop()
            tried.append(f"{path}: {result}")
            if result > 0:  # it has loaded and refuses
                break
        raise SyncAgentError("no CUPTI: " + ("; ".join(tried) or "no libcupti was found"))

    def stop(self) -> None:
        if self.how == "C":
            self._shim.shim_stop()
            atexit.unregister(self.stop)
        if self._python is not None:
            self._python.stop()
        self.how = "off"

    def take(self) -> list[Call]:
        """Return what was seen since the last time, in the order of returning."""
        if self._python is not None:
            seen = self._python.calls[:]
            self._python.calls.clear()
            return [Call(call.name, call.start_ns, call.end_ns, _native(call.thread)) for call in seen]
        found: list[Call] = []
        while self._shim is not None and (count := self._shim.shim_take(self._buffer, _TAKEN)):
            found += [Call(self._name(r.cbid), r.begin_ns, r.end_ns, r.thread) for r in self._buffer[:count]]
        return found

    def _name(self, number: int) -> str:
        name = self._names.get(number)
        if name is None:
            told = self._shim.shim_name(number)
            name = self._names[number] = told.decode() if told else f"call {number}"
        return name

    @property
    def lost(self) -> int:
        return int(self._shim.shim_lost()) if self._shim is not None else 0


def build() -> Any:
    """Compile and load the shim; ``None`` where there is no C compiler."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "cupti_shim.so")
        source = Path(__file__).with_name("cupti_shim.c")
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", built, source, "-ldl"], check=True)
        shim = ctypes.CDLL(str(built))  # stays mapped when the file is gone
    shim.shim_start.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
    shim.shim_name.argtypes = (ctypes.c_uint32,)
    shim.shim_name.restype = ctypes.c_char_p
    shim.shim_take.argtypes = (ctypes.c_void_p, ctypes.c_long)
    shim.shim_take.restype = ctypes.c_long
    shim.shim_lost.restype = ctypes.c_ulong
    return shim


def union_ns(calls: Iterable[Call]) -> int:
    """Return how long at least one of the calls was under way: nested and concurrent ones count once."""
    total = reached = 0
    for call in sorted(calls, key=lambda call: call.start_ns):
        total += max(call.end_ns - max(call.start_ns, reached), 0)
        reached = max(reached, call.end_ns)
    return total


def thread_name(number: int) -> str:
    """Return "main", or the name that the system has for the thread (``pt_autograd_0``)."""
    if number == os.getpid():
        return "main"
    try:
        return Path(f"/proc/self/task/{number}/comm").read_text().strip()
    except OSError:
        return f"thread {number}"


def _native(ident: int) -> int:
    return next((thread.native_id or 0 for thread in threading.enumerate() if thread.ident == ident), 0)
