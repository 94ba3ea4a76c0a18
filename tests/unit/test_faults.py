"""The agent never breaks the job it watches: each of its parts is made to fail in turn while a small model trains.

The device is the CPU (see ``conftest.py``), so dispatcher, autograd and optimizer are torch's own.  What runs on the
simulated device, and what ends processes, is in ``tests/integration/test_faults_processes.py``.
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import fields, replace

import pytest
import torch
from torch.optim import optimizer as torch_optimizer
from torch.profiler import record_function

import syncagent
import syncagent.runtime.process
from syncagent.attribution import callsite, modules, ranks, threads
from syncagent.attribution.ranges import Ranges
from syncagent.attribution.steps import Steps
from syncagent.delivery.sink import Sink
from syncagent.events import SyncKind
from syncagent.policy import Policy
from syncagent.recording import recorder
from syncagent.report.summary import Summary
from syncagent.sensors import explicit, hooked_op, kernels, modes, monitored
from syncagent.settings import sources
from syncagent.support import log
from syncagent.torchbridge import api_names, calibration, internals
from tests.unit.tools import keep_recorders, waiting

pytestmark = [
    pytest.mark.usefixtures("cpu_device"),
    pytest.mark.filterwarnings("ignore:.*torch.cuda.amp.GradScaler.*"),
]

STEPS = 3
ERRORS = (Exception, KeyError, RuntimeError, RecursionError, MemoryError)
NONSENSE = {"None": None, "NaN": math.nan, "negative": -1, "text": "?", "object": object(), "empty": ()}


class Fault(RuntimeError):
    """What a broken part raises."""


# --- the job ----------------------------------------------------------------------------------------------------------


class Net(torch.nn.Module):
    """Has a sync in its forward pass, inside of a module that is called by another."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
        self.loss = Loss()

    def forward(self, x):
        return self.loss(self.layers(x))


class Loss(torch.nn.Module):
    """Of those outputs that are positive, and of all."""

    def forward(self, out):
        return out[out > 0].square().sum() + out.sum().abs()


class Barrier:
    """Of the program's own; only its name is that of a sync."""

    def synchronize(self):
        """Nothing to wait for."""


def train(steps=STEPS):
    """Losses and weights; each step has syncs in the forward and the backward pass, one asked for and one allowed.

    One op has waited when it raises.
    """
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    losses = []
    for _ in range(steps):
        with record_function("batch"):
            loss = model(torch.randn(5, 4))
        optimizer.zero_grad()
        loss.backward()
        scaler.step(optimizer)
        scaler.update()
        with suppress(torch.linalg.LinAlgError):
            torch.linalg.inv(torch.zeros(2, 2))
        torch._C._cuda_synchronize()
        Barrier().synchronize()
        losses.append(loss.item())
        with syncagent.allow("logging"):
            losses.append(loss.item())
    return losses, [p.detach().clone() for p in model.parameters()]


@pytest.fixture(scope="module")
def alone():
    """What training gives without an agent; builds for CUDA and builds without it get the same call to wait."""
    patch = pytest.MonkeyPatch()
    patch.setattr(torch._C, "_cuda_synchronize", lambda: None, raising=False)
    yield train()
    patch.undo()


def same(one, other):
    losses, weights = one
    return losses == other[0] and all(torch.equal(a, b) for a, b in zip(weights, other[1], strict=True))


@pytest.fixture(autouse=True)
def _said_afresh(monkeypatch):
    """Each may be said again, to what stderr is now."""
    monkeypatch.setattr(log, "_said", set())
    log.get_logger.cache_clear()
    yield
    log.get_logger.cache_clear()


def agents_threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("syncagent")}


def shape_of_the_process():
    """What an agent changes while it is on."""
    return {
        "modes": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "threads": agents_threads(),
        "ranges": (record_function.__enter__, record_function.__exit__),
        "scaler": torch.amp.GradScaler.update,
        "hooks": len(torch_optimizer._global_optimizer_post_hooks),
        "synchronize": torch._C._cuda_synchronize,
        "event": torch.cuda.Event.synchronize,
    }


def lines_of(text):
    return [line for line in text.splitlines() if line.startswith("[syncagent]")]


