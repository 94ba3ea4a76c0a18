"""A watch inside a watch: its policy, allowances, budgets and report are its own, the sensors are shared."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
import multiprocessing
import threading
import time
import traceback
import weakref
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

import syncagent
from syncagent import HostSyncError, HostSyncWarning
from syncagent.policy import scopes
from syncagent.policy.scopes import open_reaches
from syncagent.runtime.regions import Region
from syncagent.sensors.kernels import KernelSensor
from syncagent.support import log
from tests.unit.tools import forbidden, on_thread

X = torch.tensor([[1.0, 0.0], [0.0, 5.0]])

pytestmark = pytest.mark.usefixtures("cpu_device")


@pytest.fixture(autouse=True)
def messages(monkeypatch):
    """What the agent logs; each message may be said again."""
    said = []
    monkeypatch.setattr(log, "_said", set())

    class Logger:
        def log(self, _level, message, **values):
            said.append(" ".join([message, *(f"{name}={value}" for name, value in values.items())]))

        def warning(self, *_words, **_values): ...

        def info(self, *_words, **_values): ...

        def error(self, message, **_values):
            said.append(message)

    for module in (log, syncagent.runtime.agent, syncagent.runtime.handle, syncagent.telemetry.violations):
        monkeypatch.setattr(module, "get_logger", Logger)
    return said


@pytest.fixture(autouse=True)
def none_left():
    """Every region has ended and is forgotten."""
    yield
    assert open_reaches == []
    assert not any(map(is_region, [scope for open_ in scopes.scopes_by_thread.values() for scope in open_]))


def is_region(scope):
    return isinstance(scope, Region)


def ops(watched):
    return [event.op for event in watched.events()]


def passed(watched):
    """The syncs that nothing stopped or complained of."""
    return [event for event in watched.events() if not event.violation]


def counts(watched):
    """Syncs, and how many were against the policy, of a report."""
    report = watched.report()
    return report.totals.syncs, sum(site.violations for site in report.sites)


def raising(**settings):
    return syncagent.watch(policy="raise", **settings)


def training():
    """Return what makes a step of an optimizer."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def step():
        optimizer.step()

    return step


# --- policy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detail", ["ops", "syncs"])
def test_a_region_that_raises_raises_in_an_observing_process(cpu_agent, line_of, detail):
    """At the user's line, before the wait, and neither before the region nor after it."""
    agent = cpu_agent(detail=detail)
    x = X.clone()
    x.nonzero()
    with raising() as region:
        assert (region.policy, agent.policy, region.running) == ("raise", "observe", True)
        with pytest.raises(HostSyncError) as error:
            x[x > 0] = torch.tensor([7.0, 8.0])  # <- forbidden
    x.nonzero()
    mine = [frame for frame in traceback.extract_tb(error.value.__traceback__) if frame.filename == __file__]
    assert mine[-1].lineno == line_of("forbidden")
    assert x.tolist() == X.tolist()
    assert region.running is False
    assert syncagent.current() is agent


def test_a_region_that_observes_is_free_in_a_process_that_raises(cpu_agent):
    """The innermost policy decides; both reports show its verdict."""
    agent = cpu_agent(policy="raise")
    assert forbidden(X.nonzero)
    with syncagent.watch(policy="observe") as region:
        X.unique()
    assert forbidden(X.nonzero)
    assert ops(region) == ["aten::_unique2"]
    assert "aten::_unique2" in ops(agent)
    assert counts(region) == (1, 0)


def test_a_region_without_a_setting_of_the_policy_is_judged_by_what_is_around_it(cpu_agent):
    """A watch that only wants a report opens no gate: the outer allowances hold, the outer policy raises."""
    agent = cpu_agent(policy="raise", allow_kinds=["scalar_read"])
    with syncagent.watch() as region:
        X.sum().item()
        assert forbidden(X.nonzero)
        assert region.policy == "raise"
        agent.policy = "observe"
        X.nonzero()
        assert region.policy == "observe"
    assert [event.allowed for event in region.events() if event.op != "aten::nonzero"] == ["allow_kinds: scalar_read"]


def test_a_region_with_allowances_alone_keeps_the_policy_around_it(cpu_agent):
    """``watch(allow_kinds=...)`` in a process that raises goes on raising at everything else."""
    cpu_agent(policy="raise")
    with syncagent.watch(allow_kinds=["scalar_read"]) as region:
        X.sum().item()
        assert forbidden(X.nonzero)
    assert region.policy == "raise"


def test_a_warning_region_warns_once_a_line_however_often_it_is_entered(cpu_agent, line_of):
    """As a process that warns does."""
    cpu_agent()

    @syncagent.watch(policy="warn")
    def read():
        X.nonzero()  # <- warned

    with pytest.warns(HostSyncWarning) as warned:
        assert read() == read()
    assert [(warning.filename, warning.lineno) for warning in warned] == [(__file__, line_of("warned"))]


