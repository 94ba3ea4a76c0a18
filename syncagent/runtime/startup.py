"""What the log says once when a job starts: where its settings are from, and whether there is a GPU."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from syncagent.support.log import log_once

if TYPE_CHECKING:
    from syncagent.settings.schema import Settings

__all__ = ["log_settings_source", "note_without_gpu"]

_DRIVER = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg")
"""One of these exists where there is a driver: natively, in a container, or under WSL."""


def log_settings_source(settings: Settings, rank: int | None) -> None:
    """Say which file was read and what in it had no effect, once per job.

    The other ranks, and the processes that a rank starts, have the same files and variables.
    """
    multiprocessing = sys.modules.get("multiprocessing.process")
    if rank not in (None, 0) or (multiprocessing and multiprocessing.parent_process() is not None):
        return
    if settings.file is not None:
        log_once("settings-file", f"settings are read from {settings.file}", level="info")
    for warning in settings.warnings:
        log_once(f"settings-{warning}", warning)


def note_without_gpu(*, has_cuda: bool) -> str | None:
    """Log that there is no NVIDIA GPU to watch, and return the sentence; ``None`` where there may be one.

    ``has_cuda`` says whether torch is built for CUDA.  CUDA itself is not asked, since a process that has initialised
    its driver can no longer fork.
    """
    if has_cuda and (sys.platform != "linux" or any(map(os.path.exists, _DRIVER))):
        return None
    why = "there is no NVIDIA driver here" if has_cuda else "this torch is built without CUDA"
    note = f"{why}, so there is no host sync to see; SYNCAGENT_SIMULATE=1 runs the script on a simulated device"
    log_once("no-gpu", note)
    return note
