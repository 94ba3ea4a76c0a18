"""Starting, stopping and asking the agent; ``watch`` as a context manager and as a decorator."""

from __future__ import annotations

import asyncio
import inspect
import json
import multiprocessing
import os
import threading

import pytest
import torch

import syncagent
from syncagent.delivery.sink import Sink
from syncagent.report import summary
from syncagent.runtime import process
from syncagent.sensors.copies import CopySampling
from syncagent.settings import sources
from syncagent.support import log
from tests.unit.tools import waiting

X = torch.tensor([[1.0, 0.0], [0.0, 5.0]])

pytestmark = pytest.mark.usefixtures("cpu_device")


@pytest.fixture(autouse=True)
def messages(monkeypatch):
    """What the agent logs, message by message; each may be said again."""
    said = []
    monkeypatch.setattr(log, "_said", set())

    class Logger:
        def log(self, _level, message, **_values):
            said.append(message)

        def error(self, message, **_values):
            said.append(message)

    monkeypatch.setattr(log, "get_logger", Logger)
    monkeypatch.setattr(syncagent.runtime.handle, "get_logger", Logger)
    return said


def ops(agent):
    return [event.op for event in agent.events()]


SUMMED_UP = "host sync; the host waited"


def printed(capfd):
    """What was printed on stderr, but for the log."""
    return "\n".join(line for line in capfd.readouterr().err.splitlines() if not line.startswith("[syncagent]"))


# --- the summary ------------------------------------------------------------------------------------------------------


def test_watch_prints_the_summary_at_its_end_if_asked(capfd, tmp_path):
    """Once, with where the report was saved; also after an error, and at the end of each call of a function."""
    with syncagent.watch(detail="syncs", summary=True, report=tmp_path / "r.json"):
        X.nonzero()
        assert printed(capfd) == ""
    said = printed(capfd)
    assert said.count(SUMMED_UP) == 1
    assert "syncagent report" in said
    with pytest.raises(ZeroDivisionError), syncagent.watch(detail="syncs", summary=True):
        print(1 / (X.nonzero().numel() - 4))
    assert printed(capfd).count(SUMMED_UP) == 1

    @syncagent.watch(detail="syncs", summary=True)
    def train():
        X.nonzero()

    train()
    train()
    assert printed(capfd).count(SUMMED_UP) == 2


def test_nothing_is_printed_where_it_was_not_asked_for(capfd, monkeypatch):
    """Nor by the other ranks; the environment asks for all."""
    with syncagent.watch(detail="syncs"):
        X.nonzero()
    monkeypatch.setenv("SYNCAGENT_SUMMARY", "1")
    with syncagent.watch(detail="syncs", summary=False):
        X.nonzero()
    monkeypatch.setenv("RANK", "1")
    with syncagent.watch(detail="syncs"):
        X.nonzero()
    assert printed(capfd) == ""
    monkeypatch.setenv("RANK", "0")
    with syncagent.watch(detail="syncs"):
        X.nonzero()
    assert printed(capfd).count(SUMMED_UP) == 1


def test_start_and_stop_print_it_as_well(capfd):
    """The whole report with ``verbose``."""
    syncagent.start(detail="syncs", summary=True, verbose=True)
    X.nonzero()
    syncagent.stop()
    said = printed(capfd)
    assert SUMMED_UP in said
    assert "cannot see" in said


def test_a_region_prints_its_own_summary_if_it_was_asked_for_there(capfd, monkeypatch):
    """What the environment asks for is the agent's: it is printed once, at the end of all."""
    monkeypatch.setenv("SYNCAGENT_SUMMARY", "1")
    with syncagent.watch(detail="syncs"):
        X.nonzero()
        with syncagent.watch():
            X.unique()
        assert printed(capfd) == ""
        with syncagent.watch(summary=True):
            X.unique()
        assert printed(capfd).count(SUMMED_UP) == 1
    said = printed(capfd)
    assert "3 host syncs; the host waited" in said
    assert said.count("the host waited") == 1


