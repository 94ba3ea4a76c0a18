"""A folder of many ranks is read whatever else is in it, and the report says in a sentence what was left out."""

from __future__ import annotations

import itertools
import json
import os
import random

import pytest
from training_run import report_of, sync

from syncagent.errors import SyncAgentError
from syncagent.report import files, gathering, origins
from syncagent.report.origins import Origin
from tests import many_ranks


@pytest.fixture(params=["ourselves", "engine"])
def way(request, monkeypatch):
    if request.param == "engine":
        pytest.importorskip("duckdb")
    monkeypatch.setattr(gathering, "MUCH", -1 if request.param == "engine" else 1 << 60)
    return request.param


def ranks_in(folder, count=4, **run):
    folder.mkdir(exist_ok=True)
    return many_ranks.write(folder, count, sites=6, events=12, steps=4, **run)


def merged(folder):
    return files.load_merged([folder], leave_out=True)


def test_a_whole_folder_is_merged_without_a_word(tmp_path, way):
    ranks_in(tmp_path)
    report = merged(tmp_path)
    assert (report.run.ranks, report.problems) == ((0, 1, 2, 3), ())
    assert not [note for note in report.notes if "left out" in note]


BROKEN = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "of something else": lambda text: '{"traceEvents": []}',
    "not an object": lambda text: "[1, 2]",
    "with a word as a count": lambda text: text.replace('"dropped": 0', '"dropped": "many"'),
    "with a site that lacks its count": lambda text: text.replace('"count":', '"amount":', 1),
    "with a number that is none": lambda text: text.replace('"stall_ms_max": ', '"stall_ms_max": NaN, "x": ', 1),
    "with a number that is too large": lambda text: text.replace('"stall_ms_max": ', '"stall_ms_max": 1e300, "x": ', 1),
    "with a negative count": lambda text: text.replace('"violations": ', '"violations": -', 1).replace("-0", "-1"),
    "of a newer version": lambda text: text.replace('"schema": 1', '"schema": 2', 1),
    "with an op that is null": lambda text: text.replace('"ops": [{"op": "', '"ops": [{"op": null, "x": "', 1),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_file_that_is_not_whole_is_named_and_left_out(tmp_path, way, what):
    bad = ranks_in(tmp_path)[2]
    bad.write_text(BROKEN[what](bad.read_text()))
    report = merged(tmp_path)
    assert report.run.ranks == (0, 1, 3)
    (problem,) = report.problems
    assert problem.startswith("left out: ")
    assert str(bad) in problem
    assert "\n" not in problem
    assert "of the 4 ranks, 1 have no report here: 2" in report.notes


@pytest.mark.parametrize("what", BROKEN)
def test_both_ways_say_the_same_of_it(tmp_path, monkeypatch, what):
    pytest.importorskip("duckdb")
    bad = ranks_in(tmp_path)[2]
    bad.write_text(BROKEN[what](bad.read_text()))
    said = []
    for much in (-1, 1 << 60):
        monkeypatch.setattr(gathering, "MUCH", much)
        said.append(merged(tmp_path).problems)
    assert said[0] == said[1]


def test_files_that_cannot_be_opened_are_left_out_at_once(tmp_path, way):
    """Nothing waits for whoever might write into a pipe."""
    ranks_in(tmp_path)
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    with (tmp_path / "huge.json").open("wb") as stream:
        stream.truncate(2**31)
    report = merged(tmp_path)
    assert report.run.ranks == (0, 1, 2, 3)
    assert len(report.problems) == 4
    assert report.problems[-1] == "left out: 1 more files that cannot be read (pipe.json)"


def test_of_many_files_that_cannot_be_read_a_few_are_named(tmp_path, way):
    for bad in ranks_in(tmp_path, 20)[1:]:
        bad.write_text("")
    assert len(merged(tmp_path).problems) == 4


def test_a_folder_without_any_file_that_can_be_read_is_refused(tmp_path, way):
    for bad in ranks_in(tmp_path):
        bad.write_text("{")
    with pytest.raises(SyncAgentError, match="is not whole JSON"):
        merged(tmp_path)


def test_a_process_that_is_there_twice_counts_once(tmp_path, way):
    paths = ranks_in(tmp_path)
    (tmp_path / "copy.json").write_bytes(paths[1].read_bytes())
    (tmp_path / "link.json").symlink_to(paths[2])
    syncs = merged(tmp_path).totals.syncs
    (tmp_path / "copy.json").unlink()
    (tmp_path / "link.json").unlink()
    assert merged(tmp_path).totals.syncs == syncs


def test_ranks_that_were_killed_are_read_from_their_captures(tmp_path, way):
    paths = ranks_in(tmp_path)
    ranks_in(tmp_path, captures=True)
    for path in paths[2:]:
        path.unlink()
    report = merged(tmp_path)
    assert (report.run.ranks, report.run.ended, report.run.processes) == ((0, 1, 2, 3), False, 0)
    assert "of 4 processes, 2 did not end by themselves: those of rank 2, 3" in report.notes


