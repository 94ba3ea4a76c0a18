"""Steps that are watched whole, and what happens in those that are not (``detail="auto"``)."""

from __future__ import annotations

import threading
import time

import pytest
import torch

import syncagent
from syncagent.sensors import sampling
from syncagent.sensors.sampled_steps import Level, Periods, sampled_of
from syncagent.sensors.sampling import FIRST
from syncagent.torchbridge import internals
from syncagent.torchbridge.main_thread import MainThread
from tests.unit.tools import forbidden, on_thread

X = torch.tensor([[1.0, 0.0, 3.0], [0.0, 5.0, 0.0]])
MS = 1_000_000


def is_sampled(step, level):
    """Whether this step is the one of its block."""
    return step == sampled_of(step >> level, level)


def kernels_of(agent):
    return next(sensor for sensor in agent.sensors.statuses() if sensor.name == "kernels")


def is_armed():
    """Are ops watched on this thread now, by kernels and by modes?"""
    from torch import _C

    key = _C._dispatch_tls_is_dispatch_key_included("TESTING_ONLY_GenericMode")
    return bool(key), bool(_C._len_torch_function_stack() and _C._len_torch_dispatch_stack())


def steps(count, each=lambda: X.nonzero()):
    for _ in range(count):
        each()
        syncagent.step()