# --- watch ------------------------------------------------------------------------------------------------------------


def test_watch_watches_what_runs_inside():
    """Not before it and not after it."""
    X.nonzero()
    with syncagent.watch() as agent:
        assert syncagent.current() is agent
        X.unique()
    X.nonzero()
    assert (ops(agent), syncagent.current(), agent.running) == (["aten::_unique2"], None, False)


def test_watch_takes_every_setting_as_a_keyword():
    """And settles them when it is made: a wrong one is refused before anything runs."""
    with syncagent.watch(policy="warn", detail="syncs", max_events=3) as agent:
        assert (agent.settings.policy, agent.settings.detail, agent.settings.max_events) == ("warn", "syncs", 3)
    with pytest.raises(syncagent.ConfigError, match="setting policy is 'loud'"):
        syncagent.watch(policy="loud")


def test_watch_ends_with_an_exception_which_it_lets_through():
    """What was seen until then is kept."""

    def fail():
        X.nonzero()
        return 1 / 0

    with pytest.raises(ZeroDivisionError), syncagent.watch() as agent:
        fail()
    assert (ops(agent), syncagent.current()) == (["aten::nonzero"], None)


def test_watch_decorates_a_function():
    """Each call is a watch of its own; name, arguments, result and errors go through."""
    agents = []

    @syncagent.watch(detail="syncs")
    def train(count, *, fail=False):
        """Docstring."""
        agents.append(syncagent.current())
        for _ in range(count):
            X.nonzero()
        return 1 / 0 if fail else count

    assert (train(2), train.__name__, train.__doc__) == (2, "train", "Docstring.")
    with pytest.raises(ZeroDivisionError):
        train(1, fail=True)
    assert [len(agent.events()) for agent in agents] == [2, 1]
    assert syncagent.current() is None


def test_watch_decorates_a_coroutine():
    """It watches while the coroutine runs."""

    @syncagent.watch(detail="syncs")
    async def train():
        await asyncio.sleep(0)
        X.nonzero()
        return syncagent.current()

    assert asyncio.iscoroutinefunction(train)
    agent = asyncio.run(train())
    assert (ops(agent), syncagent.current()) == (["aten::nonzero"], None)


def test_watch_decorates_without_parentheses():
    """Functions, methods, coroutines and generators of both kinds, which stay what they are."""

    class Trainer:
        @syncagent.watch
        def fit(self, count):
            """Docstring."""
            for _ in range(count):
                X.nonzero()
            return self, syncagent.current()

        @classmethod
        @syncagent.watch
        def make(cls):
            return cls, syncagent.current()

    @syncagent.watch
    async def later():
        X.nonzero()
        return syncagent.current()

    @syncagent.watch
    def numbers():
        yield syncagent.current()
        yield X.nonzero()

    @syncagent.watch
    async def arriving():
        yield syncagent.current()

    async def collected():
        return [value async for value in arriving()]

    trainer = Trainer()
    found, agent = trainer.fit(2)
    assert (found, ops(agent), agent.running) == (trainer, ["aten::nonzero"] * 2, False)
    assert (Trainer.fit.__name__, Trainer.fit.__doc__) == ("fit", "Docstring.")
    assert list(inspect.signature(trainer.fit).parameters) == ["count"]
    assert Trainer.make() == (Trainer, Trainer.make.agent)
    assert asyncio.iscoroutinefunction(later)
    assert ops(asyncio.run(later())) == ["aten::nonzero"]
    assert inspect.isgeneratorfunction(numbers)
    assert ops(next(iter(list(numbers())))) == ["aten::nonzero"]
    assert inspect.isasyncgenfunction(arriving)
    assert asyncio.run(collected()) == [arriving.agent]
    assert syncagent.current() is None


