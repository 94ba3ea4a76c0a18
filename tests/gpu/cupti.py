"""The driver's own truth, on request: CUPTI callbacks around every call of the CUDA runtime that may wait.

An oracle to compare the agent with, not a way to watch a job: it knows nothing of ops and lines, it costs two crossings
into Python for each copy and allocation, and **a CUPTI subscriber and torch.profiler exclude each other**: while one of
them is on the other sees nothing of CUDA, and in the same process the profiler does not recover afterwards.

It needs no package beyond the libcupti that torch's own wheel brings.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib.util
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from syncagent.errors import SyncAgentError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from typing_extensions import Self  # mypy's own copy: nothing is installed for it

__all__ = ["DRIVER_CALLS", "RUNTIME_CALLS", "CuptiCall", "CuptiOracle"]

_DRIVER, _RUNTIME = 1, 2
"""CUPTI's numbers of its callback domains."""

RUNTIME_CALLS = (
    "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cudaMemcpyAsync",
    "cudaMemcpy2D", "cudaMemcpy2DAsync", "cudaMemcpyPeer", "cudaMemcpyToSymbol", "cudaMalloc", "cudaFree",
    "cudaHostAlloc", "cudaMallocHost", "cudaFreeHost", "cudaHostRegister", "cudaHostUnregister",
)  # fmt: skip
DRIVER_CALLS = (
    "cuStreamSynchronize", "cuCtxSynchronize", "cuEventSynchronize", "cuMemcpyHtoD", "cuMemcpyDtoH",
    "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync",
)  # fmt: skip

# Callback ids never change once given out; a call gets a new one with each new version of its signature.  The header of
# the toolkit, where it is installed, adds those that are newer than this table.
_KNOWN: dict[int, dict[str, tuple[int, ...]]] = {
    _RUNTIME: {
        "cudaStreamSynchronize": (131, 239),
        "cudaDeviceSynchronize": (165,),
        "cudaEventSynchronize": (137,),
        "cudaMemcpy": (31, 215),
        "cudaMemcpyAsync": (41, 225),
        "cudaMemcpy2D": (32, 216),
        "cudaMemcpy2DAsync": (44, 228),
        "cudaMemcpyPeer": (160,),
        "cudaMemcpyToSymbol": (39, 223),
        "cudaMalloc": (20,),
        "cudaFree": (22,),
        "cudaHostAlloc": (27,),
        "cudaMallocHost": (25,),
        "cudaFreeHost": (26,),
        "cudaHostRegister": (152,),
        "cudaHostUnregister": (153,),
    },
    _DRIVER: {
        "cuStreamSynchronize": (126, 440),
        "cuCtxSynchronize": (17, 800),
        "cuEventSynchronize": (121,),
        "cuMemcpyHtoD": (276, 397),
        "cuMemcpyDtoH": (278, 398),
        "cuMemcpyHtoDAsync": (277, 421),
        "cuMemcpyDtoHAsync": (279, 422),
    },
}
_HEADERS = {
    _RUNTIME: ("cupti_runtime_cbid.h", "CUPTI_RUNTIME_TRACE_CBID_"),
    _DRIVER: ("cupti_driver_cbid.h", "CUPTI_DRIVER_TRACE_CBID_"),
}
_VERSIONS = re.compile(r"(?:_v\d+)?(?:_pt[sd]z|_ptds)?(?:_v\d+)?$")
_ENTER = 0


class CuptiCall(NamedTuple):
    """One call of the CUDA runtime; times are ``perf_counter_ns``."""

    name: str
    start_ns: int
    end_ns: int
    thread: int
    """``threading.get_ident()`` of the thread that made it."""


class _CallbackData(ctypes.Structure):
    """``CUpti_CallbackData``, as documented."""

    _fields_ = (
        ("site", ctypes.c_int),
        ("function_name", ctypes.c_char_p),
        ("function_params", ctypes.c_void_p),
        ("function_return", ctypes.c_void_p),
        ("symbol_name", ctypes.c_char_p),
        ("context", ctypes.c_void_p),
        ("context_uid", ctypes.c_uint32),
        ("correlation_data", ctypes.c_void_p),
        ("correlation_id", ctypes.c_uint32),
    )


_Callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.POINTER(_CallbackData))


