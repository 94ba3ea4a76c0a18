"""Measures what a hook costs on this machine even if it does nothing: the way from the dispatcher into Python and back.

The agent's own code times itself, but this crossing happens outside of it.  It is measured once, on its own thread,
when it is first asked for: by a report, or by what chooses how many steps are sampled.
"""

from __future__ import annotations

import statistics
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

_CALLS, _ROUNDS = 100, 5
_HURRY_S = 1.0
_PATIENCE_S = 5.0
_timeout_s: float | None = None
_found: dict[str, float] = {}
_lock = threading.RLock()
"""Held while one is measured: two at a time would register the same op."""
_measuring = False


class UnmeasuredError(Exception):
    """The process ends before a call could be timed."""


def hurry() -> None:
    """Limit the time that a measurement may take from now on: the process is about to be killed.

    A signal handler may have interrupted an import, and the measuring thread would wait for the import lock.
    """
    global _timeout_s
    _timeout_s = _HURRY_S


def kernel_ns() -> float:
    """Return the cost of a Python kernel that only passes a call on, in nanoseconds a call."""
    return _once("kernel", _measure_kernel)


def mode_ns() -> float:
    """Return the cost of a function mode and a dispatch mode that only pass a call on, in nanoseconds an op."""
    return _once("modes", _measure_modes)


def forget_thread() -> None:
    """In a forked child: the thread that was measuring, if one was, is the parent's."""
    global _lock, _measuring
    _lock, _measuring = threading.RLock(), False


def settle() -> None:
    """Wait until nothing is being measured: an interpreter that ends while a thread calls torch would abort."""
    if _lock.acquire(timeout=_PATIENCE_S):
        _lock.release()


def _once(what: str, measure: Callable[[], float]) -> float:
    global _measuring
    if what in _found:
        return _found[what]
    # A signal handler that wants a report may have interrupted the very thread that measures.
    if not _lock.acquire(timeout=-1 if _timeout_s is None else _timeout_s):
        raise UnmeasuredError
    try:
        if _measuring:
            raise UnmeasuredError
        _measuring = True
        try:
            if what not in _found:
                _found[what] = _elsewhere(measure)
        finally:
            _measuring = False
        return _found[what]
    finally:
        _lock.release()


def _elsewhere(measure: Callable[[], float]) -> float:
    """Run on a fresh thread, where no mode is active."""
    found: list[float] = []

    from syncagent.torchbridge.threads import have_room_for_errors  # loads torch

    def run() -> None:
        try:
            have_room_for_errors()
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
        started = time.thread_time_ns()  # by the clock, it would count what the program does meanwhile with the GIL
        for _ in range(_CALLS):
            call(value)
        return (time.thread_time_ns() - started) / _CALLS

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

    with torch.no_grad(), warnings.catch_warnings():
        value = torch.zeros(1)
        bare = _per_call_ns(torch.neg, value)
        with BaseTorchFunctionMode(), _passing_on():
            wrapped = _per_call_ns(torch.neg, value)
    return wrapped - bare


def _passing_on() -> Any:
    """A dispatch mode that only passes a call on, as the agent's does.

    torch's own for that loads torch._dynamo at its first call: for seconds, and while the program's thread may be
    loading it as well, which then fails there.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class PassingOn(TorchDispatchMode):
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False

        def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    return PassingOn()  # type: ignore[no-untyped-call]  # torch's __init__