def test_watch_may_stand_above_staticmethod_and_classmethod():
    class Trainer:
        @syncagent.watch
        @staticmethod
        def fit(count):
            return count, X.nonzero() is None

        @syncagent.watch
        @classmethod
        def make(cls):
            return cls

    assert [Trainer.fit(2), Trainer().fit(3), Trainer.make(), Trainer().make()] == [
        (2, False),
        (3, False),
        Trainer,
        Trainer,
    ]
    assert Trainer.fit.report().totals.syncs == 1


def test_an_object_is_of_the_kind_that_its_call_is():
    """It is watched until it has been awaited, or has given its last value."""

    class Later:
        async def __call__(self):
            await asyncio.sleep(0)
            X.nonzero()

    class Numbers:
        def __call__(self):
            yield X.nonzero()

    later, numbers = syncagent.watch(Later()), syncagent.watch(Numbers())
    asyncio.run(later())
    assert len(list(numbers())) == 1
    assert [ops(later.agent), ops(numbers.agent)] == [["aten::nonzero"]] * 2


def test_a_decorated_function_has_the_report_of_its_newest_call():
    """Also while it runs, for bound methods, and after an error; before the first call there is none."""

    @syncagent.watch(detail="syncs")
    def train(count):
        for _ in range(count):
            X.nonzero()
        return train.report().totals.syncs if count else 1 / 0

    assert train.agent is None
    with pytest.raises(syncagent.SyncAgentError, match=r"train has not been called yet, so there is no report of it$"):
        train.report()
    assert [train(2), train.report().totals.syncs] == [2, 2]
    assert [train(3), train.report().totals.syncs] == [3, 3]
    assert ops(train.agent) == ["aten::nonzero"] * 3
    with pytest.raises(ZeroDivisionError):
        train(0)
    assert train.report().totals.syncs == 0

    class Trainer:
        @syncagent.watch
        def fit(self):
            X.nonzero()

    trainer = Trainer()
    trainer.fit()
    assert trainer.fit.report().totals.syncs == Trainer.fit.report().totals.syncs == 1


def test_each_of_two_decorators_has_its_own_report():
    """The outer one's agent has seen it all; the inner one's region only what it is around."""

    def steps():
        X.nonzero()

    inner = syncagent.watch(detail="syncs")(steps)

    @syncagent.watch(detail="syncs")
    def outer():
        X.unique()
        inner()

    outer()
    assert [outer.report().totals.syncs, inner.report().totals.syncs] == [2, 1]
    assert inner.__wrapped__ is steps


@pytest.mark.parametrize("what", ["raise", 3, int, [1]])
def test_what_is_no_function_is_refused_without_parentheses_too(what):
    with pytest.raises(TypeError, match="a function can be decorated"):
        syncagent.watch(what)


def test_a_watched_function_may_call_itself():
    """Only the outermost call ends the watch; the others are regions of it."""
    agents = []

    @syncagent.watch(detail="syncs")
    def down(depth):
        agents.append(syncagent.current())
        X.nonzero()
        if depth:
            down(depth - 1)
            X.nonzero()

    down(2)
    assert [len(agent.events()) for agent in agents] == [5, 3, 1]
    assert [agent.running for agent in agents] == [False] * 3
    assert down.agent is agents[0], "the report is that of the outermost call"


def test_a_watch_inside_a_watch_is_a_region_of_it(messages):
    """It ends nothing and has the same sensors; the log says that ``detail`` cannot change inside."""
    with syncagent.watch(detail="syncs") as outer:
        with syncagent.watch(detail="ops") as inner:
            assert syncagent.current() is inner
            X.nonzero()
        assert syncagent.current() is outer
        X.unique()
    assert ops(outer) == ["aten::nonzero", "aten::_unique2"]
    assert ops(inner) == ["aten::nonzero"]
    [message] = messages
    assert "setting detail is 'ops' for a watch inside another, but it stays 'syncs'" in message


