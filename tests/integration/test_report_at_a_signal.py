"""``report_signal``: the report so far is written while the job goes on, and the program notices nothing of it.

The cases are children of one process that has loaded torch; see ``tests/forked.py``.
"""

from __future__ import annotations

import json
import textwrap

import pytest

from tests.forked import begin, fork

CASES: dict[str, tuple[str, dict[str, str]]] = {}

SAVED = """
def saved():
    # It is kept beside the one of the end.
    ending = time.monotonic() + 30
    while not os.path.exists("report.json") and time.monotonic() < ending:
        time.sleep(0.02)
    os.rename("report.json", "so-far.json")
"""


def case(name, code, before="", **variables):
    code = begin(textwrap.dedent(before)) + SAVED + textwrap.dedent(code)
    CASES[name] = (code, {"SYNCAGENT_REPORT_SIGNAL": "USR1", **variables})


case(
    "goes on",
    """
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    os.kill(os.getpid(), signal.SIGUSR1)
    saved()
    for _ in range(5):
        x.nonzero()
    print("went on", flush=True)
    sys.exit(3)
    """,
)
case(
    "sleeps",
    """
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    until = time.monotonic() + 1.5
    time.sleep(1.5)
    print("slept to the end", time.monotonic() >= until, flush=True)
    saved()
    sys.exit(3)
    """,
)
case(
    "stuck in C",
    """
    import ctypes
    ours, theirs = os.pipe()
    def look():
        os.kill(os.getpid(), signal.SIGUSR1)
        saved()
        os.write(theirs, b"x")
    threading.Thread(target=look).start()
    buffer = ctypes.create_string_buffer(1)
    print("read", ctypes.CDLL(None).read(ours, buffer, 1), flush=True)
    time.sleep(1.5)
    print("written once", not os.path.exists("report.json"), flush=True)
    sys.exit(3)
    """,
)
case(
    "a handler of the program's that was there",
    """
    os.kill(os.getpid(), signal.SIGUSR1)
    saved()
    sys.exit(3)
    """,
    before="signal.signal(signal.SIGUSR1, lambda number, frame: print('requeued', flush=True))",
)
case(
    "a handler of the program's that comes later",
    """
    assert signal.signal(signal.SIGUSR1, lambda number, frame: print("requeued", flush=True)) is signal.SIG_DFL
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(1.5)
    print("written", os.path.exists("report.json"), flush=True)
    sys.exit(3)
    """,
)
case(
    "a forked child",
    """
    pid = os.fork()
    if pid == 0:
        assert syncagent.current() is None
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(1.0)
        os._exit(0 if not os.path.exists("report.json") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.kill(os.getpid(), signal.SIGUSR1)
    saved()
    sys.exit(3)
    """,
)
case(
    "no report",
    """
    os.kill(os.getpid(), signal.SIGUSR1)
    ending = time.monotonic() + 30
    while "host syncs; the host waited" not in open("err").read() and time.monotonic() < ending:
        time.sleep(0.02)
    print("the script goes on", flush=True)
    sys.exit(3)
    """,
    SYNCAGENT_REPORT="",
)
case(
    "SIGTERM afterwards",
    """
    os.kill(os.getpid(), signal.SIGUSR1)
    saved()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(20)
    """,
)
case(
    "not on the main thread",
    """
    sys.exit(3)
    """,
    before="""
    began = autostart.begin
    def elsewhere():
        def import_torch():
            began()
            import torch
        thread = threading.Thread(target=import_torch)
        thread.start()
        thread.join()
    autostart.begin = elsewhere
    """,
)
# The first of them pays for the processes of all.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """``done(name)``: how that case ended."""
    folder = tmp_path_factory.mktemp("report_signal")
    return fork({name: {"code": code, "variables": variables} for name, (code, variables) in CASES.items()}, folder)


def so_far(found):
    return json.loads((found.folder / "so-far.json").read_text())


def test_the_report_so_far_is_saved_and_the_job_goes_on(done):
    """The one of the end replaces it, with what came later, and the exit code is the program's."""
    found = done("goes on")
    assert (found.code, found.out) == (3, "trained\nwent on\n")
    early, late = so_far(found), found.report
    assert late["totals"]["syncs"] == early["totals"]["syncs"] + 5
    assert any("while the job went on" in note for note in early["notes"])
    assert not any("while the job went on" in note for note in late["notes"])
    assert found.blames_us() == []


def test_a_program_that_sleeps_sleeps_to_the_end(done):
    found = done("sleeps")
    assert (found.code, found.out) == (3, "trained\nslept to the end True\n")
    assert so_far(found)["totals"]["syncs"] >= 2


def test_a_main_thread_that_runs_c_code_is_not_waited_for_nor_is_its_call_interrupted(done):
    """As in a wait for other ranks that never comes back; when it does, nothing is written a second time."""
    found = done("stuck in C")
    assert (found.code, found.out) == (3, "trained\nread 1\nwritten once True\n")
    assert so_far(found)["totals"]["syncs"] >= 2


def test_a_handler_that_the_program_has_set_before_is_called_as_well(done):
    found = done("a handler of the program's that was there")
    assert (found.code, found.out) == (3, "trained\nrequeued\n")
    assert so_far(found)["totals"]["syncs"] >= 2


def test_a_handler_that_the_program_sets_later_decides_and_that_is_said_once(done):
    """It finds no handler, as without the agent: libraries that look for one set theirs."""
    found = done("a handler of the program's that comes later")
    assert (found.code, found.out) == (3, "trained\nrequeued\nwritten False\n")
    [sentence] = [line for line in found.said if "report_signal" in line]
    assert "the program has set a handler of its own since, which decides what the signal does" in sentence


def test_a_forked_child_neither_reports_nor_dies(done):
    """Whoever sends the signal to all processes of a job ends no worker of a DataLoader by that."""
    found = done("a forked child")
    assert (found.code, found.out) == (3, "trained\n")
    assert so_far(found)["totals"]["syncs"] >= 2


def test_without_a_report_the_summary_is_printed(done):
    """Once at the signal, and again at the end."""
    found = done("no report")
    assert (found.code, found.out) == (3, "trained\nthe script goes on\n")
    assert found.err.count("host syncs; the host waited") == 2
    assert any("the report so far" in line for line in found.said)


def test_sigterm_ends_the_process_afterwards_as_ever(done):
    found = done("SIGTERM afterwards")
    assert (found.code, found.out) == (-15, "trained\n")
    assert found.report["totals"]["syncs"] >= so_far(found)["totals"]["syncs"]


def test_an_agent_that_starts_on_another_thread_says_what_the_signal_does(done):
    """Python lets only the main thread set handlers."""
    found = done("not on the main thread")
    assert (found.code, found.out) == (3, "trained\n")
    [sentence] = [line for line in found.said if "report_signal" in line]
    assert "report_signal SIGUSR1 has no effect: the agent did not start on the main thread" in sentence
    assert "the signal ends the process" in sentence