def test_files_of_an_earlier_run_in_the_folder_are_left_out(tmp_path, way):
    ranks_in(tmp_path)
    ranks_in(old := tmp_path / "old", run_id="before", started="2026-11-27T11:41:27.704+00:00")
    for path in old.iterdir():
        report = json.loads(path.read_text())
        report["run"]["process"] += "old"
        (tmp_path / f"old-{path.name}").write_text(json.dumps(report))
    report = merged(tmp_path)
    assert (report.run.ranks, report.run.run_id, report.run.processes) == ((0, 1, 2, 3), "08d6c37c5abe2157", 0)
    assert (
        "of the newest run; 4 files (old-rank0.json, old-rank1.json, old-rank2.json, old-rank3.json) of other runs "
        "are left out" in report.notes
    )


def test_a_rank_of_another_program_is_left_out(tmp_path, way):
    ranks_in(tmp_path)
    report_of(sync(), rank=9, world_size=16, started="2026-11-20T00:00:00Z", script="other.py").save(
        tmp_path / "x.json"
    )
    report = merged(tmp_path)
    assert report.run.ranks == (0, 1, 2, 3)
    assert "of the newest run; 1 file (x.json) of other runs is left out" in report.notes


def test_of_a_run_that_changed_its_size_the_newest_is_read(tmp_path, way):
    ranks_in(tmp_path, 4)
    ranks_in(later := tmp_path / "later", 2, started="2026-11-28T11:45:00.000+00:00")
    for path in later.iterdir():
        report = json.loads(path.read_text())
        report["run"]["process"] += "later"
        (tmp_path / f"{path.stem}.1.json").write_text(json.dumps(report))
    report = merged(tmp_path)
    assert (report.run.ranks, report.run.world_size, report.run.processes) == ((0, 1), 2, 0)
    (note,) = [note for note in report.notes if "changed its size" in note]
    assert note.endswith("of when it had 4 ranks are left out, and these are of when it had 2 ranks")


def test_a_file_that_is_named_has_to_be_whole(tmp_path, way):
    paths = ranks_in(tmp_path)
    paths[1].write_text("{")
    with pytest.raises(SyncAgentError, match=r"rank1\.json' is not a syncagent report"):
        files.load_merged(paths, leave_out=True)


def test_what_judges_a_run_leaves_nothing_out(tmp_path, way):
    paths = ranks_in(tmp_path)
    paths[1].write_text("{")
    with pytest.raises(SyncAgentError, match=r"rank1\.json' is not a syncagent report"):
        files.load_merged([tmp_path])


def test_without_the_engine_a_note_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(gathering, "MUCH", -1)
    monkeypatch.setitem(__import__("sys").modules, "duckdb", None)
    ranks_in(tmp_path)
    report = merged(tmp_path)
    assert report.run.ranks == (0, 1, 2, 3)
    assert report.notes[-1] == (
        "files of many ranks are merged much faster, and in less memory, with `pip install 'syncagent[ranks]'`"
    )


def test_an_error_of_the_engines_is_one_sentence(tmp_path, monkeypatch):
    duckdb = pytest.importorskip("duckdb")
    monkeypatch.setattr(gathering, "MUCH", -1)
    ranks_in(tmp_path)

    def fails(*_):
        raise duckdb.OutOfMemoryException("Out of Memory Error: no room\n\nPossible solutions:\n* more room")

    monkeypatch.setattr("syncagent.report.engine.adding.add_up", fails)
    with pytest.raises(SyncAgentError) as caught:
        merged(tmp_path)
    assert str(caught.value) == "DuckDB could not merge these 4 files: Out of Memory Error: no room"


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    pytest.importorskip("duckdb")
    monkeypatch.setattr(gathering, "MUCH", -1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    ranks_in(tmp_path / "ranks")
    merged(tmp_path / "ranks")
    assert list((tmp_path / "temporary").iterdir()) == []


def of_pairs(all_of):
    """The same by looking at every pair."""
    run = list(range(len(all_of)))
    for (one, first), (other, second) in itertools.combinations(enumerate(all_of), 2):
        if origins.same_run(first, second):
            before, after = max(run[one], run[other]), min(run[one], run[other])
            run = [after if number == before else number for number in run]
    return run


@pytest.mark.parametrize("seed", range(200))
def test_runs_are_those_that_a_look_at_every_pair_finds(seed):
    draw = random.Random(seed)
    all_of = [
        Origin(
            run_id=draw.choice(["", "", "a", "b", f"{origins.JOB}1", f"{origins.JOB}2"]),
            rank=draw.choice([None, 0, 1, 2]),
            world_size=draw.choice([2, 4]),
            script=draw.choice(["x.py", "y.py"]),
            started=draw.choice(["", *(f"2026-11-29T{hour:02}:00:00Z" for hour in range(20))]),
            duration_s=draw.choice([10.0, 4_000.0, 10_000.0]),
        )
        for _ in range(draw.randrange(1, 14))
    ]
    assert origins.runs_of(all_of) == of_pairs(all_of)