class Broken:
    """Stands in for a function of the agent's; goes wrong in the given way, and counts how often it was tried."""

    def __init__(self, wrong):
        self.wrong = wrong
        self.calls = 0
        self.only = None

    def __call__(self, *args, **kwargs):
        if self.only is not None and not self.only(*args[:1]):
            return self.original(*args, **kwargs)
        self.calls += 1
        if isinstance(self.wrong, type):
            raise self.wrong(f"injected {self.calls}")
        return self.wrong

    def as_method(self):
        """As a plain function, which a class binds."""
        return lambda *args, **kwargs: self(*args, **kwargs)


def watched(alone, capsys, *, sinks=(), detail="ops", **settings):
    """Train under an agent; check what must hold whatever breaks, and return the report and what was logged."""
    before = shape_of_the_process()
    with pytest.MonkeyPatch.context() as patch:
        recorders = keep_recorders(patch)
        agent = syncagent.runtime.process.launch(sources.load({"warmup_steps": 0, "detail": detail, **settings}), sinks)
    result = train()
    agent.events()
    agent.flush()
    report = syncagent.stop()
    assert same(result, alone)
    assert shape_of_the_process() == before
    assert syncagent.current() is None
    left = waiting(recorders[0])
    torch.ones(2).nonzero()  # is not hooked
    assert waiting(recorders[0]) == left
    json.loads(json.dumps(report.to_dict(), allow_nan=False))
    said = lines_of(capsys.readouterr().err)
    assert len(said) == len({line.partition("error=")[0][20:] for line in said}), said
    return report, said


def shows_a_loss(report):
    return bool(report.notes or report.dropped or any(not s.live and "injected" in s.detail for s in report.sensors))


# --- the points at which it may break ---------------------------------------------------------------------------------

SEVERAL = 50
"""What goes wrong for one sync may go right for the next: such a part gets a few chances, and one line all the same."""

POINTS = {
    # where: (holder, attribute, how often it may be tried before it is off)
    "kernels start": (kernels.KernelSensor, "start", 1),
    "kernels stop": (kernels.KernelSensor, "stop", 1),
    "kernels arm": (kernels.KernelSensor, "arm_hot", 2),
    "modes start": (modes.ModeSensor, "start", 1),
    "modes stop": (modes.ModeSensor, "stop", 1),
    "modes' sums": (modes, "OpSum", 1),
    "explicit start": (explicit.ExplicitSensor, "start", 1),
    "explicit stop": (explicit.ExplicitSensor, "stop", 1),
    "monitored start": (monitored.MonitoredSensor, "start", 1),
    "monitored stop": (monitored.MonitoredSensor, "stop", 1),
    "monitored code": (monitored.MonitoredSensor, "_code_starts", 1),
    "monitored names": (monitored.MonitoredSensor, "_look_at", 1),
    "monitored calls": (monitored.MonitoredSensor, "_shown", 1),
    "crossing of a kernel": (calibration, "kernel_ns", 3),
    "crossing of the modes": (calibration, "mode_ns", 3),
    "sums of allowed lines": (recorder, "Tally", SEVERAL),
    "call sites": (callsite.CallSites, "walk", SEVERAL),
    "call sites in backward": (callsite.CallSites, "capture", SEVERAL),
    "call sites of ops": (callsite.CallSites, "innermost", 1),
    "code of frames": (callsite.CallSites, "_classify", SEVERAL),
    "lines of source": (callsite.CallSites, "resolve", SEVERAL),
    "forward sites kept": (threads.ForwardSites, "remember", SEVERAL),
    "forward sites found": (threads.ForwardSites, "find", SEVERAL),
    "module paths": (modules.ModulePaths, "path", SEVERAL),
    "ranges start": (Ranges, "start", 1),
    "ranges stop": (Ranges, "stop", 1),
    "ranks": (ranks, "read", 1),
    "steps start": (Steps, "start", 1),
    "steps stop": (Steps, "stop", 1),
    "a step's end": (Steps, "_end", 1),
    "optimizers' steps": (Steps, "_optimizer_stepped", 1),
    "the scaler's steps": (Steps, "_scaler_updated", 1),
    "summary of syncs": (Summary, "events", 1),
    "summary of steps": (Summary, "step", 1),
    "summary's report": (Summary, "snapshot", 3),
    "the newest syncs": (Summary, "newest", 3),
}
SETTINGS = {"kernels arm": {"detail": "syncs"}, "sums of allowed lines": {"detail": "syncs"}}
"""Under which settings a point is reached, where it is not by default."""

