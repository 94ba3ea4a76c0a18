"""The capture holds what a report would: each second, bounded, and whole whenever the process ends."""

from __future__ import annotations

import errno
import importlib
import itertools
import json
import os
import random
import shutil
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import sink_records

from syncagent.capture import writer as capture
from syncagent.capture.writer import Capture
from syncagent.delivery import folder
from syncagent.errors import SyncAgentError
from syncagent.events import CallSite, CollectiveRecord
from syncagent.report import captured, files
from syncagent.report.advising import advised
from syncagent.report.model import HostRow, RunInfo, SensorStatus
from syncagent.report.summary import Facts, Summary
from syncagent.runtime.sinks import SINKS, Outputs
from syncagent.settings import sources
from syncagent.support import log, storage

SENSORS = (SensorStatus("kernels", live=True, cannot_see="nothing"),)


@pytest.fixture(autouse=True)
def unsaid(monkeypatch):
    monkeypatch.setattr(log, "_said", set())
    log.get_logger.cache_clear()


class Run:
    """A summary that a capture follows, as an agent would have them."""

    def __init__(self, path, **settings):
        self.summary = Summary()
        self.info = RunInfo(
            "2026-01-01T00:00:00+00:00", 2.0, "2.13", "13.0", "GPU", "host", None, None, 0, "observe", "syncs", False,
            script="train.py", cwd="/proj", run_id="run", process="me",
        )  # fmt: skip
        self.dropped = 0
        self.host = ()
        self.follow(Capture(Path(path), **settings), self.facts)

    def follow(self, capture, facts):
        self.capture = capture
        capture.connect(sink_records.source(summary=self.summary, facts=facts))

    def facts(self):
        return Facts(self.info, SENSORS, self.dropped, ("a note",), self.host)

    def sync(self, line=1, *, times=1, ms=1.0, **changed):
        site = CallSite("/proj/train.py", line, "main", f"line {line}")
        event = sink_records.sync(self.summary.recorded, ms, site=site, **changed)
        self.summary.events([event] * times)

    def step(self, number=0):
        self.summary.step(sink_records.step(number * 10, number * 10 + 10, number))

    def write(self):
        self.capture.flush()
        return self.lines()

    def lines(self):
        return [json.loads(line) for line in self.capture.path.read_bytes().splitlines()]

    def report(self):
        return files.load(self.capture.path)

    def expected(self):
        return advised(self.summary.snapshot(self.info, SENSORS, dropped=self.dropped, notes=("a note",)))


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "capture.jsonl")


def sums(report):
    """All that a capture holds of a report: everything but notes, costs and how the process ended."""
    run = replace(report.run, ended=True, part=0)
    totals = replace(report.totals, stall_share=round(report.totals.stall_share, 9))
    return run, report.sites, totals, report.dropped, report.sensors, report.events, report.step_times


def test_what_the_host_did_is_written_where_it_has_changed_and_rows_may_go(run):
    def row(line, count):
        return HostRow("line", "/proj/train.py", line, "main", f"line {line}", count, 40.0 * count)

    for number, run.host in enumerate([(row(1, 1),), (row(1, 2), row(2, 1)), (row(1, 2), row(3, 5))]):
        run.sync()
        run.step(number)
        run.write()
        assert sorted(run.report().host, key=lambda found: found.line) == list(run.host)
    lines = [line for line in run.lines() if line["type"].startswith("host")]
    assert [(line["type"], line["host"], line["count"]) for line in lines] == [
        ("host", 0, 1), ("host_sums", 0, 2), ("host", 1, 1), ("host", 2, 5), ("host_sums", 1, 0),
    ]  # fmt: skip


