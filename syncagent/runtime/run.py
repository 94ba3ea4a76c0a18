"""The run that a report describes: since when, as which rank, on which device, with settings from where."""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone

from syncagent.attribution import processes, ranks
from syncagent.report.model import Overhead, RunInfo
from syncagent.settings.schema import Settings
from syncagent.sites import Home, home_of_process, working_folder
from syncagent.support import redaction
from syncagent.support.faults import Faults
from syncagent.support.log import log_once

_RANK_EVERY_S = 1.0
_DRIVER = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg")
"""One of these exists where there is a driver: natively, in a container, or under WSL."""


def no_run(policy: str) -> RunInfo:
    """Describe a run that nothing is known about."""
    return RunInfo("", 0.0, None, None, None, platform.node(), None, None, 0, policy, "syncs", simulated=False)


def clock_of(settings: Settings) -> Callable[[], int]:
    """Return what reads the time of steps and runs, in nanoseconds: the clock's, or the modelled one."""
    if settings.modelled_gpu is None:
        return time.perf_counter_ns
    from syncagent import simulate

    return simulate.now_ns


class RunTime:
    """How long a run has taken so far, or took, and how long a modelled GPU was busy meanwhile."""

    def __init__(self, settings: Settings) -> None:
        self._now_ns = clock_of(settings)
        self._busy_ns: Callable[[], int] | None = None
        if settings.modelled_gpu is not None:
            from syncagent import simulate

            self._busy_ns = simulate.gpu_busy_ns
        self.began_ns = self._now_ns()
        self.ended_ns = math.inf
        self._busy_before_ns = self._busy()
        self._busy_in_all_ns: int | None = None

    def _busy(self) -> int:
        return 0 if self._busy_ns is None else self._busy_ns()

    def end(self) -> None:
        """Stop the clock."""
        self.ended_ns = self._now_ns()
        self._busy_in_all_ns = self._busy()

    @property
    def is_over(self) -> bool:
        return self.ended_ns < math.inf

    @property
    def duration_s(self) -> float:
        return (min(self.ended_ns, self._now_ns()) - self.began_ns) / 1e9

    @property
    def gpu_busy_s(self) -> float | None:
        """``None`` where times are not modelled."""
        busy_ns = self._busy() if self._busy_in_all_ns is None else self._busy_in_all_ns
        return None if self._busy_ns is None else (busy_ns - self._busy_before_ns) / 1e9


class Run:
    """What is known of the run besides its syncs."""

    def __init__(self, settings: Settings, faults: Faults) -> None:
        self._settings = settings
        self._faults = faults
        unknown = ranks.Rank(None, None, None)
        self.rank = faults.guard("the rank", ranks.read, unknown)
        self._seeks_rank = self.rank is not unknown
        self._rank_due_s = 0.0
        self._home = faults.guard("the project's folder", home_of_process, Home())
        self._device: str | None = None
        self._started = datetime.now(timezone.utc)
        self._time = RunTime(settings)

    @property
    def is_over(self) -> bool:
        return self._time.is_over

    def end(self) -> None:
        """Stop the clock."""
        self._time.end()

    @property
    def duration_s(self) -> float:
        return self._time.duration_s

    def seek_rank(self, *, at_once: bool = False) -> None:
        """Look for the rank, once a second at most unless ``at_once``, while the launcher has not given one.

        Ray Train, and process groups without a launcher, set it only once the script runs.
        """
        now_s = time.monotonic()
        if not self._seeks_rank or self.rank.rank is not None or (now_s < self._rank_due_s and not at_once):
            return
        self._rank_due_s = now_s + _RANK_EVERY_S
        try:
            self.rank = _current_rank()
        except Exception as error:
            self._seeks_rank = False
            self._faults.add("the rank", error)

    def info(self, policy: str, steps: int, *, has_cuda: bool) -> RunInfo:
        """Describe the run as it is now; ``has_cuda`` says whether torch is built for CUDA."""
        import torch

        simulated = self._settings.simulate
        if self._device is None and simulated:
            from syncagent.simulate.cuda_api import name_of_device

            self._device = name_of_device(self._settings.modelled_gpu)  # the device itself may be gone by now
        elif self._device is None and has_cuda and torch.cuda.is_initialized():
            self._device = self._faults.guard("the device's name", torch.cuda.get_device_name, "unknown")
        return RunInfo(
            started=self._started.isoformat(timespec="milliseconds"),
            duration_s=self.duration_s,
            torch=torch.__version__,
            cuda=None if simulated else torch.version.cuda,
            device=self._device,
            host=platform.node(),
            rank=self.rank.rank,
            world_size=self.rank.world_size,
            steps=steps,
            policy=policy,
            detail=self._settings.detail_in_force,
            simulated=simulated,
            modelled=self._settings.modelled_gpu,
            gpu_busy_s=self._time.gpu_busy_s,
            script=_script(),
            argv=redaction.argv(sys.argv),
            cwd=working_folder(),
            pid=os.getpid(),
            folder=self._home.folder,
            project=self._home.project,
            run_id=processes.run_id(),
            process=processes.process_id(),
            settings_file=self._settings.file,
            judge_kinds=self._settings.judge_kinds,
        )

    def overhead(self, own_ns: float, steps: int) -> Overhead:
        """Return the agent's own time, ``own_ns`` in all, per step and as a share of the run."""
        duration_s = self.duration_s
        return Overhead(
            agent_ms_per_step=own_ns / 1e6 / steps if steps else None,
            share=own_ns / 1e9 / duration_s if duration_s > 0 and math.isfinite(own_ns) else None,
        )


def _script() -> str:
    """Return the name of what runs, as people know it."""
    name = os.path.basename(sys.argv[0] if sys.argv else "")
    return "notebook" if name == "ipykernel_launcher.py" else name or "python"


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


def note_of_restarts() -> str:
    """Return a sentence where the launcher has started the ranks again, as after one of them has died; else nothing."""
    count = processes.restarts()
    if not count:
        return ""
    return f"the launcher has started the ranks again (restart {count}): nothing from before it is in this report"


def note_without_gpu(*, has_cuda: bool) -> str | None:
    """Log that there is no NVIDIA GPU to watch, and return the sentence; ``None`` where there may be one.

    ``has_cuda`` says whether torch is built for CUDA.  CUDA itself is not asked, since a process that has initialised
    its driver can no longer fork.
    """
    if has_cuda and (sys.platform != "linux" or has_driver()):
        return None
    why = "there is no NVIDIA driver here" if has_cuda else "this torch is built without CUDA"
    note = f"{why}, so there is no host sync to see; SYNCAGENT_SIMULATE=1 runs the script on a simulated device"
    log_once("no-gpu", note)
    return note


def has_driver() -> bool:
    """Whether there is an NVIDIA driver, as far as one can see without asking it."""
    return any(map(os.path.exists, _DRIVER))


def _current_rank() -> ranks.Rank:
    rank = ranks.read()
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return rank
    return ranks.Rank(distributed.get_rank(), rank.local_rank, distributed.get_world_size())