def test_the_policy_of_a_region_may_be_set(cpu_agent):
    """It is the region's own: the agent's stays."""
    agent = cpu_agent()
    with syncagent.watch() as region:
        region.policy = "raise"
        assert forbidden(X.nonzero)
        region.policy = "observe"
        X.nonzero()
        with pytest.raises(syncagent.ConfigError, match="setting policy is 'loud'"):
            region.policy = "loud"
    assert agent.policy == "observe"


def test_the_innermost_of_nested_regions_decides_and_all_of_them_count(cpu_agent):
    """An inner violation is also in the outer report, as what it was there."""
    agent = cpu_agent()
    with raising() as outer:
        with syncagent.watch(policy="warn") as inner, pytest.warns(HostSyncWarning):
            X.nonzero()
        assert forbidden(X.unique)
        with syncagent.watch(policy="observe") as second:
            X.sum().item()
    for watched in (outer, agent):
        seen = {event.op: event.violation for event in watched.events()}
        assert (seen["aten::nonzero"], seen["aten::_local_scalar_dense"]) == (True, False)
    assert (ops(inner), ops(second)) == (["aten::nonzero"], ["aten::_local_scalar_dense"])
    policies = {event.op: event.policy for event in agent.events()}
    assert (policies["aten::nonzero"], policies["aten::_local_scalar_dense"]) == ("warn", "observe")


def test_the_warm_up_of_a_region_is_none_unless_given_and_counts_from_its_start(cpu_agent, monkeypatch):
    """The environment's is the process's: a region that was opened on purpose is no set-up."""
    monkeypatch.setenv("SYNCAGENT_WARMUP_STEPS", "5")
    cpu_agent()
    syncagent.step(1_000)
    with raising():
        assert forbidden(X.nonzero)
    with raising(warmup_steps=2):
        verdicts = []
        for _ in range(4):
            verdicts.append(forbidden(X.nonzero))
            syncagent.step()
    assert verdicts == [False, False, True, True]


def test_a_region_off_the_main_thread_is_judged_though_nothing_trains_there(cpu_agent):
    """Whoever opens one asks for it."""
    cpu_agent()

    def work():
        with raising():
            return forbidden(X.nonzero)

    assert on_thread(work)


# --- allowances -------------------------------------------------------------------------------------------------------


def test_the_allowances_of_a_region_are_its_own(cpu_agent):
    """Neither are the outer ones in force inside, nor its own outside."""
    cpu_agent(policy="raise", allow_kinds=["scalar_read"])
    with raising(allow_kinds=["dynamic_shape"]) as region:
        X.nonzero()
        assert forbidden(lambda: X.sum().item())
    X.sum().item()
    assert forbidden(X.nonzero)
    assert [event.allowed for event in passed(region)] == ["allow_kinds: dynamic_shape"]


def test_allow_blocks_hold_inside_regions_wherever_they_were_opened(cpu_agent):
    """A block says that what is called inside is wanted, and that includes regions."""
    agent = cpu_agent()
    with raising() as region:
        with syncagent.allow("inner"):
            X.nonzero()
        assert forbidden(X.nonzero)
    with syncagent.allow("outer"), raising():
        X.unique()
        with syncagent.allow("innermost"):
            X.unique()
        X.unique()
    X.nonzero()
    reasons = [event.allowed for event in passed(agent)]
    assert reasons == ["inner", "outer", "innermost", "outer", None]
    assert counts(region)[0] >= 1


def test_an_allow_block_that_ends_first_does_not_end_the_region(cpu_agent):
    """They may overlap: a generator keeps a block open while its caller opens a region."""
    cpu_agent()

    def values():
        with syncagent.allow("loading"):
            yield
        yield

    loader = values()
    next(loader)
    with raising():
        X.nonzero()
        next(loader)
        assert forbidden(X.nonzero)
    assert not forbidden(X.nonzero)


def test_a_region_may_have_a_baseline_which_is_read_once(cpu_agent, tmp_path):
    """A function that is entered each step does not read a file each step."""
    agent = cpu_agent()

    def known():
        return X.nonzero()

    known()
    baseline = tmp_path / "known.json"
    agent.report().save(baseline)

    @syncagent.watch(policy="raise", baseline=baseline)
    def step():
        known()
        return forbidden(X.unique)

    assert step()
    baseline.unlink()
    assert step()


def test_a_region_with_a_wrong_pack_says_so_and_leaves_nothing_open(cpu_agent):
    """One sentence, as in any other watch."""
    cpu_agent()
    with pytest.raises(syncagent.ConfigError, match="setting allow_packs is 'torhc'"), raising(allow_packs=["torhc"]):
        pass
    assert syncagent.current() is not None
    assert not is_region(syncagent.current())


