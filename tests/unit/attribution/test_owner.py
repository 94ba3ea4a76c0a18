"""Which thread called the backward pass that works here, where torch does not hand the caller's context on."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from syncagent.attribution import locator
from syncagent.attribution.callsite import CallSites
from syncagent.attribution.locator import Locator
from syncagent.attribution.threads import Threads, WatchedThread
from syncagent.support.faults import Faults
from syncagent.torchbridge.internals import UNKNOWN


def other_thread():
    """What is known of another thread."""
    made = []
    thread = threading.Thread(target=lambda: made.append(WatchedThread()))
    thread.start()
    thread.join()
    return made[0]


class Passes:
    """Threads, some of which stand in ``backward()``; each look at the frames of one is counted."""

    def __init__(self, monkeypatch):
        self.worker, self.one, self.other = WatchedThread(), other_thread(), other_thread()
        self.standing = ()
        self.looks = 0
        threads = Threads(WatchedThread, Faults())
        threads.all = [self.worker, self.one, self.other]
        self.locator = Locator(CallSites(), UNKNOWN, threads)
        monkeypatch.setattr(locator, "backward_frame", self.look)

    def look(self, owner, _internals):
        self.looks += 1
        return "a frame" if owner in self.standing else None

    def caller(self, number):
        """The thread that the pass of that number is put down to."""
        self.locator.internals = replace(UNKNOWN, graph_task=lambda: number)
        return self.locator.owner_of_backward(self.worker)


@pytest.fixture
def passes(monkeypatch):
    return Passes(monkeypatch)


def test_the_caller_is_looked_for_once_a_pass(passes):
    """Its frames are found by walking all threads, which every node of the pass would otherwise do."""
    passes.standing = (passes.one,)
    for _ in range(5):
        assert passes.caller(3) is passes.one
    assert passes.looks == 2


def test_the_next_pass_may_have_another_caller(passes):
    passes.standing = (passes.one,)
    assert passes.caller(3) is passes.one
    passes.standing = (passes.other,)
    assert passes.caller(4) is passes.other


def test_what_is_not_certain_is_asked_again(passes):
    """Two threads in ``backward()`` at once: neither is taken for the caller, until one has left."""
    passes.standing = (passes.one, passes.other)
    assert passes.caller(3) is None
    passes.standing = (passes.other,)
    assert passes.caller(3) is passes.other


def test_outside_of_a_backward_pass_there_is_no_caller(passes):
    passes.standing = (passes.one,)
    assert passes.caller(-1) is None
    assert passes.looks == 0
