"""No process of a run takes the place of another's file, and a new run takes that of the one before."""

from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import replace

import pytest
from training_run import report_of, run_info, sync

from syncagent.attribution import processes
from syncagent.report import files, origins, places
from syncagent.report.model import Report
from syncagent.support import storage

NAMES = ["r.json", "r.html", "r.sarif", "r.trace.json"]


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """``saved(name, run=, process=)``: save a report as that process of that run would, and return the file's name."""
    monkeypatch.setattr(places, "_added_before", {})

    def save(name="r.json", *, run="run", process="one", ms=1, **changed):
        monkeypatch.setattr(processes, "process_id", lambda: process)
        report = report_of(sync(ms=ms), run_id=run, process=process, **changed)
        return report.save(tmp_path / name).name

    return save


def test_the_identity_of_a_process_survives_every_format(tmp_path):
    run = run_info(run_id="run", process="p", script='/a "b" {c} & <d>.py', rank=3, world_size=4)
    report = replace(report_of(sync()), run=run)
    for name in NAMES:
        assert origins.origin_of(report.save(tmp_path / name)) == origins.of_run(run)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"schema": 1, "run": {"rank": "x"}}', b"\xff" * 9, b'{"schema": 1, "run": {']
)
def test_other_files_have_no_identity(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    assert origins.origin_of(tmp_path / "x.json") is None


def test_a_pipe_has_no_identity_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.json")
    assert origins.origin_of(tmp_path / "x.json") is None
    assert origins.origin_of(tmp_path / "missing.json") is None


@pytest.mark.parametrize("name", NAMES)
def test_another_process_of_the_run_gets_a_number(saved, tmp_path, name):
    stem, suffix = name[:1], name[1:]
    assert [saved(name, process=process) for process in "abc"] == [name, f"{stem}.1{suffix}", f"{stem}.2{suffix}"]
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("name", NAMES)
def test_the_same_process_saves_in_its_own_place_again(saved, tmp_path, name):
    """A signal comes, and then the end; or one watch follows another."""
    for process in "ab":
        saved(name, process=process)
    before = [(file.name, file.read_bytes()) for file in sorted(tmp_path.iterdir())]
    for process in "ba":
        saved(name, process=process, ms=2)
    assert [file.name for file in sorted(tmp_path.iterdir())] == [found for found, _ in before]
    assert all(
        file.read_bytes() != content for file, (_, content) in zip(sorted(tmp_path.iterdir()), before, strict=True)
    )


@pytest.mark.parametrize("name", NAMES)
def test_another_run_replaces_the_one_before_with_all_its_numbers(saved, tmp_path, name):
    for process in "abc":
        saved(name, process=process)
    assert saved(name, run="next", process="d") == name
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_report_of_an_older_version_is_replaced(saved, tmp_path):
    values = report_of(sync()).to_dict()
    for key in ("run_id", "process", "part", "processes", "ended"):
        del values["run"][key]
    (tmp_path / "r.json").write_text(json.dumps(values))
    assert saved() == "r.json"


def test_a_file_that_only_has_such_a_name_is_left_alone(saved, tmp_path):
    """The user's own report of another run, and a file that is no report."""
    os.rename(tmp_path / saved(run="kept", process="k"), tmp_path / "r.1.json")
    (tmp_path / "r.2.json").write_text("mine")
    assert [saved(process=process) for process in "ab"] == ["r.json", "r.3.json"]
    assert Report.load(tmp_path / "r.1.json").run.run_id == "kept"
    assert (tmp_path / "r.2.json").read_text() == "mine"


def test_ranks_that_share_no_id_are_one_run_if_they_ran_together(saved):
    assert saved(run="a", process="a", rank=0, world_size=2) == "r.json"
    assert saved(run="b", process="b", rank=1, world_size=2) == "r.1.json"


@pytest.mark.parametrize(
    "changed",
    [
        {"rank": 0},
        {"world_size": 3},
        {"script": "/other.py"},
        {"started": "2025-11-24T02:50:00+00:00"},
        {"rank": None},
    ],
)
def test_ranks_that_share_no_id_and_differ_in_more_are_another_run(saved, changed):
    assert saved(run="a", process="a", rank=0, world_size=2) == "r.json"
    assert saved(run="b", process="b", **({"rank": 1, "world_size": 2} | changed)) == "r.json"


def test_a_jobs_name_alone_does_not_make_two_runs_one(saved):
    """``--rdzv-id=100`` is that of yesterday's run, too."""
    assert saved(run="job-100", process="a", rank=0) == "r.json"
    assert saved(run="job-100", process="b", rank=0, started="2025-11-24T02:50:00Z") == "r.json"
    assert saved(run="job-100", process="c", rank=1, started="2025-11-24T02:50:01Z") == "r.1.json"


def test_a_report_that_was_read_is_saved_as_asked(saved, tmp_path, monkeypatch):
    saved(process="a")
    report = Report.load(tmp_path / saved(process="b"))
    monkeypatch.setattr(processes, "process_id", lambda: "c")
    assert report.save(tmp_path / "r.json") == tmp_path / "r.json"
    assert Report.load(tmp_path / "r.json") == report


def test_nothing_is_added_where_that_is_not_wanted(tmp_path, saved, monkeypatch):
    saved(process="a")
    monkeypatch.setattr(processes, "process_id", lambda: "b")
    report = report_of(run_id="run", process="b")
    assert files.save_beside(report, tmp_path / "r.json", may_add=False) is None
    assert files.save_beside(report, tmp_path / "s.json", may_add=False) == tmp_path / "s.json"


def test_what_other_processes_of_the_run_have_saved_is_known(tmp_path, saved):
    for process in "abc":
        saved(process=process)
    saved("s.json", run="another", process="d")
    own = report_of(run_id="run", process="b")
    assert [file.name for file in files.saved_by_others(own, tmp_path / "r.json")] == ["r.json", "r.2.json"]
    assert files.saved_by_others(own, tmp_path / "s.json") == []


def test_a_number_that_was_added_is_reported(saved, capsys, monkeypatch):
    from syncagent.support import log

    monkeypatch.setattr(log, "_said", set())
    log.get_logger.cache_clear()
    saved(process="a")
    assert capsys.readouterr().err == ""
    saved(process="b")
    assert "r.1.json" in capsys.readouterr().err


def _save(folder, number, start):
    start.wait()
    report = report_of(sync(), run_id="run", process=processes.process_id(), pid=number)
    for _ in range(3):
        report.save(os.path.join(folder, "r.json"))


@pytest.mark.parametrize("locks", [True, False])
def test_processes_that_save_at_the_same_moment_lose_nothing(tmp_path, monkeypatch, locks):
    """Also where the file system knows no locks."""
    if not locks:
        monkeypatch.setattr(storage, "fcntl", None)
    fork = multiprocessing.get_context("fork")
    start = fork.Event()
    children = [fork.Process(target=_save, args=(tmp_path, number, start)) for number in range(12)]
    for child in children:
        child.start()
    start.set()
    for child in children:
        child.join(60)
    found = [Report.load(file).run for file in tmp_path.iterdir()]
    assert sorted(run.pid for run in found) == list(range(12))
    assert sorted(run.part for run in found) == list(range(12))
