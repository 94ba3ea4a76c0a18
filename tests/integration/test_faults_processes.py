"""Whole processes that end, break or lose their disk at a bad moment: the exit code and the output are the script's.

Each case is a child of one process that has loaded torch: see ``tests/forked.py``.
"""

from __future__ import annotations

import errno
import json
import os
import signal

import pytest

from tests.forked import begin, fork

CASES: dict[str, dict] = {}


def case(name, code, **variables):
    CASES[name] = {"code": code, "variables": variables}
    return name


# --- the end of the interpreter, at any moment ------------------------------------------------------------------------

# An interpreter that ends while a thread is inside an op of torch's aborts, agent or not: here the threads are ended
# by the program's own exit handler, which runs after the agent's.
ENDED = """\
import atexit, threading
over, threads = threading.Event(), []
atexit.register(lambda: (over.set(), [thread.join() for thread in threads]))
"""
SYNCING = """
def sync():
    while not over.is_set():
        x.nonzero()
        time.sleep(0.0005)
for _ in range(2):
    threads.append(threading.Thread(target=sync, daemon=True))
    threads[-1].start()
time.sleep({delay})
"""
ENDINGS = {"falls off the end": ("", 0), "exits": ("sys.exit(7)", 7), "leaves": ("os._exit(9)", 9),
           "fails": ("raise ValueError('its own')", 1)}  # fmt: skip
DELAYS = ((0, 35, 180), (2, 60, 250), (5, 110), (15, 80))
"""Milliseconds."""
MOMENTS = [(ending, delay) for ending, delays in zip(ENDINGS, DELAYS, strict=True) for delay in delays]
for _ending, _delay in MOMENTS:
    _code = ENDED + begin() + SYNCING.format(delay=_delay / 1e3) + ENDINGS[_ending][0]
    case(f"ends {_ending} after {_delay}", _code)

# --- signals ----------------------------------------------------------------------------------------------------------

IN_A_STALL = """
torch.cuda._sleep(int(2 * 1.5e9))
threading.Timer(0.2, os.kill, (os.getpid(), signal.{signal})).start()
x.sum().item()
print("never", flush=True)
"""
WHILE_REPORTING = """
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
while True:
    x.nonzero()
    syncagent.current().events()
    syncagent.current().report()
"""
for _signal in ("SIGTERM", "SIGINT"):
    case(f"{_signal} in a stall", begin() + IN_A_STALL.format(signal=_signal))
case("SIGTERM while it reports", begin() + WHILE_REPORTING)

# --- disks ------------------------------------------------------------------------------------------------------------

FULL = """
    real_open = os.open
    def full(path, *rest, **named):
        if ".syncagent-" in str(path):
            raise OSError({number}, os.strerror({number}))
        return real_open(path, *rest, **named)
    os.open = full
"""
JOURNAL_FULL = """
    real_write = os.write
    def full(file, data):
        if os.readlink(f"/proc/self/fd/{file}").endswith("spans.jsonl"):
            raise OSError(28, os.strerror(28))
        return real_write(file, data)
    os.write = full
"""
for _name in ("ENOSPC", "EROFS"):
    case(f"report {_name}", begin(FULL.format(number=getattr(errno, _name))) + "sys.exit(7)")
case("journal full", begin(JOURNAL_FULL) + "sys.exit(7)", SYNCAGENT_JOURNAL="spans.jsonl")
case(
    "journal in a folder that cannot be made",
    "open('file', 'w').close()\n" + begin() + "sys.exit(7)",
    SYNCAGENT_JOURNAL="file/spans.jsonl",
)
case("no stderr", begin() + "os.close(2); sys.stderr.close(); sys.exit(7)")
case("no stderr object", begin() + "sys.stderr = None; sys.exit(7)")
case(
    "a working directory that is gone",
    begin() + "import shutil, tempfile\nf = tempfile.mkdtemp(); os.chdir(f); shutil.rmtree(f); sys.exit(7)",
    SYNCAGENT_REPORT="{folder}/report.json",
)

# --- the last stages --------------------------------------------------------------------------------------------------

