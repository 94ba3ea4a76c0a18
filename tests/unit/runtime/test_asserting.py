"""``syncagent.assert_no_syncs()`` and ``assert_max_syncs(n)``: what counts, and what is raised when."""

from __future__ import annotations

import asyncio
import pickle
import threading
from contextlib import nullcontext

import pytest
import torch

import syncagent
from syncagent import ConfigError, HostSyncAssertionError, HostSyncError
from tests.unit.tools import on_thread

X = torch.tensor([[1.0, 0.0], [0.0, 5.0]])

pytestmark = pytest.mark.usefixtures("cpu_device")


def wait(times=1):
    for _ in range(times):
        torch.nonzero(X)


@pytest.fixture(params=["alone", "syncs", "auto", "raise", "warn"])
def around(request, cpu_device):
    """The process is watched by nothing so far, or by an agent of one's own."""
    if request.param == "alone":
        yield
        return
    settings = {"policy": request.param} if request.param in {"raise", "warn"} else {"detail": request.param}
    with syncagent.watch(journal="off", summary=False, **settings):
        yield


@pytest.mark.usefixtures("around")
@pytest.mark.parametrize(("most", "times"), [(0, 0), (0, 1), (1, 1), (1, 2), (3, 2), (3, 4), (100, 101)])
def test_more_than_that_many_fail(most, times):
    if times <= most:
        with syncagent.assert_max_syncs(most):
            wait(times)
        return
    with pytest.raises(HostSyncAssertionError) as caught, syncagent.assert_max_syncs(most):
        wait(times)
    number = "1 host sync" if times == 1 else f"{times} host syncs"
    allowed = {0: "none is allowed", 1: "at most 1 is allowed"}.get(most, f"at most {most} are allowed")
    assert str(caught.value).splitlines()[0] == f"{number}, but {allowed}"


def test_the_message_has_the_line_the_expression_the_op_and_the_advice():
    with pytest.raises(HostSyncAssertionError) as caught, syncagent.assert_no_syncs():
        wait(2)
        if X.sum().item() > 3:
            pass
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 host syncs, but none is allowed"
    assert lines[1].endswith(f"test_asserting.py:{wait.__code__.co_firstlineno + 2} in wait")
    assert lines[2:4] == ["    torch.nonzero(X)", "    aten::nonzero, 2 times"]
    assert lines[4].startswith("    → ")
    assert lines[6] in {"    X.sum().item()", "    if X.sum().item() > 3:"}  # before Python 3.11
    assert lines[7] == "    aten::_local_scalar_dense, once"


def test_many_lines_are_cut_after_ten():
    code = "\n".join(f"torch.nonzero(X)  # {number}" for number in range(14))
    with pytest.raises(HostSyncAssertionError, match="14 host syncs") as caught, syncagent.assert_no_syncs():
        exec(code, {"torch": torch, "X": X})
    assert str(caught.value).endswith("  and 4 more lines")


def test_it_is_an_assertion_and_an_error_of_ours_and_survives_pickling():
    with pytest.raises(AssertionError) as caught, syncagent.assert_no_syncs():
        wait()
    again = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(again, syncagent.SyncAgentError)
    assert str(again) == str(caught.value)


@pytest.mark.usefixtures("around")
def test_an_error_of_the_programs_own_goes_first():
    with pytest.raises(KeyError), syncagent.assert_no_syncs():
        wait()
        raise KeyError


def test_no_except_can_swallow_it():
    with pytest.raises(HostSyncAssertionError), syncagent.assert_no_syncs(), pytest.raises(RuntimeError, match="own"):
        wait()
        raise RuntimeError("own")


def test_it_raises_where_an_older_error_is_being_handled():
    try:
        raise ValueError
    except ValueError:
        with pytest.raises(HostSyncAssertionError), syncagent.assert_no_syncs():
            wait()


@pytest.mark.usefixtures("around")
def test_what_is_allowed_does_not_count():
    with syncagent.assert_no_syncs(), syncagent.allow("wanted"):
        wait()
    with syncagent.allow("wanted"), syncagent.assert_no_syncs():
        wait()
    with syncagent.assert_no_syncs(allow=__file__):
        wait()
    with syncagent.assert_no_syncs(allow_kinds="dynamic_shape"):
        wait()
    with pytest.raises(HostSyncAssertionError, match="1 host sync,"), syncagent.assert_no_syncs():
        with syncagent.allow("wanted"):
            wait(4)
        wait()


def test_there_is_no_warm_up(monkeypatch):
    monkeypatch.setenv("SYNCAGENT_WARMUP_STEPS", "50")
    with pytest.raises(HostSyncAssertionError), syncagent.assert_no_syncs():
        wait()


@pytest.mark.usefixtures("around")
def test_functions_of_any_kind_are_judged_call_by_call():
    @syncagent.assert_max_syncs(1)
    def function(times):
        wait(times)
        return "done"

    @syncagent.assert_max_syncs(1)
    async def coroutine(times):
        await asyncio.sleep(0)
        wait(times)
        return "done"

    @syncagent.assert_max_syncs(1)
    def generator(times):
        wait(times)
        yield "done"

    for _ in range(3):
        assert function(1) == "done"
        assert asyncio.run(coroutine(1)) == "done"
        assert list(generator(1)) == ["done"]
    for call in (lambda: function(2), lambda: asyncio.run(coroutine(2)), lambda: list(generator(2))):
        with pytest.raises(HostSyncAssertionError, match="2 host syncs, but at most 1 is allowed"):
            call()
    assert function.report().sites[0].count == 2