NO_RESULT = frozenset(
    name
    for name in POINTS
    if name.rpartition(" ")[2] in {"start", "stop", "arm", "finish"}
    or name in {"modes' sums", "sums of allowed lines", "ranks", "summary's report", "monitored calls"}
)
"""Their results are not looked at, or only by us."""

STOPS = frozenset(name for name in POINTS if name.endswith(" stop"))
"""A part that cannot be turned off stays behind: that alone can be seen in the process afterwards."""


@pytest.fixture
def broken(monkeypatch):
    """``broken(name, wrong)``: that point goes wrong in this way until the test is over."""

    def breaks(name, wrong):
        holder, attribute, _ = POINTS[name]
        part = Broken(wrong)
        part.original = getattr(holder, attribute)
        monkeypatch.setattr(holder, attribute, part.as_method() if isinstance(holder, type) else part)
        return part

    return breaks


TOO_OLD = pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring is new in Python 3.12")


def point(name, *more):
    """The parameters of a point at which something may break; some are reached on a newer Python only."""
    needs_monitoring = name in {"monitored code", "monitored names", "monitored calls"}
    return pytest.param(name, *more, marks=TOO_OLD if needs_monitoring else (), id="-".join((name, *more)))


@pytest.mark.parametrize("name", [point(name) for name in sorted(set(POINTS) - STOPS)])
def test_a_part_that_raises_is_off_and_training_goes_on(alone, broken, capsys, name):
    """Same results to the bit, no exception, one line said, the report made and what is lost shown in it."""
    part = broken(name, Fault)
    if name == "summary's report":  # that of the agent, not the empty one that takes its place
        part.only = lambda summary: summary.recorded
    report, said = watched(alone, capsys, **SETTINGS.get(name, {}))
    assert 1 <= part.calls <= POINTS[name][2]
    assert 1 <= len(said) <= 2  # two parts may have use of one
    assert shows_a_loss(report)


TOGETHER = {
    "before a line is known": ("call sites", "lines of source", "a step's end"),
    "when it is known": ("summary of syncs", "a step's end"),
    "in a module": ("module paths", "a step's end"),
}


@pytest.mark.parametrize(
    ("when", "detail"), [(when, detail) for when in TOGETHER for detail in ("ops", "syncs")][:-1]
)  # no path of a module is asked for under detail=syncs
@pytest.mark.parametrize("error", ERRORS)
def test_whatever_a_part_raises_is_caught(alone, broken, capsys, error, when, detail):
    """Also what comes with a full memory or a full stack, and in several parts at once."""
    parts = {name: broken(name, error) for name in TOGETHER[when]}
    report, said = watched(alone, capsys, detail=detail)
    assert [name for name, part in parts.items() if not part.calls] == []
    assert shows_a_loss(report)
    assert 1 <= len(said) <= 5


IMPOSSIBLE = ("module paths", "object")
"""``nn.Module`` joins these paths from strings."""


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        point(name, wrong)
        for name in sorted(set(POINTS) - NO_RESULT - STOPS)
        for wrong in NONSENSE
        if (name, wrong) != IMPOSSIBLE
    ],
)
def test_a_part_that_returns_nonsense_harms_nothing(alone, broken, capsys, name, wrong):
    """The wrong type, no number, a negative one."""
    part = broken(name, NONSENSE[wrong])
    watched(alone, capsys, **SETTINGS.get(name, {}))
    assert part.calls >= 1


@pytest.mark.parametrize("name", sorted(STOPS))
def test_a_part_that_cannot_be_turned_off_does_not_keep_the_others_on(monkeypatch, broken, alone, capsys, name):
    """It is reported once; the report is made."""
    holder, attribute, _ = POINTS[name]
    original = getattr(holder, attribute)

    def stops_and_raises(self):
        original(self)
        raise Fault("injected")

    monkeypatch.setattr(holder, attribute, stops_and_raises)
    report, said = watched(alone, capsys)
    assert len(said) == 1
    assert report.sites
    assert shows_a_loss(report)