# --- which steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", range(9))
def test_exactly_one_step_of_each_block_is_sampled_and_the_levels_are_nested(level):
    """So that a rank that can afford less samples some of the steps that the others sample."""
    period = 1 << level
    chosen = [step for step in range(8192) if is_sampled(step, level)]
    assert [step // period for step in chosen] == list(range(8192 // period))
    assert all(is_sampled(step, level - 1) for step in chosen if level)


@pytest.mark.parametrize("every", [2, 3, 8, 10, 16, 50, 64, 100])
@pytest.mark.parametrize("level", [2, 4, 6])
def test_what_happens_at_regular_steps_is_neither_missed_nor_met_each_time(every, level):
    count = 400_000
    seen = sum(1 << level for step in range(0, count, every) if is_sampled(step, level))
    assert seen == pytest.approx(count / every, rel=0.3)


def test_numbers_that_a_program_gives_its_steps_may_be_any():
    for step in (-5, 10**30, 2**64 - 1):
        assert sum(is_sampled((step // 16) * 16 + offset, 4) for offset in range(16)) == 1


# --- how many ---------------------------------------------------------------------------------------------------------


def measured(level, extra_ms, times=1, plain_ms=10):
    for _ in range(times):
        for _ in range(8):
            level.passed(plain_ms * MS)
        level.sampled((plain_ms + extra_ms) * MS)
    return level.level


def test_the_first_steps_say_how_many_others_can_be_afforded():
    """15 ms more on 10 ms is within 1 % where one step in 256 has it; the agent's own measure of it is too low."""
    level = Level(0.01)
    level.guess([10 * MS] * 5, [25 * MS] * 5)
    assert level.level == 8


def test_the_level_follows_what_sampled_steps_cost_against_those_beside_them():
    level = Level(0.01)
    assert measured(level, 20) == 4, "by two at most"
    assert measured(level, 20, 10) == 8
    assert measured(level, 1000) == 8, "one step that was slow for another reason"
    assert measured(level, 0, 4) == 7, "not at once, and by one"
    assert measured(level, 0, 100) == 2, "there are always steps beside it"
    assert measured(level, -5, 10) == 2


def test_the_first_steps_are_held_against_the_next_ones():
    """The agent's own measure of 5 ms is too low: the steps took 20 ms longer than those that are not watched."""
    level = Level(0.01)
    level.guess([5 * MS] * 20, [30 * MS] * 20)
    assert level.level == 6
    level.compare([500 * MS] * 10 + [30 * MS] * 10)  # the program's own start is not the agent's
    for _ in range(7):
        level.passed(10 * MS)
        assert level.holds_back()
    level.passed(10 * MS)
    assert not level.holds_back()
    assert level.level == 8
    assert measured(level, 0, 4) == 8


@pytest.mark.parametrize(("first", "expected"), [(1000, 8), (10, 6), (5, 6)])
def test_slow_first_steps_raise_the_level_by_two_at_most(first, expected):
    level = Level(0.01)
    level.guess([5 * MS] * 20, [30 * MS] * 20)
    level.compare([first * MS] * 20)
    for _ in range(8):
        level.passed(10 * MS)
    assert level.level == expected


def test_where_every_step_is_watched_nothing_is_waited_for():
    level = Level(0.01)
    level.compare([10 * MS] * 20)
    assert [level.holds_back() for _ in range(40)] == [True] * 32 + [False] * 8


def test_without_a_share_no_step_is_sampled():
    level = Level(0.0)
    level.guess([10 * MS], [10 * MS])
    assert measured(level, 0, 10) is None


def test_a_moment_finds_what_was_in_force():
    periods = Periods()
    for since, period in ((10, 1), (20, 0), (30, 64), (40, 0), (50, 0), (60, 128)):
        periods.begin(since, period)
    assert [periods.at(moment).period for moment in (0, 10, 19, 25, 30, 39, 55, 99)] == [0, 1, 1, 0, 64, 64, 0, 128]
    assert periods.sampled.numbers == {1: 1, 64: 1}, "those that have ended"


# --- in an agent ------------------------------------------------------------------------------------------------------


def test_after_the_first_steps_some_stand_for_all(cpu_agent):
    """Counts are scaled up and say so; the others are passed by, and nothing of the agent is called in them."""
    agent = cpu_agent(overhead=1)
    assert is_armed() == (True, True)
    armed = []

    def step():
        armed.append(is_armed())
        X.nonzero()
        time.sleep(0.001)

    steps(FIRST + 400, step)
    report = agent.stop()
    assert is_armed() == (False, False)
    assert armed[:FIRST] == [(True, True)] * FIRST
    assert set(armed[FIRST:]) == {(True, True), (False, False)}
    sampled = armed[FIRST:].count((True, True))
    assert sampled < 140
    (site,) = report.sites
    assert site.sampled
    assert site.count == pytest.approx(FIRST + 400, rel=0.2)
    assert site.count_error is not None
    assert site.count_error < 0.2 * site.count
    assert len(agent.events()) == FIRST + sampled
    assert report.run.detail == "auto"
    assert any(f"the first {FIRST} steps were watched whole" in note for note in report.notes)
    assert any(f"{sampled} more steps were sampled" in note for note in report.notes)
    assert "one step of " in kernels_of(agent).detail


def test_the_first_steps_are_no_part_of_the_overhead_that_is_reported(cpu_agent):
    agent = cpu_agent(overhead=0)
    steps(FIRST, lambda: [X.nonzero() for _ in range(50)])
    first_ns = agent.sensors.first_ns
    assert first_ns > 0
    report = agent.report()
    assert report.overhead.share * report.run.duration_s * 1e9 < first_ns / 2


def test_without_overhead_nothing_is_watched_after_the_first_steps(cpu_agent):
    agent = cpu_agent(overhead=0)
    steps(FIRST + 30)
    assert len(agent.events()) == FIRST
    assert is_armed() == (False, False)
    assert "overhead is 0" in kernels_of(agent).detail


def test_the_first_steps_end_once_enough_time_was_added(cpu_agent, monkeypatch):
    monkeypatch.setattr(sampling, "FIRST_ADDED_NS", 1)
    agent = cpu_agent(overhead=0)
    agent.sensors.sampling.calibrate()
    steps(5)
    assert len(agent.events()) == 1


def test_other_threads_are_left_alone(cpu_agent):
    agent = cpu_agent()
    assert on_thread(is_armed) == (False, False)
    on_thread(X.nonzero)
    assert agent.events() == ()


def test_steps_that_end_on_another_thread_are_sampled_there(cpu_agent):
    agent = cpu_agent(overhead=0)
    found = []

    def train():
        steps(1)
        found.append(is_armed())
        steps(FIRST)
        found.append(is_armed())

    on_thread(train)
    assert found == [(True, True), (False, False)]
    assert len(agent.events()) == FIRST - 1
    in_between(agent)
    assert not is_armed()[0], "nor is what was begun on this one"


def test_an_agent_that_is_started_on_another_thread_watches_the_main_one_too(cpu_agent):
    """Whose first step may be the one that ends; the modes are on the thread that has started it."""
    found = []
    agent = on_thread(lambda: (cpu_agent(overhead=0), found.append(is_armed()))[0])
    spin(lambda: is_armed()[0])
    assert found == [(True, True)]
    X.nonzero()
    steps(FIRST + 1)
    assert len(agent.events()) == FIRST + 1
    assert is_armed() == (False, False)


def test_what_was_entered_on_one_thread_is_left_by_that_one(cpu_agent):
    """The stop comes from elsewhere: what it cannot take out does nothing any more."""
    agent = cpu_agent()
    on_thread(agent.stop)
    before = len(agent.events())
    X.nonzero()
    assert len(agent.events()) == before
    assert agent.faults.sentences == []


# --- a policy and regions in it ---------------------------------------------------------------------------------------


def test_a_gate_is_not_left_to_samples(cpu_agent):
    with pytest.raises(syncagent.ConfigError, match="detail is 'auto', but it must be syncs or ops"):
        cpu_agent(policy="raise", detail="auto")


def test_a_region_that_raises_sees_every_sync_of_its_block(cpu_agent):
    agent = cpu_agent(overhead=0)
    steps(FIRST + 1)
    with syncagent.watch(policy="raise") as region:
        assert is_armed() == (True, False)
        assert forbidden(lambda: X.nonzero())
        syncagent.step()
        assert forbidden(lambda: X.nonzero())
    assert is_armed() == (False, False)
    assert not forbidden(lambda: X.nonzero())
    report = region.report()
    assert (report.run.gate, report.totals.syncs) == ("held", 2)
    assert any("every op that may wait" in sensor.detail for sensor in report.sensors)
    assert len(agent.events()) == FIRST + 2


def test_a_region_that_raises_says_what_it_cannot_see(cpu_agent):
    cpu_agent(overhead=0)
    torch.compile(lambda: None, backend="eager")
    with syncagent.watch(policy="raise") as region:
        assert is_armed() == (False, False)
    report = region.report()
    assert report.run.gate == "failed"
    assert any("does not see syncs of ops since torch.compile is in use" in note for note in report.notes)


@pytest.mark.filterwarnings("ignore::syncagent.HostSyncWarning")
def test_where_the_policy_acts_every_sync_of_the_training_thread_is_seen(cpu_agent):
    agent = cpu_agent(overhead=0)
    steps(FIRST + 1)
    agent.policy = "warn"
    steps(1)
    assert is_armed() == (True, False)
    steps(10)
    assert len(agent.events()) == FIRST + 10
    assert [(site.count, site.sampled) for site in agent.report().sites] == [(FIRST + 12, True)], "two were not watched"
    agent.policy = "raise"
    report = agent.report()
    assert report.run.gate == "failed"
    assert any("syncs of ops are seen on the training thread alone" in note for note in report.notes)


def test_while_the_cost_is_measured_no_step_is_slowed(cpu_agent):
    """Its window wants every sync seen, and by kernels alone."""
    agent = cpu_agent(overhead=1)
    steps(FIRST)
    measuring = agent.sensors.sampling
    measuring.barred = lambda: True
    armed = []
    steps(100, lambda: armed.append(is_armed()))
    measuring.wants = lambda _: True
    steps(20)
    assert is_armed() == (True, False)
    assert set(armed[1:]) == {(False, False)}
    assert sum(number for stands_for, number in agent.sensors.sampled().numbers.items() if stands_for > 1) <= 1
    (site,) = agent.report().sites
    assert len(agent.events()) == FIRST + 19
    assert site.count == FIRST + 120, "there is one in each step, watched or not"


def test_a_fault_in_it_turns_it_off_and_nothing_else(cpu_agent):
    agent = cpu_agent()
    agent.sensors.sampling.barred = lambda: 1 / 0
    steps(3)
    assert is_armed() == (False, False)
    assert agent.steps.count == 3
    assert list(agent.faults.parts) == ["the sampling of steps"]


# --- where nothing can be sampled -------------------------------------------------------------------------------------


def test_from_the_first_compilation_on_all_is_off(cpu_agent):
    """Guards of compiled code see the key and the modes, and it would be compiled again and again."""
    agent = cpu_agent()
    steps(2)
    torch.compile(lambda: None, backend="eager")
    assert is_armed() == (False, False)
    steps(10)
    report = agent.report()
    assert len(agent.events()) == 2
    assert any("torch.compile is in use" in note for note in report.notes)
    assert all("torch.compile" in sensor.detail for sensor in report.sensors if sensor.name in {"kernels", "modes"})


def test_nothing_is_entered_while_a_graph_is_captured(cpu_agent, monkeypatch):
    captures = []
    look_up = internals.look_up
    found = look_up()
    object.__setattr__(found, "capturing", lambda: bool(captures))
    monkeypatch.setattr(internals, "look_up", lambda **_: found)
    agent = cpu_agent()
    agent.sensors.sampling.cuda_is_used()
    captures.append(True)
    steps(1)
    assert is_armed() == (False, False)
    captures.clear()
    steps(1)
    assert is_armed() == (True, True)


def test_an_optimizer_that_steps_within_the_backward_pass_turns_nothing_on_or_off(cpu_agent):
    agent = cpu_agent(overhead=0)
    weight = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    weight.register_post_accumulate_grad_hook(lambda _: optimizer.step())
    for _ in range(FIRST + 5):
        (weight * 2).sum().backward()
    assert agent.steps.count == FIRST + 5
    assert is_armed() == (True, True)


def test_modes_that_the_program_has_thrown_away_are_said_to_be_lost(cpu_agent):
    from torch.utils._python_dispatch import _pop_mode

    agent = cpu_agent()
    ours = _pop_mode()
    steps(1)
    assert is_armed() == (True, True), "other ones have been made"
    assert any("modes were not found" in note for note in agent.report().notes)
    with ours:
        X.nonzero()


# --- without steps ----------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(sampling, "_NO_STEP_NS", 0)
    monkeypatch.setattr(sampling, "_INTERVAL_NS", 1)


def in_between(agent):
    """What the agent's thread does several times a second, and then the program goes on."""
    on_thread(agent.sensors.sampling.tick)
    for _ in range(100):
        X.sum()


def test_a_program_without_steps_is_sampled_by_intervals(cpu_agent, impatient):
    agent = cpu_agent(overhead=0)
    in_between(agent)
    assert is_armed() == (True, True)
    agent.sensors.sampling.cuda_is_used()
    for _ in range(FIRST + 2):
        in_between(agent)
    assert is_armed() == (False, False)
    notes = agent.report().notes
    assert any(f"the first {FIRST} seconds were watched whole" in note for note in notes), notes


@pytest.mark.parametrize("seconds", [3, FIRST + 10])
def test_steps_take_over_where_they_come_late(cpu_agent, impatient, seconds):
    """As in most programs: the model is loaded, and sent to the GPU, for longer than any step takes."""
    agent = cpu_agent(overhead=0)
    agent.sensors.sampling.cuda_is_used()
    for _ in range(seconds):
        in_between(agent)
    with syncagent.watch() as region:
        steps(FIRST - 1)
        for _ in range(5):
            in_between(agent)
        assert is_armed() == (True, True)
        steps(1)
        assert is_armed() == (False, False)
        steps(12)
    (site,) = agent.report().sites
    assert site.count in {FIRST + 11, FIRST + 12}, "the first step may have been watched or not"
    (site,) = region.report().sites
    assert site.count in {FIRST + 11, FIRST + 12}
    assert any(f"the first {FIRST} steps were watched whole" in note for note in agent.report().notes)


@pytest.mark.parametrize("seconds", [3, FIRST + 2])
def test_steps_that_come_late_are_counted_as_steps_that_come_at_once(cpu_agent, impatient, seconds):
    """In a region as well: no second before the first step's end stands for a step."""
    agent = cpu_agent(overhead=0)
    agent.sensors.sampling.cuda_is_used()
    in_between(agent)
    with syncagent.watch() as region:
        for _ in range(seconds):
            in_between(agent)
        steps(FIRST + 10)
    for watched in (agent, region):
        report = watched.report()
        [site] = [site for site in report.sites if site.op == "aten::nonzero"]
        unseen = seconds // FIRST  # in the midst of the first step nothing was watched any more
        assert (report.run.steps, site.count) == (FIRST + 10, FIRST + 10 - unseen)
    assert agent.sensors.sampled().numbers == {1: FIRST}


def test_an_interval_does_not_end_inside_of_an_op(cpu_agent, impatient):
    """There torch puts the thread's modes back as they were."""
    agent = cpu_agent(overhead=0)
    agent.sensors.sampling.cuda_is_used()

    class Busy(torch.autograd.Function):
        @staticmethod
        def forward(_ctx, value):
            for _ in range(FIRST + 5):
                in_between(agent)
            return value * 2

    Busy.apply(torch.ones(2, requires_grad=True))
    assert is_armed() == (False, False)
    assert agent.faults.sentences == []


# --- on the main thread -----------------------------------------------------------------------------------------------


def spin(until, seconds=10.0):
    end = time.monotonic() + seconds
    while not until() and time.monotonic() < end:
        pass


def test_a_call_is_made_on_the_main_thread_whoever_asks():
    called = []
    main = MainThread(lambda: called.append(threading.get_ident()), called.append)
    assert on_thread(main.ask)
    spin(lambda: called)
    assert called == [threading.main_thread().ident]
    main.stop()
    assert not main.ask()


def test_no_call_is_asked_for_while_one_is_running():
    """A traced function would hang in it: in Python 3.11, and until then it would be made once more."""
    called, then = [], lambda: called.append(main.ask())
    main = MainThread(then, called.append)
    on_thread(main.ask)
    spin(lambda: called)
    for _ in range(1000):
        X.sum()
    assert called == [True]
    assert on_thread(main.ask)
    spin(lambda: len(called) > 1)
    assert called == [True, True]
    main.stop()


def test_what_a_signals_handler_raises_in_it_reaches_the_program():
    """Ctrl-C may come at any moment."""

    def interrupted():
        raise KeyboardInterrupt

    called = []

    def interrupted_later():
        called.append(True)
        interrupted()

    main = MainThread(interrupted_later, lambda _: None)
    on_thread(main.ask)
    spin(lambda: called)
    later = threading.Timer(0.1, main.deliver)
    later.start()
    with pytest.raises(KeyboardInterrupt):
        spin(lambda: False)
    later.join()
    main.stop()