def test_a_watch_may_be_used_again():
    """One after the other, each with an agent of its own."""
    watch = syncagent.watch(detail="syncs")
    with watch as first:
        X.nonzero()
    with watch as second:
        X.unique()
    assert (ops(first), ops(second)) == (["aten::nonzero"], ["aten::_unique2"])


# --- start and stop ---------------------------------------------------------------------------------------------------


def test_stop_returns_the_report_of_what_start_began(tmp_path):
    """And saves it where the settings say."""
    agent = syncagent.start(detail="syncs", report=tmp_path / "out.json")
    X.nonzero()
    report = syncagent.stop()
    assert [(site.op, site.count) for site in report.sites] == [("aten::nonzero", 1)]
    assert json.loads((tmp_path / "out.json").read_text())["sites"][0]["op"] == "aten::nonzero"
    assert (agent.running, syncagent.current()) == (False, None)


def test_a_second_start_returns_the_agent_that_runs(messages):
    """With the same settings nothing is logged; with others, that they are not applied."""
    agent = syncagent.start(detail="syncs")
    assert syncagent.start(detail="syncs") is agent
    assert messages == []
    assert syncagent.start(detail="ops") is agent
    assert agent.settings.detail == "syncs"
    assert messages == ["an agent is running already; the settings of the second are not applied"]


def test_an_agent_whose_report_nobody_reads_makes_none_as_it_ends(monkeypatch):
    agent = process.launch(sources.load({}), ())
    made = []
    monkeypatch.setattr(type(agent), "report", made.append)
    process.close(agent)
    assert (agent.running, process.running(), syncagent.current(), made) == (False, None, None, [])


def test_after_its_own_stop_an_agent_is_none_that_runs():
    """A second one is started and sees what waits."""
    first = syncagent.start(detail="syncs")
    first.stop()
    assert syncagent.current() is None
    second = syncagent.start(detail="syncs")
    X.nonzero()
    assert second is not first
    assert [site.op for site in syncagent.stop().sites] == ["aten::nonzero"]
    assert (second.running, syncagent.current()) == (False, None)


def test_stop_without_start_says_so_and_returns_an_empty_report(messages):
    """No error: a script's last line must not break it."""
    report = syncagent.stop()
    assert (report.sites, report.totals.syncs) == ((), 0)
    assert messages == ["stop() was called, but no agent is running"]
    json.dumps(report.to_dict())


def test_an_agent_that_stopped_can_be_asked_as_before():
    """Its report and events stay what they were; a second stop changes nothing."""
    with syncagent.watch(detail="syncs") as agent:
        X.nonzero()
    first = agent.report()
    X.nonzero()
    again = agent.stop()
    assert (ops(agent), again.run.duration_s) == (["aten::nonzero"], first.run.duration_s)
    assert [sensor.live for sensor in again.sensors] == [sensor.live for sensor in first.sensors]
    assert any(sensor.live for sensor in first.sensors)


def test_a_part_that_cannot_be_started_is_off_and_the_others_watch_all_the_same(monkeypatch):
    """The program never sees it; the report says what is missing, and nothing of the part stays behind."""
    from syncagent.attribution.ranges import Ranges

    def broken(_self):
        raise OSError("no")

    monkeypatch.setattr(Ranges, "start", broken)
    syncagent.start(detail="ops")
    assert (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()) == (1, 1)
    assert "the watch for ranges could not be started and is off: OSError: no" in syncagent.stop().notes
    assert (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()) == (0, 0)


def test_a_start_that_is_interrupted_turns_off_what_it_turned_on(monkeypatch):
    """Ctrl-C reaches the caller, and nothing of the agent's stays behind."""
    from syncagent.attribution.ranges import Ranges

    def interrupted(_self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Ranges, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        syncagent.start(detail="ops")
    assert syncagent.current() is None
    assert (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()) == (0, 0)


def test_two_threads_that_start_at_once_get_one_agent():
    """Whoever is first."""
    barrier = threading.Barrier(4)
    agents = []

    def begin():
        barrier.wait()
        agents.append(syncagent.start(detail="syncs"))

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, agents))) == 1