@pytest.mark.parametrize("name", [field.name for field in fields(internals.Internals) if field.name != "missing"])
@pytest.mark.parametrize("wrong", [Fault, *NONSENSE], ids=str)
def test_a_name_of_torchs_that_is_another_thing_by_now_harms_nothing(alone, monkeypatch, capsys, name, wrong):
    """A torch to come may keep a name and change what it does."""
    real = internals.look_up
    part = Broken(wrong if wrong is Fault else NONSENSE[wrong])

    def changed(*, simulated=False):
        found = real(simulated=True)
        if name == "backward_entry":
            return replace(found, backward_entry=None if wrong is Fault else NONSENSE[wrong])
        return replace(found, **{name: part})

    monkeypatch.setattr(internals, "look_up", changed)
    report, _ = watched(alone, capsys)
    assert part.calls or name == "backward_entry"
    assert report.totals.syncs + report.dropped > 0


def test_a_torch_in_which_nothing_is_found_is_still_watched(alone, monkeypatch, capsys):
    """The look-up itself fails."""
    monkeypatch.setattr(internals, "look_up", Broken(Fault))
    before = shape_of_the_process()
    try:
        watched(alone, capsys)
    finally:
        assert shape_of_the_process() == before


@pytest.mark.parametrize("wrong", [Fault, *NONSENSE], ids=str)
@pytest.mark.parametrize("part", ["proves", "waits", "late"])
def test_a_rule_that_goes_wrong_leaves_the_op_alone(alone, monkeypatch, capsys, part, wrong):
    """Of an op that is called with unexpected arguments."""
    broken = Broken(wrong if wrong is Fault else NONSENSE[wrong])
    real = kernels.KernelSensor.__init__

    def with_broken_rules(self, recorder, conditions, rules=kernels.RULES, *, device_key=None):
        real(self, recorder, conditions, [replace(rule, **{part: broken}) for rule in rules], device_key=device_key)

    monkeypatch.setattr(hooked_op, "_LATE_NS", -1)
    monkeypatch.setattr(kernels.KernelSensor, "__init__", with_broken_rules)
    report, said = watched(alone, capsys)
    assert broken.calls
    if wrong is Fault:
        assert shows_a_loss(report)
        assert 1 <= len(said) <= len({rule.op for rule in kernels.RULES})  # one for an op


def test_a_name_that_cannot_be_shown_costs_only_its_label(alone, capsys):
    """The label of a range is the program's own object."""

    class Odd(str):
        __slots__ = ()

        def __str__(self):
            raise Fault("injected")

    agent = syncagent.runtime.process.launch(sources.load({"detail": "syncs"}), ())
    for _ in range(2):
        with record_function(Odd("odd")):
            torch.ones(2).nonzero()
    report = syncagent.stop()
    assert [event.op for event in agent.events()] == ["aten::nonzero"] * 2
    assert len(lines_of(capsys.readouterr().err)) == 1
    assert shows_a_loss(report)


# --- the policy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    ("call", "mode"), [("judge", "warn"), ("judge", "raise"), ("forbids", "warn"), ("act", "warn"), ("act", "raise")]
)
def test_a_policy_that_raises_is_off_and_reported_once(alone, monkeypatch, capsys, call, error, mode):
    """It lets pass what it cannot judge: only what it forbids on purpose may stop a job.

    ``forbids`` is asked after the wait; ``raise`` has forbidden it before.
    """
    part = Broken(error)
    monkeypatch.setattr(Policy, call, part.as_method())
    if call != "judge":
        monkeypatch.setattr(Policy, "judge", lambda *_: None)
    if call == "act":
        monkeypatch.setattr(Policy, "forbids", lambda *_: "injected")
    report, said = watched(alone, capsys, policy=mode, detail="syncs", allow="elsewhere")
    assert part.calls == 1
    assert len([line for line in said if "part=" in line]) == 1
    assert any("policy" in note for note in report.notes)


@pytest.mark.parametrize("wrong", sorted(set(NONSENSE) - {"object"}))
def test_a_policy_that_gives_a_nonsensical_reason_stops_nothing(alone, monkeypatch, capsys, wrong):
    """It has not forbidden anything."""
    part = Broken(NONSENSE[wrong])
    monkeypatch.setattr(Policy, "judge", part.as_method())
    watched(alone, capsys, policy="observe", allow="nowhere", detail="syncs")
    assert part.calls


# --- sinks ------------------------------------------------------------------------------------------------------------


