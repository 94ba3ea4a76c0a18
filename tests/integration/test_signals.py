"""Signals: what a program does about them, and how it ends by them, is what it would be without the agent.

Most cases are children of one process that has loaded torch; see ``tests/forked.py``.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time

import pytest

from tests.forked import begin, fork

TERM = -signal.SIGTERM
CASES: dict[str, tuple[str, dict[str, str]]] = {}


def case(name, code, after="", **variables):
    CASES[name] = (begin() + textwrap.dedent(code) + after, variables)


# --- handlers of the program's ----------------------------------------------------------------------------------------

AFTER = """
for number in range(100):
    x.nonzero()
    if number == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    if stop:
        print("checkpoint saved", flush=True)
        sys.exit(3)
"""
case(
    "calls the one it found",
    """
    stop, old = [], signal.getsignal(signal.SIGTERM)
    def handler(number, frame):
        stop.append(number)
        if callable(old):
            old(number, frame)
    signal.signal(signal.SIGTERM, handler)
    """,
    AFTER,
)
case(
    "calls the one it replaced, wrapped",
    """
    import functools
    stop = []
    def handler(old, number, frame):
        stop.append(number)
        callable(old) and old(number, frame)
    old = []
    old.append(signal.signal(signal.SIGTERM, functools.partial(lambda n, f: handler(old[0], n, f))))
    """,
    AFTER,
)
case(
    "leaves at once",
    """
    def handler(number, frame):
        time.sleep(1.0)  # saves a checkpoint
        print("checkpoint saved", flush=True)
        os._exit(3)
    signal.signal(signal.SIGTERM, handler)
    stop = []
    """,
    AFTER,
)
case(
    "asyncio",
    """
    import asyncio
    async def train():
        over = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
        x.nonzero()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(over.wait(), 10)
        print("checkpoint saved", flush=True)
    asyncio.run(train())
    assert signal.set_wakeup_fd(-1) == -1
    sys.exit(3)
    """,
)
case(
    "waits for it",
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    os.kill(os.getpid(), signal.SIGTERM)
    assert signal.sigwait([signal.SIGTERM]) == signal.SIGTERM
    print("checkpoint saved", flush=True)
    sys.exit(3)
    """,
)
CHAINED = list(CASES)

case(
    "sends itself the signal again if there was none",
    """
    old = signal.getsignal(signal.SIGTERM)
    def handler(number, frame):
        print("checkpoint saved", flush=True)
        if old == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        else:
            old(number, frame)
    signal.signal(signal.SIGTERM, handler)
    stop = []
    """,
    AFTER,
)
case(
    "puts the old one back and sends itself the signal again",
    """
    def handler(number, frame):
        print("checkpoint saved", flush=True)
        signal.signal(number, old)
        os.kill(os.getpid(), number)
    old = signal.signal(signal.SIGTERM, handler)
    assert old is signal.SIG_DFL
    stop = []
    """,
    AFTER,
)
case(
    "after asyncio",
    """
    import asyncio
    async def train():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, print)
        print("checkpoint saved", flush=True)
    asyncio.run(train())
    stop = []
    """,
    AFTER,
)
RAISED_AGAIN = [name for name in CASES if name not in CHAINED]

# --- a main thread that does not come back ----------------------------------------------------------------------------

case(
    "stuck in C",
    """
    x.nonzero()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    torch.futures.Future().wait()
    """,
)
case(
    "holds what the report needs",
    """
    from syncagent.runtime import agent
    def hang(self, report):
        while True:
            time.sleep(1)
    agent.ProcessAgent.save = hang
    signal.alarm(50)  # another signal than the one that is waited for
    os.kill(os.getpid(), signal.SIGTERM)
    """,
)
CASES["leaves while the report is made"] = (
    begin(
        """
        from syncagent.runtime.agent import ProcessAgent
        report = ProcessAgent.report
        def takes_long(self):
            if threading.current_thread() is not threading.main_thread():
                ending = time.monotonic() + 1.0
                while time.monotonic() < ending:
                    torch.ones(200_000).sort()
            return report(self)
        ProcessAgent.report = takes_long
        """
    )
    + """
stop = []
signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
x.nonzero()
os.kill(os.getpid(), signal.SIGTERM)
assert stop
time.sleep(0.1)  # the other thread has begun
print("checkpoint saved", flush=True)
sys.exit(3)
""",
    {},
)
case(
    "a wakeup of the program's own",
    """
    import socket
    ends = socket.socketpair()
    ends[1].setblocking(False)
    assert signal.set_wakeup_fd(ends[1].fileno()) == -1
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    torch.futures.Future().wait()
    """,
)

# --- children ---------------------------------------------------------------------------------------------------------

