"""Measures what a hook costs on this machine even if it does nothing: the way from the dispatcher into Python and back.

The agent's own code times itself, but this crossing happens outside of it.  It is measured once, on its own thread,
when a report is made.
"""

from __future__ import annotations

import functools
import statistics
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

_CALLS, _ROUNDS = 100, 5
_HURRY_S = 1.0
_timeout_s: float | None = None


class UnmeasuredError(Exception):
    """The process ends before a call could be timed."""


def hurry() -> None:
    """Limit the time that a measurement may take from now on: the process is about to be killed.

    A signal handler may have interrupted an import, and the measuring thread would wait for the import lock.
    """
    global _timeout_s
    _timeout_s = _HURRY_S


@functools.cache
def kernel_ns() -> float:
    """Return the cost of a Python kernel that only passes a call on, in nanoseconds a call."""
    return _elsewhere(_measure_kernel)


@functools.cache
def mode_ns() -> float:
    """Return the cost of a function mode and a dispatch mode that only pass a call on, in nanoseconds an op."""
    return _elsewhere(_measure_modes)


def _elsewhere(measure: Callable[[], float]) -> float:
    """Run on a fresh thread, where no mode is active."""
    found: list[float] = []

    def run() -> None:
        try:
            found.append(max(measure(), 0.0))
        except Exception:
            found.append(0.0)

    thread = threading.Thread(target=run, name="syncagent-calibration")
    try:
        thread.start()
    except RuntimeError:  # Python 3.12 and later start no thread once the interpreter ends
        run()
        return found[0]
    thread.join(_timeout_s)
    if not found:
        raise UnmeasuredError
    return found[0]


def _per_call_ns(call: Callable[[Any], Any], value: Any) -> float:
    def one_round() -> float:
        started = time.perf_counter_ns()
        for _ in range(_CALLS):
            call(value)
        return (time.perf_counter_ns() - started) / _CALLS

    return statistics.median(one_round() for _ in range(_ROUNDS))


def _measure_kernel() -> float:
    import torch

    below = torch._C.DispatchKey.BackendSelect
    redispatch = torch.ops.aten.alias.default.redispatch
    library = torch.library.Library("syncagent_calibration", "FRAGMENT")

    def pass_on(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        return redispatch(keyset.remove(below), *args, **kwargs)

    try:
        library.define("passed_on(Tensor x) -> Tensor")
        library.impl("passed_on", pass_on, "CPU", with_keyset=True)
        with torch.no_grad():
            value = torch.zeros(1)
            hooked = _per_call_ns(torch.ops.syncagent_calibration.passed_on.default, value)
            bare = _per_call_ns(torch.ops.aten.alias.default, value)
    finally:
        library._destroy()
    return hooked - bare


def _measure_modes() -> float:
    import torch
    from torch.overrides import BaseTorchFunctionMode
    from torch.utils._python_dispatch import BaseTorchDispatchMode

    with torch.no_grad(), warnings.catch_warnings():
        value = torch.zeros(1)
        bare = _per_call_ns(torch.neg, value)
        with BaseTorchFunctionMode(), BaseTorchDispatchMode():
            wrapped = _per_call_ns(torch.neg, value)
    return wrapped - bare