# --- budgets ----------------------------------------------------------------------------------------------------------


def test_a_budget_counts_the_syncs_of_its_region_only_in_each_step(cpu_agent):
    """Those before it in the same step, those of inner regions, and those of other threads are not spent."""
    cpu_agent()
    X.nonzero()
    X.nonzero()
    with raising(max_syncs_per_step=2):
        X.nonzero()
        with syncagent.watch(policy="observe"):
            X.nonzero()
            X.nonzero()
        on_thread(X.nonzero)
        X.nonzero()
        assert forbidden(X.nonzero)
        syncagent.step()
        X.nonzero()
        X.nonzero()
        assert forbidden(X.nonzero)
    with raising(max_syncs_per_step=2):
        assert [forbidden(X.nonzero) for _ in range(3)] == [False, False, True]


def test_the_shortest_stall_that_counts_is_the_regions_own(cpu_agent):
    """A stall that is long enough raises once its length is known."""
    cpu_agent()
    with raising(min_stall_ms=10_000):
        X.nonzero()
    with raising(min_stall_ms=1e-3) as region:
        assert forbidden(torch.ones(500, 500).nonzero)
    assert counts(region) == (1, 1)


def test_the_window_of_a_share_moves_in_a_region(cpu_agent):
    """``max_stall_share`` is about the steps inside."""
    cpu_agent()
    with raising(max_stall_share=0.0, stall_share_window=2):
        verdicts = []
        for _ in range(4):
            verdicts.append(forbidden(torch.ones(500, 500).nonzero))
            syncagent.step()
    assert verdicts == [False, False, True, True]


# --- threads and tasks ------------------------------------------------------------------------------------------------


def test_a_region_leaves_other_threads_alone(cpu_agent):
    """And is not in their way: what they do is not in its report."""
    agent = cpu_agent(detail="syncs")
    with raising() as region:
        assert not on_thread(lambda: forbidden(X.nonzero))
    assert (ops(region), ops(agent)) == ([], ["aten::nonzero"])


def test_a_region_of_all_threads_judges_and_counts_those_without_one_of_their_own(cpu_agent):
    """The newest such region has the say, an own one before it; all of them count."""
    cpu_agent(detail="syncs")

    def in_own_region():
        with syncagent.watch(policy="observe"):
            return forbidden(X.unique)

    with raising(judge_threads="all") as first:
        assert on_thread(lambda: forbidden(X.nonzero))
        assert not on_thread(in_own_region)
        with syncagent.watch(policy="observe", judge_threads="all") as second:
            assert not on_thread(lambda: forbidden(X.nonzero))
        assert on_thread(lambda: forbidden(X.nonzero))
    assert not on_thread(lambda: forbidden(X.nonzero))
    assert [event.op for event in passed(first)] == ["aten::_unique2", "aten::nonzero"]
    assert ops(second) == ["aten::nonzero"]


def test_regions_on_two_threads_do_not_see_each_other(cpu_agent):
    """Each has its own policy and its own syncs, and the process has all."""
    agent = cpu_agent(detail="syncs")
    barrier = threading.Barrier(2)
    found = {}

    def work(policy, op):
        with syncagent.watch(policy=policy) as region:
            barrier.wait()
            found[policy] = (region, forbidden(op), syncagent.current() is region)
            barrier.wait()

    threads = [threading.Thread(target=work, args=pair) for pair in (("raise", X.nonzero), ("observe", X.unique))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[policy][1:] for policy in ("raise", "observe")] == [(True, True), (False, True)]
    assert ops(found["observe"][0]) == ["aten::_unique2"]
    assert "aten::_unique2" not in ops(found["raise"][0])
    assert "aten::_unique2" in ops(agent)


@pytest.mark.parametrize("shared", [True, False], ids=["one object", "two objects"])
def test_regions_in_concurrent_tasks_do_not_see_each_other(cpu_agent, shared):
    """They open and close while the other is open, in either order."""
    agent = cpu_agent()
    one = raising()

    async def strict(turns):
        with one if shared else raising() as region:
            for _ in range(turns):
                await asyncio.sleep(0)
                assert forbidden(X.nonzero)
                assert syncagent.current() is region
        await asyncio.sleep(0)
        return forbidden(X.nonzero), syncagent.current() is agent

    async def loose():
        with syncagent.watch(policy="observe") as region:
            for _ in range(4):
                await asyncio.sleep(0)
                X.unique()
                assert syncagent.current() is region
        return region

    async def bare():
        for _ in range(5):
            await asyncio.sleep(0)
            X.sum().item()

    async def main():
        return await asyncio.gather(strict(5), loose(), strict(2), bare())

    first, region, second, _ = asyncio.run(main())
    assert first == second == (False, True)
    assert ops(region) == ["aten::_unique2"] * 4


