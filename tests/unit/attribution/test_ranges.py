"""Labels of ``torch.profiler.record_function`` around a sync."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.profiler import record_function

from syncagent.attribution.ranges import Ranges, footprint
from syncagent.runtime.process import release
from syncagent.support.faults import Faults

X = torch.tensor([[1.0, 0.0], [0.0, 5.0]])


def ranges(agent):
    return [event.ranges for event in agent.events()]


def test_open_ranges_are_listed_outermost_first(agent):
    """Nested, side by side, and none once they are closed."""
    with record_function("step"):
        with record_function("loss"):
            X.nonzero()
        with record_function("metrics"):
            X.nonzero()
        X.nonzero()
    X.nonzero()
    assert ranges(agent) == [("step", "loss"), ("step", "metrics"), ("step",), ()]


def test_a_range_that_an_exception_leaves_is_closed(agent):
    """However the block ends."""
    with pytest.raises(ZeroDivisionError), record_function("outer"), record_function("inner"):
        1 / 0
    X.nonzero()
    assert ranges(agent) == [()]


def test_a_range_that_cannot_be_opened_is_none(agent):
    """torch refuses a name that is no text; nothing closes what was never open."""
    with pytest.raises((TypeError, RuntimeError)), record_function(5):
        pass
    X.nonzero()
    assert ranges(agent) == [()]


def test_where_a_label_cannot_be_kept_the_watch_for_them_ends_and_the_program_goes_on():
    """The class has its own methods back, and the report says so."""

    class NoThreads:
        local = threading.local()

        def current(self):
            raise RuntimeError("injected")

    before, faults = footprint(), Faults()
    watch = Ranges(NoThreads(), faults)
    watch.start()
    assert footprint() != before
    with record_function("in a new thread"):
        pass
    assert footprint() == before
    assert faults.sentences == ["the watch for labels of record_function failed and is off: RuntimeError: injected"]


def test_a_decorated_function_is_a_range(agent):
    """``@record_function(...)``, call after call."""

    @record_function("masking")
    def mask():
        return X[X > 0]

    mask()
    mask()
    X.nonzero()
    assert ranges(agent) == [("masking",), ("masking",), ()]


def test_each_thread_has_its_own_ranges(agent_of_all_threads):
    """What one thread does inside a range is not the other's."""

    def work():
        with record_function("loading"):
            X.nonzero()

    with record_function("training"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        X.nonzero()
    assert sorted(ranges(agent_of_all_threads)) == [("loading",), ("training",)]


def test_a_backward_sync_has_the_ranges_around_backward(agent):
    """The forward's ranges are closed by then."""
    x = torch.tensor([1.0, -1.0], requires_grad=True)
    with record_function("forward"):
        loss = x[x > 0].sum()
    with record_function("backward"):
        loss.backward()
    assert ranges(agent) == [("forward",), ("backward",)]


def test_a_range_open_at_the_start_of_the_watch_closes_without_harm(cpu_agent):
    """Its beginning was not seen, so it is not reported; what is opened inside is, and its end closes nothing else."""
    with record_function("before"):
        agent = cpu_agent(detail="syncs")
        with record_function("inside"):
            X.nonzero()
    with record_function("after"):
        X.nonzero()
    assert ranges(agent) == [("inside",), ("after",)]


def test_a_range_of_before_that_ends_inside_another_takes_nothing_away(cpu_agent):
    """Ranges held by objects need not be nested in the source."""
    before = record_function("before").__enter__()
    agent = cpu_agent(detail="syncs")
    with record_function("inside"):
        before.__exit__(None, None, None)
        X.nonzero()
    assert ranges(agent) == [("inside",)]


def test_stop_gives_the_class_its_own_methods_back(cpu_agent):
    """A range that is still open then closes as usual."""
    own = record_function.__enter__, record_function.__exit__
    agent = cpu_agent(detail="syncs")
    with record_function("open"):
        release(agent)
    assert (record_function.__enter__, record_function.__exit__) == own


@pytest.mark.filterwarnings("ignore:.*Profiler clears events")  # torch 2.11 says so without being asked
def test_the_profiler_sees_the_same_ranges(agent):
    """The agent's wrapper passes everything on."""
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile,
        record_function("mine"),
    ):
        X.nonzero()
    assert "mine" in {event.key for event in profile.key_averages()}
    assert ranges(agent) == [("mine",)]
