"""Which rank holds the others up, in each form of parallel training: two ranks on simulated devices, over gloo."""

from __future__ import annotations

from pathlib import Path

import pytest

from syncagent.report import files
from tests.processes import free_port

PROGRAM = Path(__file__).with_name("late_ranks.py")


@pytest.fixture
def lateness(python, tmp_path):
    """``lateness(form, late)``: what the merged report says of the ranks."""

    def run(form, late):
        launcher = ("-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", 2)
        launcher += ("--master-port", free_port())
        for _ in range(3):  # where other tests have the processor, any rank may be late by more
            done = python(
                *launcher, PROGRAM, form, late,
                SYNCAGENT="1", SYNCAGENT_SIMULATE="1", SYNCAGENT_REPORT="ranks/", OMP_NUM_THREADS="1",
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            found = files.load_merged([tmp_path / "ranks"], leave_out=True).lateness
            if [rank.rank for rank in found.ranks] == [1]:
                break
        return found

    return run


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("late", "cause", "source"),
    [
        ("item", "host sync", "x.sum().item()"),
        ("sleep", "line", "time.sleep(LATE_S)"),
        ("loader", "data loader", "time.sleep(LATE_S)"),
        ("gc", "garbage collection", ""),
    ],
)
def test_the_late_rank_is_named_with_what_makes_it_late(lateness, late, cause, source):
    found = lateness("ddp", late)
    (rank,) = found.ranks
    assert rank.rank == 1
    assert (rank.causes[0].cause, rank.causes[0].source) == (cause, source)
    explained = sum(each.share for each in rank.causes) / rank.share  # what explains next to nothing is left out
    assert 0.9 <= explained <= 1.0 + 1e-9


@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", ["fsdp", "tensor", "no_sync"])
def test_so_it_is_in_each_form_of_parallel_training(lateness, form):
    found = lateness(form, "sleep")
    (rank,) = found.ranks
    assert (rank.rank, rank.causes[0].source) == (1, "time.sleep(LATE_S)")