def test_nothing_is_written_before_the_first_sync(run, tmp_path):
    run.step()
    run.capture.flush()
    run.capture.close()
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_killed_has_the_report_it_would_have_had(run):
    """Whatever was seen by then, with a note that this is not all."""
    dice = random.Random(5)
    for number in range(40):
        for _ in range(dice.randrange(4)):
            run.sync(dice.randrange(1, 6), times=dice.randrange(1, 4), ms=dice.random(), thread=dice.choice("ab"))
        run.step(number)
        run.dropped += 1
        if dice.random() < 0.5:
            run.capture.flush()
    run.write()
    ended = Path(shutil.copy(run.capture.path, run.capture.path.with_name("ended.jsonl")))  # no process writes to it
    report = files.load(ended)
    assert sums(report) == sums(run.expected())
    assert not report.run.ended
    assert report.notes == (
        "a note",
        "from the capture of a process that did not end by itself: what it saw in its last second or two is missing",
    )


def test_a_process_that_ended_by_itself_says_so(run):
    run.sync()
    run.capture.flush()
    run.sync()
    run.capture.close()
    run.capture.flush()
    report = run.report()
    assert (report.run.ended, report.totals.syncs, report.notes) == (True, 2, ("a note",))


def test_a_process_that_still_runs_is_known(run):
    run.sync()
    run.write()
    assert run.report().notes == ("a note", "from the capture of a process that is still running")


def test_only_what_has_changed_is_written(run):
    run.sync(1)
    run.sync(2)
    run.write()
    before = len(run.lines())
    run.sync(2)
    added = run.write()[before:]
    assert [line["type"] for line in added] == ["sums", "event", "totals"]
    assert (added[0]["site"], added[0]["count"]) == (1, 2)
    size = run.capture.path.stat().st_size
    run.capture.flush()
    assert run.capture.path.stat().st_size == size


def test_it_is_written_once_a_second_at_most(run, monkeypatch):
    now = 100.0
    monkeypatch.setattr(capture.time, "monotonic", lambda: now)
    run.sync()
    run.capture.tick()
    size = run.capture.path.stat().st_size
    run.sync()
    now += 0.9
    run.capture.tick()
    assert run.capture.path.stat().st_size == size
    now += 0.2
    run.capture.tick()
    assert run.capture.path.stat().st_size > size


def test_where_it_takes_long_it_is_written_less_often(run, monkeypatch):
    """At most a hundredth of the time."""
    spent, sizes = itertools.count(0.0, 0.05), []
    monkeypatch.setattr(capture.time, "thread_time", lambda: next(spent))
    for now in (100.0, 104.9, 105.1):
        monkeypatch.setattr(capture.time, "monotonic", partial(float, now))
        run.sync()
        run.capture.tick()
        sizes.append(run.capture.path.stat().st_size)
    assert sizes[0] == sizes[1] < sizes[2]


def test_a_full_file_is_written_anew_and_no_sum_is_lost(tmp_path):
    run = Run(tmp_path / "c.jsonl", max_bytes=20_000)
    largest = 0
    for number in range(200):
        run.sync(number % 7 + 1, times=3)
        run.step(number)
        run.write()
        largest = max(largest, run.capture.path.stat().st_size)
    assert largest < 250_000
    assert len([line for line in run.lines() if line["type"] == "header"]) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["c.jsonl"]
    report = run.report()
    assert report.sites == run.expected().sites
    assert report.totals == run.expected().totals
    assert "still running" in report.notes[-1]


def test_more_syncs_than_it_takes_at_once_are_counted_and_reported(run):
    run.sync()
    run.write()
    run.sync(times=500)
    run.write()
    report = run.report()
    assert (report.totals.syncs, len(report.events)) == (501, 201)
    assert "the time line has 201 of 501 syncs; the sums have all" in report.notes


def test_it_is_its_owners_alone(run, tmp_path):
    run.sync()
    run.write()
    assert run.capture.path.stat().st_mode & 0o777 == 0o600
    shared = Run(tmp_path / "shared.jsonl", mode=0o640)
    shared.sync()
    shared.write()
    assert shared.capture.path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_last_line_is_left_out_and_reported(run, cut):
    run.sync()
    run.write()
    run.sync()
    run.write()
    content = run.capture.path.read_bytes()
    run.capture.path.write_bytes(content[:-cut])
    report = run.report()
    assert report.totals.syncs == 2
    if cut > 1:
        assert "1 line is not whole and left out of the capture's sums" in report.notes


