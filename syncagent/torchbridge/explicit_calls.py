"""The functions behind the calls with which a program asks to wait, and how the agent's own waits bypass them.

Each row has the place below ``torch``, the attribute's name, and how a sync of it is named.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["EMPTY_CACHE", "SYNCHRONIZE", "drain", "unseen"]

SYNCHRONIZE = (
    # (where the attribute lives, its name, how the sync is named).  torch.cuda.synchronize looks its C function up at
    # each call, so a reference to it that was taken before the agent came is seen too.
    ("_C", "_cuda_synchronize", "torch.cuda.synchronize"),
    ("_C", "_accelerator_synchronizeDevice", "torch.accelerator.synchronize"),
    ("cuda.Stream", "synchronize", "torch.cuda.Stream.synchronize"),
    ("cuda.Event", "synchronize", "torch.cuda.Event.synchronize"),
)

EMPTY_CACHE = (
    # cudaFree waits for the device, so giving cached memory back does; with nothing cached it does not.
    ("_C", "_cuda_emptyCache", "torch.cuda.empty_cache"),
    ("_C", "_accelerator_emptyCache", "torch.accelerator.empty_cache"),
)


def drain() -> None:
    """Wait for the GPU past the agent's own sensor, so that this wait does not count as the program's."""
    import torch

    synchronize: Any = torch._C._cuda_synchronize
    getattr(synchronize, "__wrapped__", synchronize)()


@contextmanager
def unseen() -> Iterator[None]:
    """Have calls of ``torch.cuda.synchronize`` inside go past the agent's sensor: they are not the program's."""
    import torch

    wrapped: Any = getattr(torch._C, "_cuda_synchronize", None)
    if wrapped is None:  # a build without CUDA
        yield
        return
    torch._C._cuda_synchronize = getattr(wrapped, "__wrapped__", wrapped)
    try:
        yield
    finally:
        torch._C._cuda_synchronize = wrapped
