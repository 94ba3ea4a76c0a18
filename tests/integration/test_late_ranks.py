"""Which rank holds the others up, in each form of parallel training: two ranks on simulated devices, over gloo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from syncagent.report import files, wording
from tests.processes import environment, free_port

HERE = Path(__file__).parent
PROGRAM, STAGES, TWO_NODES = HERE / "late_ranks.py", HERE / "late_stages.py", HERE / "two_nodes.sh"
WATCHED = {"SYNCAGENT": "1", "SYNCAGENT_SIMULATE": "1", "SYNCAGENT_REPORT": "ranks/", "OMP_NUM_THREADS": "1"}
LAUNCHER = ("-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", 2)
NO_SUCH_NAMESPACES = 77


@pytest.fixture
def watched(python, tmp_path):
    """``watched(program, *words)``: the merged report of two ranks."""

    def run(*words, at=(), **variables):
        done = python(*LAUNCHER, *(at or ("--master-port", free_port())), *words, **WATCHED, **variables)
        assert done.returncode == 0, done.stderr
        return files.load_merged([tmp_path / "ranks"], leave_out=True)

    return run


@pytest.fixture
def lateness(watched):
    """``lateness(form, late)``: what the merged report says of the ranks, in which rank 1 is to be late."""
    return lambda form, late: first_with((1,), lambda: watched(PROGRAM, form, late)).lateness


def first_with(late, run):
    """Where other tests have the processor, any rank may be late by more: the first of a few runs with these late."""
    for _ in range(3):
        report = run()
        if tuple(rank.rank for rank in report.lateness.ranks) == late:
            break
    return report


def numbers(report, rank):
    return [row.step for row in report.step_times if row.rank == rank]


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


@pytest.mark.timeout(300)
def test_a_rank_that_has_run_out_of_inputs_is_not_blamed_and_the_others_are_compared_as_before(watched):
    """It has 10 batches in each of 3 epochs, the late one 14: between them it goes along with the late one's passes."""
    report = first_with((1,), lambda: watched(PROGRAM, "join", "sleep", 30))
    assert numbers(report, 0) == [*range(10), *range(14, 24), *range(28, 38)]
    assert numbers(report, 1) == [*range(42)]
    assert report.lateness.steps == 29
    (rank,) = report.lateness.ranks
    assert (rank.rank, rank.causes[0].source) == (1, "time.sleep(LATE_S)")
    lengths = sorted(row.end_ns - row.start_ns for row in report.step_times if row.rank == 0 and row.step)
    after_others = [row.end_ns - row.start_ns for row in report.step_times if row.rank == 0 and row.step in {14, 28}]
    assert min(after_others) < 2 * lengths[len(lengths) // 2]  # no pass that was another rank's is in it


@pytest.mark.timeout(300)
def test_the_late_stage_of_a_pipeline_is_named_by_what_it_does_for_each_part_of_a_batch(watched):
    (rank,) = first_with((1,), lambda: watched(STAGES, "Schedule1F1B", "item")).lateness.ranks
    assert rank.rank == 1
    assert "time.sleep(LATE_S)" in {cause.source for cause in rank.causes}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("program", [(PROGRAM, "ddp"), (STAGES, "ScheduleGPipe")])
def test_nobody_is_named_where_nobody_is_late(watched, program):
    """Though each stage of a pipeline stands still for the other, for a good part of each step."""
    report = first_with((), lambda: watched(*program, "none"))
    assert report.lateness.ranks == ()
    assert report.lateness.steps >= 20


@pytest.mark.timeout(300)
def test_the_round_after_a_restart_is_reported_and_its_late_rank_is_named(watched):
    def run():
        return watched(
            PROGRAM, "elastic", "sleep", at=("--standalone", "--max-restarts", 1),
            TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",  # else gloo finds the addresses of ranks that have ended
        )  # fmt: skip

    report = first_with((1,), run)
    (rank,) = report.lateness.ranks
    assert (rank.rank, rank.causes[0].source) == (1, "time.sleep(LATE_S)")
    assert report.run.ranks == (0, 1)
    assert numbers(report, 1) == [*range(40)]
    said = "the launcher has started the ranks again (restart 1): nothing from before it is in this report"
    assert report.notes.count(said) == 1


@pytest.mark.timeout(300)
def test_of_several_nodes_the_late_rank_is_named_with_its_machine(tmp_path):
    def run():
        done = subprocess.run(
            [TWO_NODES, sys.executable, PROGRAM, "ddp", "sleep"], cwd=tmp_path, env=environment(**WATCHED),
            capture_output=True, text=True, timeout=110, check=False,
        )  # fmt: skip
        if done.returncode == NO_SUCH_NAMESPACES:
            pytest.skip("no network of its own can be made for a process here")
        assert done.returncode == 0, done.stderr
        return files.load_merged([tmp_path / "ranks"], leave_out=True)

    report = first_with((1,), run)
    (rank,) = report.lateness.ranks
    assert (rank.rank, rank.host, rank.causes[0].source) == (1, "node-b", "time.sleep(LATE_S)")
    assert wording.lateness(report)[0].startswith("Rank 1 on node-b holds the job up ")
    assert report.run.host == "node-a, node-b"