class Taken(Sink):
    """A sink that keeps what it gets."""

    name = "taken"

    def __init__(self):
        self.got = []
        self.calls = Counter()

    def events(self, batch):
        self.calls["events"] += 1
        self.got += batch

    def step(self, record):
        self.calls["step"] += 1
        self.got.append(record)

    def flush(self):
        self.calls["flush"] += 1

    def close(self):
        self.calls["close"] += 1


class Failing(Taken):
    """A sink of which one call goes wrong."""

    name = "failing"

    def __init__(self, call, wrong):
        super().__init__()
        part = self.part = Broken(wrong)
        setattr(self, call, part)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("call", ["events", "step", "flush", "close"])
def test_a_sink_that_raises_is_off_and_the_others_get_everything(alone, capsys, call, error):
    """It is tried once, and the report says so."""
    failing, taken = Failing(call, error), Taken()
    report, said = watched(alone, capsys, sinks=(failing, taken))
    assert failing.part.calls == 1
    assert len(said) == 1
    assert any("failing" in note for note in report.notes)
    events = [got for got in taken.got if hasattr(got, "stall_ns")]
    assert len(events) == report.totals.syncs
    assert len(taken.got) - len(events) == STEPS
    assert taken.calls["close"] == 1


@pytest.mark.parametrize("wrong", NONSENSE)
@pytest.mark.parametrize("call", ["events", "step", "flush", "close"])
def test_what_a_sink_returns_is_not_looked_at(alone, capsys, call, wrong):
    """Nothing is reported."""
    report, said = watched(alone, capsys, sinks=(Failing(call, NONSENSE[wrong]),))
    assert said == []
    assert report.notes == ()


class Hanging(Taken):
    """A sink with one call that does not return until it is released."""

    name = "hanging"

    def __init__(self, call):
        super().__init__()
        self.let_go = threading.Event()
        self.inside = threading.Event()

        def hang(*_args):
            self.inside.set()
            self.let_go.wait(100)

        setattr(self, call, hang)


@pytest.mark.parametrize("call", ["events", "close"])
def test_a_sink_that_hangs_neither_holds_up_training_nor_the_end(alone, capsys, monkeypatch, call):
    """``stop`` comes back, with a report that says what hangs and how much was not delivered."""
    monkeypatch.setattr("syncagent.delivery.pipeline._PATIENCE_S", 0.5)
    sink = Hanging(call)
    try:
        syncagent.runtime.process.launch(sources.load({"detail": "syncs", "warmup_steps": 0}), (sink,))
        assert same(train(), alone)
        if call == "events":
            assert sink.inside.wait(10)
            assert same(train(), alone)
        report = syncagent.stop()  # comes back, though the sink does not
        assert syncagent.current() is None
        json.dumps(report.to_dict())
        said = lines_of(capsys.readouterr().err)
        assert len(said) == 1
        assert shows_a_loss(report)
    finally:
        sink.let_go.set()
    for thread in agents_threads():
        thread.join(10)


# --- clocks -----------------------------------------------------------------------------------------------------------


def test_a_wall_clock_that_jumps_changes_no_duration(alone, capsys, monkeypatch):
    """By hours, back and forth: durations are of another clock."""
    real, jumps = time.time_ns, iter(range(10**9))
    monkeypatch.setattr(time, "time_ns", lambda: real() + (-1) ** next(jumps) * 7_200_000_000_000)
    taken = Taken()
    report, said = watched(alone, capsys, sinks=(taken,))
    assert said == []
    assert all(0 <= got.stall_ns < 60e9 for got in taken.got if hasattr(got, "stall_ns"))
    assert 0 <= report.run.duration_s < 60
    assert all(0 <= site.stall_ms < 60e3 for site in report.sites)


@pytest.mark.parametrize("detail", ["ops", "syncs"])
def test_a_steady_clock_that_is_none_gives_no_negative_stall(alone, capsys, monkeypatch, detail):
    """Each look at it is earlier than the one before."""
    backwards = iter(range(10**15, 0, -1_000_000))
    for module in ("kernels", "modes", "explicit", "monitored"):
        monkeypatch.setattr(f"syncagent.sensors.{module}._now", lambda: next(backwards), raising=False)
    monkeypatch.setattr("syncagent.recording.recorder._now", lambda: next(backwards), raising=False)
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(backwards))
    taken = Taken()
    report, said = watched(alone, capsys, sinks=(taken,), detail=detail)
    stalls = [got.stall_ns for got in taken.got if hasattr(got, "stall_ns")]
    assert stalls
    assert min(stalls) >= 0
    assert all(site.stall_ms >= 0 for site in report.sites)
    assert report.totals.stall_share >= 0
    assert (report.totals.step_ms or 0) >= 0
    assert (report.overhead.share or 0) >= 0
    assert said == []


