"""The agent's own thread: what it hands to the sinks, in which order, and what it does about faults."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
import torch

import syncagent
from syncagent.attribution.threads import Threads
from syncagent.delivery import buffers, pipeline
from syncagent.delivery.buffers import BufferReader
from syncagent.delivery.sink import Sink
from syncagent.recording import recorder
from syncagent.recording.collectives import CollectiveWaits
from syncagent.recording.records import ThreadState
from syncagent.recording.waits import DriverWaits
from syncagent.runtime.process import release
from syncagent.support import log
from syncagent.support.faults import Faults

X = torch.tensor([[1.0, 0.0], [0.0, 5.0]])


class Memory(Sink):
    """Remembers the calls that it got."""

    name = "memory"

    def __init__(self):
        self.told = []
        self.threads = set()

    def events(self, batch):
        self.threads.add(threading.current_thread().name)
        self.told += [("event", event.op, event.step) for event in batch]

    def step(self, record):
        self.told.append(("step", record.step))

    def flush(self):
        self.told.append(("flush",))

    def close(self):
        self.told.append(("close",))


class Broken(Memory):
    name = "broken"

    def __init__(self, call):
        super().__init__()
        setattr(self, call, self._fail)

    def _fail(self, *_):
        self.told.append(("failed",))
        raise OSError("disk full")


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    monkeypatch.setattr(log, "_said", set())


@pytest.fixture
def held(monkeypatch):
    """The agent's thread drains only on demand."""
    monkeypatch.setattr(pipeline, "_ROUND_S", 3600.0)


@pytest.mark.usefixtures("held")
def test_the_syncs_of_a_step_come_before_its_end(cpu_agent):
    """Though both are delivered in one go, later; what follows the last step comes last."""
    sink = Memory()
    agent = cpu_agent(detail="syncs", sinks=(sink,))
    for _ in range(2):
        X.nonzero()
        X.unique()
        syncagent.step()
    X.nonzero()
    agent.flush()
    release(agent)
    assert sink.told == [
        ("event", "aten::nonzero", 0), ("event", "aten::_unique2", 0), ("step", 0),
        ("event", "aten::nonzero", 1), ("event", "aten::_unique2", 1), ("step", 1),
        ("event", "aten::nonzero", 2), ("flush",), ("close",),
    ]  # fmt: skip


def test_sinks_are_served_on_the_agents_thread(cpu_agent):
    """The training thread leaves a record and goes on."""
    delivered = threading.Event()
    sink = Memory()
    take = sink.events
    sink.events = lambda batch: (take(batch), delivered.set())
    cpu_agent(detail="syncs", sinks=(sink,))
    X.nonzero()
    assert delivered.wait(10)
    assert sink.threads == {"syncagent"}


@pytest.mark.parametrize("call", ["events", "step", "flush", "close"])
def test_a_sink_that_fails_is_switched_off_and_the_others_go_on(cpu_agent, capsys, call):
    """It is reported once on stderr and in the report; the program never notices."""
    broken, sink = Broken(call), Memory()
    agent = cpu_agent(detail="syncs", sinks=(broken, sink))
    for _ in range(3):
        X.nonzero()
        syncagent.step()
        agent.flush()
    report = release(agent)
    assert broken.told.count(("failed",)) == 1
    assert [told for told in sink.told if told[0] == "event"] == [("event", "aten::nonzero", step) for step in range(3)]
    assert "sink broken failed and is off: OSError: disk full" in report.notes
    assert capsys.readouterr().err.count("disk full") == 1
    assert report.totals.syncs == 3


@pytest.mark.parametrize("call", ["events", "step", "flush"])
def test_a_sink_that_fails_is_closed_and_one_that_hangs_then_is_not_waited_for(cpu_agent, monkeypatch, call):
    """Its files, threads and ports are released; whatever happens then, the run goes on."""
    monkeypatch.setattr(pipeline, "_CLOSE_TIMEOUT_S", 0.05)
    hangs, over = Broken(call), threading.Event()
    hangs.close = lambda: (hangs.told.append(("close",)), over.wait(20))
    broken, sink = Broken(call), Memory()
    agent = cpu_agent(detail="syncs", sinks=(hangs, broken, sink))
    X.nonzero()
    syncagent.step()
    agent.flush()
    X.nonzero()
    report = release(agent)
    over.set()
    assert [(told.told.count(("failed",)), told.told.count(("close",))) for told in (hangs, broken)] == [(1, 1)] * 2
    assert [told[0] for told in sink.told if told[0] == "event"] == ["event"] * 2
    assert report.totals.syncs == 2


@pytest.mark.usefixtures("held")
def test_what_a_full_buffer_cannot_take_is_added_up_and_no_count_is_lost(cpu_agent, monkeypatch):
    """Memory is bounded; the syncs of a line become one record, until the agent's thread has caught up."""
    monkeypatch.setattr(recorder, "_BUFFER", 5)
    agent = cpu_agent(detail="syncs")
    for _ in range(2):
        for _ in range(8):
            X.nonzero()
        X.unique()
        assert agent.report().dropped == 0
    totals = {site.op: site.count for site in agent.report().sites}
    assert totals == {"aten::nonzero": 16, "aten::_unique2": 2}
    assert [event.repeats for event in agent.events() if event.repeats > 1] == [3, 3]