def test_the_agents_own_thread_ends_with_it():
    """And with it the one that looks at threads that wait, where the native library is; both are daemons."""
    before = set(threading.enumerate())
    with syncagent.watch(detail="syncs"):
        own = {thread.name: thread.daemon for thread in set(threading.enumerate()) - before}
        assert own in ({"syncagent": True}, {"syncagent": True, "syncagent-look": True})
    assert set(threading.enumerate()) == before


# --- events and report ------------------------------------------------------------------------------------------------


def test_the_newest_events_are_kept_whole_and_all_are_counted():
    """``max_events`` bounds memory, not the report."""
    with syncagent.watch(detail="syncs", max_events=3) as agent:
        for size in range(1, 8):
            torch.ones(size).nonzero()
    assert [event.shapes for event in agent.events()] == [((5,),), ((6,),), ((7,),)]
    assert agent.report().totals.syncs == 7


def test_events_come_in_the_order_of_time():
    """Of one thread and of several."""
    with syncagent.watch(detail="syncs") as agent:
        for _ in range(10):
            X.nonzero()
            thread = threading.Thread(target=X.unique)
            thread.start()
            thread.join()
    starts = [event.start_ns for event in agent.events()]
    assert starts == sorted(starts)
    assert ops(agent) == ["aten::nonzero", "aten::_unique2"] * 10


@pytest.mark.usefixtures("patient")
def test_a_burst_of_syncs_is_not_lost():
    """More than the newest that are kept, faster than the agent's thread drains."""
    small = torch.ones(1)
    with syncagent.watch(detail="syncs") as agent:
        for _ in range(12_000):
            small.nonzero()
    report = agent.report()
    assert (report.totals.syncs, report.dropped) == (12_000, 0)


def test_the_report_has_the_keys_that_the_design_binds():
    """Readers of the JSON rely on them."""
    with syncagent.watch(detail="syncs") as agent:
        X.nonzero()
        syncagent.step()
    values = json.loads(json.dumps(agent.report().to_dict()))
    assert values["schema"] == 1
    assert set(values) >= {"run", "sensors", "overhead", "dropped", "totals", "sites"}
    assert set(values["run"]) >= {
        "started", "duration_s", "torch", "cuda", "device", "host", "rank", "world_size", "steps", "policy", "detail",
        "simulated",
    }  # fmt: skip
    assert set(values["overhead"]) >= {"agent_ms_per_step", "share"}
    assert set(values["totals"]) >= {"syncs", "stall_ms", "stall_share"}
    assert all({"name", "live", "cannot_see"} <= set(sensor) for sensor in values["sensors"])
    [site] = values["sites"]
    assert set(site) >= {
        "op", "api", "kind", "file", "line", "function", "source", "phase", "count", "per_step", "stall_ms",
        "stall_ms_p50", "stall_ms_max", "sampled", "allowed", "idle_ms", "gain_ms", "advice",
    }  # fmt: skip
    assert (site["kind"], site["count"], site["per_step"], site["file"]) == ("dynamic_shape", 1, 1.0, __file__)
    run = values["run"]
    assert (run["policy"], run["detail"], run["steps"], run["simulated"]) == ("observe", "syncs", 1, False)


def test_the_report_says_which_sensors_were_live():
    """And what each cannot see."""
    with syncagent.watch(detail="syncs") as agent:
        X.nonzero()
    sensors = {sensor.name: sensor for sensor in agent.report().sensors}
    assert {"kernels", "explicit", "modes"} <= set(sensors)
    assert (sensors["kernels"].live, sensors["modes"].live) == (True, False)
    assert "syncs" in sensors["modes"].detail
    assert all(sensor.cannot_see for sensor in sensors.values())