def test_a_task_that_outlives_the_region_it_was_made_in_is_free_afterwards(cpu_agent):
    """It is covered for as long as the region lasts."""
    cpu_agent()

    async def child(closed):
        before = forbidden(X.nonzero)
        await closed.wait()
        return before, forbidden(X.nonzero)

    async def main():
        closed = asyncio.Event()
        with raising():
            task = asyncio.create_task(child(closed))
            await asyncio.sleep(0)
        closed.set()
        return await task

    assert asyncio.run(main()) == (True, False)


def test_a_thread_that_is_handed_the_context_is_covered(cpu_agent):
    """As ``asyncio.to_thread`` does."""
    cpu_agent(detail="syncs")
    with raising():
        context = contextvars.copy_context()
        assert on_thread(lambda: context.run(forbidden, X.nonzero))


@pytest.mark.parametrize("knows_context", [True, False], ids=["torch 2.13", "torch 2.11"])
def test_the_autograd_threads_of_a_backward_inside_are_covered(cpu_agent, recorders, knows_context):
    """Whether torch hands them the caller's context, or the caller has to be looked for."""
    cpu_agent(detail="syncs")
    [recorder] = recorders
    caller = recorder.threads.current()
    real = recorder.locator.internals

    def in_backward():
        context = here if knows_context else None
        recorder.locator.internals = replace(real, graph_task=lambda: 7, backward_context=lambda: context)
        recorder.threads.current().owner = (7, caller)
        try:
            return forbidden(X.nonzero)
        finally:
            recorder.locator.internals = real

    with raising() as region:
        here = contextvars.copy_context()
        assert on_thread(in_backward)
        region.policy = "observe"
        assert not on_thread(in_backward)
    assert [event.op for event in passed(region)] == ["aten::nonzero"]
    assert not on_thread(in_backward)


def test_a_backward_inside_a_region_is_judged_at_its_callers_line(cpu_agent, line_of):
    cpu_agent()
    x = torch.tensor([1.0, -1.0], requires_grad=True)
    loss = x[x > 0].sum()
    with raising(), pytest.raises(HostSyncError) as error:
        loss.backward()  # <- backward
    assert error.value.event.site.line == line_of("backward")


# --- decorators and with statements -----------------------------------------------------------------------------------


def test_a_generator_is_covered_while_it_makes_a_value_and_its_caller_is_not(cpu_agent):
    """Values sent in, errors thrown in, the end and the result go through."""
    agent = cpu_agent()
    inside = []

    @syncagent.watch(policy="raise")
    def values(count):
        got = []
        try:
            for number in range(count):
                inside.append((forbidden(X.nonzero), syncagent.current()))
                try:
                    got.append((yield number))
                except KeyError:
                    got.append("thrown")
        finally:
            inside.append((forbidden(X.nonzero), None))
        return got

    made = values(3)
    assert next(made) == 0
    assert (forbidden(X.nonzero), syncagent.current() is agent) == (False, True)
    assert made.send("sent") == 1
    assert made.throw(KeyError()) == 2
    with pytest.raises(StopIteration) as stop:
        made.send("last")
    assert stop.value.value == ["sent", "thrown", "last"]
    assert [verdict for verdict, _ in inside] == [True] * 4
    assert len({id(region) for _, region in inside[:3]}) == 1
    closed = values(3)
    next(closed)
    closed.close()
    assert not forbidden(X.nonzero)


def test_an_asynchronous_generator_is_covered_while_it_makes_a_value(cpu_agent):
    """Closing it early ends the region as well."""
    cpu_agent()
    inside = []

    @raising()
    async def values():
        try:
            for number in range(3):
                await asyncio.sleep(0)
                inside.append(forbidden(X.nonzero))
                yield number
        finally:
            inside.append(forbidden(X.nonzero))

    async def main():
        outside = []
        async for _ in values():
            outside.append(forbidden(X.nonzero))
        made = values()
        await made.__anext__()
        await made.aclose()
        return [*outside, forbidden(X.nonzero)]

    assert asyncio.run(main()) == [False] * 4
    assert inside == [True] * 6


def test_a_coroutine_is_covered_while_it_runs(cpu_agent):
    """Others that run while it waits are not."""
    cpu_agent()

    @raising()
    async def strict():
        await asyncio.sleep(0)
        return forbidden(X.nonzero)

    async def loose():
        verdict = forbidden(X.nonzero)
        await asyncio.sleep(0)
        return verdict or forbidden(X.nonzero)

    async def main():
        return await asyncio.gather(strict(), loose(), strict())

    assert asyncio.iscoroutinefunction(strict)
    assert asyncio.run(main()) == [True, False, True]


