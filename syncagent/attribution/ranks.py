"""Which process of a distributed job this is, from what the launcher put into the environment."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Rank", "read"]

# torchrun, SLURM, Open MPI, MPICH: the first that is set and is a number wins.
_RANK = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_LOCAL = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
_WORLD = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


class Rank(NamedTuple):
    """Rank, local rank and number of processes; ``None`` where nobody says."""

    rank: int | None
    local_rank: int | None
    world_size: int | None


def read(environment: Mapping[str, str] | None = None) -> Rank:
    """Read the launcher's variables."""
    environment = os.environ if environment is None else environment

    def first(names: tuple[str, ...]) -> int | None:
        return next((int(environment[n]) for n in names if environment.get(n, "").isdigit()), None)

    return Rank(first(_RANK), first(_LOCAL), first(_WORLD))