RAISES = """
    import {module} as module
    def broken(*args, **kwargs):
        if {name!r} == "snapshot" and not args[0].recorded:
            return original(*args, **kwargs)  # the empty one, which takes the other's place
        open("hit", "w").close()
        raise {error}("injected")
    holder = module
    for part in {holder!r}.split("."):
        holder = getattr(holder, part) if part else holder
    original = getattr(holder, {name!r})
    setattr(holder, {name!r}, broken)
"""
STAGES = {
    # stage: (module, class in it, attribute, whether the report is saved all the same)
    "table": ("syncagent.report.formats.text", "", "render", True),
    "table's stream": ("syncagent.report.formats.text", "", "emit", True),
    "JSON": ("syncagent.report.model", "Report", "to_dict", False),
    "page": ("syncagent.report.formats.html", "", "render", False),
    "SARIF": ("syncagent.report.formats.sarif", "", "render", False),
    "trace": ("syncagent.report.formats.trace", "", "render", False),
    "file": ("syncagent.report.files", "", "save_beside", False),
    "snapshot": ("syncagent.report.summary", "Summary", "snapshot", None),
    "provider": ("syncagent.telemetry.provider", "", "build_spans", True),
    "place of journal and capture": ("syncagent.runtime.sinks", "", "file_path", True),
    "provider's end": ("syncagent.telemetry.outbox", "Outbox", "close", True),
    "provider's account": ("syncagent.telemetry.outbox", "Outbox", "stats", True),
    "outbox": ("syncagent.telemetry.outbox", "Outbox", "on_end", True),
    "exporter": ("syncagent.telemetry.journal", "JournalExporter", "export", True),
    "encoding": ("syncagent.telemetry.journal", "", "encode", True),
    "spans of syncs": ("syncagent.telemetry.spans", "SpanSink", "events", True),
    "spans of steps": ("syncagent.telemetry.spans", "SpanSink", "close", True),
    "progress": ("syncagent.delivery.progress", "Progress", "events", True),
    "progress in the log": ("syncagent.delivery.progress_lines", "ProgressLines", "tick", True),
    "capture": ("syncagent.capture.writer", "Capture", "_write_news", True),
}
for _number, (_stage, (_module, _holder, _name, _)) in enumerate(STAGES.items()):
    _error = ("RuntimeError", "KeyError", "MemoryError", "RecursionError", "Exception")[_number % 5]
    _patch = RAISES.format(module=_module, holder=_holder, name=_name, error=_error)
    _report = {"page": "report.html", "SARIF": "report.sarif", "trace": "report.trace.json"}.get(_stage, "report.json")
    _variables = {
        "SYNCAGENT_JOURNAL": "spans.jsonl",
        "SYNCAGENT_CAPTURE": "seen.jsonl",
        "SYNCAGENT_REPORT": _report,
    }
    if _holder == "ProgressLines":
        _variables["SYNCAGENT_PROGRESS"] = "60"
    case(f"stage {_stage}", begin(_patch) + "time.sleep(0.15)\nsys.exit(7)", **_variables)

# --- children ---------------------------------------------------------------------------------------------------------

case(
    "forks",
    begin()
    + """
pid = os.fork()
if pid == 0:
    assert syncagent.current() is None
    assert torch.ones(2).nonzero().numel() == 2
    sys.exit(3)
_, status = os.waitpid(pid, 0)
x.unique()
sys.exit(os.waitstatus_to_exitcode(status) + 4)
""",
)

# --- memory of the host -----------------------------------------------------------------------------------------------

case(
    "no memory left",
    begin()
    + """
import resource
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + (32 << 20), resource.RLIM_INFINITY))
taken, ran_out = [], 0
for _ in range(3):
    try:
        while True:
            taken.append(bytearray(256 << 10))
            x.nonzero()
    except (MemoryError, RuntimeError):
        ran_out += 1
        taken.clear()
for _ in range(20):
    assert x[x > 0].sum().item() == 3.0
print("ran out", ran_out, flush=True)
sys.exit(7)
""",
)

# --- the simulated device's sensor ------------------------------------------------------------------------------------