class CuptiOracle:
    """Times the calls of the CUDA runtime that may wait, in every thread, from enter to exit.

    ``driver=True`` adds the driver's calls: a runtime call then also shows the driver calls that it makes.
    """

    def __init__(self, *, driver: bool = False) -> None:
        self.calls: list[CuptiCall] = []
        """What was seen, in the order of returning; clear it at will."""
        self._domains = {_RUNTIME: RUNTIME_CALLS, **({_DRIVER: DRIVER_CALLS} if driver else {})}
        self._library: Any = None
        self._subscriber = ctypes.c_void_p()
        self._callback: Any = None

    @staticmethod
    def unavailable() -> str | None:
        """Say in one sentence why there is no CUPTI here, or return ``None``; that another has it shows at start."""
        try:
            _load()
        except SyncAgentError as error:
            return str(error)
        return None

    @property
    def live(self) -> bool:
        return self._callback is not None

    def start(self) -> None:
        """Subscribe; raises :class:`~syncagent.SyncAgentError` with one clear sentence where that cannot be."""
        if self.live:
            return
        library = self._library = _load()
        names: dict[tuple[int, int], str] = {}
        for domain, wanted in self._domains.items():
            names.update({(domain, number): name for name, number in _callback_ids(domain, wanted)})
        callback = self._make_callback(names)
        self._check(library.cuptiSubscribe(ctypes.byref(self._subscriber), callback, None), "be subscribed to")
        self._callback = callback  # kept: C holds only a bare pointer to it
        atexit.register(self.stop)
        try:
            for (domain, number), name in names.items():
                result = library.cuptiEnableCallback(1, self._subscriber, domain, number)
                if number in _KNOWN[domain][name]:  # the header may be newer than the library
                    self._check(result, f"watch {name}")
        except SyncAgentError:
            self.stop()
            raise

    def stop(self) -> None:
        """Leave CUPTI; ``calls`` stays."""
        if self.live:
            self._library.cuptiUnsubscribe(self._subscriber)
            self._callback = None
            self._subscriber = ctypes.c_void_p()
            atexit.unregister(self.stop)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _make_callback(self, names: dict[tuple[int, int], str]) -> Any:
        """Build what CUPTI calls; whatever it does besides reading the clock lies outside of the times it takes."""
        opened: dict[tuple[int, int, int], int] = {}
        now, thread, keep = time.perf_counter_ns, threading.get_ident, self.calls.append

        def callback(_user: Any, domain: int, number: int, data: Any) -> None:
            read = now()
            record = data[0]
            key = (thread(), domain, record.correlation_id)
            if record.site == _ENTER:
                opened[key] = now()
            else:
                started = opened.pop(key, 0)
                if started:
                    keep(CuptiCall(names[domain, number], started, read, key[0]))

        return _Callback(callback)

    def _check(self, result: int, what: str) -> None:
        if result:
            text = ctypes.c_char_p()
            self._library.cuptiGetResultString(result, ctypes.byref(text))
            reason = text.value.decode() if text.value else f"error {result}"
            raise SyncAgentError(
                f"CUPTI cannot {what} ({reason}); it serves one tool at a time, so no profiler may be active in the "
                "process, and it needs an NVIDIA driver."
            )


# --- finding things -------------------------------------------------------------------------------------------------


def _load() -> Any:
    """Load libcupti: the very one that torch has loaded, else the one in site-packages, else the system's."""
    tried = 0
    for name in _candidates():
        try:
            library = ctypes.CDLL(name)
            for function in ("cuptiSubscribe", "cuptiUnsubscribe", "cuptiEnableCallback", "cuptiGetResultString"):
                getattr(library, function)
        except (OSError, AttributeError):
            tried += 1
            continue
        library.cuptiEnableCallback.argtypes = (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)
        library.cuptiUnsubscribe.argtypes = (ctypes.c_void_p,)
        return library
    raise SyncAgentError(
        f"no CUPTI: none of {tried} places has a libcupti that loads; torch's CUDA wheels bring one, CPU builds do not."
    )


def _candidates() -> Iterator[str]:
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        maps = ""
    yield from dict.fromkeys(re.findall(r"\S*/libcupti\.so[\w.]*", maps))
    for root in _nvidia_packages():
        yield from sorted(map(str, root.glob("**/libcupti.so.*")), reverse=True)
    yield from ("libcupti.so.13", "libcupti.so.12", "libcupti.so")
    for pattern in ("cuda*/lib*/libcupti.so", "cuda*/extras/CUPTI/lib*/libcupti.so"):
        yield from sorted(map(str, Path("/usr/local").glob(pattern)), reverse=True)


def _nvidia_packages() -> list[Path]:
    """Return where the wheels of the CUDA libraries lie: ``site-packages/nvidia``."""
    spec = importlib.util.find_spec("nvidia")
    return [Path(place) for place in (spec.submodule_search_locations or ())] if spec is not None else []


def _callback_ids(domain: int, wanted: Iterable[str]) -> Iterator[tuple[str, int]]:
    known = _KNOWN[domain]
    found = {name: set(known.get(name, ())) for name in wanted}
    for name, number in _from_header(domain):
        if name in found:
            found[name].add(number)
    for name, numbers in found.items():
        yield from ((name, number) for number in sorted(numbers))


def _from_header(domain: int) -> Iterator[tuple[str, int]]:
    """Read the ids of an installed toolkit: the first header that is found."""
    file, prefix = _HEADERS[domain]
    places = [place for root in _nvidia_packages() for place in root.glob(f"*/include/{file}")]
    for pattern in (f"cuda*/extras/CUPTI/include/{file}", f"cuda*/include/{file}"):
        places += sorted(Path("/usr/local").glob(pattern), reverse=True)
    for place in places:
        try:
            text = place.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for name, number in re.findall(rf"{prefix}(\w+)\s*=\s*(\d+)", text):
            yield _VERSIONS.sub("", name), int(number)
        return