case(
    "forked children",
    """
    import multiprocessing
    def stuck():
        torch.futures.Future().wait()
    def chained():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
        os.kill(os.getpid(), signal.SIGTERM)
    codes = []
    for number in range(12):
        child = multiprocessing.get_context("fork").Process(target=(stuck, chained)[number % 2], daemon=True)
        child.start()
        if number % 2 == 0:
            time.sleep(0.004 * number)
            child.terminate()
        child.join(5)
        codes.append(child.exitcode)
    pid = os.fork()
    if pid == 0:
        signal.pause()
    os.kill(pid, signal.SIGTERM)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    with multiprocessing.get_context("fork").Pool(2) as pool:  # is terminated when it is left
        assert pool.map(abs, [-1, 2]) == [1, 2]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    print(set(codes), flush=True)
    thread = threading.Thread(target=lambda: codes.append(os.fork() or signal.pause()))
    thread.start()
    thread.join()
    os.kill(codes[-1], signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(codes[-1], 0)[1]), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    """,
)
case(
    "a child that does not listen to the policy's signal",
    """
    pid = os.fork()
    if pid == 0:
        signal.pause()
    os.kill(pid, signal.SIGUSR1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGUSR1
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    """,
    SYNCAGENT_POLICY_SIGNAL="USR1",
)
CASES["process 1"] = (
    """\
import ctypes, os, sys
if ctypes.CDLL(None).unshare(0x20000000):  # a new namespace for the processes that follow
    print("not permitted")
    sys.exit(3)
pid = os.fork()
if pid:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    + begin()
    + """
assert os.getpid() == 1
os.kill(1, signal.SIGTERM)
ending = time.monotonic() + 10
while not os.path.exists("report.json") and time.monotonic() < ending:
    time.sleep(0.02)
saved = os.path.exists("report.json")
for _ in range(5):
    x.nonzero()
print("saved", saved, syncagent.current() is not None, flush=True)
sys.exit(3)
""",
    {},
)

# --- Ctrl-C -----------------------------------------------------------------------------------------------------------

HANGS = """
import socket
listening = socket.socket()
listening.bind(("127.0.0.1", 0))
listening.listen(50)  # accepts and never answers
os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{listening.getsockname()[1]}"
"""
for _name, _number in (("Ctrl-C", "SIGINT"), ("SIGTERM", "SIGTERM")):
    CASES[f"{_name} while spans are sent"] = (
        begin(HANGS)
        + f"""
x.nonzero()
def impatient():
    while not os.path.exists("report.json"):
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(os.getpid(), signal.{_number})
os.environ.pop("OTEL_EXPORTER_OTLP_ENDPOINT")
threading.Thread(target=impatient, daemon=True).start()
os.kill(os.getpid(), signal.SIGINT)
time.sleep(10)
""",
        {},
    )
for _name, _first in (("Ctrl-C, five times", "SIGINT"), ("SIGTERM, then Ctrl-C", "SIGTERM")):
    CASES[_name] = (
        begin()
        + f"""
x.nonzero()
def impatient():
    for number in (signal.{_first}, *[signal.SIGINT] * 4):
        os.kill(os.getpid(), number)
        time.sleep(0.05)
threading.Thread(target=impatient, daemon=True).start()
time.sleep(10)
""",
        {},
    )
CASES["Ctrl-C while the report is made"] = (
    begin(
        """
        from syncagent.report.formats import text
        emit = text.emit
        def interrupted(*args, **options):
            os.kill(os.getpid(), signal.SIGINT)
            emit(*args, **options)
        text.emit = interrupted
        """
    )
    + "x.nonzero()\nsys.exit(3)",
    {},
)


# The first of them pays for the processes of all.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """``done(name)``: how that case ended."""
    folder = tmp_path_factory.mktemp("signals")
    given = {name: {"code": code, "variables": variables} for name, (code, variables) in CASES.items()}
    return fork(given, folder)


def has_table(found):
    return "host syncs; the host waited" in found.err


@pytest.mark.parametrize("name", CHAINED)
def test_a_handler_of_the_programs_decides_how_the_process_ends(done, name):
    """Whatever it does about the one it found: it leaves in order, and the report is saved."""
    found = done(name)
    assert (found.code, found.out) == (3, "trained\ncheckpoint saved\n")
    assert found.report["totals"]["syncs"] >= 2
    assert found.blames_us() == []


@pytest.mark.parametrize("name", RAISED_AGAIN)
def test_a_program_that_wants_to_die_by_the_signal_does(done, name):
    """It finds the default that it would find without the agent; once that is back, the report is saved first."""
    found = done(name)
    assert (found.code, found.out) == (TERM, "trained\ncheckpoint saved\n")
    assert found.report["totals"]["syncs"] >= 4
    assert has_table(found)
    assert found.blames_us() == []


def test_a_main_thread_that_is_stuck_in_c_does_not_keep_the_process_alive(done):
    """As a hung wait for the GPU would be: it dies by the signal, and what was seen is saved."""
    found = done("stuck in C")
    assert (found.code, found.out) == (TERM, "trained\n")
    assert found.report["totals"]["syncs"] >= 3
    assert has_table(found)


def test_a_report_that_hangs_does_not_keep_the_process_alive(done):
    """The end has a deadline, whatever the interrupted code holds."""
    assert done("holds what the report needs").code == TERM


def test_a_program_may_leave_while_another_thread_makes_the_report(done):
    """An interpreter that ends while a thread is inside an op of torch's aborts, so the end waits for the report."""
    found = done("leaves while the report is made")
    assert (found.code, found.out) == (3, "trained\ncheckpoint saved\n"), found.err
    assert found.report["totals"]["syncs"] >= 2


def test_a_program_that_is_woken_up_by_signals_itself_dies_at_once(done):
    """As without the agent: its file descriptor is its own, and nothing learns of the signal in time to save."""
    found = done("a wakeup of the program's own")
    assert (found.code, found.out) == (TERM, "trained\n")


def test_a_forked_child_dies_of_the_signal_from_its_first_moment_on(done):
    """However it was forked, and on whichever thread; the parent's own report is saved when its turn comes."""
    found = done("forked children")
    assert (found.code, found.out) == (TERM, "trained\n{-15}\n-15\n")
    assert found.report["totals"]["syncs"] >= 2


def test_the_signal_that_changes_the_policy_means_nothing_to_children(done):
    """It kills them, as any program that has no handler for it; the parent goes on."""
    found = done("a child that does not listen to the policy's signal")
    assert (found.code, found.out) == (TERM, "trained\n")


def test_process_1_of_a_container_goes_on_and_stays_watched(done):
    """The kernel spares it: the report is saved, and what follows is in the next one."""
    found = done("process 1")
    if found.out == "not permitted\n":
        pytest.skip("no new PID namespace may be made here")
    assert (found.code, found.out) == (3, "trained\nsaved True True\n")
    assert found.report["totals"]["syncs"] >= 7


@pytest.mark.parametrize("name", ["Ctrl-C while spans are sent", "SIGTERM while spans are sent"])
def test_who_does_not_wait_for_the_spans_has_the_report_and_the_table(done, name):
    """A collector that does not answer is waited for last."""
    found = done(name)
    assert found.code == (-signal.SIGINT if name.startswith("Ctrl-C") else TERM)
    assert has_table(found)
    assert found.report["totals"]["syncs"] >= 3
    assert found.blames_us() == []
    if name.startswith("Ctrl-C"):
        assert "sending spans was interrupted" in found.err
        assert any("was interrupted" in note for note in found.report["notes"])


@pytest.mark.parametrize(("name", "code"), [("Ctrl-C, five times", -signal.SIGINT), ("SIGTERM, then Ctrl-C", TERM)])
def test_an_impatient_user_loses_neither_the_report_nor_the_table(done, name, code):
    """Nor does the process abort: an interrupt in the middle of the end used to leave a thread in torch."""
    found = done(name)
    assert found.code == code
    assert has_table(found)
    assert found.report["totals"]["syncs"] >= 3


def test_an_interrupt_in_the_middle_of_the_table_comes_after_it(done):
    """The script has ended: its exit code is its own."""
    found = done("Ctrl-C while the report is made")
    assert (found.code, found.out) == (3, "trained\n")
    assert has_table(found)
    assert found.blames_us() == []


LOOP = """\
import torch
x = torch.ones(4, device="cuda")
while True:
    x.nonzero()
    torch.nn.functional.relu(x).sum().item()
"""


def test_a_signal_at_any_moment_of_the_start_ends_the_process(environ, tmp_path):
    """During imports, too, whose locks the report may need."""
    variables = {"SYNCAGENT": "1", "SYNCAGENT_SIMULATE": "1", "SYNCAGENT_DETAIL": "ops", "OMP_NUM_THREADS": "1"}
    began, running = time.monotonic(), []
    for delay_s in (0.6, 1.4, 2.2, 3.0, 4.5, 6.0):
        process = subprocess.Popen(
            [sys.executable, "-c", LOOP], env=environ | variables, cwd=tmp_path,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        running.append((began + delay_s, process))
    codes = []
    for due, process in running:
        time.sleep(max(due - time.monotonic(), 0.0))
        process.terminate()
        try:
            codes.append(process.wait(60))
        except subprocess.TimeoutExpired:
            process.kill()
            codes.append("hangs")
    assert codes == [TERM] * len(codes)