SIMULATED = """\
import json, os, sys
from syncagent import simulate
from syncagent.runtime import process
from syncagent.support import log
import syncagent
from syncagent.recording import recorder
from syncagent.attribution import threads
from syncagent.attribution.locator import Locator
from syncagent.attribution.steps import Steps
from syncagent.policy import Policy
from syncagent.sensors import simulated, modes
from syncagent.report.summary import Summary
simulate.install()
import torch
del os.environ["SYNCAGENT_REPORT"]

def train():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for _ in range(2):
        out = model(torch.randn(5, 4).cuda())
        loss = out[out > 0].square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch.cuda.synchronize()
        found.append(loss.item())
    return found, [p.tolist() for p in model.parameters()]

POINTS = ((simulated.SimulatedSensor, "start"), (simulated.SimulatedSensor, "stop"), (threads, "thread_name"),
          (threads.Threads, "retire"), (Locator, "locate"),
          (recorder, "_device_and_shapes"), (modes.ModeSensor, "start"), (Policy, "judge"), (Policy, "forbids"),
          (Summary, "events"), (Steps, "_end"))
alone = train()
outcome = {}
for holder, name in POINTS:
    for error in (RuntimeError, MemoryError):
        original = getattr(holder, name)
        tried = []
        def broken(*_args, **_kwargs):
            tried.append(1)
            raise error("injected")
        log._said.clear()
        setattr(holder, name, broken)
        try:
            judged = {"policy": "warn", "warmup_steps": 0, "allow": "elsewhere"} if holder is Policy else {}
            has_modes = error is RuntimeError or holder is modes.ModeSensor
            syncagent.start(detail="ops" if has_modes else "syncs", **judged)
            same = train() == alone
            report = syncagent.stop()
            json.dumps(report.to_dict(), allow_nan=False)
            shown = bool(report.notes or report.dropped)
            outcome[f"{holder.__name__}.{name} {error.__name__}"] = [same, shown, bool(tried)]
        except Exception as failure:
            outcome[f"{holder.__name__}.{name} {error.__name__}"] = repr(failure)
        finally:
            setattr(holder, name, original)
            simulate.observe_waits(None)
            while syncagent.current() is not None:
                process.release(syncagent.current())
print(json.dumps(outcome))
"""
case("simulated sensor", SIMULATED)


# --- what came of it --------------------------------------------------------------------------------------------------

# The first of them pays for the processes of all.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """``done(name)``: how that case ended."""
    folder = tmp_path_factory.mktemp("cases")
    given = {
        name: {
            "code": value["code"],
            "variables": {k: v.replace("{folder}", str(folder / name)) for k, v in value["variables"].items()},
        }
        for name, value in CASES.items()
    }
    return fork(given, folder)


@pytest.mark.parametrize(("ending", "delay"), MOMENTS)
def test_the_interpreter_may_end_at_any_moment(done, ending, delay):
    """While other threads go on to sync: its exit code, its traceback, none of ours; the report is whole."""
    found = done(f"ends {ending} after {delay}")
    assert (found.code, found.out) == (ENDINGS[ending][1], "trained\n")
    assert ("its own" in found.err) == (ending == "fails")
    assert found.err.count("Traceback") == (ending == "fails")
    assert found.blames_us() == []
    if ending != "leaves":
        assert found.report["totals"]["syncs"] > 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_in_a_stall_ends_the_wait(done, name):
    """The status is the signal's; what was seen until then is saved."""
    found = done(f"{name} in a stall")
    assert (found.code, found.out) == (-getattr(signal, name), "trained\n")
    assert ("KeyboardInterrupt" in found.err) == (name == "SIGINT")
    assert found.report["totals"]["syncs"] >= 2


def test_a_signal_in_the_middle_of_a_report_does_not_hang(done):
    """Locks that the interrupted code holds are open to the handler."""
    found = done("SIGTERM while it reports")
    assert (found.code, found.out) == (-signal.SIGTERM, "trained\n")
    assert found.report["totals"]["syncs"] >= 2


@pytest.mark.parametrize("name", ["ENOSPC", "EROFS"])
def test_a_report_that_cannot_be_written_is_one_line(done, name):
    """With the path and the reason; the table is shown, the exit code is the script's."""
    found = done(f"report {name}")
    assert (found.code, found.out) == (7, "trained\n")
    [line] = [line for line in found.said if "cannot be written" in line]
    assert os.strerror(getattr(errno, name)).lower() in line
    assert "host sync" in found.err
    assert found.blames_us() == []
    assert sorted(path.name for path in found.folder.iterdir()) == ["err", "out"]


