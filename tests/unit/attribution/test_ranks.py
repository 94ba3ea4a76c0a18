"""Which process of a job this is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from syncagent.attribution.ranks import Job, Rank, job, read

ROOT = Path(__file__).parents[3]

LAUNCHERS = {
    "torchrun": ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}, Rank(3, 1, 8)),
    "slurm": ({"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8"}, Rank(3, 1, 8)),
    "open mpi": (
        {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_SIZE": "8"},
        Rank(3, 1, 8),
    ),
    "mpich": ({"PMI_RANK": "3", "MPI_LOCALRANKID": "1", "PMI_SIZE": "8"}, Rank(3, 1, 8)),
    "an indexed job of kubernetes": ({"JOB_COMPLETION_INDEX": "3", "WORLD_SIZE": "8"}, Rank(3, None, 8)),
    "torchrun under slurm": (
        {"RANK": "3", "WORLD_SIZE": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"},
        Rank(3, 0, 8),
    ),
    "rank 0": ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, Rank(0, 0, 1)),
    "no launcher": ({}, Rank(None, None, None)),
    "not a number": ({"RANK": "first", "WORLD_SIZE": "", "SLURM_PROCID": "-1"}, Rank(None, None, None)),
    "a number that int() refuses": ({"RANK": "\u00b2", "WORLD_SIZE": "9" * 5000}, Rank(None, None, None)),
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
    """So that the reports of a job's processes can be distinguished."""
    import torch

    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    agent = cpu_agent(detail="syncs")
    torch.ones(2).nonzero()
    [event] = agent.events()
    run = agent.report().run
    assert (event.rank, run.rank, run.world_size) == (3, 3, 8)


JOBS = {
    "torchrun --rdzv-id": ({"TORCHELASTIC_RUN_ID": "exp7"}, "exp7"),
    "torchrun --rdzv-id under slurm": ({"TORCHELASTIC_RUN_ID": "exp7", "SLURM_JOB_ID": "4711"}, "exp7"),
    "torchrun without an id under slurm": ({"TORCHELASTIC_RUN_ID": "none", "SLURM_JOB_ID": "4711"}, "4711"),
    "srun": ({"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "2"}, "4711.2"),
    "open mpi": ({"PMIX_NAMESPACE": "prterun-node7-812@1"}, "prterun-node7-812@1"),
    "ray": ({"RAY_JOB_ID": "02000000"}, "02000000"),
    "kubeflow": ({"PET_RDZV_ID": "exp7"}, "exp7"),
    "a pod that is told its job": ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_NAME": "resnet-42"}, "resnet-42"),
    "a pod that is told more": (
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_NAME": "resnet-42", "JOB_UID": "5f1c"},
        "5f1c",
    ),
    "jenkins, which says JOB_NAME too": ({"JOB_NAME": "nightly"}, None),
    "the user": (
        {"OTEL_RESOURCE_ATTRIBUTES": "team=vision, syncagent.job.id=run%2042", "SLURM_JOB_ID": "4711"},
        "run 42",
    ),
    "opentelemetry's own name": ({"OTEL_RESOURCE_ATTRIBUTES": "k8s.job.uid=5f1c,k8s.job.name=resnet"}, "5f1c"),
    "torchrun over machines without an id": (
        {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "node7"},
        None,
    ),
    "one process": ({"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, None),
    "no launcher": ({}, None),
    "a broken list of attributes": ({"OTEL_RESOURCE_ATTRIBUTES": "syncagent.job.id"}, None),
}


@pytest.mark.parametrize("launcher", JOBS)
def test_the_job_is_named_by_its_launcher(launcher):
    """An address and a port name no job: they are those of the job before it, too."""
    environment, expected = JOBS[launcher]
    assert job(environment).id == expected


def test_a_restart_and_a_second_job_in_one_allocation_have_keys_of_their_own():
    """Else their steps would be in the same traces."""
    environment = {"TORCHELASTIC_RUN_ID": "none", "SLURM_JOB_ID": "4711", "MASTER_PORT": "29500"}
    others = {"TORCHELASTIC_RESTART_COUNT": "1"}, {"SLURM_RESTART_COUNT": "1"}, {"MASTER_PORT": "29501"}
    keys = [job(environment).key, *(job(environment | other).key for other in others)]
    assert len(set(keys)) == 4
    assert {job(environment | other).id for other in others} == {"4711"}
    assert job({}) == Job(None, None)


PRINT_JOB = "import json, sys; from syncagent.attribution.ranks import job; print(json.dumps(job()))"
LAUNCHER = f"""
import os, subprocess, sys
os.environ.update(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", TORCHELASTIC_RUN_ID="none")
for rank in "01":
    subprocess.run([sys.executable, "-c", {PRINT_JOB!r}], env=os.environ | {{"RANK": rank}}, check=True)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="a parent's start is read from /proc")
def test_processes_of_one_machine_know_each_other_by_their_launcher(python):
    """The same launcher started again is another job."""
    keys = []
    for _ in range(2):
        done = python("-c", LAUNCHER)
        keys += [json.loads(line)[1] for line in done.stdout.splitlines()]
    one, two, again, again_two = keys
    assert (one, again) == (two, again_two)
    assert None not in keys
    assert one != again