def test_a_generator_that_is_the_outermost_watch_is_watched_until_it_ends():
    """And not just until it is made."""

    @syncagent.watch(detail="syncs")
    def values():
        yield syncagent.current()
        X.nonzero()

    assert syncagent.current() is None
    made = values()
    agent = next(made)
    assert list(made) == []
    assert (ops(agent), agent.running, syncagent.current()) == (["aten::nonzero"], False, None)


def test_a_watched_function_that_calls_itself_has_a_region_for_each_call(cpu_agent):
    """The outer ones count what the inner ones saw."""
    agent = cpu_agent()
    regions = []

    @syncagent.watch(policy="observe")
    def down(depth):
        regions.append(syncagent.current())
        X.nonzero()
        if depth:
            down(depth - 1)

    down(2)
    assert [len(region.events()) for region in regions] == [3, 2, 1]
    assert len(agent.events()) == 3


def test_one_watch_may_be_open_several_times_at_once():
    """On one thread and on two; the one that began the agent is the one that ends it."""
    watch = syncagent.watch(policy="raise", warmup_steps=0, detail="syncs")
    began, leave = threading.Event(), threading.Event()

    def work():
        with watch as inner:
            began.set()
            leave.wait(10)
            return is_region(inner) and forbidden(X.nonzero)

    found = []
    with watch as agent:
        thread = threading.Thread(target=lambda: found.append(work()))
        thread.start()
        began.wait(10)
        with watch as inner:
            assert syncagent.current() is inner
            assert is_region(inner)
        assert syncagent.current() is agent
        assert forbidden(X.nonzero)
        leave.set()
        thread.join()
    assert (found, agent.running, syncagent.current()) == ([True], False, None)


def test_an_error_inside_ends_the_region_and_goes_through(cpu_agent):
    """What was seen until then is in its report."""
    cpu_agent()

    def fail():
        X.nonzero()
        return 1 / 0

    with pytest.raises(ZeroDivisionError), syncagent.watch(policy="observe") as region:
        fail()
    assert (ops(region), region.running) == (["aten::nonzero"], False)


def test_a_region_that_is_left_on_another_thread_has_ended_everywhere(cpu_agent):
    """As with an ExitStack that is handed over."""
    agent = cpu_agent()
    stack = ExitStack()
    region = stack.enter_context(raising())
    assert forbidden(X.nonzero)
    on_thread(stack.close)
    assert not forbidden(X.nonzero)
    assert (region.running, syncagent.current() is agent) == (False, True)


# --- the region object ------------------------------------------------------------------------------------------------


def test_a_region_has_the_face_of_the_agent(cpu_agent):
    """Whoever wrote ``as agent`` need not know which of the two it is."""
    agent = cpu_agent()
    X.nonzero()
    with syncagent.watch(policy="observe", max_events=2) as region:
        for _ in range(3):
            X.unique()
        region.flush()
        assert region.running
        assert region.settings.max_events == 2
        assert (region.rank, region.steps) == (agent.rank, agent.steps)
        assert [(site.op, site.count) for site in region.report().sites] == [("aten::_unique2", 3)]
        assert ops(region) == ["aten::_unique2"] * 2
        first = region.stop()
        X.unique()
        assert syncagent.current() is agent
    assert (region.running, first.totals.syncs, region.stop().totals.syncs) == (False, 3, 3)
    assert first.run.duration_s == region.report().run.duration_s
    assert agent.running
    face = {"events", "flush", "measure_cost", "notes", "policy", "rank", "report", "running", "save", "settings"}
    assert {*face, "steps", "stop"} <= {*dir(region)} & {*dir(agent)}


def test_the_report_of_a_region_is_about_what_ran_inside(cpu_agent, tmp_path):
    """Its steps, its time, its sites and sums; the process's report has all."""

    def read():
        X.unique()

    agent = cpu_agent()
    X.nonzero()
    syncagent.step()
    with syncagent.watch(policy="observe", report=tmp_path / "inside.json"):
        for _ in range(3):
            read()
            syncagent.step()
        read()
    X.nonzero()
    syncagent.step()
    inside = json.loads((tmp_path / "inside.json").read_text())
    assert (inside["run"]["steps"], inside["run"]["policy"], inside["totals"]["syncs"]) == (3, "observe", 4)
    assert [(site["op"], site["count"]) for site in inside["sites"]] == [("aten::_unique2", 4)]
    assert 0 < inside["run"]["duration_s"] < agent.report().run.duration_s
    assert inside["run"]["started"] >= agent.report().run.started
    assert agent.report().run.steps == 5
    assert {site.op: site.count for site in agent.report().sites} == {"aten::nonzero": 1, "aten::_unique2": 4}
    assert len(inside["step_times"]) == 3
    assert "a region" in " ".join(inside["notes"])


def test_the_environments_report_stays_the_processs(cpu_agent, monkeypatch, tmp_path):
    """A region does not write where the whole run is to be saved."""
    monkeypatch.setenv("SYNCAGENT_REPORT", str(tmp_path / "run.json"))
    cpu_agent()
    with raising():
        pass
    assert not (tmp_path / "run.json").exists()