@pytest.mark.parametrize("name", ["journal full", "journal in a folder that cannot be made"])
def test_a_journal_that_cannot_be_written_is_one_line(done, name):
    """The report is saved and says how many spans are lost, where any are."""
    found = done(name)
    assert (found.code, found.out) == (7, "trained\n")
    [line] = [line for line in found.said if "journal" in line]
    assert "elsewhere" in line or "lacks spans" in line
    assert found.blames_us() == []
    lost = [note for note in found.report["notes"] if "spans were lost" in note]
    assert len(lost) == (name == "journal full")


@pytest.mark.parametrize("name", ["no stderr", "no stderr object", "a working directory that is gone"])
def test_what_a_program_takes_away_from_itself_the_agent_does_without(done, name):
    """The report is saved, the exit code is the script's."""
    found = done(name)
    assert (found.code, found.out) == (7, "trained\n")
    assert found.report["totals"]["syncs"] >= 2
    assert found.blames_us() == []


def test_a_host_without_memory_is_the_programs_business(done):
    """The limit is the system's: the program's own allocations fail, and it goes on; so does the agent."""
    found = done("no memory left")
    assert (found.code, found.out) == (7, "trained\nran out 3\n")
    assert found.blames_us() == []
    assert found.report["totals"]["syncs"] >= 40


@pytest.mark.parametrize("stage", STAGES)
def test_a_last_stage_that_fails_costs_itself_alone(done, stage):
    """A line for each part that it takes, no traceback, the script's exit code; the report is saved if it can be."""
    found = done(f"stage {stage}")
    assert (found.folder / "hit").exists()
    assert (found.code, found.out) == (7, "trained\n")
    assert len(found.said) == (2 if stage == "place of journal and capture" else 1)
    assert found.blames_us() == []
    assert "Traceback" not in found.err
    saved = STAGES[stage][3]
    if saved:
        assert found.report["totals"]["syncs"] >= 2
    if saved is False:
        assert "host sync" in found.err  # the table


def test_a_forked_child_says_nothing_and_writes_nothing(done):
    """The parent's report has the parent's syncs."""
    found = done("forks")
    assert (found.code, found.out) == (7, "trained\n")
    assert [path.name for path in found.folder.glob("*.json")] == ["report.json"]
    assert found.err.count("host syncs; the host waited") == 1
    assert found.blames_us() == []


def test_the_simulated_devices_sensor_may_fail_anywhere(done):
    """Training on it gives the same to the bit, and the report says that something is missing."""
    found = done("simulated sensor")
    outcome = json.loads(found.out.splitlines()[-1])
    assert len(outcome) == 2 * 11
    assert {name: got for name, got in outcome.items() if got != [True, True, True]} == {}


# --- torch that comes late --------------------------------------------------------------------------------------------

LATE = """\
import importlib.util, sys, threading
assert importlib.util.find_spec("torch") is not None  # as libraries ask whether they may use it
assert "torch" not in sys.modules

def work():
    import torch
    x = torch.tensor([1.0, 0.0, 2.0], device="cuda")
    print("kept", x[x > 0].numel(), flush=True)

thread = threading.Thread(target=work)
thread.start()
thread.join()
ours = [finder for finder in sys.meta_path if type(finder).__module__.startswith("syncagent")]
assert not any(finder.find_spec("torch") for finder in ours)  # the simulated device waits for torch._dynamo as well
sys.exit(7)
"""


def test_torch_that_is_looked_for_first_and_imported_late_is_seen(python, tmp_path):
    """In another thread, after a library has asked whether there is one."""
    variables = {"SYNCAGENT": "1", "SYNCAGENT_SIMULATE": "1", "SYNCAGENT_REPORT": "report.json"}
    ran = python("-c", LATE, **variables)
    assert (ran.returncode, ran.stdout) == (7, "kept 2\n"), ran.stderr
    assert json.loads((tmp_path / "report.json").read_text())["totals"]["syncs"] > 0