@pytest.mark.usefixtures("held")
def test_what_is_dropped_is_counted(cpu_agent, monkeypatch):
    """Where there are more lines than can be added up, the report says how many were lost and why."""
    monkeypatch.setattr(recorder, "_BUFFER", 5)
    monkeypatch.setattr(recorder, "_TALLIES", 0)
    agent = cpu_agent(detail="syncs")
    for _ in range(8):
        X.nonzero()
    report = agent.report()
    assert (report.totals.syncs, report.dropped) == (5, 3)
    assert "dropped: 3 (buffer full)" in report.notes


@pytest.mark.usefixtures("held")
def test_an_observation_that_cannot_be_read_is_counted_and_the_rest_delivered(cpu_agent, monkeypatch, capsys):
    """One broken record is not the end of the others."""
    agent = cpu_agent(detail="syncs")
    whole = buffers.span_in
    contexts = iter([None, "strange", None])

    def span_in(_context):
        if next(contexts, None) is not None:
            raise ValueError("strange")
        return whole(None)

    monkeypatch.setattr(buffers, "span_in", span_in)
    X.nonzero()
    X.unique()
    X.nonzero()
    report = agent.report()
    assert [event.op for event in agent.events()] == ["aten::nonzero"] * 2
    assert report.dropped == 1
    assert "strange" in " ".join(report.notes)
    assert "strange" in capsys.readouterr().err


@pytest.mark.usefixtures("held")
def test_a_thread_that_has_ended_is_not_forgotten(cpu_agent):
    """Its syncs are delivered after it is gone, under its name, however many threads came since."""
    agent = cpu_agent(detail="syncs")
    for number in range(30):
        thread = threading.Thread(target=X.nonzero, name=f"loader-{number}")
        thread.start()
        thread.join()
    assert [event.thread for event in agent.events()] == [f"loader-{number}" for number in range(30)]


def test_threads_that_have_ended_leave_nothing_behind(cpu_agent, recorders):
    """A program that makes threads without end does not fill the memory, though each has the number of the last."""
    agent = cpu_agent(detail="syncs")
    threads = recorders[0].threads
    for _ in range(20):
        X.nonzero()
        del threads.local.state  # as when a thread has ended and a new one has been given its number
        agent.events()
    assert len(threads.all) <= 2
    assert agent.report().totals.syncs == 20


def test_the_agents_thread_outlives_a_fault_of_its_own(cpu_agent, monkeypatch, capsys):
    """The report says so, and the next round is made."""
    agent = cpu_agent(detail="syncs")
    once, done = [OSError("surprise")], threading.Event()
    collect = BufferReader.take_events

    def failing(self):
        if once:
            raise once.pop()
        events = collect(self)
        if events:
            done.set()
        return events

    monkeypatch.setattr(BufferReader, "take_events", failing)
    X.nonzero()
    assert done.wait(10)
    assert [event.op for event in agent.events()] == ["aten::nonzero"]
    assert "surprise" in " ".join(agent.report().notes)
    assert "surprise" in capsys.readouterr().err


# --- the end of the process must come ---------------------------------------------------------------------------------


class NoThreads:
    """A recorder that has seen nothing."""

    def __init__(self):
        self.faults = Faults()
        self.threads = Threads(ThreadState, self.faults)
        self.current_step = lambda: 0
        self.waits = DriverWaits(self.current_step)
        self.collectives = CollectiveWaits()


def delivering(*sinks, recorder=None):
    """A pipeline without an agent, and what it reads from."""
    recorder = recorder or NoThreads()
    reader = BufferReader(recorder, None)
    return pipeline.Pipeline(reader, sinks, recorder.faults), reader


def ends(call):
    """Does the call come back?  A thread that hangs is left behind, and ends with the tests."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(10)
    return not thread.is_alive()


def test_a_sink_that_hangs_does_not_keep_the_program_from_ending():
    """``stop`` waits for the agent's thread for a while, then goes on without it."""
    inside = threading.Event()

    class Hanging(Memory):
        def step(self, _record):
            inside.set()
            threading.Event().wait()

    own, reader = delivering(Hanging())
    own.start()
    reader.ended_steps.append((0, 0, 1, None))
    assert inside.wait(10)
    assert ends(lambda: own.stop(timeout_s=0.2))


@pytest.mark.usefixtures("held")
def test_a_slow_delivery_is_waited_for_as_long_as_it_goes_on():
    """Sinks may need longer for all that is left than a call that hangs is given."""

    class Slow(Memory):
        def step(self, record):
            super().step(record)
            time.sleep(0.1)

    sink = Slow()
    own, reader = delivering(sink)
    reader.ended_steps.extend((step, 0, 1, None) for step in range(15))
    own.start()
    own.stop(timeout_s=0.3)
    assert sink.told == [*(("step", step) for step in range(15)), ("close",)]
    assert own.undelivered == 0