@pytest.mark.parametrize("seed", range(30))
def test_a_damaged_capture_is_a_report_or_one_sentence(run, seed):
    dice = random.Random(seed)
    for line in range(1, 5):
        run.sync(line)
        run.write()
    lines = run.capture.path.read_bytes().splitlines()
    match seed % 3:
        case 0:
            for _ in range(3):
                del lines[dice.randrange(1, len(lines))]
        case 1:
            values = json.loads(lines[dice.randrange(1, len(lines))])
            values[dice.choice(list(values))] = dice.choice([None, [], {}, "x", -1, 1e999, True])
            lines[dice.randrange(1, len(lines))] = json.dumps(values).encode()
        case 2:
            at = dice.randrange(1, len(lines))
            lines[at] = bytes(dice.randrange(256) for _ in range(30)).replace(b"\n", b"")
    run.capture.path.write_bytes(b"\n".join(lines))
    try:
        said = run.report().notes[0]
    except SyncAgentError as error:
        said = str(error)
    assert "\n" not in said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"type":"header","capture":2}\n', "is a capture of version 2, but this syncagent reads version 1 only"),
        (b'{"type":"header","capture":1}\n', "nothing was written after its header"),
        (b'{"type":"header","capture":', "is a capture of version None"),
        (b'{"resourceSpans":[]}\n{"resourceSpans":[]}\n', "is a journal of spans, for an OpenTelemetry Collector"),
    ],
)
def test_what_cannot_be_read_is_reported_in_one_sentence(tmp_path, content, says):
    (tmp_path / "c.jsonl").write_bytes(content)
    with pytest.raises(SyncAgentError, match=says):
        files.load(tmp_path / "c.jsonl")


def test_a_full_disk_costs_the_capture_and_nothing_else(run, monkeypatch):
    """It is raised once, for the agent to say, and what was written stays readable."""
    run.sync()
    run.write()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    run.sync()
    with pytest.raises(OSError, match="No space"):
        run.capture.flush()
    run.sync()
    run.capture.flush()
    monkeypatch.undo()
    run.capture.close()
    assert run.report().totals.syncs == 1


def test_where_it_cannot_be_written_it_goes_to_the_temporary_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "file").write_text("")
    run = Run(tmp_path / "file" / "c.jsonl")
    run.sync()
    run.write()
    assert run.capture.path.parent.parent == tmp_path
    assert run.capture.path.parent.stat().st_mode & 0o777 == 0o700
    [line] = capsys.readouterr().err.splitlines()
    assert str(run.capture.path) in line


