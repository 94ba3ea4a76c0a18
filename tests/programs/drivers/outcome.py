"""What every program does at its end: say what it computed and how long its steady part took.

The last line that it prints is one JSON object.  Syncs of this file are no part of what a program does, and the suite
leaves them out.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

_warm: list[tuple[float, float]] = []
"""When the steady part began: the time, and the processor's time so far."""


def _now() -> tuple[float, float]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def device() -> str:
    """Pick the device as public programs do."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def warm() -> None:
    """Note that the steady part begins; only the first call counts."""
    if not _warm:
        _warm.append(_now())


def fingerprint(tensors: Iterable[torch.Tensor]) -> str:
    """Return a short hash of all bits of the tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def done(*, model: torch.nn.Module | None = None, **values: Any) -> None:
    """Print the numbers, lists of them and texts that a run came to; of a model, a hash of all its bits."""
    seconds, processor_s = (after - before for before, after in zip(_warm[0], _now(), strict=True))
    if model is not None:
        values["weights"] = fingerprint(model.state_dict().values())
    row = {"seconds": seconds, "processor_s": processor_s, "device": device(), "values": values}
    print(json.dumps(row), flush=True)
