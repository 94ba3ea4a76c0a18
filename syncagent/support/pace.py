"""How the agent's own threads keep out of the training threads' way: they work for a short stretch, then pause.

A thread that runs Python code holds the GIL until it blocks, or until another thread has asked for it for 5 ms
(``sys.getswitchinterval``).  A training thread releases the GIL in nearly every op and takes it back afterwards, so
without the pauses each op would come back up to 5 ms late while the agent works (measured: the stalls of scalar reads
came out 5 ms longer than the driver's own figure).
"""

from __future__ import annotations

import threading
import time

STRETCH_NS = 80_000
_PAUSE_S = 0.000_05
"""As short as the system's timers can do; they add about as much again."""

_now = time.perf_counter_ns


class _Pace(threading.local):
    began_ns: int | None = None
    stretch_ns = STRETCH_NS


_pace = _Pace()


def keep_pace(stretch_ns: int = STRETCH_NS) -> None:
    """Mark this thread as one of the agent's: from now on :func:`yield_gil` pauses it after ``stretch_ns`` of work.

    Each pause hands the GIL over twice, so where there is little to do a longer stretch costs less in total.
    """
    _pace.stretch_ns = stretch_ns
    _pace.began_ns = _now()


def yield_gil() -> None:
    """Pause if this stretch of work has been long enough; does nothing on a thread that is not the agent's.

    Called between two pieces of work that take up to 0.2 ms each.
    """
    began_ns = _pace.began_ns
    if began_ns is not None and not 0 <= _now() - began_ns < _pace.stretch_ns:
        time.sleep(_PAUSE_S)
        _pace.began_ns = _now()
