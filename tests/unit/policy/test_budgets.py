"""Budgets judge steps instead of single syncs."""

from __future__ import annotations

import sys
import threading

import pytest
import torch

import syncagent
from syncagent import HostSyncError, HostSyncWarning, Phase
from syncagent.policy.budgets import Budgets
from syncagent.settings import sources

X = torch.tensor([[1.0, 0.0], [0.0, 5.0]])


def syncs(count):
    """Wait that many times; return how many times the policy stopped it."""
    stopped = 0
    for _ in range(count):
        try:
            X.sum().item()
        except HostSyncError as error:
            stopped += 1
            text = str(error)
            assert "max_s" in text
            assert "If it is wanted" in text
    return stopped


def test_so_many_syncs_pass_in_each_step_and_the_next_is_stopped_before_it_waits(cpu_agent):
    """A new step has the whole budget again."""
    agent = cpu_agent(policy="raise", max_syncs_per_step=2)
    assert syncs(3) == 1
    syncagent.step()
    assert syncs(2) == 0
    assert [event.violation for event in agent.events()] == [False, False, True, False, False]


def test_a_budget_of_none_at_all_stops_the_first(cpu_agent):
    """Zero is a budget too."""
    cpu_agent(policy="raise", max_syncs_per_step="total=0")
    assert syncs(1) == 1


def test_a_budget_may_be_for_one_phase(cpu_agent):
    """Others are free."""
    cpu_agent(policy="raise", max_syncs_per_step={"forward": 1})
    assert syncs(5) == 0  # outside of any module: phase other
    model = torch.nn.Module()
    model.forward = lambda: X.sum().item()
    model()
    with pytest.raises(HostSyncError, match="max_syncs_per_step allows 1 in phase forward, and this is number 2"):
        model()


def test_allowed_syncs_do_not_count(cpu_agent):
    """They are wanted."""
    cpu_agent(policy="raise", max_syncs_per_step=1)
    with syncagent.allow("wanted"):
        assert syncs(5) == 0
    assert syncs(2) == 1


def test_a_warning_mentions_the_budget_once(cpu_agent, recwarn):
    """Not at each sync beyond it, nor in each step."""
    cpu_agent(policy="warn", max_syncs_per_step=1)
    for _ in range(3):
        syncs(4)
        syncagent.step()
    [warning] = [w for w in recwarn if w.category is HostSyncWarning]
    assert "max_syncs_per_step allows 1, and this is number 2" in str(warning.message)


def test_the_report_counts_what_went_beyond(cpu_agent, recwarn):
    """Three of four in each of two steps."""
    agent = cpu_agent(policy="warn", max_syncs_per_step=1)
    for _ in range(2):
        syncs(4)
        syncagent.step()
    assert sum(site.violations for site in agent.report().sites) == 6
    assert len(recwarn) == 1


def test_stall_and_share_budgets():
    """Milliseconds per step, and a share of the time over a window of steps."""
    budgets = Budgets(sources.load({"max_stall_ms_per_step": 5, "max_stall_share": 0.5, "stall_share_window": 2}, {}))
    assert budgets.set
    assert budgets.after(Phase.FORWARD, 0, 4_000_000) is None
    assert budgets.after(Phase.BACKWARD, 0, 2_000_000) == (
        "max_stall_ms_per_step allows 5 ms, and this step has stalled 6 ms"
    )
    budgets.step_ended(0, 10_000_000)
    assert budgets.after(Phase.FORWARD, 1, 4_900_000) is None  # the window is not full yet
    budgets.step_ended(1, 10_000_000)
    assert budgets.after(Phase.FORWARD, 2, 1) == ("max_stall_share allows 50.0%, and the last 2 steps stalled 54.5%")
    assert budgets.after(Phase.FORWARD, 2, 1) is None  # reported once per step
    budgets.step_ended(2, 100_000_000)
    assert budgets.after(Phase.FORWARD, 3, 1) is None  # the window has moved on