@pytest.mark.usefixtures("around")
def test_what_a_generators_caller_does_meanwhile_is_not_its_own():
    @syncagent.assert_no_syncs()
    def generator():
        yield 1
        yield 2

    for _ in generator():
        wait()


@pytest.mark.usefixtures("around")
def test_assertions_nest_and_each_counts_its_own():
    outer = "3 host syncs, but at most 2 are allowed"
    with pytest.raises(HostSyncAssertionError, match=outer), syncagent.assert_max_syncs(2):
        wait()
        with syncagent.assert_max_syncs(2):
            wait(2)


@pytest.mark.usefixtures("around")
def test_threads_count_only_if_that_is_asked_for():
    with syncagent.assert_no_syncs():
        on_thread(wait)
    with pytest.raises(HostSyncAssertionError), syncagent.assert_no_syncs(judge_threads="all"):
        on_thread(wait)


def test_one_assertion_serves_several_threads_at_once():
    limit, inside, failed = syncagent.assert_max_syncs(1), threading.Barrier(2), []

    def work(times):
        try:
            with limit:
                inside.wait()
                wait(times)
        except HostSyncAssertionError:
            failed.append(times)

    threads = [threading.Thread(target=work, args=(times,)) for times in (1, 2)]
    with syncagent.watch(detail="syncs", journal="off", summary=False):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == [2]


def test_assertions_that_overlap_in_an_unwatched_process_each_count_their_own():
    """The one that began first ends first, and what began the agent must not end it for the others."""

    @syncagent.assert_max_syncs(1)
    async def task(name, begun, ends):
        begun.set()
        await ends.wait()
        wait(2 if name == "second" else 1)

    async def run():
        begun, ends = [asyncio.Event() for _ in range(3)], [asyncio.Event() for _ in range(3)]
        tasks = []
        for name, *events in zip(["first", "second", "third"], begun, ends, strict=True):
            tasks.append(asyncio.create_task(task(name, *events)))
            await events[0].wait()
        for one, event in zip(tasks, ends, strict=True):
            event.set()
            await asyncio.wait([one])
        return [one.exception() for one in tasks]

    first, second, third = asyncio.run(run())
    assert (first, third) == (None, None)
    assert str(second).splitlines()[0] == "2 host syncs, but at most 1 is allowed"
    assert syncagent.current() is None


def test_threads_that_assert_at_once_leave_no_agent_behind():
    started, failed = threading.Barrier(4), []

    def work():
        started.wait()
        for _ in range(5):
            try:
                with syncagent.assert_max_syncs(1):
                    wait(2)
            except HostSyncAssertionError as error:
                failed.append(str(error).splitlines()[0])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == ["2 host syncs, but at most 1 is allowed"] * 20
    assert syncagent.current() is None


def test_an_agent_that_the_program_starts_inside_is_not_ended_by_the_assertion():
    with syncagent.watch(journal="off", summary=False) as agent:
        with syncagent.assert_no_syncs():
            pass
        assert agent.running


def test_the_decorator_needs_no_parentheses():
    @syncagent.assert_no_syncs
    def train(times):
        wait(times)

    train(0)
    with pytest.raises(HostSyncAssertionError, match="2 host syncs, but none is allowed"):
        train(2)


@pytest.mark.parametrize("given", [3, "loss.py", None])
def test_what_is_no_function_is_not_decorated(given):
    with pytest.raises(TypeError, match="a function can be decorated, or a coroutine"):
        syncagent.assert_no_syncs()(given)


def test_a_policy_around_it_does_not_stop_what_an_assertion_counts():
    with syncagent.watch(policy="raise", warmup_steps=0, journal="off", summary=False):
        with syncagent.assert_max_syncs(1):
            wait()
        with pytest.raises(HostSyncError):
            wait()


def test_nothing_is_left_behind():
    with syncagent.assert_max_syncs(1):
        assert syncagent.current() is not None
        wait()
    assert syncagent.current() is None


@pytest.mark.parametrize("most", [-1, 1.0, True, "1", None])
def test_a_number_that_is_none_is_refused(most):
    with pytest.raises(ConfigError, match=r"the most host syncs .* it must be a whole number from 0 up\.$"):
        syncagent.assert_max_syncs(most)


def test_a_setting_that_is_not_known_is_refused():
    with pytest.raises(ConfigError, match="alow"):
        syncagent.assert_no_syncs(alow="x")


@pytest.mark.parametrize("stop", [syncagent.stop, lambda: syncagent.start().stop(), lambda: syncagent.current().stop()])
@pytest.mark.parametrize("is_watched", [False, True])
def test_what_was_stopped_inside_did_not_pass(stop, is_watched):
    """What waits after that is not seen."""
    stopped = pytest.raises(HostSyncAssertionError, match="could not be counted: the program stopped the agent, or")
    with syncagent.watch() if is_watched else nullcontext(), stopped, syncagent.assert_no_syncs():
        stop()
        wait()


def test_it_counts_after_an_agent_was_stopped_by_its_own_stop():
    syncagent.start().stop()
    with pytest.raises(HostSyncAssertionError, match="1 host sync, but none is allowed"), syncagent.assert_no_syncs():
        wait()
