"""How the agent's own threads keep out of the way of the training threads: a short stretch of work, then a pause.

A thread that works in Python holds the interpreter until it blocks or another has asked for it for 5 ms
(``sys.getswitchinterval``).  A training thread lets go of it in nearly every op and takes it back after it, so without
the pauses each op would come back up to 5 ms late while the agent works (measured: stalls of a scalar read read 5 ms
longer than the driver's own figure).
"""

from __future__ import annotations

import threading
import time

__all__ = ["STRETCH_NS", "keep_pace", "yield_gil"]

STRETCH_NS = 80_000
_PAUSE_S = 0.000_05
"""As short as the system's timers go: they add about as much again."""

_now = time.perf_counter_ns


class _Pace(threading.local):
    began_ns: int | None = None
    stretch_ns = STRETCH_NS


_pace = _Pace()


def keep_pace(stretch_ns: int = STRETCH_NS) -> None:
    """Say that this thread is the agent's own: from now on :func:`yield_gil` pauses it after stretches so long.

    Each pause hands the interpreter over twice: where there is little to do, and seldom, a longer stretch costs less in
    all.
    """
    _pace.stretch_ns = stretch_ns
    _pace.began_ns = _now()


def yield_gil() -> None:
    """Let others run if this stretch of work has been long enough; nothing on a thread that is not the agent's.

    Stands between two pieces of work that take up to 0.2 ms each.
    """
    began_ns = _pace.began_ns
    if began_ns is not None and not 0 <= _now() - began_ns < _pace.stretch_ns:
        time.sleep(_PAUSE_S)
        _pace.began_ns = _now()