# --- the surroundings -------------------------------------------------------------------------------------------------


def test_a_working_directory_that_is_gone_is_no_obstacle(alone, tmp_path, monkeypatch, capsys):
    """Neither when it starts nor for the report."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    report, said = watched(alone, capsys)
    assert report.sites
    assert said == []


def test_no_more_threads_can_be_started(alone, monkeypatch, capsys):
    """A limit on processes: nothing is delivered meanwhile, all of it at the end."""

    def refuse(_self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    report, said = watched(alone, capsys)
    assert report.totals.syncs > 0
    assert len(said) == 1


@pytest.mark.usefixtures("patient")
def test_two_hundred_threads_are_counted_exactly():
    """None of their syncs is lost, and none is counted twice."""
    x = torch.tensor([1.0, 0.0])
    with syncagent.watch(detail="syncs") as agent:
        threads = [threading.Thread(target=lambda: [x.nonzero() for _ in range(10)]) for _ in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    report = agent.report()
    assert (report.totals.syncs, report.dropped, len(agent.events())) == (2000, 0, 2000)


def test_a_full_memory_in_the_users_code_is_the_users(alone):
    """It comes through a watch as it is, and what was seen until then is kept."""

    def fills_the_memory():
        torch.ones(2).nonzero()
        raise MemoryError("the user's")

    with pytest.raises(MemoryError, match="the user's"), syncagent.watch(detail="ops") as agent:
        fills_the_memory()
    assert agent.report().totals.syncs == 1
    assert same(train(), alone)


def test_asyncio_tasks_are_watched_as_they_take_turns():
    """Each sync is one event, whichever task made it; an allowance holds for its own task."""
    import asyncio

    x = torch.tensor([1.0, 0.0])

    async def work(number):
        for _ in range(5):
            if number % 2:
                with syncagent.allow(f"task {number}"):
                    await asyncio.sleep(0)
                    x.nonzero()
            else:
                x.nonzero()
                await asyncio.sleep(0)

    async def run():
        await asyncio.gather(*(work(number) for number in range(10)))

    with syncagent.watch(detail="syncs") as agent:
        asyncio.run(run())
    assert Counter(event.allowed for event in agent.events()) == {
        None: 25, **{f"task {number}": 5 for number in (1, 3, 5, 7, 9)},
    }  # fmt: skip


def test_an_agent_may_be_stopped_from_another_thread(alone, capsys):
    """The modes of the thread that started it stay where they are, and do nothing."""
    agent = syncagent.runtime.process.launch(sources.load({"detail": "ops"}), ())
    stopper = threading.Thread(target=syncagent.stop)
    stopper.start()
    stopper.join()
    assert same(train(), alone)
    assert agent.report().totals.syncs == 0
    assert lines_of(capsys.readouterr().err) == []


def test_a_part_that_is_not_asked_for_is_not_missed(alone, monkeypatch, capsys):
    """What names the call is only for reading: a sync without it is still one."""
    import syncagent.delivery.buffers

    monkeypatch.setattr(syncagent.delivery.buffers, "api_name", Broken(Fault))
    report, said = watched(alone, capsys)
    assert report.totals.syncs + report.dropped > 0
    assert shows_a_loss(report)
    assert len(said) == 1
    assert api_names.api_name(None) is None


def test_every_kind_of_sync_of_the_job_is_seen_when_nothing_fails(alone, capsys):
    """So that the other tests fail for what they break."""
    report, said = watched(alone, capsys)
    kinds = Counter({site.kind: 0 for site in report.sites})
    for site in report.sites:
        kinds[site.kind] += site.count
    assert set(kinds) >= {SyncKind.DYNAMIC_SHAPE, SyncKind.SCALAR_READ, SyncKind.EXPLICIT}
    assert report.run.steps == STEPS
    assert (report.notes, report.dropped, said) == ((), 0, [])
