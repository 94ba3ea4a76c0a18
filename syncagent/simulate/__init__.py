"""A CUDA device for machines without one: real arithmetic on the CPU, queued and waited for as on a GPU.

``install()`` makes ``torch.device("cuda")`` work, and ``borrow()`` for a while.  Each op is queued on its stream's
worker thread and returns before it has run; where CUDA would make the host wait, the host waits.  Timings are the
CPU's, or those that a named GPU would have by its datasheet.  What cannot be simulated raises :class:`SimulationError`.

Importing this package does not import torch.
"""

from __future__ import annotations

from syncagent.errors import SimulationError, SimulationWarning
from syncagent.simulate.installation import (
    borrow,
    install,
    install_or_end,
    installed,
    missing,
    modelled_gpu,
    without_runtime,
)
from syncagent.simulate.modelled import gpu_busy_ns, now_ns
from syncagent.simulate.waits import WaitObserver, internal_waits, observe_joins
from syncagent.simulate.waits import observe as observe_waits

__all__ = [
    "SimulationError",
    "SimulationWarning",
    "WaitObserver",
    "borrow",
    "gpu_busy_ns",
    "install",
    "install_or_end",
    "installed",
    "internal_waits",
    "missing",
    "modelled_gpu",
    "now_ns",
    "observe_joins",
    "observe_waits",
    "without_runtime",
]