def test_steps_inside_are_the_processs_steps(cpu_agent):
    """An optimizer's too; a region that is entered each step has one step each time."""
    agent = cpu_agent()
    regions, step = [], training()
    for _ in range(3):
        with syncagent.watch(policy="observe") as region:
            X.nonzero()
            step()
        regions.append(region)
    assert agent.steps.count == 3
    assert [region.report().run.steps for region in regions] == [1, 1, 1]
    assert [event.step for region in regions for event in region.events()] == [0, 1, 2]


def test_current_is_the_innermost_region_that_covers_the_caller(cpu_agent):
    """Elsewhere it is the agent."""
    agent = cpu_agent()
    with syncagent.watch(policy="observe") as outer:
        with syncagent.watch(policy="observe") as inner:
            assert syncagent.current() is inner
            assert on_thread(syncagent.current) is agent
        assert syncagent.current() is outer
        with syncagent.watch(policy="observe", judge_threads="all") as everywhere:
            assert on_thread(syncagent.current) is everywhere
    assert syncagent.current() is agent


# --- start, stop and fork ---------------------------------------------------------------------------------------------


def test_stop_inside_a_region_stops_the_agent_and_ends_the_region(cpu_agent, tmp_path):
    """The region's report is saved, the block ends quietly, and a watch that follows is one of its own."""
    agent = cpu_agent()
    with raising(report=tmp_path / "inside.json") as region:
        with syncagent.allow("wanted"):
            X.nonzero()
        report = syncagent.stop()
        assert json.loads((tmp_path / "inside.json").read_text())["totals"]["syncs"] == 1
        (tmp_path / "inside.json").unlink()
        X.nonzero()
        assert (region.running, agent.running, syncagent.current()) == (False, False, None)
        with syncagent.watch(detail="syncs") as own:
            assert not forbidden(X.unique)
            assert syncagent.current() is own
        assert not is_region(own)
    assert report.totals.syncs == region.report().totals.syncs == 1
    assert not (tmp_path / "inside.json").exists()


def test_the_end_of_a_watch_whose_agent_was_stopped_leaves_the_next_agent_alone():
    with syncagent.watch(detail="syncs") as first:
        syncagent.stop()
        second = syncagent.start(detail="syncs")
    assert (first.running, second.running, syncagent.current()) == (False, True, second)
    syncagent.stop()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_inside_a_region_leaves_it_to_the_parent(cpu_agent, tmp_path):
    """The child is not judged, saves nothing, and a watch of its own is a plain one."""
    agent = cpu_agent()
    context = multiprocessing.get_context("fork")
    with raising(report=tmp_path / "inside.json") as region, syncagent.allow("wanted"):
        X.nonzero()
        queue = context.SimpleQueue()
        child = context.Process(target=_in_the_child, args=(queue, region))
        child.start()
        found = queue.get()
        child.join()
        assert not (tmp_path / "inside.json").exists()
        X.unique()
    assert child.exitcode == 0
    assert found == {"current": True, "forbidden": False, "running": False, "own": (True, ["aten::_unique2"])}
    assert (tmp_path / "inside.json").exists()
    assert ops(region) == ops(agent) == ["aten::nonzero", "aten::_unique2"]


def _in_the_child(queue, region):
    found = {"current": syncagent.current() is None, "forbidden": forbidden(X.nonzero), "running": region.running}
    region.close()
    with syncagent.watch(detail="syncs") as own:
        X.unique()
    found["own"] = (not is_region(own), ops(own))
    queue.put(found)


# --- what is shared ---------------------------------------------------------------------------------------------------


def test_what_cannot_change_inside_is_reported_with_both_values(cpu_agent, messages):
    """Only what was asked for and differs, once; the region's report says it each time."""
    cpu_agent(detail="syncs", copies="all")
    for _ in range(2):
        with syncagent.watch(detail="ops", simulate=True, copies="off", stacks=False, policy="observe") as region:
            pass
    assert len(messages) == 3
    detail, simulate, copies = messages
    assert "setting detail is 'ops' for a watch inside another, but it stays 'syncs'" in detail
    assert "setting simulate is True" in simulate
    assert "stays False" in simulate
    assert "setting copies is 'off'" in copies
    assert set(messages) <= set(region.report().notes)


def test_a_second_start_says_which_settings_differ(messages):
    """Those that were given; the agent that runs is returned as it is."""
    agent = syncagent.start(detail="syncs", policy="warn")
    assert syncagent.start() is agent
    assert messages == []
    assert syncagent.start(detail="ops", policy="warn", max_events=5) is agent
    [message] = messages
    assert "detail='ops', but 'syncs' is in force" in message
    assert "max_events=5, but 10000 is in force" in message
    assert "policy" not in message


