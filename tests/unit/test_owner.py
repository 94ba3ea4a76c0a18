"""Which thread called the backward pass that works here, where torch does not hand the caller's context on."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from syncagent.attribution import backward as autograd
from syncagent.attribution.backward import owner_of_backward
from syncagent.recording.records import ThreadState
from syncagent.torchbridge.internals import UNKNOWN


def other_state():
    """The state of another thread."""
    made = []
    thread = threading.Thread(target=lambda: made.append(ThreadState()))
    thread.start()
    thread.join()
    return made[0]


@pytest.fixture
def looks(monkeypatch):
    """Threads that stand in ``backward()``; each look at one is counted."""

    class Looks(list):
        standing = ()

    looks = Looks()

    def look(owner, _internals):
        looks.append(owner)
        return "a frame" if owner in looks.standing else None

    monkeypatch.setattr(autograd, "backward_frame", look)
    return looks


def in_pass(number):
    return replace(UNKNOWN, graph_task=lambda: number)


def test_the_caller_is_looked_for_once_a_pass(looks):
    """Its frames are found by walking all threads, which every node of the pass would otherwise do."""
    worker, caller, bystander = ThreadState(), other_state(), other_state()
    looks.standing = (caller,)
    for _ in range(5):
        assert owner_of_backward(worker, in_pass(3), [worker, caller, bystander]) is caller
    assert len(looks) == 2


def test_the_next_pass_may_have_another_caller(looks):
    worker, first, second = ThreadState(), other_state(), other_state()
    looks.standing = (first,)
    assert owner_of_backward(worker, in_pass(3), [worker, first, second]) is first
    looks.standing = (second,)
    assert owner_of_backward(worker, in_pass(4), [worker, first, second]) is second


def test_what_is_not_certain_is_asked_again(looks):
    """Two threads in ``backward()`` at once: neither is taken for the caller, until one has left."""
    worker, first, second = ThreadState(), other_state(), other_state()
    looks.standing = (first, second)
    assert owner_of_backward(worker, in_pass(3), [worker, first, second]) is None
    looks.standing = (second,)
    assert owner_of_backward(worker, in_pass(3), [worker, first, second]) is second
