"""The id of a run is one for all of its processes and another one for each run."""

from __future__ import annotations

import os

import pytest

from syncagent.attribution import processes
from tests.processes import is_setting, run

ASK = """\
import os
from syncagent.attribution.processes import process_id, run_id
def ask(): os.write(1, f"{run_id()} {process_id()}\\n".encode())
"""
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def first(no_settings, monkeypatch):
    """As in a process that was not started by a watched one."""
    monkeypatch.setenv(processes.VARIABLE, "")
    monkeypatch.setattr(processes, "_made_by", None)


def ask(code=f"{ASK}ask()", **variables):
    inherited = {name: value for name, value in os.environ.items() if is_setting(name)}
    done = run("-c", code, cwd=os.getcwd(), **inherited | variables)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def test_a_child_belongs_to_the_run_of_its_parent_and_is_another_process():
    own = processes.run_id()
    [[run, process]] = ask()
    assert run == own
    assert process != processes.process_id()


def test_a_process_that_no_watched_one_started_is_a_run_of_its_own(monkeypatch):
    first = processes.run_id()
    monkeypatch.delenv(processes.VARIABLE)
    monkeypatch.setattr(processes, "_made_by", None)
    assert processes.run_id() != first


def test_a_forked_child_is_another_process_of_the_same_run():
    [parent, child] = ask(f"{ASK}ask()\nif os.fork() == 0: ask()")
    assert parent[0] == child[0]
    assert parent[1] != child[1]


def test_children_of_multiprocessing_know_each_other_though_their_parent_is_not_watched(tmp_path):
    file = tmp_path / "spawns.py"
    file.write_text(
        "import multiprocessing\n"
        f"{ASK}"
        "if __name__ == '__main__':\n"
        "    children = [multiprocessing.get_context('spawn').Process(target=ask) for _ in range(2)]\n"
        "    for child in children: child.start()\n"
        "    for child in children: child.join()\n"
    )
    one, two = ask(f"import runpy; runpy.run_path({str(file)!r}, run_name='__main__')")
    assert one[0] == two[0]
    assert one[1] != two[1]


def test_ranks_that_another_launcher_started_know_each_other_by_their_job(monkeypatch):
    ids = set()
    for rank in ("0", "1"):
        for name, value in (TORCHRUN | {"RANK": rank, "TORCHELASTIC_RUN_ID": "seven"}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv(processes.VARIABLE, raising=False)
        monkeypatch.setattr(processes, "_made_by", None)
        ids.add(processes.run_id())
    assert len(ids) == 1
    assert ids.pop().startswith(processes.JOB)


def test_ranks_of_several_machines_go_by_their_job_though_each_has_a_launcher_that_is_watched(monkeypatch):
    spans = TORCHRUN | {"WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "seven"}
    for name, value in spans.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(processes.VARIABLE, "of-one-machine")
    one = processes.run_id()
    monkeypatch.setenv(processes.VARIABLE, "of-the-other")
    assert processes.run_id() == one


def test_ranks_of_one_machine_have_the_id_of_their_launcher(monkeypatch):
    """A name such as ``--rdzv-id=100`` is that of the run before as well."""
    for name, value in (TORCHRUN | {"TORCHELASTIC_RUN_ID": "100", processes.VARIABLE: "launched"}).items():
        monkeypatch.setenv(name, value)
    assert processes.run_id() == "launched"


def test_what_a_launcher_has_started_again_is_another_run(monkeypatch):
    monkeypatch.setenv(processes.VARIABLE, "launched")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert processes.run_id() == "launched"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert processes.run_id() == "launched.1"


def test_a_lone_process_of_an_allocation_is_a_run_of_its_own(monkeypatch):
    """In an interactive SLURM shell every script has the same job and step."""
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert not processes.run_id().startswith(processes.JOB)


@pytest.mark.parametrize("value", ["", "../up", "a b", "x" * 100, "é"])
def test_a_variable_that_is_no_id_is_replaced(monkeypatch, value):
    monkeypatch.setenv(processes.VARIABLE, value)
    assert processes.run_id() not in {"", value}
