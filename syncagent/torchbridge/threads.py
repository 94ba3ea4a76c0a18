"""Threads of the agent's that call torch."""

from __future__ import annotations

from contextlib import suppress

import torch

_ROOM = 1 << 20


def have_room_for_errors() -> None:
    """Have the first C++ exception of this thread now, while there is memory for it.

    It needs a little memory of the thread's own, and where there is none glibc ends the process.  So an op that fails
    for want of memory, which in the program's threads is an exception like others, must not be the first to fail here.

    Raises:
        MemoryError: There is too little left already; this thread must not call torch.

    """
    bytearray(_ROOM)
    with suppress(RuntimeError):
        torch.empty(-1)
