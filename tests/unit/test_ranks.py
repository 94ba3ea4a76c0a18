"""Which process of a job this is."""

from __future__ import annotations

import pytest

from syncagent.attribution.ranks import Rank, read

LAUNCHERS = {
    "torchrun": ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}, Rank(3, 1, 8)),
    "slurm": ({"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8"}, Rank(3, 1, 8)),
    "open mpi": (
        {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_SIZE": "8"},
        Rank(3, 1, 8),
    ),
    "mpich": ({"PMI_RANK": "3", "MPI_LOCALRANKID": "1", "PMI_SIZE": "8"}, Rank(3, 1, 8)),
    "torchrun under slurm": (
        {"RANK": "3", "WORLD_SIZE": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"},
        Rank(3, 0, 8),
    ),
    "rank 0": ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, Rank(0, 0, 1)),
    "nobody": ({}, Rank(None, None, None)),
    "not a number": ({"RANK": "first", "WORLD_SIZE": "", "SLURM_PROCID": "-1"}, Rank(None, None, None)),
    "a broken value beside a good one": ({"RANK": "?", "SLURM_PROCID": "2"}, Rank(2, None, None)),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_launchers_variables_are_read(launcher):
    """The first of the known launchers that is set and is a number wins; nothing is guessed."""
    environment, expected = LAUNCHERS[launcher]
    assert read(environment) == expected


def test_without_an_argument_the_processs_own_environment_is_read(monkeypatch, no_settings):
    """As the agent does."""
    monkeypatch.setenv("RANK", "5")
    assert read().rank == 5


def test_events_and_the_report_carry_the_rank(monkeypatch, cpu_agent):
    """So that the reports of a job's processes can be told apart."""
    import torch

    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    agent = cpu_agent(detail="syncs")
    torch.ones(2).nonzero()
    [event] = agent.events()
    run = agent.report().run
    assert (event.rank, run.rank, run.world_size) == (3, 3, 8)