@pytest.mark.usefixtures("held")
def test_a_slow_delivery_is_not_waited_for_beyond_the_time_that_is_left():
    """Before a signal ends the process, say."""
    over = threading.Event()

    class Slow(Memory):
        def step(self, record):
            super().step(record)
            over.wait(0.1)

    sink = Slow()
    own, reader = delivering(sink)
    reader.ended_steps.extend((step, 0, 1, None) for step in range(1_000))
    own.start()
    own.stop(most_s=0.5)
    assert len(sink.told) < 1_000
    over.set()


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("room", [1_000, 20])
def test_what_a_sink_that_hangs_keeps_from_the_report_is_counted_as_dropped(cpu_agent, monkeypatch, room):
    """Also the syncs of lines that were only added up, since the buffer was full."""
    monkeypatch.setattr(pipeline, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(recorder, "_BUFFER", room)
    over = threading.Event()

    class Hanging(Memory):
        def events(self, _batch):
            over.wait(20)

    agent = cpu_agent(detail="syncs", sinks=(Hanging(),))
    for _ in range(100):
        X.nonzero()
    report = agent.stop()
    over.set()
    assert 0 < report.totals.syncs < 100
    assert report.totals.syncs + report.dropped == 100
    assert f"dropped: {report.dropped} (a sink hangs)" in report.notes


def test_what_is_left_can_be_counted_while_a_slow_delivery_goes_on(monkeypatch):
    """It is not waited for any longer, and takes away what is being counted."""
    over = threading.Event()

    class Slow(Memory):
        def events(self, _batch):
            over.wait(0.0005)

    own, reader = delivering(Slow())
    waiting = [SimpleNamespace(step=0, repeats=1)] * 60_000
    monkeypatch.setattr(reader, "take_events", lambda: [waiting.pop() for _ in range(len(waiting))])
    own.start()
    own.stop(most_s=0.3)
    left = [own.undelivered for _ in range(30)]
    over.set()
    assert left == sorted(left, reverse=True)
    assert left[0] > 0


def test_threads_that_have_ended_are_let_go_of_where_every_round_is_busy(monkeypatch):
    """Once a second, however much is delivered in between."""
    let_go = threading.Event()

    busy = NoThreads()
    busy.threads.all = [ThreadState(), ThreadState()]
    monkeypatch.setattr(busy.threads, "retire", let_go.set)
    monkeypatch.setattr(pipeline, "_ROUND_S", 0.01)
    monkeypatch.setattr(pipeline, "_DRAIN_EVERY_S", 0.1)
    monkeypatch.setattr(pipeline, "_BUSY", 0)
    own, _ = delivering(recorder=busy)
    own.start()
    try:
        assert let_go.wait(5)
    finally:
        own.stop()


def test_a_step_whose_span_cannot_be_read_is_delivered_without(monkeypatch):
    """The program's context may be anything."""
    records = []

    class Keeping(Memory):
        def step(self, record):
            records.append(record)

    def strange(_context):
        raise ValueError("strange")

    monkeypatch.setattr(buffers, "span_in", strange)
    recorder = NoThreads()
    own, reader = delivering(Keeping(), recorder=recorder)
    reader.ended_steps.append((7, 0, 1, None))
    own.drain()
    assert [(record.step, record.user_span) for record in records] == [(7, None)]
    assert "strange" in " ".join(recorder.faults.sentences)


@pytest.mark.usefixtures("held")
def test_stop_may_interrupt_a_delivery_on_the_same_thread():
    """As SIGTERM does where it arrives while the program asks for its events."""

    class Interrupted(Memory):
        def step(self, _record):
            own.stop(timeout_s=0.2)

    own, reader = delivering(Interrupted())
    reader.ended_steps.append((0, 0, 1, None))
    assert ends(own.drain)


def test_delivery_goes_on_while_the_training_thread_waits(cpu_agent):
    """As for the GPU: without the interpreter's lock.  All that it left before is delivered before the wait ends."""
    all_there = threading.Event()

    class Counting(Memory):
        def events(self, batch):
            super().events(batch)
            if len(self.told) >= 500:
                all_there.set()

    sink = Counting()
    cpu_agent(sinks=(sink,), detail="syncs")
    for _ in range(500):
        X[0, 0].item()
    assert all_there.wait(20)
    assert sink.threads == {"syncagent"}


def test_a_rank_that_is_known_later_is_on_what_comes_then(cpu_agent, monkeypatch):
    """Ray Train and Lightning write it into the environment of the script that runs already."""
    told = threading.Event()

    class Ranks(Memory):
        def events(self, batch):
            self.told += [event.rank for event in batch]
            told.set()

    sink = Ranks()
    agent = cpu_agent(sinks=(sink,), detail="syncs")
    X[0, 0].item()
    assert told.wait(20)
    monkeypatch.setenv("RANK", "3")
    ending = time.monotonic() + 20
    while sink.told[-1] is None and time.monotonic() < ending:
        X[0, 0].item()
        time.sleep(0.02)
    assert (sink.told[0], sink.told[-1], agent.report().run.rank) == (None, 3, 3)