def test_a_region_that_raises_sees_every_copy_where_they_are_sampled(cpu_agent, host):
    """From its start to its end, on its thread; each stands for itself, and those outside are scaled up as usual."""
    agent = cpu_agent(detail="syncs")
    there, here = torch.zeros(3), host(torch.ones(3))

    def copy():
        there.copy_(here)

    for _ in range(4):
        syncagent.step()
    assert agent.settings.copies_timed == "sampled"
    verdicts, quiet = [], []
    for _ in range(24):
        with raising():
            verdicts.append(forbidden(copy))
        with syncagent.watch(policy="observe", copies="all") as region:
            copy()
            syncagent.step()
            copy()
        quiet.append(region.report().totals.syncs)
    assert verdicts == [True] * 24
    assert quiet == [2] * 24
    assert sum(site.count - site.violations for site in agent.report().sites) == 48
    assert not any(event.regions == () for event in agent.events())


def test_copies_are_not_watched_beyond_the_region(cpu_agent, host):
    """Another thread that opened one goes back to what it was."""
    agent = cpu_agent(detail="syncs")
    there, here = torch.zeros(3), host(torch.ones(3))

    def work():
        with syncagent.watch(policy="observe", copies="all") as region:
            there.copy_(here)
        there.copy_(here)
        return region

    assert ops(on_thread(work)) == ["aten::copy_"]
    assert ops(agent) == ["aten::copy_"]


def test_a_region_says_where_it_cannot_see_copies(cpu_agent, messages):
    """A process that has turned them off keeps them off."""
    cpu_agent(detail="syncs", copies="off")
    with raising() as region:
        pass
    sentence = "policy 'raise' of a region does not see copies: setting copies is \"off\" for the process"
    assert any(sentence in note for note in region.report().notes)
    assert messages == [sentence]


def test_a_region_says_that_it_gave_way_to_torch_compile(cpu_agent, messages):
    """Copies are sampled, and torch.compile comes into use inside."""
    cpu_agent(detail="syncs")
    with raising() as region:
        assert messages == []
        torch.compile(lambda x: x, backend="eager")
    [sentence] = messages
    assert "policy 'raise' of a region does not see copies since torch.compile is in use" in sentence
    assert any(sentence in note for note in region.report().notes)


def test_a_region_of_all_threads_says_that_it_sees_copies_on_its_own_only(cpu_agent, messages):
    """Where they are sampled; with all copies watched there is nothing to say."""
    agent = cpu_agent(detail="syncs")
    with raising(judge_threads="all"):
        pass
    assert ["on other threads than its own" in message for message in messages] == [True]
    syncagent.runtime.process.release(agent)
    cpu_agent(detail="syncs", copies="all")
    with raising(judge_threads="all") as region:
        pass
    assert not [note for note in region.report().notes if "copies" in note]


def test_a_region_whose_policy_cannot_be_in_force_does_not_open(cpu_agent, monkeypatch):
    """The kernels could not be put in place, say: as for the first watch, that is an error and no silence."""
    monkeypatch.setattr(KernelSensor, "start", lambda _self: None)
    agent = cpu_agent(detail="syncs")
    with pytest.raises(syncagent.ConfigError, match="the sensor kernels is not live"), raising():
        pytest.fail("it has opened")
    with syncagent.watch(policy="observe") as region:
        assert region.running
    assert syncagent.current() is agent


def test_a_region_that_raises_is_a_gate_of_its_own(cpu_agent, tmp_path):
    """Its report says whether it held, whatever the process's policy is; what was stopped inside is in it."""
    agent = cpu_agent(detail="syncs")
    with raising(report=tmp_path / "inside.json") as region:
        assert forbidden(X.nonzero)
    assert region.report().run.gate == "held"
    assert counts(region) == (1, 1)
    assert agent.report().run.gate is None
    with raising() as changed:
        changed.policy = "observe"
    assert changed.report().run.gate == "failed"
    assert "the gate did not hold: the policy was changed to observe by the program" in changed.report().notes
    with raising() as region, syncagent.watch(policy="observe") as observing:
        torch.compile(lambda x: x, backend="eager")
    assert region.report().run.gate == "failed"
    assert observing.report().run.gate is None


def test_a_region_says_that_the_process_saves_in_the_same_place(cpu_agent, tmp_path, messages):
    """What was saved there would be gone without a word."""
    cpu_agent(report=tmp_path / "run.json")
    with syncagent.watch(policy="observe", report=tmp_path / "run.json"):
        pass
    assert len(messages) == 1
    assert "where that of the process will take its place" in messages[0]


# --- what is kept, and for how long -----------------------------------------------------------------------------------


