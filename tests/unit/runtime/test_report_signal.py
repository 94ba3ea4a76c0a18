"""``report_signal`` in a process that starts the agent itself; whole programs are in ``tests/integration``."""

from __future__ import annotations

import _signal
import json
import os
import signal
import threading
import time

import pytest

import syncagent
from syncagent.errors import ConfigError
from syncagent.policy.remote import Remote
from syncagent.runtime import agent as agents
from syncagent.runtime import report_signal, signals
from syncagent.runtime.report_signal import ReportSignal
from syncagent.settings import sources
from syncagent.support import log

USR2 = signal.SIGUSR2
pytestmark = pytest.mark.usefixtures("no_settings")


@pytest.fixture(autouse=True)
def _restored():
    """Whatever a test leaves in force."""
    before = signal.getsignal(USR2)
    yield
    signal.signal(USR2, before)
    signals.stop_listening_for(USR2)


@pytest.fixture
def waits():
    """``waits()``: one that has begun to wait for the signal, and the reports that it has written."""
    begun = []

    def begin(name="USR2"):
        written = []
        begun.append(ReportSignal(sources.load({"report_signal": name}), lambda: written.append(1)))
        begun[-1].start()
        return begun[-1], written

    yield begin
    for each in begun:
        each.stop()


def sent():
    """Have the signal arrive, and its handler called."""
    os.kill(os.getpid(), USR2)
    time.sleep(0)  # between any two instructions of the main thread


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["USR2", "SIGUSR2", " sigusr2 ", int(USR2), str(int(USR2)), USR2])
def test_a_signal_has_a_name_with_or_without_sig_or_a_number(value):
    assert sources.load({"report_signal": value}).report_signal == "SIGUSR2"


@pytest.mark.parametrize(
    "value", ["KILL", "SIGSTOP", "TERM", "SIGINT", "SEGV", "CHLD", "9", 15, 0, -1, 1_000, "USR3", "SIG", True, 2.0]
)
def test_signals_that_end_a_process_or_do_not_exist_are_refused_with_those_that_may_be_used(value):
    with pytest.raises(ConfigError) as error:
        sources.load({"report_signal": value})
    assert str(error.value).startswith(f"syncagent: setting report_signal is {value!r}, but it must be one of SIGUSR1")


def test_one_signal_cannot_have_two_meanings():
    with pytest.raises(ConfigError) as error:
        sources.load({"report_signal": "USR1", "policy_signal": "SIGUSR1"})
    assert str(error.value) == (
        "syncagent: setting report_signal is 'SIGUSR1', but it must be another signal than that of the setting "
        "policy_signal."
    )


# --- handlers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN])
def test_the_program_is_shown_what_was_there_and_has_it_back_at_the_end(waits, before):
    signal.signal(USR2, before)
    asked, written = waits()
    assert signal.getsignal(USR2) is before
    sent()
    asked.poll()
    assert written == [1]
    asked.stop()
    assert signal.getsignal(USR2) is before
    assert type(_signal.getsignal(USR2)) is int


def test_a_handler_of_the_programs_is_called_each_time_and_put_back(waits):
    calls = []
    ours = lambda number, _frame: calls.append(number)  # noqa: E731 - compared below
    signal.signal(USR2, ours)
    asked, written = waits()
    sent()
    sent()
    asked.poll()
    assert (calls, written) == ([USR2, USR2], [1])
    asked.stop()
    assert signal.getsignal(USR2) is ours
    sent()
    assert len(calls) == 3


def test_a_handler_that_was_set_since_stays_and_is_mentioned_once(waits, capsys):
    asked, written = waits()
    calls = []
    later = lambda *_: calls.append(1)  # noqa: E731 - compared below
    signal.signal(USR2, later)
    log.get_logger.cache_clear()
    sent()
    for _ in range(3):
        asked.poll()
    assert (calls, written) == ([1], [])
    assert capsys.readouterr().err.count("the program has set a handler of its own since") == 1
    asked.stop()
    assert signal.getsignal(USR2) is later


def test_a_handler_that_calls_the_one_that_it_found_asks_for_a_report(waits):
    asked, written = waits()
    found = _signal.getsignal(USR2)
    signal.signal(USR2, lambda number, frame: found(number, frame))
    sent()
    asked.poll()
    assert written == [1]


def test_a_signal_that_is_heard_before_its_handler_is_called_is_answered_once(waits, monkeypatch):
    """The main thread runs C code for long; the handler is called when it comes back."""
    now = [100.0]
    monkeypatch.setattr(report_signal.time, "monotonic", lambda: now[0])
    asked, written = waits()
    signals.heard(USR2)
    asked.poll()
    assert written == []  # the main thread has a moment to call the handler
    now[0] += 0.3
    asked.poll()
    asked.poll()
    assert written == [1]
    now[0] += 60.0
    sent()
    asked.poll()
    assert written == [1]
    sent()
    asked.poll()
    assert written == [1, 1]


def test_a_signal_that_is_heard_after_its_handler_was_called_is_answered_once(waits, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(report_signal.time, "monotonic", lambda: now[0])
    asked, written = waits()
    sent()
    asked.poll()
    signals.heard(USR2)
    now[0] += 0.3
    asked.poll()
    assert written == [1]
    sent()
    asked.poll()
    assert written == [1, 1]


def test_the_policys_signal_works_in_the_same_way():
    """The program is shown the default, and has it back."""
    changes = []
    remote = Remote(sources.load({"policy_signal": "USR2"}), lambda: "observe", lambda *change: changes.append(change))
    remote.start()
    assert signal.getsignal(USR2) is signal.SIG_DFL
    sent()
    remote.poll()
    assert changes == [("warn", "the signal SIGUSR2")]
    remote.stop()
    assert type(_signal.getsignal(USR2)) is int


# --- agents -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cpu_device")
def test_a_watch_saves_its_report_so_far_at_the_signal(tmp_path):
    import torch

    path = tmp_path / "report.json"
    with syncagent.watch(detail="syncs", report=path, report_signal="USR2"):
        torch.ones(3).nonzero()
        sent()
        ending = time.monotonic() + 20
        while not path.exists() and time.monotonic() < ending:
            time.sleep(0.02)
        early = json.loads(path.read_text())
        torch.ones(3).nonzero()
    assert _signal.getsignal(USR2) == 0
    assert (early["totals"]["syncs"], json.loads(path.read_text())["totals"]["syncs"]) == (1, 2)


@pytest.mark.usefixtures("cpu_device")
def test_off_the_main_thread_it_is_off_and_the_report_says_so():
    reports = []

    def work():
        with syncagent.watch(detail="syncs", report_signal="USR2") as agent:
            pass
        reports.append(agent.report())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert signal.getsignal(USR2) is signal.SIG_DFL
    assert any("report_signal SIGUSR2 has no effect" in note for note in reports[0].notes)


@pytest.mark.usefixtures("cpu_device")
def test_a_summary_that_cannot_be_printed_at_the_signal_costs_nothing_else(monkeypatch):
    """The gate holds all the same, and the report of the end says what has failed."""
    import torch

    tried = threading.Event()

    def broken(*_args, **_options):
        tried.set()
        raise RuntimeError("injected")

    monkeypatch.setattr(agents.table, "show", broken)
    with syncagent.watch(detail="syncs", policy="raise", warmup_steps=100, report_signal="USR2") as agent:
        sent()
        assert tried.wait(20)
        torch.ones(3).nonzero()
    report = agent.report()
    assert report.totals.syncs == 1
    assert any("saving at a signal" in note and "injected" in note for note in report.notes)
    assert not any("saving" in note and "gate" in note for note in report.notes)
