"""What a rank of several did besides waiting, in processes that train on the CPU."""

from __future__ import annotations

import ctypes
import gc
import json
import signal
import threading
import time
import weakref
from functools import partial
from itertools import repeat

import pytest
import torch

import syncagent
from syncagent.sensors.base import Conditions
from syncagent.sensors.host_time import Collections, HostTimeSensor
from syncagent.sensors.registry import SensorSet

LOOKER = "syncagent-host"


class Node:
    """What may be part of a cycle."""


@pytest.fixture
def two_ranks(no_settings, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")


def threads():
    return [thread.name for thread in threading.enumerate()]


def train(steps, work=lambda: None):
    for _ in range(steps):
        work()
        syncagent.step()


# --- when it runs


def test_a_process_of_its_own_pays_nothing(cpu_agent):
    before = list(gc.callbacks)
    agent = cpu_agent()
    train(3)
    assert LOOKER not in threads()
    assert gc.callbacks == before
    report = agent.stop()
    assert report.host == ()
    assert HostTimeSensor.name not in {sensor.name for sensor in report.sensors}


def test_a_rank_pays_nothing_before_its_first_step_has_ended(cpu_agent, two_ranks):
    """A process that only loads data, or never trains, has no look and no callback."""
    before = list(gc.callbacks)
    agent = cpu_agent()
    assert (LOOKER in threads(), gc.callbacks) == (False, before)
    train(1)
    assert LOOKER in threads()
    assert len(gc.callbacks) == len(before) + 1
    agent.stop()
    assert (LOOKER in threads(), gc.callbacks) == (False, before)


def test_its_status_says_whether_it_was_live(cpu_agent, two_ranks):
    agent = cpu_agent()
    assert status(agent.report()) == (False, "it begins with the second step")
    train(2)
    assert status(agent.stop()) == (True, "")


def status(report):
    (found,) = (sensor for sensor in report.sensors if sensor.name == HostTimeSensor.name)
    return found.live, found.detail


def test_a_process_that_joins_ranks_later_is_looked_at_from_then_on(recorders, cpu_agent):
    """As one that calls init_process_group by itself."""
    agent, started = cpu_agent(), []
    sensors = SensorSet(recorders[0], Conditions(has_cuda=False))
    agent.stop()
    for _ in range(2):
        sensors.join_ranks(lambda part, start, stop: started.append(part))
    assert started == [HostTimeSensor.part]
    assert HostTimeSensor.name in {row.name for row in sensors.statuses()}


def test_a_look_that_fails_switches_it_off_once_and_the_report_says_so(cpu_agent, two_ranks, monkeypatch):
    def fail(*_):
        raise ValueError("no look")

    monkeypatch.setattr("syncagent.sensors.host_time.standing_of", fail)
    before, over = list(gc.callbacks), threading.Event()
    agent = cpu_agent()
    train(2)
    for _ in range(1000):
        if LOOKER not in threads():
            break
        over.wait(0.01)
    train(2)
    report = agent.stop()
    assert gc.callbacks == before
    assert status(report) == (False, "off: it failed")
    sentence = f"{HostTimeSensor.part} failed and is off: ValueError: no look"
    assert [problem for problem in report.problems if "no look" in problem] == [sentence]
    assert report.run.steps == 4


# --- garbage collections


def test_collections_of_each_step_are_counted_and_timed(cpu_agent, two_ranks):
    gc.disable()
    try:
        agent = cpu_agent()
        gc.collect(0)
        train(1, partial(gc.collect, 0))  # the first step is left out
        train(10, partial(gc.collect, 0))
        report = agent.stop()
    finally:
        gc.enable()
    (row,) = (row for row in report.host if row.cause == "garbage collection")
    assert (row.count, row.file, row.line, row.source, row.rank) == (10, "", 0, "", None)
    assert 0 < row.ms <= report.totals.step_ms


def test_collections_of_other_threads_are_not_the_training_threads():
    collections = Collections()
    collections.start()
    try:
        other = threading.Thread(target=gc.collect, args=(0,))
        other.start()
        other.join()
        gc.collect(0)
        ((began, ended),) = collections.take(threading.get_ident())
    finally:
        collections.stop()
    assert began < ended
    assert collections.was_at(began)
    assert not collections.was_at(ended)
    assert collections.within(began, ended + 1) == ended - began


@pytest.mark.parametrize("when", ["before", "within"])
def test_a_program_may_clear_the_callbacks(when):
    kept, collections = list(gc.callbacks), Collections()
    collections.start()
    try:
        if when == "within":
            gc.callbacks.append(lambda phase, info: gc.callbacks.clear())
            gc.collect(0)  # its beginning was noted, and its end was not
        gc.callbacks.clear()
        assert collections.take(threading.get_ident()) == []
        assert "gc.callbacks" in collections.why_not
        assert not collections.was_at(2**62)
    finally:
        collections.stop()
        gc.callbacks[:] = kept


def test_another_callback_stays_when_ours_is_removed():
    collections, kept = Collections(), list(gc.callbacks)
    theirs = [lambda phase, info: None for _ in range(2)]
    gc.callbacks.append(theirs[0])
    collections.start()
    gc.callbacks.append(theirs[1])
    try:
        collections.stop()
        collections.stop()
        assert gc.callbacks == kept + theirs
    finally:
        gc.callbacks[:] = kept


def test_what_a_signal_handler_raises_during_a_collection_reaches_the_program(monkeypatch):
    """A callback in Python would have run the handler, and Python drops what a callback raises."""
    unraisable = []
    monkeypatch.setattr("sys.unraisablehook", unraisable.append)

    def stop(*_):
        raise KeyboardInterrupt

    before, others = signal.signal(signal.SIGUSR1, stop), list(gc.callbacks)
    gc.callbacks.clear()  # those of other tests' libraries are in Python
    collections = Collections()
    collections.start()
    gc.disable()
    gc.collect()  # what other tests have left may run code in Python when it goes, and the handler with it
    try:
        send = map(ctypes.CDLL(None)["raise"], repeat(int(signal.SIGUSR1)))
        node, stays = Node(), []
        node.itself = node
        stays.append(weakref.ref(node, partial(next, send)))  # no Python code either
        del node
        with pytest.raises(KeyboardInterrupt):
            for _ in range(300):  # a thread that another test has left may be collecting just now
                gc.collect()
                time.sleep(0.01)
                assert not unraisable
    finally:
        gc.enable()
        collections.stop()
        gc.callbacks[:] = others
        signal.signal(signal.SIGUSR1, before)
    assert unraisable == []


# --- whole processes

BEGIN = """\
import gc, os, threading, time
import torch
import syncagent
"""

RANK = {
    "SYNCAGENT": "1", "SYNCAGENT_SIMULATE": "1", "SYNCAGENT_JOURNAL": "off", "RANK": "1", "WORLD_SIZE": "2",
    "OMP_NUM_THREADS": "1", "SYNCAGENT_DETAIL": "syncs",
}  # fmt: skip

SLEEPS = """
for _ in range(100):
    time.sleep(0.03)  # the line
    syncagent.step()
"""

LOADS = """
class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 120
    def __getitem__(self, index):
        {body}
        return index
for _ in torch.utils.data.DataLoader(Slow(), **{options}):  # the loop
    syncagent.step()
"""

COLLECTS = """
kept = [[] for _ in range(200_000)]
for _ in range(20):
    gc.collect()  # the line
    time.sleep(0.002)
    syncagent.step()
"""

FORKS = """
def state():
    names = [thread.name for thread in threading.enumerate()]
    return ["syncagent-host" in names, len(gc.callbacks)]
before = len(gc.callbacks)
syncagent.step()
syncagent.step()
assert state() == [True, before + 1]
read, write = os.pipe()
if os.fork() == 0:
    for _ in range(3):
        gc.collect()
        syncagent.step()
    os.write(write, repr(state() == [False, before]).encode())
    os._exit(0)
os.wait()
assert os.read(read, 100) == b"True"
"""

KILLED = """
import signal
x = torch.ones(3, device="cuda")
for _ in range(60):
    x.sum().item()
    time.sleep(0.02)  # the line
    syncagent.step()
syncagent.current().flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def report_of(forked, tmp_path):
    """``report_of(program)`` runs it as one of two ranks and returns its report."""

    def run(program, **variables):
        (tmp_path / "train.py").write_text(BEGIN + program, encoding="utf-8")
        done = forked("train.py", **{**RANK, "SYNCAGENT_CAPTURE": "off", "SYNCAGENT_REPORT": "r.json", **variables})
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / "r.json").read_text())

    return run


def test_the_line_that_sleeps_is_the_largest(report_of):
    report = report_of(SLEEPS)
    row = report["host"][0]
    assert (row["cause"], row["source"]) == ("line", "time.sleep(0.03)  # the line")
    assert row["ms"] <= 1.001 * report["totals"]["step_ms"]
    assert row["count"] > 0


@pytest.mark.parametrize(
    ("body", "options", "shown"),
    [
        ("time.sleep(0.01)", "dict(batch_size=1)", "time.sleep(0.01)"),
        ("time.sleep(0.03)", "dict(batch_size=1, num_workers=1)", "the loop"),
    ],
    ids=["in the same thread", "in a worker"],
)
def test_a_slow_dataset_is_the_data_loaders_time(report_of, body, options, shown):
    row = report_of(LOADS.format(body=body, options=options))["host"][0]
    assert row["cause"] == "data loader"
    assert shown in row["source"]


def test_a_collection_in_each_step_is_not_the_time_of_its_line(report_of):
    report = report_of(COLLECTS)
    row = report["host"][0]
    assert (row["cause"], row["count"]) == ("garbage collection", 19)
    of_line = sum(row["ms"] for row in report["host"] if "gc.collect" in row["source"])
    assert of_line < row["ms"] / 4


def test_a_forked_child_has_neither_looks_nor_the_callback(report_of):
    report_of(FORKS)


def test_waits_for_the_device_are_no_host_time(report_of):
    """They are syncs, and are reported as such."""
    report = report_of("""
x = torch.ones(600, 600, device="cuda")
for _ in range(40):
    for _ in range(10):
        x = x @ x / 600
    x.sum().item()  # the line
    syncagent.step()
""")
    stall_ms = report["totals"]["step_stall_ms"]
    of_line = sum(row["ms"] for row in report["host"] if "# the line" in row["source"])
    assert of_line < stall_ms / 3
    assert sum(row["ms"] for row in report["host"]) < report["totals"]["step_ms"]


def test_the_capture_of_a_killed_process_has_the_rows(forked, tmp_path):
    (tmp_path / "train.py").write_text(BEGIN + KILLED, encoding="utf-8")
    assert forked("train.py", **RANK, SYNCAGENT_CAPTURE="c.jsonl").returncode == -9
    report = syncagent.Report.load(tmp_path / "c.jsonl")
    assert report.host[0].source == "time.sleep(0.02)  # the line"
    assert report.host[0].count > 0


def test_modelled_times_are_not_shared_out(report_of):
    report = report_of(SLEEPS.replace("100", "3"), SYNCAGENT_SIMULATE_GPU="H100")
    assert report["host"] == []
    (found,) = (sensor for sensor in report["sensors"] if sensor["name"] == "host time")
    assert not found["live"]
    assert "modelled" in found["detail"]


def test_torchs_loader_is_known():
    """Its file is recognized by its place in torch."""
    from syncagent.attribution.callsite import DATA_LOADER, CallSites

    assert CallSites().bits(torch.utils.data.DataLoader.__iter__.__code__) & DATA_LOADER