def test_syncs_that_are_only_added_up_belong_to_the_regions_that_were_open(cpu_agent):
    """An allowed line's syncs are summed after the first hundred, until a region begins or ends."""
    agent = cpu_agent(detail="syncs", allow_kinds=["dynamic_shape"])

    def read():
        X.nonzero()

    def many(times):
        for _ in range(times):
            read()

    inner = []
    turn = threading.Barrier(2)

    def other():
        many(150)
        turn.wait()
        turn.wait()
        inner.append(forbidden(read))
        turn.wait()
        turn.wait()
        many(150)

    thread = threading.Thread(target=other)
    thread.start()
    turn.wait()
    with raising(judge_threads="all", max_syncs_per_step=0) as region:
        turn.wait()
        turn.wait()
    with syncagent.watch(policy="observe", judge_threads="all", allow_kinds=["dynamic_shape"]) as second:
        turn.wait()
        thread.join()
    assert inner == [True]
    assert second.report().totals.syncs == 150
    assert region.report().totals.syncs <= 1
    many(200)
    with syncagent.watch(policy="observe", allow_kinds=["dynamic_shape"]) as third:
        many(300)
    assert third.report().totals.syncs == 300
    assert sum(site.count - site.violations for site in agent.report().sites) == 150 + 150 + 200 + 300


def test_regions_that_have_ended_are_let_go_of(cpu_agent, recorders):
    """A job that opens one each step does not grow."""
    agent = cpu_agent()
    watch = syncagent.watch(policy="observe", allow_kinds=["dynamic_shape"])
    refs = []
    for _ in range(30):
        with watch as region:
            for _ in range(3):
                X.nonzero()
        refs.append(weakref.ref(region))
    del region
    assert len(agent.events()) == 90
    agent.regions.retire(time.perf_counter_ns())
    gc.collect()
    assert [ref for ref in refs if ref() is not None] == []
    assert recorders[0].threads.current().tallies == {}


def test_a_region_is_owed_what_was_seen_in_it_though_it_has_ended(cpu_agent):
    """Nothing is delivered at its end, which the training thread would pay for."""
    agent = cpu_agent()
    with syncagent.watch(policy="observe") as region:
        X.nonzero()
    agent.regions.retire(0)
    assert ops(region) == ["aten::nonzero"]


def test_the_policy_of_a_region_that_fails_is_off_alone(cpu_agent, monkeypatch):
    """The process's goes on, the program sees nothing, and the report says it."""
    agent = cpu_agent(policy="raise")
    with syncagent.watch(policy="warn") as region:

        def broken(*_words):
            raise KeyError("broken")

        monkeypatch.setattr(region.own_policy, "forbids", broken)
        X.nonzero()
        X.nonzero()
    assert forbidden(X.nonzero)
    assert any("the policy failed and is off: KeyError" in note for note in region.report().notes)
    assert agent.policy == "raise"


def test_the_process_keeps_watching_where_its_own_policy_has_failed(cpu_agent, monkeypatch):
    """A region's is still asked before the wait."""
    made, make = [], syncagent.runtime.agent.Policy
    monkeypatch.setattr(syncagent.runtime.agent, "Policy", lambda *words: made.append(make(*words)) or made[-1])
    agent = cpu_agent(policy="warn")
    monkeypatch.setattr(made[0], "forbids", lambda *_words: 1 / 0)
    X.nonzero()
    assert any("the policy failed and is off: ZeroDivisionError" in note for note in agent.report().notes)
    with raising():
        with syncagent.allow("wanted"):
            X.nonzero()
        assert forbidden(X.nonzero)


def test_a_region_that_cannot_be_opened_does_not_stop_the_program(cpu_agent, monkeypatch):
    """Our own mistake: the block runs under the agent that is there, which goes on."""
    agent = cpu_agent()
    monkeypatch.setattr(agent.regions, "open", lambda *_words: 1 / 0)
    with syncagent.watch(policy="raise") as watched:
        X.nonzero()
    assert watched is agent
    assert agent.running
    assert any("a watch inside another could not begin" in note for note in agent.report().notes)


def test_what_is_no_function_is_not_decorated():
    """A class would be one no longer, and a property would never be asked."""
    for thing in (type("Thing", (), {}), property(lambda self: None)):
        with pytest.raises(TypeError, match="a function can be decorated"):
            syncagent.watch()(thing)


def test_a_watch_that_goes_on_when_the_first_one_ends_says_that_it_saw_no_more():
    """Its gate has failed: what it was to stop was not stopped."""

    @syncagent.watch(detail="syncs")
    def first():
        yield

    @syncagent.watch(policy="raise")
    def second():
        yield
        yield forbidden(X.nonzero)

    outer, inner = first(), second()
    next(outer)
    next(inner)
    outer.close()
    assert not next(inner)
    inner.close()
    report = second.report()
    assert report.run.gate == "failed"
    assert any("has ended before this one" in note for note in report.notes)