def test_what_is_no_file_in_its_place_stays_what_it_is(tmp_path, monkeypatch):
    """As root, a device would be replaced by a file."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    run = Run(tmp_path / "pipe")
    run.sync()
    run.write()
    assert (tmp_path / "pipe").is_fifo()
    assert run.report().totals.syncs == 1


def test_a_folder_of_that_name_that_is_somebody_elses_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"syncagent-{os.getuid()}").symlink_to(tmp_path)
    (tmp_path / "file").write_text("")
    run = Run(tmp_path / "file" / "c.jsonl")
    run.sync()
    with pytest.raises(PermissionError, match="not this user's own folder"):
        run.capture.flush()
    run.capture.close()
    assert not list(tmp_path.glob("*.jsonl"))


def held_up(run):
    """Have the next one that writes stop in the middle: what says that it is there, and what lets it go on."""
    inside, go_on = threading.Event(), threading.Event()

    def slow():
        inside.set()
        assert go_on.wait(30)
        return run.facts()

    run.follow(run.capture, slow)
    return inside, go_on


def test_one_that_ends_the_agent_waits_for_the_one_that_writes_but_not_for_long(run, monkeypatch):
    monkeypatch.setattr(capture, "_PATIENCE_S", 0.01)
    run.sync()
    run.write()
    run.sync()
    size = run.capture.path.stat().st_size
    inside, go_on = held_up(run)
    writes = threading.Thread(target=run.capture.flush)
    writes.start()
    assert inside.wait(30)
    run.capture.flush()
    run.capture.close()
    assert run.capture.path.stat().st_size == size
    go_on.set()
    writes.join()
    run.capture.close()
    assert run.report().totals.syncs == 2


def test_what_is_flushed_is_written_even_while_another_thread_writes(run):
    """The program may be killed right afterwards."""
    run.sync()
    inside, go_on = held_up(run)
    writes = threading.Thread(target=run.capture.tick)
    writes.start()
    assert inside.wait(30)
    run.sync()
    threading.Timer(0.05, go_on.set).start()
    run.capture.flush()
    assert run.report().totals.syncs == 2
    writes.join()


def test_another_process_of_the_run_has_a_file_of_its_own(tmp_path, capsys):
    runs = [Run(tmp_path / "c.jsonl") for _ in range(3)]
    for number, run in enumerate(runs):
        run.info = replace(run.info, process=f"p{number}", rank=number, world_size=3)
        run.sync(times=number + 1)
        run.write()
        run.sync()
        run.write()
    assert [run.capture.path.name for run in runs] == ["c.jsonl", "c.1.jsonl", "c.2.jsonl"]
    assert "c.1.jsonl" in capsys.readouterr().err
    report = files.load_merged([tmp_path / "c.jsonl"])
    assert (report.totals.syncs, report.run.ranks, report.run.ended) == (9, (0, 1, 2), False)


def test_another_run_replaces_a_capture_unless_its_process_still_writes_it(tmp_path):
    first = Run(tmp_path / "c.jsonl")
    first.sync()
    first.write()
    second, third = Run(tmp_path / "c.jsonl"), Run(tmp_path / "c.jsonl")
    for name, run in (("second", second), ("third", third)):
        run.info = replace(run.info, run_id=name, process=name)
        run.sync()
    second.write()
    assert second.capture.path.name == "c.1.jsonl"
    first.capture.close()
    third.write()
    assert third.capture.path.name == "c.jsonl"


def test_a_folder_stands_for_the_newest_run_and_says_what_is_left_out(tmp_path):
    for number in range(3):
        run = Run(tmp_path / f"c{number}.jsonl")
        run.info = replace(
            run.info, run_id=f"r{number}", process=f"{number}", started=f"2026-01-0{3 - number}T00:00:00+00:00"
        )
        run.sync(times=number + 1)
        run.capture.close()
    report = files.load_merged([tmp_path])
    assert report.totals.syncs == 1
    assert "of the newest run; 2 files (c1.jsonl, c2.jsonl) of other runs are left out" in report.notes


def test_old_captures_go_and_live_ones_and_other_files_stay(tmp_path, monkeypatch):
    """A job that runs each minute must not fill the disk."""
    monkeypatch.setattr(folder, "_KEPT_FILES", 3)
    home = tmp_path / folder.DIRECTORY
    home.mkdir()
    names = [f"capture-20260101-00000{number}-1.jsonl" for number in range(6)]
    for age, name in enumerate(names):
        (home / name).write_text("x")
        os.utime(home / name, (age, age))
    for name in ("capture-mine.jsonl", "journal-20260101-000000-1.jsonl"):
        (home / name).write_text("x")
        os.utime(home / name, (0, 0))
    live = storage.append_to(home / names[0])
    storage.lock(live)
    run = Run(home / "capture-20260101-000009-1.jsonl")
    run.sync()
    run.write()
    os.close(live)
    assert sorted(file.name for file in home.iterdir() if file.name != ".gitignore") == sorted(
        [
            names[0],
            *names[3:],
            "capture-20260101-000009-1.jsonl",
            "capture-mine.jsonl",
            "journal-20260101-000000-1.jsonl",
        ]
    )


def test_files_that_go_while_the_folder_is_tidied_are_no_obstacle(tmp_path, monkeypatch):
    """The ranks of a job tidy at the same moment, and some files are not theirs to remove."""
    monkeypatch.setattr(folder, "_KEPT_FILES", 1)
    for number in range(3):
        (tmp_path / f"capture-20260101-00000{number}-1.jsonl").write_text("x")
    (tmp_path / "capture-20260101-000009-1.jsonl").mkdir()
    seen = Path.iterdir(tmp_path)
    monkeypatch.setattr(Path, "iterdir", lambda _: iter([*seen, tmp_path / "capture-20260101-000004-1.jsonl"]))
    folder.remove_old("capture", tmp_path)
    monkeypatch.undo()
    assert len(list(tmp_path.glob("*.jsonl"))) <= 2


def test_as_many_as_have_room_together_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "_KEPT_BYTES", 250)
    for number in range(5):
        file = tmp_path / f"capture-20260101-00000{number}-1.jsonl"
        file.write_text("x" * 100)
        os.utime(file, (number, number))
    folder.remove_old("capture", tmp_path)
    assert sorted(file.name[-7:] for file in tmp_path.iterdir()) == ["3-1.jsonl"[-7:], "4-1.jsonl"[-7:]]


@pytest.mark.parametrize(
    ("setting", "by_default", "path"),
    [
        (None, True, r"\.syncagent/capture-\d{8}-\d{6}-\d+\.jsonl"),
        (None, False, None),
        ("off", True, None),
        ("0", True, None),
        (os.devnull, True, None),
        ("{rank}/{pid}.jsonl", False, r"0/{pid}\.jsonl"),
        ("out/", True, r"out/capture-\d{8}-\d{6}-\d+\.jsonl"),
    ],
)
def test_the_setting_says_where(tmp_path, no_settings, setting, by_default, path):
    import re

    settings = sources.load({"capture": setting})
    built = list(SINKS["capture"](Outputs(settings, None if by_default else {})))
    if path is None:
        assert built == []
    else:
        expected = path.replace("{pid}", str(os.getpid()))
        run = Run(tmp_path)
        run.follow(built[0], run.facts)
        run.sync()
        run.write()
        assert re.fullmatch(expected, str(built[0].path.relative_to(tmp_path)))


def test_a_database_reads_it_as_it_is(run):
    """DuckDB, without a word about columns."""
    try:
        duckdb = importlib.import_module("duckdb")
    except ImportError:
        pytest.skip("duckdb is not installed")
    for number in range(3):
        run.sync(1, ms=2)
        run.sync(number + 1)
        run.step(number)
        run.write()
    run.capture.close()
    rows = duckdb.sql(
        f"select s.line, max(x.count), max(x.stall_ms) from read_json_auto('{run.capture.path}') x "
        f"join read_json_auto('{run.capture.path}') s on x.site = s.site and s.type = 'site' "
        "where x.type in ('site', 'sums') group by all order by 1"
    ).fetchall()
    assert rows == [(1, 4, 7.0), (2, 1, 1.0), (3, 1, 1.0)]


def test_it_is_distinguished_from_a_report_by_its_first_words(run):
    run.sync()
    run.write()
    assert captured.is_capture(run.capture.path.read_bytes())
    assert not captured.is_capture(b'{"schema": 1}')


def test_what_is_known_of_a_step_later_is_added_to_it(run):
    for number in range(3):
        run.sync()
        run.step(number)
    run.write()
    for number, waited_ns in ((0, 5_000_000), (1, 7_500_000)):
        start_ns = sink_records.step(number * 10, number * 10 + 10, number).start_ns
        run.summary.collectives(CollectiveRecord(number, start_ns, waited_ns))
    run.sync()
    run.step(3)
    run.write()
    assert [(step.step, step.collective_ms) for step in run.report().step_times] == [
        (0, 5.0), (1, 7.5), (2, None), (3, None),
    ]  # fmt: skip
    assert sums(run.report()) == sums(run.expected())


def test_of_a_step_that_is_no_longer_kept_nothing_is_added(run):
    run.step(0)
    run.summary.collectives(CollectiveRecord(0, sink_records.T0 - 5, 1))
    run.sync()
    run.write()
    assert [step.collective_ms for step in run.report().step_times] == [None]
