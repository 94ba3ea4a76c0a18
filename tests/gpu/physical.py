"""The physical test: a call that returns only after the kernel queued before it has ended has waited for the GPU.

The agent is not used here.  With ``CORPUS_DEVICE=cpu`` cases run without any sleep and nothing is decided.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import statistics
import sys
import time
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import torch

from tests.gpu.corpus import names as corpus_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.gpu.corpus import Case

__all__ = ["SKIPPED", "SLEEPS", "StickyError", "Timed", "Truth", "fresh", "guarded", "measure", "probe", "run_case"]

SLEEPS = corpus_names.DEVICE == "cuda"
SKIPPED = "skipped: needs "
"""How the ``error`` of a case begins whose ``needs`` do not hold here."""

_SHARE = 0.6
"""A call that lasts this share of the sleep has waited for it."""
_LONGEST_MS = 120.0
_HANGS_S = 120

_now = time.perf_counter_ns
# Taken before any agent is started, so that the harness's own waits are never among those it reports.
_synchronize = torch._C._cuda_synchronize if SLEEPS else lambda: None


class StickyError(RuntimeError):
    """A case has left the CUDA context unusable; no later case can be trusted."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One timed call; times are ``perf_counter_ns``."""

    start_ns: int
    end_ns: int
    slept_ms: float
    """How long the sleep really lasted on the GPU; 0 without one."""

    @property
    def ms(self) -> float:
        return (self.end_ns - self.start_ns) / 1e6

    @property
    def waited(self) -> bool:
        return self.ms >= _SHARE * self.slept_ms > 0


@dataclass(frozen=True, slots=True)
class Truth:
    """What the GPU says of a case."""

    blocks: bool | None
    """``None`` where it could not be decided: see ``error``; always on a machine without a GPU."""
    times_ms: tuple[float, ...] = ()
    host_ms: float = 0.0
    """Duration of the call with nothing queued before it."""
    sleep_ms: float = 0.0
    error: str = ""


def measure(case: Case, sleep_ms: float = 10.0, repeats: int = 3) -> Truth:
    """Decide whether a case waits.  Raises :class:`StickyError` where the case has broken the GPU for all others."""
    try:
        with guarded(case):
            return _measure(case, sleep_ms, repeats)
    except StickyError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Truth(None, error=describe(error))


def _measure(case: Case, sleep_ms: float, repeats: int) -> Truth:
    if case.needs and not eval(case.needs, fresh()):
        return Truth(None, error=SKIPPED + case.needs)
    run_case(case)  # loads modules, fills caches
    host_ms = run_case(case).ms
    if not SLEEPS:
        return Truth(None, host_ms=host_ms)
    if host_ms > sleep_ms / 4:
        sleep_ms = min(max(sleep_ms, 6 * host_ms), _LONGEST_MS)
    runs = [run_case(case, sleep_ms) for _ in range(repeats)]
    if len({run.waited for run in runs}) > 1:
        runs += [run_case(case, sleep_ms) for _ in range(repeats + 1)]
    share = statistics.median(run.ms / run.slept_ms for run in runs)
    times = tuple(round(run.ms, 3) for run in runs)
    if host_ms > sleep_ms / 2:
        reason = f"takes {host_ms:.0f} ms by itself: too long to be judged behind a sleep of {sleep_ms:.0f} ms"
        return Truth(None, times, host_ms, sleep_ms, reason)
    return Truth(share >= _SHARE, times, host_ms, sleep_ms)


@contextlib.contextmanager
def guarded(case: Case) -> Iterator[None]:
    """Keep what a case does from reaching the next: a hang ends the process with a traceback that names the case.

    On the way out the CUDA context is probed, and what a case may have left switched is switched back.
    """
    faulthandler.dump_traceback_later(_HANGS_S, exit=True, file=sys.__stderr__)
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        if SLEEPS:
            probe(case)
            torch.cuda.set_stream(torch.cuda.default_stream())
            if torch.cuda.get_sync_debug_mode():
                torch.cuda.set_sync_debug_mode(0)


def probe(case: Case) -> None:
    """See whether the GPU still answers."""
    try:
        _synchronize()
        torch.ones(1, device=corpus_names.DEVICE).add_(1)
        _synchronize()
    except Exception as error:
        reason = describe(error)
        raise StickyError(f"case {case.name!r} has left the CUDA context unusable: {reason}") from error


def run_case(case: Case, sleep_ms: float = 0.0) -> Timed:
    """Run a case once, in a fresh namespace, behind a sleep of about ``sleep_ms``, and time its call."""
    names = fresh()
    try:
        case.prepare(names)
    except Exception as error:
        raise RuntimeError(f"in the setup: {describe(error)}") from error
    _synchronize()
    collects = gc.isenabled()
    gc.disable()
    result: Any = None
    try:
        marks = _sleep(sleep_ms, names[case.stream] if case.stream else None) if sleep_ms and SLEEPS else None
        started = _now()
        result = case.run(names)
        returned = _now()
    finally:
        if collects:
            gc.enable()
        _synchronize()
        del result
    return Timed(started, returned, marks[0].elapsed_time(marks[1]) if marks else 0.0)


def _sleep(sleep_ms: float, stream: Any) -> tuple[Any, Any]:
    """Queue the sleep, between two events that tell how long it was: the GPU's clock is not constant."""
    cycles = int(sleep_ms * _cycles_per_ms())
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.stream(stream):  # of None: the current one
        begun.record()
        torch.cuda._sleep(cycles)
        ended.record()
    return begun, ended


@functools.cache
def _cycles_per_ms() -> float:
    cycles = 20_000_000
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def once() -> float:
        begun.record()
        torch.cuda._sleep(cycles)
        ended.record()
        _synchronize()
        return begun.elapsed_time(ended)

    for _ in range(3):  # the clock rises under load
        once()
    per_ms = cycles / statistics.median(once() for _ in range(5))
    _synchronize()
    return per_ms


# --- names ----------------------------------------------------------------------------------------------------------

_BIG = 1 << 20
_CONSTANT = (ModuleType, FunctionType, BuiltinFunctionType, type, str, int, float, torch.device)
_template: dict[str, Any] = {}
_signature: list[tuple[Any, ...]] = []


def fresh() -> dict[str, Any]:
    """Return fresh names for the corpus, except for the 16 MB host tensors, which are expensive to make."""
    if not all(isinstance(value, (*_CONSTANT, torch.Tensor)) for value in _template.values()):
        return corpus_names.namespace()
    if not _template or _signature != [_looks(value) for value in _shared()]:
        _template.clear()
        _template.update(corpus_names.namespace())
        _signature[:] = [_looks(value) for value in _shared()]
    torch.manual_seed(0)
    return {name: _again(value) for name, value in _template.items()}


def _shared() -> list[torch.Tensor]:
    return [value for value in _template.values() if _is_shared(value)]


def _is_shared(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.numel() >= _BIG


def _again(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or _is_shared(value):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def _looks(value: torch.Tensor) -> tuple[Any, ...]:
    """Return all of a tensor that a case may have altered, but for its values."""
    return (
        value.data_ptr(), value.shape, value.stride(), value.dtype, value.requires_grad, value.grad is None,
        value.is_pinned(), value.is_shared(),
    )  # fmt: skip


def describe(error: BaseException) -> str:
    """Say what went wrong, in one line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip() if lines else ''}"[:300]