def test_what_the_agent_costs_is_measured():
    """Per step and as a share of the run."""
    with syncagent.watch(detail="syncs") as agent:
        for _ in range(20):
            X.nonzero()
            syncagent.step()
    overhead = agent.report().overhead
    assert 0 < overhead.agent_ms_per_step < 100
    assert 0 < overhead.share < 1


def test_sampled_copies_are_scaled_up_and_marked(host):
    """The first four steps and one in sixteen are watched; the report says what it sampled."""
    there, here = torch.zeros(3), host(torch.ones(3))
    with syncagent.watch(detail="syncs", copies="sampled") as agent:
        for _ in range(48):
            there.copy_(here)
            syncagent.step()
    assert [event.step for event in agent.events()] == [
        step for step in range(48) if CopySampling(on=True).watches(step)
    ]
    assert len(agent.events()) == 4 + 3
    [site] = agent.report().sites
    assert (site.op, site.count, site.sampled) == ("aten::copy_", 48, True)
    [kernels] = [sensor for sensor in agent.report().sensors if sensor.name == "kernels"]
    assert "one in 16" in kernels.detail


def test_copies_can_be_left_out(host):
    """``copies="off"``: for those to whom even a sample is too much."""
    there, here = torch.zeros(3), host(torch.ones(3))
    with syncagent.watch(detail="syncs", copies="off") as agent:
        there.copy_(here)
    assert agent.events() == ()
    [kernels] = [sensor for sensor in agent.report().sensors if sensor.name == "kernels"]
    assert kernels.detail == "copies: not watched"


def test_events_can_be_asked_for_while_the_program_runs():
    """From any thread, again and again."""
    counts = []
    with syncagent.watch(detail="syncs") as agent:
        X.nonzero()
        counts.append(len(agent.events()))
        X.nonzero()
        reader = threading.Thread(target=lambda: counts.append(len(agent.events())))
        reader.start()
        reader.join()
        agent.report()
    assert counts == [1, 2]


# --- fork -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("detail", ["ops", "syncs"])
def test_a_forked_child_is_silent_and_the_parent_goes_on(detail, recorders):
    """The child has no agent, no mode and no event of its parent's; its ops work."""
    with syncagent.watch(detail=detail) as agent:
        X.nonzero()
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(target=_in_the_child, args=(queue, agent, recorders[0]))
        child.start()
        found = queue.get()
        child.join()
        X.unique()
    assert child.exitcode == 0
    assert found == {
        "current": None,
        "modes": (0, 0),
        "result": [[0, 0], [1, 1]],
        "events": 0,
        "own": ["aten::_unique2"],
    }
    assert ops(agent) == ["aten::nonzero", "aten::_unique2"]


def _in_the_child(queue, agent, recorder):
    found = {
        "current": syncagent.current(),
        "modes": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "result": X.nonzero().tolist(),
    }
    agent.drain()
    found["events"] = len(waiting(recorder))
    with syncagent.watch(detail="syncs") as own:
        X.unique()
    found["own"] = [event.op for event in own.events()]
    queue.put(found)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_the_agent_delivers_does_not_hang_the_child(monkeypatch):
    """Locks that other threads held at that moment have no owner in the child."""
    inside, go_on = threading.Event(), threading.Event()

    class Slow(Sink):
        name = "slow"

        def events(self, _batch):
            inside.set()
            go_on.wait(10)

    agent = syncagent.runtime.process.launch(sources.load({"detail": "syncs"}), (Slow(),))
    X.nonzero()
    assert inside.wait(10)
    pid = os.fork()
    if pid == 0:
        try:
            X.nonzero()
            syncagent.stop()
            agent.events()
            os._exit(7)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    go_on.set()
    assert os.waitstatus_to_exitcode(status) == 7
    assert ops(agent) == ["aten::nonzero"]


def test_the_summary_is_the_default_bound():
    """10,000 events, as the design says."""
    assert sources.load({}, {}).max_events == summary.Summary().__init__.__kwdefaults__["newest"] == 10_000
