"""Which process of which distributed job this is, from what the launcher put into the environment."""

from __future__ import annotations

import functools
import os
import platform
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import unquote

# torchrun and what copies it (Ray Train, Kubeflow), SLURM, Open MPI, MPICH, an indexed Kubernetes Job: the first that
# is set and is a number wins.
_RANK = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "JOB_COMPLETION_INDEX")
_LOCAL = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
_WORLD = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_LOCAL_WORLD = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")

_SAID = ("syncagent.job.id", "k8s.job.uid", "k8s.job.name")
"""Keys of OTEL_RESOURCE_ATTRIBUTES that name the job; the last two are OpenTelemetry's own, for Kubernetes."""
_UNNAMED = frozenset({"", "none"})
"""What torchrun calls a run without ``--rdzv-id``, whatever else runs."""
_NAMES = (
    "TORCHELASTIC_RUN_ID",
    "PET_RDZV_ID",  # torchrun's --rdzv-id as Kubeflow gives it
    "SLURM_JOB_ID",
    "PMIX_NAMESPACE",  # Open MPI 5
    "OMPI_MCA_ess_base_jobid",  # Open MPI 4
    "RAY_JOB_ID",
    "LSB_JOBID",
    "PBS_JOBID",
    "FLUX_JOB_ID",
)
_IN_KUBERNETES = ("JOB_UID", "JOB_NAME")
"""The usual names by which a pod learns of its job; elsewhere JOB_NAME may mean anything (in Jenkins, say)."""
_ATTEMPT = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT", "MASTER_PORT")
"""What distinguishes a restart from the run before it, and two jobs in one allocation from each other."""


class Rank(NamedTuple):
    """Rank, local rank and number of processes; ``None`` where the environment does not say."""

    rank: int | None
    local_rank: int | None
    world_size: int | None


class Job(NamedTuple):
    """A job that this process is one of."""

    id: str | None
    """Its name, as the launcher has it."""
    key: str | None
    """A text that all processes of this run of the job share, and no others: the ids of their traces are made from it.
    ``None`` where there is none."""


def read(environment: Mapping[str, str] = os.environ) -> Rank:
    """Read the launcher's variables."""
    return Rank(_number(environment, _RANK), _number(environment, _LOCAL), _number(environment, _WORLD))


def on_this_machine(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many ranks the launcher has started on this machine: one where it does not say."""
    return max(_number(environment, _LOCAL_WORLD) or 1, 1)


def job(environment: Mapping[str, str] = os.environ) -> Job:
    """Read which job this is.

    Without a name, processes on one machine recognize each other by their parent, the launcher.  On several machines
    they cannot: the previous job may have had the same address and port.
    """
    name = _named(environment)
    if name is None and is_on_one_machine(environment):
        name = parent()
    if name is None:
        return Job(None, None)
    return Job(name, "/".join((name, *(environment.get(part, "") for part in _ATTEMPT))))


def _named(environment: Mapping[str, str]) -> str | None:
    said = _resource(environment.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    names = [said.get(key) for key in _SAID]
    names += [environment.get(variable) for variable in _NAMES]
    if "KUBERNETES_SERVICE_HOST" in environment:
        names += [environment.get(variable) for variable in _IN_KUBERNETES]
    name = next((name for name in names if name is not None and name.strip().lower() not in _UNNAMED), None)
    step = environment.get("SLURM_STEP_ID")
    if name is not None and name == environment.get("SLURM_JOB_ID") and step:
        return f"{name}.{step}"  # one allocation may run srun several times
    return name


def _resource(text: str) -> dict[str, str]:
    pairs = (item.partition("=") for item in text.split(","))
    return {key.strip(): unquote(value.strip()) for key, _, value in pairs}


def is_on_one_machine(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether there are several ranks and the launcher says that all of them are on this machine."""
    world, local = _number(environment, _WORLD), _number(environment, _LOCAL_WORLD)
    return world is not None and world > 1 and world == local


def parent() -> str | None:
    """Return a unique name of the process that started this one; ``None`` where it cannot be determined."""
    return _parent(os.getpid())


@functools.cache
def _parent(_pid: int) -> str | None:
    """Name the parent, distinct from any other process that ever had its number; cached, since it may end."""
    parent = os.getppid()
    try:
        with open(f"/proc/{parent}/stat", encoding="utf-8", errors="replace") as file:
            began = file.read().rpartition(")")[2].split()[19]  # man proc_pid_stat: field 22, in ticks since boot
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
    except (OSError, IndexError, ValueError):
        return None
    return f"{platform.node()}/{boot.partition('-')[0]}/{parent}/{began}"


def _number(environment: Mapping[str, str], names: Iterable[str]) -> int | None:
    return next((int(value) for name in names if re.fullmatch(r"[0-9]{1,9}", value := environment.get(name, ""))), None)
