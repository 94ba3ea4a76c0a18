"""A bound on the memory that a verb may take, so that a file of anything cannot take the machine's."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from syncagent.errors import SyncAgentError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["GIB", "at_most"]

GIB = 1024**3


@contextmanager
def at_most(size: int, advice: str) -> Iterator[None]:
    """Let what runs inside take ``size`` bytes more than the process has; more is one sentence, with ``advice``.

    The limit is the process's, by address space.  Where the system has no such limit, nothing is bounded.
    """
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as stream:
            taken = int(stream.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        before = resource.getrlimit(resource.RLIMIT_AS)
        limit = taken + size
        if resource.RLIM_INFINITY not in before:
            limit = min(limit, *before)
        elif before[0] != resource.RLIM_INFINITY:
            limit = min(limit, before[0])
        resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    except (ImportError, OSError, ValueError):
        yield
        return
    try:
        yield
    except MemoryError:
        raise SyncAgentError(f"that takes more than {size / GIB:g} GiB of memory; {advice}") from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