def test_a_step_without_a_sync_has_no_stall():
    """Its time counts, the last step's stall does not."""
    budgets = Budgets(sources.load({"max_stall_share": 0.1, "stall_share_window": 1}, {}))
    budgets.after(Phase.OTHER, 0, 9)
    budgets.step_ended(0, 10)
    budgets.step_ended(1, 10)
    assert budgets.after(Phase.OTHER, 2, 0) is None


@pytest.mark.parametrize("value", ["forward", "forward=-1", "sideways=1", {"forward": None}, -1, "1,2", ()])
def test_a_budget_that_cannot_be_read_is_one_sentence(value):
    """It names the setting, the value and the phases there are."""
    if value == ():
        assert sources.load({"max_syncs_per_step": value}, {}).max_syncs_per_step == ()
        return
    with pytest.raises(syncagent.ConfigError) as error:
        sources.load({"max_syncs_per_step": value}, {})
    assert str(error.value).startswith("syncagent: setting max_syncs_per_step is ")
    assert "forward=2,backward=0" in str(error.value)
    assert "\n" not in str(error.value)


def test_threads_that_end_steps_meanwhile_lose_no_count_and_get_a_number_each():
    """Two threads sync in the same steps while a third ends them: counts, sums and the policy stay right."""
    settings = sources.load({"max_syncs_per_step": 10**9, "max_stall_ms_per_step": 1e12, "max_stall_share": 0.5})
    budgets, counts = Budgets(settings), Budgets(sources.load({"max_syncs_per_step": 0}))
    step = [0]
    failures, syncs, threads = [], 3_000, 4
    sums = Budgets(sources.load({"max_stall_ms_per_step": threads * syncs * 7 / 1e6}))
    before = sys.getswitchinterval()

    def train(phase):
        try:
            for _ in range(syncs):
                now = step[0]
                budgets.before(phase, now)
                budgets.after(phase, now, 7)
        except BaseException as error:
            failures.append(error)

    def count(phase):
        for _ in range(syncs):
            sums.after(phase, 99, 7)
            numbers.append(int(counts.after(phase, 99, 7).rpartition(" ")[2]))

    def end_steps():
        while any(worker.is_alive() for worker in workers):
            budgets.step_ended(step[0], 5)
            step[0] += 1

    sys.setswitchinterval(1e-6)
    try:
        workers = [threading.Thread(target=train, args=(phase,)) for phase in (Phase.FORWARD, Phase.BACKWARD)]
        ender = threading.Thread(target=end_steps)
        for thread in (*workers, ender):
            thread.start()
        for thread in (*workers, ender):
            thread.join()
        assert failures == []
        numbers = []
        workers = [threading.Thread(target=count, args=(Phase.FORWARD,)) for _ in range(threads)]
        for thread in workers:
            thread.start()
        for thread in workers:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert sorted(numbers) == list(range(1, threads * syncs + 1))
    assert sums.after(Phase.FORWARD, 99, 0) is None  # just what is allowed
    assert "this step has stalled" in sums.after(Phase.FORWARD, 99, 1)


def test_what_other_threads_still_do_in_the_step_before_counts_there():
    budgets = Budgets(sources.load({"max_syncs_per_step": 2}))
    assert budgets.after(Phase.FORWARD, 4, 1) is None
    assert budgets.after(Phase.FORWARD, 5, 1) is None
    assert budgets.after(Phase.FORWARD, 4, 1) is None
    assert "this is number 3" in budgets.after(Phase.FORWARD, 4, 1)
    assert budgets.after(Phase.FORWARD, 5, 1) is None
    assert None not in [budgets.before(Phase.FORWARD, step) for step in (4, 5)]
    budgets.after(Phase.FORWARD, 9, 1)
    assert [budgets.before(Phase.FORWARD, step) for step in (4, 5)] == [None, None]  # nothing is kept of them
